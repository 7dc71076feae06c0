"""MNIST, LeNet-300-100: accuracy over sparsity for all methods, three seeds.

    python -m scripts.mnist_table --data_dir=DATA

trains dense, static, SET, SNFS, RigL, RigLInverted (ERK), gradually pruned and small-dense networks
at 80, 90, 95, 98 and 99 % sparsity: 108 runs of 10 epochs, about 25 s each on two cores. Finished
runs are rows of `results/mnist_lenet_300_100.csv` and are never repeated; the Markdown table and
the plot beside it are made anew from all rows. Expect RigL above SET above static, the more so the
sparser.
"""

import pathlib
import time

import keras
import tensorflow as tf
from absl import app, flags

from scripts import datasets, methods, results

_BATCH_SIZE = 100
_NAME = "mnist_lenet_300_100"
_KEY = ("method", "sparsity", "seed", "epochs", "examples")

FLAGS = flags.FLAGS


def _define_flags():
    flags.DEFINE_string("data_dir", None, "Directory with mnist.npz; else Keras downloads it.")
    flags.DEFINE_string("output_dir", "results", "Where the rows, the table and the plot go.")
    flags.DEFINE_list("methods", list(methods.METHODS), "Methods to run.")
    flags.DEFINE_list("sparsities", ["0.8", "0.9", "0.95", "0.98", "0.99"], "Sparsities to run.")
    flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds to run.")
    flags.DEFINE_integer("epochs", 10, "Epochs of each run.", lower_bound=1)
    flags.DEFINE_integer("max_examples", None, "Train and test on the first examples only.")


def train(dataset, method, sparsity, seed, epochs, **_):
    """One run. Returns the test accuracy in percent after the last epoch."""
    keras.utils.set_random_seed(seed)
    keras.backend.clear_session()
    # The paper's L2 coefficient 1e-4 is of TF1, which halves the sum of squares.
    model = methods.build_model(
        method, "lenet_300_100", sparsity, "erk", seed, input_shape=(28, 28, 1), l2=5e-5
    )
    steps_per_epoch = len(dataset.x_train) // _BATCH_SIZE
    total_steps = epochs * steps_per_epoch
    learning_rate = keras.optimizers.schedules.CosineDecay(0.1, total_steps)
    inner = keras.optimizers.SGD(learning_rate, momentum=0.9, nesterov=True)
    model.compile(
        methods.wrap_optimizer(method, inner, total_steps, sparsity, "erk", seed=seed),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=True,
        steps_per_execution=min(50, steps_per_epoch),
    )
    batches = tf.data.Dataset.from_tensor_slices((dataset.x_train, dataset.y_train))
    batches = batches.shuffle(len(dataset.x_train), seed=seed).batch(
        _BATCH_SIZE, drop_remainder=True
    )
    model.fit(batches.prefetch(2), epochs=epochs, verbose=0)
    scores = model.evaluate(
        dataset.x_test, dataset.y_test, batch_size=1000, verbose=0, return_dict=True
    )
    return 100 * scores["accuracy"]


def _wanted(num_examples):
    for seed in map(int, FLAGS.seeds):
        for method in FLAGS.methods:
            sparsities = [0.0] if method == "dense" else map(float, FLAGS.sparsities)
            for sparsity in sparsities:
                yield {
                    "method": method,
                    "sparsity": sparsity,
                    "seed": seed,
                    "epochs": FLAGS.epochs,
                    "examples": num_examples,
                }


def _report(rows, output_dir):
    table = results.mean_table(rows, "method", "sparsity", "accuracy", methods.METHODS)
    text = [
        "# MNIST, LeNet-300-100: accuracy over sparsity",
        "",
        "Test accuracy in percent after the last epoch, mean ± standard deviation over seeds "
        f"{sorted({row['seed'] for row in rows})}. ERK, batch {_BATCH_SIZE}, "
        f"{rows[0]['epochs']} epochs, SGD 0.1, Nesterov momentum 0.9, cosine decay, L2 1e-4, "
        "masks updated every 100 steps until 75 % of training, drop fraction 0.3 (cosine). "
        "Pruning goes from dense to sparse between 30 % and 75 % of training. "
        "Small-dense has as many kernel weights as the sparse networks active ones.",
        "",
        table,
        "",
        f"![Accuracy over sparsity]({_NAME}.png)",
        "",
        results.provenance("scripts.mnist_table"),
    ]
    (output_dir / f"{_NAME}.md").write_text("\n".join(text) + "\n")
    results.plot_means(
        rows,
        "method",
        "sparsity",
        "accuracy",
        output_dir / f"{_NAME}.png",
        methods.METHODS,
        title="MNIST, LeNet-300-100",
        xlabel="sparsity",
        ylabel="test accuracy (%)",
    )


def main(_):
    output_dir = pathlib.Path(FLAGS.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    dataset = datasets.load("mnist", FLAGS.data_dir)
    if FLAGS.max_examples:
        dataset = dataset._replace(
            x_train=dataset.x_train[: FLAGS.max_examples],
            y_train=dataset.y_train[: FLAGS.max_examples],
            x_test=dataset.x_test[: FLAGS.max_examples],
            y_test=dataset.y_test[: FLAGS.max_examples],
        )
    store = results.Rows(output_dir / f"{_NAME}.csv", _KEY)
    wanted = list(_wanted(len(dataset.x_train)))
    todo = [run for run in wanted if run not in store]
    print(f"{len(todo)} runs to do, about {25 * len(todo) // 60 + 1} minutes on two cores")
    for number, run in enumerate(todo, 1):
        begin = time.monotonic()
        accuracy = train(dataset, **run)
        seconds = time.monotonic() - begin
        store.add({**run, "accuracy": round(accuracy, 3), "seconds": round(seconds, 1)})
        print(f"{number}/{len(todo)} {run}: {accuracy:.2f} % in {seconds:.0f} s", flush=True)
    same = ("epochs", "examples")
    _report([r for r in store.rows if all(r[n] == wanted[0][n] for n in same)], output_dir)


if __name__ == "__main__":
    _define_flags()
    app.run(main)
