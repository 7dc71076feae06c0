"""MNIST or Fashion-MNIST, LeNet-300-100: accuracy over sparsity, three seeds.

    python -m scripts.mnist_table --data_dir=DATA
    python -m scripts.mnist_table --data_dir=DATA --multipliers=2,5 --methods=rigl
    python -m scripts.mnist_table --data_dir=DATA --dataset=fashion_mnist \\
        --methods=dense,static,set,rigl,pruning

The first trains dense, sparse (ERK) and small-dense networks at 80, 90, 95, 98 and 99 % sparsity:
168 runs of 10 epochs, about 20 s each on two cores. The second trains longer, all schedules
stretched. Finished runs are rows of `results/mnist_lenet_300_100.csv` (or
`fashion_mnist_lenet_300_100.csv`) and are never repeated; the Markdown table and the plot beside it
are made anew from all rows. Expect RigL above SET above static, the more so the sparser.
"""

import pathlib

import keras
from absl import app, flags

from scripts import experiments, methods, results

_BATCH_SIZE = 100
_KEY = ("method", "sparsity", "seed", "epochs", "examples")
_TITLES = {"mnist": "MNIST", "fashion_mnist": "Fashion-MNIST"}

FLAGS = flags.FLAGS


def _define_flags():
    experiments.define_flags(epochs=10)
    flags.DEFINE_enum("dataset", "mnist", list(_TITLES), "Data to train on.")
    flags.DEFINE_list("methods", list(methods.METHODS), "Methods to run.")
    flags.DEFINE_list("sparsities", ["0.8", "0.9", "0.95", "0.98", "0.99"], "Sparsities to run.")
    flags.DEFINE_list("multipliers", ["1"], "Integers: train so many times --epochs.")


def train(data, run):
    """One run. Returns the test accuracy in percent after the last epoch."""
    method, sparsity, seed, epochs = (run[name] for name in _KEY[:4])
    keras.utils.set_random_seed(seed)
    keras.backend.clear_session()
    # The paper's L2 coefficient 1e-4 is of TF1, which halves the sum of squares.
    model = methods.build_model(
        method, "lenet_300_100", sparsity, "erk", seed, data, input_shape=(28, 28, 1), l2=5e-5
    )
    total_steps = epochs * experiments.steps_per_epoch(data, _BATCH_SIZE)
    learning_rate = keras.optimizers.schedules.CosineDecay(0.1, total_steps)
    inner = keras.optimizers.SGD(learning_rate, momentum=0.9, nesterov=True)
    optimizer = methods.wrap_optimizer(method, inner, total_steps, sparsity, "erk", seed=seed)
    experiments.fit(model, optimizer, data, _BATCH_SIZE, epochs, seed)
    return {"accuracy": experiments.accuracy(model, data.x_test, data.y_test)}


def _wanted(num_examples):
    for seed in map(int, FLAGS.seeds):
        for method in FLAGS.methods:
            sparsities = [0.0] if method == "dense" else map(float, FLAGS.sparsities)
            for sparsity in sparsities:
                for multiplier in map(int, FLAGS.multipliers):
                    yield {
                        "method": method,
                        "sparsity": sparsity,
                        "seed": seed,
                        "epochs": FLAGS.epochs * multiplier,
                        "examples": num_examples,
                    }


def _series(row):
    """The name of a row's line in the table and the plot: the method, and how long it trained."""
    multiplier = row["epochs"] / FLAGS.epochs
    return row["method"] if multiplier == 1 else f"{row['method']} {multiplier:g}x"


def _report(name, rows):
    rows = [{**row, "method": _series(row)} for row in rows]
    multiplied = sorted({row["method"] for row in rows} - {*methods.METHODS})
    order = [*methods.METHODS, *multiplied]
    title = f"{_TITLES[FLAGS.dataset]}, LeNet-300-100"
    table = results.mean_table(rows, "method", "sparsity", "accuracy", order)
    lines = [
        f"# {title}: accuracy over sparsity",
        "",
        "Test accuracy in percent after the last epoch, mean ± standard deviation over seeds "
        f"{sorted({row['seed'] for row in rows})}. ERK, batch {_BATCH_SIZE}, "
        f"{FLAGS.epochs} epochs, SGD 0.1, Nesterov momentum 0.9, cosine decay, L2 1e-4, "
        "masks updated every 100 steps until 75 % of training, drop fraction 0.3 (cosine). "
        "Pruning goes from dense to sparse between 30 % and 75 % of training. SNIP and GraSP score "
        "the first 1000 training examples, kernel by kernel. "
        "Small-dense has as many kernel weights as the sparse networks active ones. "
        "`2x` trains twice as long, all schedules stretched (`--multipliers=2,5 --methods=rigl`).",
        "",
        table,
        "",
        f"![Accuracy over sparsity]({name}.png)",
    ]
    experiments.write_page(name, lines, "scripts.mnist_table")
    results.plot_means(
        rows,
        "method",
        "sparsity",
        "accuracy",
        pathlib.Path(FLAGS.output_dir) / f"{name}.png",
        order,
        title=title,
        xlabel="sparsity",
        ylabel="test error (%)",
        as_error=True,
    )


def main(_):
    data = experiments.load(FLAGS.dataset)
    name = f"{FLAGS.dataset}_lenet_300_100"
    rows = experiments.store(name, _KEY)
    wanted = list(_wanted(len(data.x_train)))
    experiments.run_all(
        rows, wanted, lambda run: train(data, run), lambda run: 5 + 1.5 * run["epochs"]
    )
    whole = [row for row in rows.rows if row["examples"] == len(data.x_train)]
    _report(name, [row for row in whole if row["epochs"] % FLAGS.epochs == 0])


if __name__ == "__main__":
    _define_flags()
    app.run(main)
