"""Measures the loss between a static and a pruned solution, and whether RigL connects them.

    python -m scripts.rigl.landscape --data_dir=DATA

trains a network with a static mask, and one that is pruned gradually. The loss is measured between
both solutions, on the straight line and on Bézier curves with trained control points. Then training
continues from the static solution, with its mask and with RigL. There are 3 seeds, about 6 minutes
each on two cores. A finished seed is a row of `results/landscape.csv` and is never repeated. The
page and the plot are made from all rows. Expect a high barrier on the line, and that RigL leaves
the static solution for a lower training loss.
"""

import pathlib
import statistics

import keras
import numpy as np

import rigl_tf
from rigl_tf import analysis
from scripts.common import (
    claims,
    classifiers,
    entry,
    experiments,
    methods,
    plots,
    styles,
    tables,
    words,
)
from scripts.rigl import lenet

_NAME = "landscape"
_SPARSITY = 0.98
_OTHER_START = 1000  # added to the seed of the initial weights of the pruned network
_COEFFICIENTS = np.linspace(0, 1, 21)
# The degree of each path, and whether it keeps to the connections of the two solutions.
_CURVES = {
    "quadratic, in the union": (2, True),
    "cubic, in the union": (3, True),
    "quadratic, all dense": (2, False),
}
_LINE = "straight line"
_NO_RISE = 0.01  # of the loss above the worse end: a tenth of what two solutions differ by
_PATHS = (_LINE, *_CURVES)
_TRAININGS = ("static", "pruning", "static again", "rigl from static")


def _define_flags():
    experiments.define_flags(epochs=10)


def learning_rate(data, epochs):
    total_steps = epochs * classifiers.steps_per_epoch(data, lenet.BATCH_SIZE)
    return lenet.learning_rate(total_steps), total_steps


def build(method, seed):
    keras.utils.set_random_seed(seed)
    keras.backend.clear_session()
    return methods.build_model(
        method, "lenet_300_100", _SPARSITY, "erk", seed, input_shape=(28, 28, 1), l2=lenet.L2
    )


def training_loss(model, data):
    """The mean cross-entropy over all training examples, without the L2 penalty."""
    num_parts = -(-len(data.x_train) // 10_000)
    logits = np.concatenate([model(part) for part in np.array_split(data.x_train, num_parts)])
    losses = keras.losses.sparse_categorical_crossentropy(data.y_train, logits, from_logits=True)
    return float(np.mean(losses))


def train(model, method, data, seed, epochs):
    """Trains the model. Returns the training loss before and after each epoch."""
    rate, total_steps = learning_rate(data, epochs)
    inner = keras.optimizers.SGD(rate, momentum=0.9, nesterov=True)
    optimizer = methods.wrap_optimizer(method, inner, total_steps, _SPARSITY, "erk", seed=seed)
    losses = [training_loss(model, data)]
    record = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: losses.append(training_loss(model, data))
    )
    classifiers.fit(model, optimizer, data, lenet.BATCH_SIZE, epochs, seed, callbacks=[record])
    return losses


def go(model, start, end, masks, data, seed, epochs):
    """Measures the training loss along each path. Returns `{path: losses}`."""
    results = {}
    for path in _PATHS:
        points = []
        if path in _CURVES:
            degree, in_union = _CURVES[path]
            rate, steps = learning_rate(data, epochs)
            points = analysis.train_bezier(
                model,
                start,
                end,
                classifiers.batches(data.x_train, data.y_train, lenet.BATCH_SIZE, epochs, seed),
                keras.losses.SparseCategoricalCrossentropy(from_logits=True),
                keras.optimizers.SGD(rate, momentum=0.9, nesterov=True),
                steps,
                degree,
                masks if in_union else None,
                seed,
            )
        results[path] = analysis.interpolate(
            model, start, end, lambda model: training_loss(model, data), _COEFFICIENTS, points
        )
    return results


def run_seed(data, seed, epochs, **_):
    """Does everything for one seed. Returns the columns of its row: losses and accuracies."""
    losses, weights, masks, accuracies = {}, {}, {}, {}

    def finish(name, model, method):
        losses[name] = train(model, method, data, seed, epochs)
        weights[name] = model.get_weights()
        masks[name] = rigl_tf.get_masks(model)
        accuracies[name] = classifiers.accuracy(model, data.x_test, data.y_test)

    finish("static", build("static", seed), "static")
    model = build("pruning", _OTHER_START + seed)
    finish("pruning", model, "pruning")
    union = {path: mask | masks["static"][path] for path, mask in masks["pruning"].items()}
    start, end = weights["pruning"], weights["static"]
    losses |= go(model, start, end, union, data, seed, epochs)
    for name, method in (("static again", "static"), ("rigl from static", "rigl")):
        model = build(method, seed)
        model.set_weights(weights["static"])  # the masks are among them
        finish(name, model, method)
    columns = {name: " ".join(f"{x:.5f}" for x in losses[name]) for name in (*_PATHS, *_TRAININGS)}
    return columns | {f"accuracy of {name}": value for name, value in accuracies.items()}


def _numbers(text):
    return [float(number) for number in text.split()]


def _spread(values, digits=3):
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.{digits}f} ± {deviation:.{digits}f}"


def rise(losses):
    """How far the path goes above the higher one of its two ends; 0 if it does not."""
    return analysis.error_barrier(losses, above="worse")


def _path_table(rows):
    cells = []
    for path in _PATHS:
        losses = [_numbers(row[path]) for row in rows]
        columns = (map(max, losses), map(analysis.error_barrier, losses), map(rise, losses))
        cells.append([path, *(_spread(list(column)) for column in columns)])
    head = ["path", "highest loss", "barrier (highest - mean of the ends)", "above the worse end"]
    return tables.table(head, cells)


def _training_table(rows):
    cells = []
    for name in _TRAININGS:
        losses = [_numbers(row[name])[-1] for row in rows]
        accuracies = [row[f"accuracy of {name}"] for row in rows]
        cells.append([name, _spread(losses), _spread(accuracies, 2)])
    return tables.table(["training", "training loss", "test accuracy (%)"], cells)


def judged(rows):
    """The paper's claims and what the rows say of them, each with its interval: `{claim: text}`."""

    def by_seeds(measure):
        values = [measure(row) for row in rows]
        return f"{claims.verdict(values)} ({claims.signed(values, 3)})"

    def barrier(row, path):
        return rise(_numbers(row[path])) - _NO_RISE

    def nearer_to_pruned(row, name):
        static, pruned, last = (_numbers(row[n])[-1] for n in ("static", "pruning", name))
        return (static + pruned) / 2 - last

    return {
        "A high barrier on the straight line": by_seeds(lambda row: barrier(row, _LINE)),
        **{
            f"A barrier on the trained curve, {path}": by_seeds(lambda row, p=path: barrier(row, p))
            for path, (_, in_union) in _CURVES.items()
            if in_union
        },
        "No barrier on the quadratic curve in the dense space": by_seeds(
            lambda row: -barrier(row, "quadratic, all dense")
        ),
        "Static training, started again, stays": by_seeds(
            lambda row: -nearer_to_pruned(row, "static again")
        ),
        "RigL escapes, to about the pruned loss": by_seeds(
            lambda row: nearer_to_pruned(row, "rigl from static")
        ),
    }


def plot(rows, path):
    """Draws the loss along the paths and over the epochs: means, and single seeds in pale lines."""
    epochs = len(_numbers(rows[0]["static"])) - 1
    over_epochs = {name: np.arange(epochs + 1) for name in _TRAININGS}
    for name in ("static again", "rigl from static"):
        over_epochs[name] = over_epochs[name] + epochs
    with plots.figure(path, (12, 4.5), ncols=2) as (left, right):
        for axes, xs in ((left, dict.fromkeys(_PATHS, _COEFFICIENTS)), (right, over_epochs)):
            for name, style in styles.of(xs).items():
                curves = np.array([_numbers(row[name]) for row in rows])
                axes.plot(xs[name], curves.T, color=style["color"], alpha=0.25, linewidth=0.8)
                label = styles.label(name)
                axes.plot(xs[name], curves.mean(axis=0), **style, markersize=4, label=label)
            axes.grid(alpha=0.3)
            plots.plain_numbers(axes)
            plots.legend(axes, loc="upper center", ncols=2)
        left.set(
            title="from the pruned solution (0) to the static one (1)",
            xlabel="t",
            ylabel="training loss",
            ylim=(None, 4),
        )
        right.set(title="training", xlabel="epoch", ylabel="training loss", ylim=(None, 1))


def report(rows, epochs, output_dir):
    """Writes the page and the plot."""
    lines = [
        "# MNIST, LeNet-300-100: what lies between a static and a pruned solution",
        "",
        f"Section 4.3 of the RigL paper on a small network, {_SPARSITY:.0%} sparse (ERK). Seeds "
        f"{sorted({row['seed'] for row in rows})}, mean ± standard deviation. The two networks "
        f"start from different weights; batch {lenet.BATCH_SIZE}, {epochs} epochs, SGD 0.1, "
        "Nesterov momentum 0.9, cosine decay, L2 1e-4. The curves' control points are trained with "
        "the same optimizer for as many epochs, without L2 (the paper does not say how). Losses "
        f"are the cross-entropy of all training examples, without L2. {words.L2}",
        "",
        *tables.table(["claim of the paper (ResNet-50, ImageNet)", "here"], judged(rows).items()),
        "",
        f"{words.VERDICTS} In brackets is by how much the claim holds, in units of the loss, with "
        f"the interval. A barrier is counted from {_NO_RISE:g} above the worse end on. A training "
        "escapes if its loss ends nearer to the pruned than to the static one (by so much, from "
        "the middle between them), else it stays; to begin again with a "
        "high learning rate lowers the loss a little in any case. Where a curve finds a way here "
        "that the paper's did not, the reason may be the small network and the easy task, or how "
        "the curves were trained, which the paper leaves open.",
        "",
        f"![Loss along the paths and over training]({_NAME}.png)",
        "",
        "## Along the paths",
        "",
        "The union are the connections of either solution, up to twice as many on the way as at "
        "an end.",
        "",
        *_path_table(rows),
        "",
        "## From the static solution on",
        "",
        f"`again` and `from static` are {epochs} more epochs from the static solution, weights and "
        "masks, with the learning rate from the start.",
        "",
        *_training_table(rows),
    ]
    experiments.write_page(_NAME, lines, "scripts.rigl.landscape")
    plot(rows, output_dir / f"{_NAME}.png")


def main(_):
    flags = experiments.FLAGS
    data = experiments.load("mnist")
    store = experiments.store(_NAME, ("seed", "epochs", "examples"))
    same = {"epochs": flags.epochs, "examples": len(data.x_train)}
    wanted = [{"seed": seed, **same} for seed in map(int, flags.seeds)]
    experiments.run_all(
        store, wanted, lambda run: run_seed(data, **run), lambda run: 36 * flags.epochs
    )
    rows = [row for row in store.rows if all(row[name] == same[name] for name in same)]
    report(rows, flags.epochs, pathlib.Path(flags.output_dir))


if __name__ == "__main__":
    _define_flags()
    entry.run(main)
