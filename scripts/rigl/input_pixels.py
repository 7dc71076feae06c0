"""Counts the connections of each input pixel during training, on MNIST.

    python -m scripts.rigl.input_pixels --data_dir=DATA

trains by RigL and by SET. The first layer has 99 % of zeros, the second 89 %, and the last is
dense, as in Table 2 of the RigL paper. These are 6 runs of 32 epochs, about 100 s each on two
cores. Finished runs are rows of `results/input_pixels.csv` and are never repeated. The page and the
picture are made from all rows. Expect that RigL moves the connections from the empty border of the
images to their centre, and that SET does so less.
"""

import pathlib
import statistics

import keras
import numpy as np

import models
import rigl_tf
from scripts.common import classifiers, entry, experiments, methods, plots, styles, tables, words
from scripts.rigl import lenet

_NAME = "input_pixels"
_METHODS = ("rigl", "set")
_SPARSITIES = (0.99, 0.89)
_SIDE = 28


def _define_flags():
    experiments.define_flags(epochs=32)


def build_model(seed):
    """LeNet-300-100 with the sparsities of the paper's Table 2; the last layer is dense."""
    dense = models.build("lenet_300_100", input_shape=(_SIDE, _SIDE, 1), l2=lenet.L2)
    return rigl_tf.sparsify(
        dense,
        0.98,  # of all together; the distribution says how much of each
        lambda shapes, _: dict(zip(shapes, _SPARSITIES, strict=True)),
        dense_layers=dense.layers[-1].name,
        seed=seed,
    )


def connections(model):
    """The number of active connections of each input pixel."""
    first, *_ = rigl_tf.get_masks(model).values()
    return first.sum(axis=1)


def border_pixels():
    """`True` outside the middle 20 x 20 pixels, into which the digits of MNIST were scaled."""
    border = np.ones((_SIDE, _SIDE), bool)
    border[4:-4, 4:-4] = False
    return border.ravel()


def pictured(epochs):
    """The epochs after which a heat map is drawn: 0, 1, an eighth, a quarter, half, and all."""
    return sorted({0, 1, *(max(1, epochs // share) for share in (8, 4, 2, 1))})


def train(data, method, seed, epochs, **_):
    """Does one run. Returns the columns of its row. Lists begin with the start, then each epoch.

    The columns are the shares of the connections that are at the border, the numbers of pixels
    without a connection, the connections of each pixel in the pictured epochs, and the test
    accuracy.
    """
    keras.utils.set_random_seed(seed)
    keras.backend.clear_session()
    model = build_model(seed)
    total_steps = epochs * classifiers.steps_per_epoch(data, lenet.BATCH_SIZE)
    learning_rate = lenet.learning_rate(total_steps)
    inner = keras.optimizers.SGD(learning_rate, momentum=0.9, nesterov=True)
    counts = [connections(model)]
    record = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: counts.append(connections(model))
    )
    optimizer = methods.wrap_optimizer(method, inner, total_steps, sparsity=None, seed=seed)
    classifiers.fit(model, optimizer, data, lenet.BATCH_SIZE, epochs, seed, callbacks=[record])
    border = border_pixels()
    return {
        "at_border": _text(round(float(c[border].sum() / c.sum()), 4) for c in counts),
        "without": _text(int((c == 0).sum()) for c in counts),
        "pixels": " / ".join(_text(counts[epoch]) for epoch in pictured(epochs)),
        "accuracy": classifiers.accuracy(model, data.x_test, data.y_test),
    }


def _text(numbers):
    return " ".join(map(str, numbers))


def _numbers(text):
    return [float(number) for number in text.split()]


def _mean(rows, column, epoch):
    values = [_numbers(row[column])[epoch] for row in rows]
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return statistics.mean(values), spread


def _table(rows, epochs):
    chosen = pictured(epochs)
    cells = []
    for method in _METHODS:
        of_method = [row for row in rows if row["method"] == method]
        if not of_method:
            continue
        shares = [_mean(of_method, "at_border", epoch) for epoch in chosen]
        texts = [f"{100 * mean:.1f} ± {100 * spread:.1f} %" for mean, spread in shares]
        cells.append([f"{method}: connections at the border", *texts])
        numbers = [_mean(of_method, "without", epoch) for epoch in chosen]
        texts = [f"{mean:.0f} ± {spread:.0f}" for mean, spread in numbers]
        cells.append([f"{method}: pixels without connection", *texts])
    return tables.table(["", *(f"epoch {epoch}" for epoch in chosen)], cells)


def _paper(rows, epochs):
    of_rigl = [row for row in rows if row["method"] == "rigl"]
    if not of_rigl:
        return []
    connected = _SIDE**2 - _mean(of_rigl, "without", epochs)[0]
    return [
        f"In the end RigL sees {connected:.0f} of {_SIDE**2} pixels. In Table 2 of the paper, "
        "after 200 epochs and without the neurons that lead nowhere, it is 408.",
        "",
    ]


def plot(rows, epochs, path):
    """Heat-maps of one run of each method, and below them the shares at the border over time."""
    pyplot = plots.start()
    chosen = pictured(epochs)
    shown = [m for m in _METHODS if any(row["method"] == m for row in rows)]
    figure = pyplot.figure(figsize=(2 * len(chosen) + 1, 2.2 * len(shown) + 2.8))
    grid = figure.add_gridspec(
        len(shown) + 1, len(chosen) + 1, width_ratios=[20] * len(chosen) + [1]
    )
    for i, method in enumerate(shown):
        first = next(row for row in rows if row["method"] == method)
        images = [np.array(_numbers(text)) for text in first["pixels"].split("/")]
        highest = max(image.max() for image in images)
        for j, (epoch, image) in enumerate(zip(chosen, images, strict=True)):
            axes = figure.add_subplot(grid[i, j], xticks=[], yticks=[], title=f"epoch {epoch}")
            shown_as = axes.imshow(image.reshape(_SIDE, _SIDE), vmin=0, vmax=highest)
            if j == 0:
                axes.set_ylabel(f"{styles.label(method)}, seed {first['seed']}")
        figure.colorbar(shown_as, cax=figure.add_subplot(grid[i, -1]))
    axes = figure.add_subplot(grid[-1, :])
    for method in shown:
        of_method = [row for row in rows if row["method"] == method]
        values = [100 * _mean(of_method, "at_border", epoch)[0] for epoch in range(epochs + 1)]
        axes.plot(values, **styles.of([method])[method], markersize=4, label=styles.label(method))
    axes.axhline(100 * border_pixels().mean(), color="black", linestyle=":", label="of all pixels")
    axes.set(xlabel="epoch", ylabel="at the border (%)", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(loc="center right")
    plots.save(figure, path)


def report(rows, epochs, output_dir):
    """Writes the page and the picture."""
    seeds = sorted({row["seed"] for row in rows})
    accuracies = "; ".join(
        f"{method} "
        + " / ".join(f"{row['accuracy']:.2f}" for row in rows if row["method"] == method)
        for method in _METHODS
        if any(row["method"] == method for row in rows)
    )
    lines = [
        "# MNIST, LeNet-300-100: the connections of each input pixel",
        "",
        f"The first layer has a sparsity of {_SPARSITIES[0]:.0%} (2352 connections, 3 for each "
        f"pixel on average), the second of {_SPARSITIES[1]:.0%}, the last is dense. Batch "
        f"{lenet.BATCH_SIZE}, {epochs} epochs, SGD 0.1, Nesterov momentum 0.9, cosine decay, "
        "L2 1e-4, masks updated every 100 steps until 75 % of training, drop fraction 0.3 "
        f"(cosine). The masks at epoch 0 are random; a static network keeps them. {words.L2}",
        "",
        f"The border is what is outside the middle 20 x 20 pixels, {border_pixels().mean():.0%} "
        "of the image: digits were scaled to fit into these, then moved by their centre of mass. "
        f"Mean ± standard deviation over seeds {seeds}:",
        "",
        *_table(rows, epochs),
        "",
        *_paper(rows, epochs),
        f"Test accuracy in percent, a number for each seed: {accuracies}.",
        "",
        f"![Connections of each pixel over time]({_NAME}.png)",
        "",
        "Where a single digit shines through, RigL has grown connections by the gradient of one "
        "batch: most of them go again with a later update.",
    ]
    experiments.write_page(_NAME, lines, "scripts.rigl.input_pixels")
    plot(rows, epochs, output_dir / f"{_NAME}.png")


def main(_):
    flags = experiments.FLAGS
    data = experiments.load("mnist")
    store = experiments.store(_NAME, ("method", "seed", "epochs", "examples"))
    same = {"epochs": flags.epochs, "examples": len(data.x_train)}
    wanted = [
        {"method": method, "seed": seed, **same}
        for seed in map(int, flags.seeds)
        for method in _METHODS
    ]
    experiments.run_all(store, wanted, lambda run: train(data, **run), lambda run: 3 * flags.epochs)
    rows = [row for row in store.rows if all(row[name] == same[name] for name in same)]
    report(rows, flags.epochs, pathlib.Path(flags.output_dir))


if __name__ == "__main__":
    _define_flags()
    entry.run(main)
