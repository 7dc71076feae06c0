"""Measures how many units RigL leaves alive at high sparsity, and what mends it.

    python -m scripts.rigl.live_units --data_dir=DATA
    python -m scripts.rigl.live_units --data_dir=DATA --dataset=fashion_mnist

At 98 % and with long training SET is RigL's equal on MNIST, or better. RigL grows where gradients
are large, so connections gather in few units. A unit without connections, or a ReLU that is never
above 0, has no gradient: RigL never grows it again. This script trains LeNet-300-100 (ERK, 50
epochs) by RigL with other settings that may keep units alive, and by SET: 60 runs, half a minute to
a minute and a half each on one core. Finished runs are rows of `results/live_units.csv` and are
never repeated; the page and the plot beside it are made anew from all rows. What counts as better
was fixed before the runs: a paired t interval over the seeds.
"""

import dataclasses
import math
import pathlib

import keras
import tensorflow as tf
from absl import app, flags

import models
import rigl_tf
from scripts.common import (
    claims,
    classifiers,
    costs,
    entry,
    experiments,
    plots,
    styles,
    tables,
    words,
)
from scripts.rigl import lenet

NAME = "live_units"
KEY = ("dataset", "setting", "sparsity", "seed", "epochs", "examples")
_SPARSITY = 0.98
_RANDOM = 0.2

FLAGS = flags.FLAGS


@keras.saving.register_keras_serializable(package="scripts")
class SometimesRandom(rigl_tf.SparseOptimizer):
    """RigL, but one mask update in five grows at random, as SET does."""

    elementwise = False

    def grow_scores(self, kernel, mask, gradient):
        numbers = self.random_uniform(kernel)
        at_random = tf.reshape(numbers, [-1])[0] < _RANDOM
        return tf.where(at_random, numbers, tf.abs(tf.cast(gradient, numbers.dtype)))


@dataclasses.dataclass(frozen=True)
class Setting:
    """One way to train.

    Attributes:
        text: What is different, for the page.
        optimizer: Class of the optimizer.
        arguments: Of the optimizer.
        end_fraction: Float, the share of training after which masks stay.
        activation: Of the hidden units.
        structure: Of the kernels, see `rigl_tf.sparsify`.
        execution: Of the kernels.
    """

    text: str
    optimizer: type = rigl_tf.RigL
    arguments: dict = dataclasses.field(default_factory=dict)
    end_fraction: float = 0.75
    activation: str = "relu"
    structure: object = None
    execution: str = "csr"


SETTINGS = {
    "RigL": Setting("updates every 100 steps until 75 % of training, drop fraction 0.3"),
    "SET": Setting("the same with random growth", rigl_tf.SET),
    "every 500": Setting("updates every 500 steps", arguments={"update_frequency": 500}),
    "every 2000": Setting("updates every 2000 steps", arguments={"update_frequency": 2000}),
    "drop 0.1": Setting("drop fraction 0.1", arguments={"drop_fraction": 0.1}),
    "until 25 %": Setting("updates until 25 % of training", end_fraction=0.25),
    "new weights": Setting(
        "grown connections start at random weights, not at 0",
        arguments={"grow_init": "initial_distribution"},
    ),
    "averages": Setting(
        "growth by a moving average of gradients, 0.9 (masked)",
        arguments={"gradient_momentum": 0.9},
        execution="masked",
    ),
    "sometimes random": Setting("one update in five grows at random", SometimesRandom),
    "leaky ReLU": Setting("leaky ReLU, whose gradient is never 0", activation="leaky_relu"),
    "SET, leaky ReLU": Setting("SET with leaky ReLU", rigl_tf.SET, activation="leaky_relu"),
    "constant fan-in": Setting(
        "every unit keeps its number of inputs (SRigL, masked)",
        structure=rigl_tf.structures.ConstantFanIn(),
        execution="masked",
    ),
}


def _define_flags():
    experiments.define_flags(epochs=50, seeds=("0", "1", "2", "3", "4"))
    flags.DEFINE_enum("dataset", "mnist", list(lenet.DATASETS), "Data to train on.")
    flags.DEFINE_list("settings", list(SETTINGS), "Settings to run.")


def train(data, run):
    """One run. Returns the columns of its row."""
    setting = SETTINGS[run["setting"]]
    keras.utils.set_random_seed(run["seed"])
    keras.backend.clear_session()
    dense = models.lenet_300_100(data.x_train.shape[1:], l2=lenet.L2, activation=setting.activation)
    model = rigl_tf.sparsify(
        dense, run["sparsity"], "erk", seed=run["seed"], structure=setting.structure
    )
    model = rigl_tf.with_execution(model, setting.execution)
    total_steps = run["epochs"] * classifiers.steps_per_epoch(data, lenet.BATCH_SIZE)
    optimizer = setting.optimizer(
        lenet.sgd(total_steps),
        math.ceil(setting.end_fraction * total_steps),
        seed=run["seed"],
        **setting.arguments,
    )
    classifiers.fit(
        model,
        optimizer,
        data,
        lenet.BATCH_SIZE,
        run["epochs"],
        run["seed"],
        jit_compile=setting.execution == "masked",
    )
    live, firing = costs.units(model, data.x_train[:10_000])
    return {
        "accuracy": classifiers.accuracy(model, data.x_test, data.y_test),
        "pixels": live[0],
        "live_1": live[1],
        "firing_1": firing[0],
        "live_2": live[2],
        "firing_2": firing[1],
    }


def _table(rows):
    """A line for each setting: accuracy, units, and the difference to RigL and to SET."""
    values = {}
    for row in rows:
        values.setdefault(row["setting"], {})[row["seed"]] = row["accuracy"]
    lines = []
    for name, setting in SETTINGS.items():
        mine = [row for row in rows if row["setting"] == name]
        if not mine:
            continue
        cells = [
            tables.with_spread(tables.means(mine, "setting", "dataset", "accuracy").popitem()[1])
        ]
        for column in ("pixels", "live_1", "firing_1", "live_2", "firing_2"):
            cells.append(f"{sum(row[column] for row in mine) / len(mine):.0f}")
        for other in ("RigL", "SET"):
            each = claims.differences(values, name, other)
            cells.append(_compared(each) if name != other else "")
        lines.append([name, setting.text, *cells])
    head = ["", "what is different", "accuracy", "pixels", "live, first layer", "firing"]
    head += ["live, second layer", "firing", "better than RigL?", "better than SET?"]
    return tables.table(head, lines)


def _mean(rows, column):
    """Mean, standard deviation and number of the rows of one setting."""
    ((_, value),) = tables.means(rows, "setting", "dataset", column).items()
    return value


def _compared(each):
    return f"{claims.verdict(each)} ({claims.signed(each)})"


def _report(rows):
    lines = [
        "# LeNet-300-100 at 98 %: the units that RigL leaves alive",
        "",
        "ERK, batch 100, SGD 0.1, Nesterov momentum 0.9, cosine decay, L2 1e-4, "
        "drop fraction 0.3 (cosine), CSR kernels unless it says masked. Test accuracy "
        "in percent, mean ± standard deviation over the seeds. Live units have a path "
        "from a pixel to an output; a live unit fires if it is above 0 for any of the first 10,000 "
        f"training examples. {words.L2} In the last columns is the verdict of the claim that the "
        f"setting is better, and the mean difference with its interval. {words.VERDICTS}",
    ]
    for dataset, title in lenet.DATASETS.items():
        mine = [row for row in rows if row["dataset"] == dataset]
        if mine:
            epochs = ", ".join(str(epochs) for epochs in sorted({row["epochs"] for row in mine}))
            lines += ["", f"## {title}, {epochs} epochs", "", *_table(mine)]
    lines += ["", f"![Accuracy over live units]({NAME}.png)"]
    experiments.write_page(NAME, lines, "scripts.rigl.live_units")
    _plot(rows, pathlib.Path(FLAGS.output_dir) / f"{NAME}.png")


def _plot(rows, path):
    """Accuracy over the units of the first layer that fire, a point for each setting."""
    found = [name for name in lenet.DATASETS if any(row["dataset"] == name for row in rows)]
    names = [name for name in SETTINGS if any(row["setting"] == name for row in rows)]
    look = {name: styles.numbered(number) for number, name in enumerate(names)}
    with plots.figure(path, (5.5 * len(found) + 2, 4.5), ncols=len(found)) as axes:
        panels = list(getattr(axes, "flat", [axes]))
        for panel, dataset in zip(panels, found, strict=True):
            mine = [row for row in rows if row["dataset"] == dataset]
            for name in names:
                at = [row for row in mine if row["setting"] == name]
                if at:
                    _point(panel, at, look[name], name)
            panel.set(
                title=f"{lenet.DATASETS[dataset]}, 98 %",
                xlabel="units of the first layer that fire",
                ylabel="test accuracy (%)",
            )
            panel.grid(alpha=0.3)
        plots.legend(panels[-1])


def _point(panel, rows, style, label):
    x, across, _ = _mean(rows, "firing_1")
    y, up, _ = _mean(rows, "accuracy")
    panel.errorbar(
        [x], [y], xerr=[across], yerr=[up], **{**style, "linestyle": ""}, label=label, capsize=3
    )


def main(_):
    data = experiments.load(FLAGS.dataset)
    rows = experiments.store(NAME, KEY)
    unknown = sorted(set(FLAGS.settings) - set(SETTINGS))
    if unknown:
        raise app.UsageError(
            f"--settings must be some of {', '.join(SETTINGS)}. Received: {', '.join(unknown)}"
        )
    same = {
        "dataset": FLAGS.dataset,
        "sparsity": _SPARSITY,
        "epochs": FLAGS.epochs,
        "examples": len(data.x_train),
    }
    wanted = [
        {"setting": name, "seed": int(seed), **same}
        for seed in FLAGS.seeds
        for name in FLAGS.settings
    ]
    experiments.run_all(
        rows, wanted, lambda run: train(data, run), lambda run: 8 + 0.6 * run["epochs"]
    )
    _report([row for row in rows.rows if row["examples"] == same["examples"]])


if __name__ == "__main__":
    _define_flags()
    entry.run(main)
