"""Measures the accuracy of structures: blocks, N:M, constant fan-in and channels.

    python -m scripts.rigl.structures --data_dir=DATA
    python -m scripts.rigl.structures --data_dir=DATA --dataset=cifar10

On MNIST, LeNet-300-100 is trained by RigL and by gradual pruning at 80, 90 and 95 %, with each of
the `rigl_tf.structures` and without a structure. These are 84 runs of 5 epochs with three seeds,
about 20 s each on two cores. `NM(1, 4)` has a sparsity of 75 %, and is compared with unstructured
networks of 75 %. On CIFAR-10 at 16 x 16 pixels, ResNet-20 is trained for two epochs, only by RigL
(`--methods=rigl`): 42 runs of two minutes each.

The last layer is always dense, because its channels are the classes. The first convolution is also
dense, because it has three inputs, which cannot be divided into blocks of four. Finished runs are
rows of `results/structures.csv` and are never repeated. Expect that blocks and a constant fan-in
are near the unstructured network (97.2, 96.8 and 97.2 % by RigL at 95 %), and that channels are
below it (95.2 %).
"""

import dataclasses
import functools
import math
import pathlib

import keras
from absl import app, flags

import models
import rigl_tf
from rigl_tf.structures import NM, Block, Channels, ConstantFanIn
from scripts.common import classifiers, datasets, entry, experiments, plots, styles, tables

_NAME = "structures"
_KEY = ("dataset", "method", "structure", "sparsity", "seed", "epochs", "examples")
_SPARSITIES = (0.8, 0.9, 0.95)
_OF_ANY_SPARSITY = (None, Block((4, 1)), ConstantFanIn(), Channels())
_STRUCTURES = {
    "unstructured" if each is None else str(each): each for each in (*_OF_ANY_SPARSITY, NM(1, 4))
}
_METHODS = ("rigl", "pruning")
_END_FRACTION = 0.75

FLAGS = flags.FLAGS


@dataclasses.dataclass(frozen=True)
class Network:
    """The network for a data set, and how it is trained.

    Attributes:
        heading: Heading of its part of the page.
        builder: Name of a builder of `models`.
        dense_layers: Names of the layers that are dense in all runs.
        epochs, batch_size, learning_rate, l2, update_frequency: Numbers.
        seconds: The approximate time of an epoch on two cores.
        pooled: Height and width of the images are divided by this number, by taking means.
        fit: Further arguments of `classifiers.fit`.
    """

    heading: str
    builder: str
    dense_layers: tuple
    epochs: int
    batch_size: int
    learning_rate: float
    l2: float
    update_frequency: int
    seconds: float
    pooled: int = 1
    fit: dict = dataclasses.field(default_factory=dict)


NETWORKS = {
    "mnist": Network(
        "MNIST, LeNet-300-100", "lenet_300_100", ("classifier",), 5, 100, 0.1, 5e-5, 100, 2
    ),
    "cifar10": Network(
        "CIFAR-10 at 16 x 16 pixels, ResNet-20",
        "resnet20",
        ("conv_1", "classifier"),
        2,
        128,
        0.2,
        1e-4,
        50,
        50,
        2,
        {"augment": functools.partial(classifiers.shift_and_flip, most=2), "jit_compile": False},
    ),
}


def _define_flags():
    experiments.define_flags(epochs=None)
    flags.DEFINE_enum("dataset", "mnist", list(NETWORKS), "Data to train on.")
    flags.DEFINE_list("methods", list(_METHODS), "Methods to run.")
    flags.DEFINE_list("structures", [], "Structures to run, such as NM. Default: all.")
    flags.DEFINE_list("sparsities", [], "Sparsities to run. Default: all.")


def train(data, run):
    """Does one run. Returns the columns of its row: accuracy in percent, and the final sparsity."""
    network, structure = NETWORKS[run["dataset"]], _STRUCTURES[run["structure"]]
    keras.utils.set_random_seed(run["seed"])
    keras.backend.clear_session()
    is_pruned = run["method"] == "pruning"
    model = rigl_tf.sparsify(
        models.build(network.builder, input_shape=data.x_train.shape[1:], l2=network.l2),
        0.0 if is_pruned else run["sparsity"],
        dense_layers=network.dense_layers,
        structure=structure,
        seed=run["seed"],
    )
    total_steps = run["epochs"] * classifiers.steps_per_epoch(data, network.batch_size)
    optimizer = _optimizer(network, run, total_steps)
    classifiers.fit(
        model, optimizer, data, network.batch_size, run["epochs"], run["seed"], **network.fit
    )
    reached = rigl_tf.sparsity_summary(model).sparsity
    accuracy = classifiers.accuracy(model, data.x_test, data.y_test)
    return {"accuracy": accuracy, "reached": round(reached, 5)}


def _optimizer(network, run, total_steps):
    schedule = keras.optimizers.schedules.CosineDecay(
        network.learning_rate / 10,
        total_steps,
        warmup_target=network.learning_rate,
        warmup_steps=total_steps // 10,
    )
    inner = keras.optimizers.SGD(schedule, momentum=0.9, nesterov=True)
    end_step = math.ceil(_END_FRACTION * total_steps)
    if run["method"] == "rigl":
        frequency = network.update_frequency
        return rigl_tf.RigL(inner, end_step, update_frequency=frequency, seed=run["seed"])
    return rigl_tf.GradualPruning(
        inner,
        end_step,
        run["sparsity"],
        begin_step=int(0.4 * end_step),
        update_frequency=network.update_frequency,
    )


def _wanted(epochs, num_examples):
    """The runs, seed by seed: for each sparsity all structures that can have it."""
    fixed = [each.sparsity for each in _STRUCTURES.values() if each is not None and each.sparsity]
    sparsities = tuple(map(float, FLAGS.sparsities)) or (*_SPARSITIES, *fixed)
    names = FLAGS.structures or list(_STRUCTURES)
    unknown = [name for name in names if not any(each.startswith(name) for each in _STRUCTURES)]
    if unknown:
        raise app.UsageError(
            f"--structures must be beginnings of {', '.join(_STRUCTURES)}. "
            f"Received: {', '.join(unknown)}"
        )
    return [
        {
            "dataset": FLAGS.dataset,
            "method": method,
            "structure": name,
            "sparsity": sparsity,
            "seed": int(seed),
            "epochs": epochs,
            "examples": num_examples,
        }
        for seed in FLAGS.seeds
        for method in FLAGS.methods
        for sparsity in sparsities
        for name, structure in _STRUCTURES.items()
        if any(name.startswith(each) for each in names) and _has(structure, sparsity, fixed)
    ]


def _has(structure, sparsity, fixed):
    """Whether a structure is run at a sparsity. At that of an `NM`, only it and `None` are."""
    if structure is None or structure.sparsity:
        return structure is None or structure.sparsity == sparsity
    return sparsity not in fixed


def _part(dataset, rows):
    """The lines about one network, of finished runs of all examples."""
    network = NETWORKS[dataset]
    seeds = sorted({row["seed"] for row in rows})
    epochs = sorted({row["epochs"] for row in rows})
    lines = [
        f"## {network.heading}",
        "",
        f"Seeds {seeds}, {', '.join(map(str, epochs))} epochs, batch {network.batch_size}, SGD, "
        f"Nesterov momentum 0.9, learning rate {network.learning_rate:g} after a warm-up over a "
        "tenth of training, then a cosine to 0. Masks are updated every "
        f"{network.update_frequency} steps until 75 % of training; RigL's drop fraction is 0.3 "
        "(cosine), pruning goes from dense to sparse between 30 and 75 % of training. ERK; dense: "
        f"{', '.join(network.dense_layers)}.",
    ]
    for method in _METHODS:
        of_method = [row for row in rows if row["method"] == method]
        if of_method:
            table = tables.mean_table(
                of_method, "structure", "sparsity", "accuracy", list(_STRUCTURES)
            )
            lines += ["", {"rigl": "RigL", "pruning": "Gradual pruning"}[method] + ":", "", table]
    off = max(abs(row["reached"] - row["sparsity"]) for row in rows)
    lines += ["", f"In whole units, the sparsities are those of the head up to {off:.4f}."]
    return lines


def _report(rows, missing):
    lines = [
        "# What structures cost: accuracy beside unstructured networks",
        "",
        "Test accuracy in percent after the last epoch, mean ± standard deviation over seeds. "
        "`Block((4, 1))`: four inputs of an output are active or inactive together; "
        "`ConstantFanIn()`: each output has the same number of active inputs, or none (SRigL); "
        "`Channels()`: whole outputs; `NM(1, 4)`: one of four inputs.",
    ]
    for dataset in NETWORKS:
        part = [row for row in rows if row["dataset"] == dataset]
        if part:
            lines += ["", *_part(dataset, part)]
            _plot(dataset, part)
            lines += ["", f"![Error over sparsity]({_NAME}_{dataset}.png)"]
    lines += [
        "",
        "RigL seldom finds other channels than those that it starts with: behind a ReLU, a channel "
        "that was never active is 0 for every example, and so is its gradient.",
    ]
    if missing:
        lines += ["", f"Not run yet: {', '.join(missing)}."]
    experiments.write_page(_NAME, lines, "scripts.rigl.structures")


def _plot(dataset, rows):
    rows = [{**row, "line": f"{row['structure']}, {styles.label(row['method'])}"} for row in rows]
    kinds = {"rigl": {}, "pruning": {"linestyle": "--", "markerfacecolor": "white"}}
    look = {
        f"{name}, {styles.label(method)}": {**styles.numbered(number), "linestyle": "-", **kind}
        for method, kind in kinds.items()
        for number, name in enumerate(_STRUCTURES)
    }
    path = pathlib.Path(FLAGS.output_dir) / f"{_NAME}_{dataset}.png"
    plots.plot_means(
        rows,
        "line",
        "sparsity",
        "accuracy",
        path,
        list(look),
        NETWORKS[dataset].heading,
        "sparsity",
        "test error (%)",
        as_error=True,
        look=look,
    )


def main(_):
    network = NETWORKS[FLAGS.dataset]
    data = experiments.load(FLAGS.dataset)
    if network.pooled > 1:
        data = datasets.pooled(data, network.pooled)
    rows = experiments.store(_NAME, _KEY)
    wanted = _wanted(FLAGS.epochs or network.epochs, len(data.x_train))
    experiments.run_all(
        rows,
        wanted,
        lambda run: train(data, run),
        lambda run: 10 + network.seconds * run["epochs"],
    )
    missing = [
        f"{run['structure']} by {run['method']} at {run['sparsity']:g} (seed {run['seed']})"
        for run in wanted
        if run not in rows
    ]
    most = {
        name: max([row["examples"] for row in rows.rows if row["dataset"] == name], default=0)
        for name in NETWORKS
    }
    _report([row for row in rows.rows if row["examples"] == most[row["dataset"]]], missing)


if __name__ == "__main__":
    _define_flags()
    entry.run(main)
