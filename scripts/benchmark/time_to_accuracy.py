"""Test accuracy over the seconds of training: dense, and sparse in CSR, on Fashion-MNIST.

    python -m scripts.benchmark.time_to_accuracy --data_dir=DATA

trains a network with three hidden layers of 2048 units: dense for two epochs; and by RigL at 90 and
95 % with CSR kernels, for as many epochs, and for three times as many ("3x"), which takes about as
long as dense training. These are 15 runs, and twelve minutes on two cores without other work. The
time of measuring the test accuracy and of compilation does not count. The dense network is trained
in graph mode or with XLA, whichever is faster here. Finished runs are rows of
`results/time_to_accuracy.csv` and are never repeated. The page and the plot are made from all rows.
"""

import functools
import math
import pathlib
import statistics
import time
import warnings

import keras
from absl import app, flags

import rigl_tf
from scripts.benchmark import keras_programs
from scripts.common import classifiers, entry, experiments, plots, styles, tables

NAME = "time_to_accuracy"
KEY = ("sparsity", "seed", "epochs", "width", "examples")
_BATCH = 128
_LEARNING_RATE = 0.05
_DROP_FRACTION = 0.3
_END_FRACTION = 0.75
_PER_EPOCH = 4
# How many percentage points a milestone is below the final accuracy of the dense network.
_BELOW = (4, 2, 1, 0)
# The kind of the dense runs.
_DENSE = (0, 1)

FLAGS = flags.FLAGS


def _define_flags():
    experiments.define_flags(epochs=2)
    flags.DEFINE_list("sparsities", ["0", "0.9", "0.95"], "Sparsities of the runs; 0 is dense.")
    flags.DEFINE_integer("update_frequency", 50, "Steps from one mask update to the next.", 1)
    flags.DEFINE_integer("width", 2048, "Units of a hidden layer.", lower_bound=1)
    flags.DEFINE_list(
        "lengths", ["1", "3"], "Factors of the number of epochs, for the sparse runs."
    )


@functools.cache
def dense_is_faster_with_xla(width):
    """Whether XLA makes a dense step faster. Blocks of both kinds of steps take turns."""
    models = [keras_programs.make(name, 0, width, _BATCH) for name in ("dense", "dense_xla")]
    times = [[model.seconds(3) for model in models] for _ in range(6)][1:]
    without, with_xla = map(statistics.median, zip(*times, strict=True))
    return with_xla < without


class Clock(keras.callbacks.Callback):
    """Measures the test accuracy at intervals, and the seconds of training up to each measurement.

    Args:
        x, y: The test data.
        interval: Integer, the number of steps between two measurements.
        steps: Integer, the number of steps of an epoch.

    Attributes:
        points: List of `(seconds, accuracy in percent)`.
    """

    def __init__(self, x, y, interval, steps):
        super().__init__()
        self.points = []
        self._test = x, y
        self._interval, self._steps = interval, steps
        self._seconds = 0.0

    def on_train_begin(self, logs=None):
        self._begin = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        if (batch + 1) % self._interval and batch + 1 != self._steps:
            return
        self._seconds += time.perf_counter() - self._begin
        self.points.append((self._seconds, classifiers.accuracy(self.model, *self._test)))
        self._begin = time.perf_counter()


def run(wanted, data):
    """Trains one network. Returns the other columns of its row."""
    sparsity, seed, epochs = wanted["sparsity"], wanted["seed"], wanted["epochs"]
    jit_compile = not sparsity and dense_is_faster_with_xla(wanted["width"])
    keras.backend.clear_session()
    keras.utils.set_random_seed(seed)
    steps = classifiers.steps_per_epoch(data, _BATCH)
    total = epochs * steps
    schedule = keras.optimizers.schedules.CosineDecay(_LEARNING_RATE, total)
    optimizer = keras.optimizers.SGD(schedule, momentum=0.9)
    if sparsity:
        model = keras_programs.sparse_mlp(wanted["width"], sparsity, "csr", seed)
        optimizer = rigl_tf.RigL(
            optimizer,
            math.ceil(_END_FRACTION * total),
            update_frequency=FLAGS.update_frequency,
            drop_fraction=_DROP_FRACTION,
            seed=seed,
        )
    else:
        model = keras_programs.mlp(wanted["width"])
    interval = max(1, steps // _PER_EPOCH)
    divisors = [n for n in range(1, 51) if math.gcd(steps, interval) % n == 0]
    clock = Clock(data.x_test, data.y_test, interval, steps)
    _fit(model, optimizer, data, seed, epochs, steps, jit_compile, max(divisors), clock)
    return {
        "xla": int(jit_compile),
        "points": tables.to_text(clock.points),
        "accuracy": clock.points[-1][1],
        "training_seconds": round(clock.points[-1][0], 2),
    }


def _fit(model, optimizer, data, seed, epochs, steps, jit_compile, steps_per_execution, clock):
    """Compiles everything, restores the state from before, and then trains."""
    classifiers.compile_classifier(model, optimizer, jit_compile, steps_per_execution)
    optimizer.build(model.trainable_variables)
    variables = [*model.variables, *optimizer.variables]
    before = [variable.numpy() for variable in variables]
    examples = classifiers.batches(data.x_train, data.y_train, _BATCH, epochs, seed)
    classifiers.accuracy(model, data.x_test, data.y_test)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "RigL has not updated a mask")  # It is about to.
        model.fit(examples, steps_per_epoch=steps_per_execution, verbose=0, shuffle=False)
    for variable, value in zip(variables, before, strict=True):
        variable.assign(value)
    model.fit(
        examples,
        epochs=epochs,
        steps_per_epoch=steps,
        callbacks=[clock],
        verbose=0,
        shuffle=False,
    )


def label(sparsity, length=1):
    """The name of a kind of run."""
    name = f"RigL {sparsity:.0%}, CSR" if sparsity else "dense"
    return name if length == 1 else f"{name}, {length:g}x"


def seconds_until(points, accuracy):
    """Seconds until an accuracy is reached, interpolated; `None` if it is never reached."""
    before = (0.0, 0.0)
    for point in points:
        if point[1] >= accuracy:
            share = (accuracy - before[1]) / (point[1] - before[1])
            return before[0] + share * (point[0] - before[0])
        before = point
    return None


def _kinds(rows):
    """`{(sparsity, relative number of epochs): list of rows}`, of the widest network.

    Epochs are relative to those of the dense network, of which the longest training counts. If
    there is none, only sparse runs count.
    """
    size = max((row["width"], row["examples"]) for row in rows)
    rows = [row for row in rows if (row["width"], row["examples"]) == size]
    dense = [row["epochs"] for row in rows if not row["sparsity"]]
    usual = max(dense or [min(row["epochs"] for row in rows)])
    kinds = {}
    for row in sorted(rows, key=lambda row: (row["sparsity"], row["epochs"], row["seed"])):
        if row["epochs"] >= usual:
            kinds.setdefault((row["sparsity"], row["epochs"] / usual), []).append(row)
    return kinds


def summary(rows):
    """The lines of a plot, a table and what it says."""
    kinds = _kinds(rows)
    dense = kinds.get(_DENSE, [])
    goals = []
    if dense:
        final = statistics.mean(row["accuracy"] for row in dense)
        goals = [math.floor(10 * (final - below)) / 10 for below in _BELOW]
    cells, reached = [], {}
    for kind, group in kinds.items():
        accuracies = [row["accuracy"] for row in group]
        seconds = [row["training_seconds"] for row in group]
        reached[kind] = [_mean_until(group, goal) for goal in goals]
        cells.append(
            [
                label(*kind),
                tables.with_spread(_mean(accuracies)),
                tables.with_spread(_mean(seconds), 1),
                *("–" if each is None else f"{each:.1f}" for each in reached[kind]),
            ]
        )
    head = ["", "test accuracy at the end (%)", "seconds of training"]
    head += [f"seconds to {goal:g} %" for goal in goals]
    lines = [f"![Test accuracy over seconds]({NAME}.png)", "", *tables.table(head, cells), ""]
    return lines + _sentences(kinds, goals, reached)


def _mean(values):
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return statistics.mean(values), deviation, len(values)


def _mean_until(group, goal):
    seconds = [seconds_until(tables.from_text(row["points"]), goal) for row in group]
    return None if None in seconds else statistics.mean(seconds)


def _sentences(kinds, goals, reached):
    """Sentences that compare each sparsity with dense; – stands for an accuracy not reached."""
    sentences = []
    for kind, group in kinds.items():
        if not kind[0] or not goals:
            continue
        long, short = (
            statistics.mean(row["training_seconds"] for row in each)
            for each in (kinds[_DENSE], group)
        )
        steps = "as many steps" if kind[1] == 1 else f"{kind[1]:g} times as many steps"
        parts = [f"takes {short / long:.2f} of the dense training's time for {steps}"]
        never = []
        for goal, dense, sparse in zip(goals, reached[_DENSE], reached[kind], strict=True):
            if sparse is None:
                never.append(f"{goal:g} %")
            elif dense is not None:
                parts.append(f"reaches {goal:g} % {dense / sparse:.1f} times as soon")
        if never:
            parts.append(f"does not reach {' and '.join(never)} with every seed")
        sentences.append(f"{label(*kind)} {', '.join(parts)}.")
    return [" ".join(sentences)] if sentences else []


def _plot(rows, path):
    with plots.figure(path) as axes:
        lowest = 100.0
        sparsities = sorted({kind[0] for kind in _kinds(rows)} - {0})
        for (sparsity, length), group in _kinds(rows).items():
            style = styles.of(["dense"])["dense"] | {"marker": "."}
            if sparsity:
                style = {**styles.numbered(sparsities.index(sparsity)), "linestyle": "-"}
            if length > 1:
                style |= {"linestyle": ":", "markerfacecolor": "white"}
            runs = [tables.from_text(row["points"]) for row in group]
            for points in runs:
                pale = {**styles.line(style), "alpha": 0.3, "linewidth": 0.8}
                axes.plot(*zip(*points, strict=True), **pale)
            middle = [
                [statistics.mean(point[axis] for point in points) for axis in (0, 1)]
                for points in zip(*runs, strict=True)
            ]
            axes.plot(
                *zip(*middle, strict=True), **style, markersize=5, label=label(sparsity, length)
            )
            lowest = min(lowest, middle[-1][1])
        axes.set(
            title="Fashion-MNIST: mean of the seeds, and each seed",
            xlabel="seconds of training",
            ylabel="test accuracy (%)",
            ylim=(max(0, lowest - 15), None),
        )
        axes.grid(alpha=0.3)
        plots.legend(axes)


def main(_):
    """Trains what is not trained yet, and writes the page."""
    rows = experiments.store(NAME, KEY)
    data = None
    if not FLAGS.only_report:
        data = experiments.load("fashion_mnist")
        flat = {name: getattr(data, name).reshape(-1, 784) for name in ("x_train", "x_test")}
        data = data._replace(**flat)
    wanted = [
        {
            "sparsity": float(sparsity),
            "seed": int(seed),
            "epochs": FLAGS.epochs * length,
            "width": FLAGS.width,
            "examples": FLAGS.max_examples or "all",
        }
        for seed in FLAGS.seeds
        for sparsity in FLAGS.sparsities
        for length in (map(int, FLAGS.lengths) if float(sparsity) else (1,))
    ]

    def seconds(each):
        return (10 if each["sparsity"] else 40) * each["epochs"]

    experiments.run_all(rows, wanted, lambda each: run(each, data), seconds)
    if not rows.rows:
        raise app.UsageError("There is no run to report.")
    _plot(rows.rows, pathlib.Path(FLAGS.output_dir) / f"{NAME}.png")
    every = sorted({row["epochs"] for row in rows.rows})
    lines = [
        "# Fashion-MNIST: test accuracy over the seconds of training",
        "",
        f"A network 784-{FLAGS.width}-{FLAGS.width}-{FLAGS.width}-10, batches of {_BATCH}, SGD "
        f"with momentum 0.9, learning rate {_LEARNING_RATE} along a cosine to 0, "
        f"{' or '.join(map(str, every))} epochs. RigL with CSR kernels, the same sparsity in each "
        f"hidden layer, the last layer dense; updates every {FLAGS.update_frequency} steps until "
        f"{_END_FRACTION:.0%} of training, drop fraction {_DROP_FRACTION}; the first weights are "
        "scaled by the active connections. The runs of a seed follow each other. The clock stands "
        "still while the test accuracy is measured, "
        f"{_PER_EPOCH} times an epoch, and does not count compilation. The dense network trains in "
        "graph mode or with XLA (column `xla`), whichever is faster on this machine.",
        "",
        *summary(rows.rows),
    ]
    experiments.write_page(NAME, lines, "scripts.benchmark.time_to_accuracy")


if __name__ == "__main__":
    _define_flags()
    entry.run(main)
