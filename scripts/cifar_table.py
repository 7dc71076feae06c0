"""CIFAR-10, ResNet-20, a short schedule: accuracy of all methods at 80 and 90 % sparsity.

    python -m scripts.cifar_table --data_dir=DATA

trains dense, static, SET, RigL, gradually pruned (each layer the same sparsity, the first dense),
RigL (ERK) and small-dense networks, one seed: 13 runs of 6 epochs, about nine minutes each on two
cores. Finished runs are rows of `results/cifar10_resnet20.csv` and are never repeated; the Markdown
table and the plot beside it are made anew from all rows. The papers train 160 epochs or more; what
can be seen in six is the order of the methods. Expect pruning and RigL above SET above static, and
small-dense last.
"""

import pathlib

import keras
from absl import app, flags

from scripts import experiments, methods, results

_BATCH_SIZE = 128
_UPDATE_FREQUENCY = 50  # steps
_NAME = "cifar10_resnet20"
_KEY = ("method", "sparsity", "seed", "epochs", "examples")
# Method of the table: method, distribution.
_METHODS = {
    "dense": ("dense", "uniform"),
    "static": ("static", "uniform"),
    "set": ("set", "uniform"),
    "rigl": ("rigl", "uniform"),
    "pruning": ("pruning", "uniform"),
    "rigl (erk)": ("rigl", "erk"),
    "small_dense": ("small_dense", "uniform"),
}

FLAGS = flags.FLAGS


def _define_flags():
    experiments.define_flags(epochs=6, seeds=("0",))
    flags.DEFINE_list("methods", list(_METHODS), "Methods to run.")
    flags.DEFINE_list("sparsities", ["0.9", "0.8"], "Sparsities to run.")


def train(data, run):
    """One run. Returns the test accuracy in percent after the last epoch, and the loss."""
    sparsity, seed, epochs = run["sparsity"], run["seed"], run["epochs"]
    method, distribution = _METHODS[run["method"]]
    keras.utils.set_random_seed(seed)
    keras.backend.clear_session()
    shape = data.x_train.shape[1:]
    model = methods.build_model(
        method, "resnet20", sparsity, distribution, seed, data, input_shape=shape, l2=1e-4
    )
    total_steps = epochs * experiments.steps_per_epoch(data, _BATCH_SIZE)
    schedule = keras.optimizers.schedules.CosineDecay(
        0.02, total_steps, warmup_target=0.2, warmup_steps=total_steps // 10
    )
    inner = keras.optimizers.SGD(schedule, momentum=0.9, nesterov=True)
    optimizer = methods.wrap_optimizer(
        method,
        inner,
        total_steps,
        sparsity,
        distribution,
        update_frequency=_UPDATE_FREQUENCY,
        seed=seed,
    )
    history = experiments.fit(
        model,
        optimizer,
        data,
        _BATCH_SIZE,
        epochs,
        seed,
        augment=experiments.shift_and_flip,
        jit_compile=False,
    )
    return {
        "accuracy": experiments.accuracy(model, data.x_test, data.y_test),
        "loss": round(history.history["loss"][-1], 4),
    }


def _wanted(num_examples):
    for seed in map(int, FLAGS.seeds):
        # A column of the table at a time.
        sparse = [(method, float(s)) for s in FLAGS.sparsities for method in FLAGS.methods]
        dense = [("dense", 0.0)] if "dense" in FLAGS.methods else []
        for method, sparsity in dense + [pair for pair in sparse if pair[0] != "dense"]:
            yield {
                "method": method,
                "sparsity": sparsity,
                "seed": seed,
                "epochs": FLAGS.epochs,
                "examples": num_examples,
            }


def _report(rows, missing):
    table = results.mean_table(rows, "method", "sparsity", "accuracy", _METHODS)
    lines = [
        "# CIFAR-10, ResNet-20: accuracy of all methods, a short schedule",
        "",
        "Test accuracy in percent after the last epoch, seeds "
        f"{sorted({row['seed'] for row in rows})}. {FLAGS.epochs} epochs (the papers train 160 and "
        f"more), batch {_BATCH_SIZE}, SGD, Nesterov momentum 0.9, learning rate 0.2 after a "
        "warm-up over a tenth of training, then a cosine to 0, L2 1e-4, shifts and flips. Masks "
        "are updated every 50 steps until 75 % of training, drop fraction 0.3 (cosine). Pruning "
        "goes from dense to sparse between 30 % and 75 % of training. Each layer has the same "
        "sparsity, the first is dense; or ERK. Small-dense has as many kernel weights as the "
        "sparse networks active ones.",
        "",
        table,
        "",
        f"![Accuracy over sparsity]({_NAME}.png)",
    ]
    if missing:
        lines += ["", f"Not run yet: {', '.join(missing)}."]
    experiments.write_page(_NAME, lines, "scripts.cifar_table")
    results.plot_means(
        rows,
        "method",
        "sparsity",
        "accuracy",
        pathlib.Path(FLAGS.output_dir) / f"{_NAME}.png",
        _METHODS,
        title="CIFAR-10, ResNet-20, a short schedule",
        xlabel="sparsity",
        ylabel="test error (%)",
        as_error=True,
    )


def main(_):
    data = experiments.load("cifar10")
    rows = experiments.store(_NAME, _KEY)
    wanted = list(_wanted(len(data.x_train)))
    experiments.run_all(
        rows, wanted, lambda run: train(data, run), lambda run: 20 + 85 * run["epochs"]
    )
    same = ("epochs", "examples")
    done = [row for row in rows.rows if all(row[name] == wanted[0][name] for name in same)]
    missing = [f"{run['method']} at {run['sparsity']:g}" for run in wanted if run not in rows]
    _report(done, list(dict.fromkeys(missing)))


if __name__ == "__main__":
    _define_flags()
    app.run(main)
