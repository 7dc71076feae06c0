"""Compares the methods: accuracy over sparsity, on small data.

    python -m scripts.rigl.methods_table --data_dir=DATA
    python -m scripts.rigl.methods_table --data_dir=DATA --multipliers=2,5 --methods=rigl
    python -m scripts.rigl.methods_table --data_dir=DATA --dataset=fashion_mnist \\
        --methods=dense,static,set,rigl,pruning
    python -m scripts.rigl.methods_table --data_dir=DATA --dataset=cifar10

On MNIST and Fashion-MNIST it trains LeNet-300-100 by all methods at 80, 90, 95, 98 and 99 %: 168
runs of 10 epochs with three seeds, about 20 s each on two cores. With `--multipliers` it trains
longer, all schedules stretched. Expect RigL above SET above static, the more so the sparser.

On CIFAR-10 it trains ResNet-20 at 80 and 90 %: 13 runs of 6 epochs with one seed, about nine
minutes each on two cores. The papers train 160 epochs or more; what can be seen in six is the order
of the methods. Expect pruning and RigL above SET above static, and small-dense last.

Finished runs are rows of a CSV file in `results/` and are never repeated. The Markdown table and
the plot beside it are made anew from all rows.
"""

import dataclasses
import pathlib
from collections.abc import Callable

import keras
from absl import app, flags

from scripts.common import classifiers, experiments, methods, plots, tables

_KEY = ("method", "sparsity", "seed", "epochs", "examples")

FLAGS = flags.FLAGS


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is trained on a data set, and how.

    Attributes:
        heading: Of the page.
        title: Of the plot.
        how: The first paragraph of the page, with `{seeds}` and `{epochs}`.
        network: Name of a builder of `models`.
        methods: `{name in the table: (method, distribution)}`.
        sparsities, seeds, epochs: Those of the published table.
        batch_size: Integer.
        learning_rate: Function of the number of steps: the schedule of SGD.
        l2: Float, adds `l2 * sum(kernel ** 2)` to the loss.
        update_frequency: Integer, in steps.
        fit: Further arguments of `classifiers.fit`.
        keeps_loss: Whether a row has the last training loss.
        seconds: Function of the epochs: what a run takes on two cores.
    """

    heading: str
    title: str
    how: str
    network: str
    methods: dict
    sparsities: tuple
    seeds: tuple
    epochs: int
    batch_size: int
    learning_rate: Callable
    l2: float
    seconds: Callable
    update_frequency: int = 100
    fit: dict = dataclasses.field(default_factory=dict)
    keeps_loss: bool = False


def _cosine(total_steps):
    return keras.optimizers.schedules.CosineDecay(0.1, total_steps)


def _cosine_after_warm_up(total_steps):
    return keras.optimizers.schedules.CosineDecay(
        0.02, total_steps, warmup_target=0.2, warmup_steps=total_steps // 10
    )


_PRUNING = "Pruning goes from dense to sparse between 30 % and 75 % of training."
_SMALL_DENSE = "Small-dense has as many kernel weights as the sparse networks active ones."
_MNIST = Setting(
    heading="MNIST, LeNet-300-100: accuracy over sparsity",
    title="MNIST, LeNet-300-100",
    how="mean ± standard deviation over seeds {seeds}. ERK, batch 100, {epochs} epochs, SGD 0.1, "
    "Nesterov momentum 0.9, cosine decay, L2 1e-4, masks updated every 100 steps until 75 % of "
    f"training, drop fraction 0.3 (cosine). {_PRUNING} SNIP and GraSP score the first 1000 "
    f"training examples, kernel by kernel. {_SMALL_DENSE} `2x` trains twice as long, all schedules "
    "stretched (`--multipliers=2,5 --methods=rigl`).",
    network="lenet_300_100",
    methods={method: (method, "erk") for method in methods.METHODS},
    sparsities=(0.8, 0.9, 0.95, 0.98, 0.99),
    seeds=(0, 1, 2),
    epochs=10,
    batch_size=100,
    learning_rate=_cosine,
    l2=5e-5,  # The paper's coefficient 1e-4 is of TF1, which halves the sum of squares.
    seconds=lambda epochs: 5 + 1.5 * epochs,
)
SETTINGS = {
    "mnist": _MNIST,
    "fashion_mnist": dataclasses.replace(
        _MNIST, heading=f"Fashion-{_MNIST.heading}", title=f"Fashion-{_MNIST.title}"
    ),
    "cifar10": Setting(
        heading="CIFAR-10, ResNet-20: accuracy of all methods, a short schedule",
        title="CIFAR-10, ResNet-20, a short schedule",
        how="seeds {seeds}. {epochs} epochs (the papers train 160 and more), batch 128, SGD, "
        "Nesterov momentum 0.9, learning rate 0.2 after a warm-up over a tenth of training, then a "
        "cosine to 0, L2 1e-4, shifts and flips. Masks are updated every 50 steps until 75 % of "
        f"training, drop fraction 0.3 (cosine). {_PRUNING} Each layer has the same sparsity, the "
        f"first is dense; or ERK. {_SMALL_DENSE}",
        network="resnet20",
        methods={
            **{name: (name, "uniform") for name in ("dense", "static", "set", "rigl", "pruning")},
            "rigl (erk)": ("rigl", "erk"),
            "small_dense": ("small_dense", "uniform"),
        },
        sparsities=(0.9, 0.8),
        seeds=(0,),
        epochs=6,
        batch_size=128,
        learning_rate=_cosine_after_warm_up,
        l2=1e-4,
        seconds=lambda epochs: 20 + 85 * epochs,
        update_frequency=50,
        fit={"augment": classifiers.shift_and_flip, "jit_compile": False},
        keeps_loss=True,
    ),
}


def _define_flags():
    experiments.define_flags(epochs=None, seeds=())
    flags.DEFINE_enum("dataset", "mnist", list(SETTINGS), "Data to train on.")
    flags.DEFINE_list("methods", [], "Methods to run. Default: all methods of the table.")
    flags.DEFINE_list("sparsities", [], "Sparsities to run. Default: all.")
    flags.DEFINE_list("multipliers", ["1"], "Integers: factors of --epochs.")


def _given():
    """The `Setting`, with what the flags say in place of its own."""
    setting = SETTINGS[FLAGS.dataset]
    given = {
        "epochs": FLAGS.epochs,
        "seeds": tuple(map(int, FLAGS.seeds)),
        "sparsities": tuple(map(float, FLAGS.sparsities)),
    }
    return dataclasses.replace(setting, **{name: value for name, value in given.items() if value})


def train(setting, data, run):
    """One run. Returns the columns of its row: the test accuracy in percent, maybe the loss."""
    sparsity, seed, epochs = run["sparsity"], run["seed"], run["epochs"]
    method, distribution = setting.methods[run["method"]]
    keras.utils.set_random_seed(seed)
    keras.backend.clear_session()
    model = methods.build_model(
        method,
        setting.network,
        sparsity,
        distribution,
        seed,
        data,
        input_shape=data.x_train.shape[1:],
        l2=setting.l2,
    )
    total_steps = epochs * classifiers.steps_per_epoch(data, setting.batch_size)
    schedule = setting.learning_rate(total_steps)
    optimizer = methods.wrap_optimizer(
        method,
        keras.optimizers.SGD(schedule, momentum=0.9, nesterov=True),
        total_steps,
        sparsity,
        distribution,
        update_frequency=setting.update_frequency,
        seed=seed,
    )
    history = classifiers.fit(
        model, optimizer, data, setting.batch_size, epochs, seed, **setting.fit
    )
    columns = {"accuracy": classifiers.accuracy(model, data.x_test, data.y_test)}
    if setting.keeps_loss:
        columns["loss"] = round(history.history["loss"][-1], 4)
    return columns


def _wanted(setting, num_examples):
    """The runs: for each seed the dense network, then a column of the table at a time."""
    names = FLAGS.methods or list(setting.methods)
    unknown = sorted(set(names) - set(setting.methods))
    if unknown:
        raise app.UsageError(
            f"--methods must be some of {', '.join(setting.methods)}. "
            f"Received: {', '.join(unknown)}"
        )
    dense = [("dense", 0.0)] if "dense" in names else []
    sparse = [(name, s) for s in setting.sparsities for name in names if name != "dense"]
    return [
        {
            "method": name,
            "sparsity": sparsity,
            "seed": seed,
            "epochs": setting.epochs * multiplier,
            "examples": num_examples,
        }
        for seed in setting.seeds
        for name, sparsity in dense + sparse
        for multiplier in map(int, FLAGS.multipliers)
    ]


def _report(setting, name, rows, missing):
    """Writes the page and the plot; who trained longer is a method of its own there."""

    def label(row):
        multiplier = row["epochs"] / setting.epochs
        return row["method"] if multiplier == 1 else f"{row['method']} {multiplier:g}x"

    rows = [{**row, "method": label(row)} for row in rows]
    order = [*setting.methods, *sorted({row["method"] for row in rows} - {*setting.methods})]
    seeds = sorted({row["seed"] for row in rows})
    how = setting.how.format(seeds=seeds, epochs=setting.epochs)
    lines = [
        f"# {setting.heading}",
        "",
        f"Test accuracy in percent after the last epoch, {how}",
        "",
        tables.mean_table(rows, "method", "sparsity", "accuracy", order),
        "",
        f"![Accuracy over sparsity]({name}.png)",
    ]
    if missing:
        lines += ["", f"Not run yet: {', '.join(missing)}."]
    experiments.write_page(name, lines, "scripts.rigl.methods_table")
    plots.plot_means(
        rows,
        "method",
        "sparsity",
        "accuracy",
        pathlib.Path(FLAGS.output_dir) / f"{name}.png",
        order,
        title=setting.title,
        xlabel="sparsity",
        ylabel="test error (%)",
        as_error=True,
    )


def main(_):
    setting = _given()
    data = experiments.load(FLAGS.dataset)
    name = f"{FLAGS.dataset}_{setting.network}"
    rows = experiments.store(name, _KEY)
    wanted = _wanted(setting, len(data.x_train))
    experiments.run_all(
        rows,
        wanted,
        lambda run: train(setting, data, run),
        lambda run: setting.seconds(run["epochs"]),
    )
    missing = [f"{run['method']} at {run['sparsity']:g}" for run in wanted if run not in rows]
    whole = [row for row in rows.rows if row["examples"] == len(data.x_train)]
    shown = [row for row in whole if row["epochs"] % setting.epochs == 0]
    _report(setting, name, shown, list(dict.fromkeys(missing)))


if __name__ == "__main__":
    _define_flags()
    app.run(main)
