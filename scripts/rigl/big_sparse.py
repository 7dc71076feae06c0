"""Trains wide sparse networks with the cost of a narrow dense one: Big-Sparse, on MNIST.

    python -m scripts.rigl.big_sparse --data_dir=DATA

The RigL paper widens MobileNet-v1 to 1.98 times its channels, makes it 75 % sparse, and so has the
FLOPs of the dense network and more accuracy. Here the dense network is LeNet-300-100 (266,200
kernel weights) or a tenth of it, 30-10 (23,920), and the wide ones, trained by RigL, have two, four
or ten times its hidden units and as many active weights. In layers without weight sharing equal
weights are equal FLOPs, too. These are 35 runs of 10 epochs, with five seeds, 20 to 60 s each on
one core. Finished runs are rows of `results/big_sparse.csv` and are never repeated.
"""

import pathlib

import keras
from absl import flags

import models
import rigl_tf
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

_NAME = "big_sparse"
_KEY = ("width", "times", "seed", "epochs", "examples")
# Width of the dense network: how many times as wide the others are; 1 is the dense one itself.
WIDTHS = {1.0: (1, 2, 4), 0.1: (1, 2, 4, 10)}
_UPDATE_FREQUENCY = 100
_END_FRACTION = 0.75

FLAGS = flags.FLAGS


def _define_flags():
    experiments.define_flags(epochs=10, seeds=("0", "1", "2", "3", "4"))


def _network(width):
    return models.build("lenet_300_100", input_shape=(28, 28, 1), l2=lenet.L2, width=width)


def train(data, run):
    """Does one run. Returns the columns of its row."""
    keras.utils.set_random_seed(run["seed"])
    keras.backend.clear_session()
    num_weights = models.count_kernel_weights(_network(run["width"]))
    model = _network(run["width"] * run["times"])
    sparsity = 1 - num_weights / models.count_kernel_weights(model)
    method = "dense" if run["times"] == 1 else "rigl"
    model = methods.sparsify(method, model, sparsity, "erk", run["seed"])
    total_steps = run["epochs"] * classifiers.steps_per_epoch(data, lenet.BATCH_SIZE)
    optimizer = methods.wrap_optimizer(
        method,
        lenet.sgd(total_steps),
        total_steps,
        sparsity,
        end_fraction=_END_FRACTION,
        update_frequency=_UPDATE_FREQUENCY,
        seed=run["seed"],
    )
    classifiers.fit(model, optimizer, data, lenet.BATCH_SIZE, run["epochs"], run["seed"])
    active = sum(int(mask.sum()) for mask in rigl_tf.get_masks(model).values())
    return {
        "accuracy": classifiers.accuracy(model, data.x_test, data.y_test),
        "sparsity": round(sparsity, 4),
        "weights": active or num_weights,
        "kflops": round(rigl_tf.flops.count(model).flops / 1000, 1),
    }


def _units(width):
    return "-".join(str(round(n * width)) for n in (300, 100))


def _table(width, rows):
    cells = []
    for times in WIDTHS[width]:
        found = [row for row in rows if (row["width"], row["times"]) == (width, times)]
        if found:
            means = tables.means(found, "width", "times", "accuracy")
            kind = "dense" if times == 1 else "RigL"
            cells.append(
                [
                    f"{_units(width * times)}, {kind}",
                    f"{100 * found[0]['sparsity']:.1f} %",
                    f"{found[0]['weights']:,}",
                    f"{found[0]['kflops']:,.1f}",
                    tables.with_spread(means[width, times]),
                ]
            )
    return tables.table(["network", "sparsity", "active weights", "kFLOPs", "accuracy"], cells)


def judged(rows):
    """The claim for each dense network, and what the rows say of it: `{claim: text}`."""
    found = {}
    for width, times in WIDTHS.items():
        values = {}
        for row in rows:
            if row["width"] == width:
                values.setdefault(row["times"], {})[row["seed"]] = row["accuracy"]
        most = max(times)
        claim = f"Big-Sparse, {most} times as wide, is better than the dense {_units(width)}"
        found[claim] = claims.NOT_RUN
        if {1, most} <= values.keys():
            gains = claims.differences(values, most, 1)
            found[claim] = f"{claims.verdict(gains)} ({claims.signed(gains)})"
    return found


def _report(rows, missing):
    lines = [
        "# MNIST: wide sparse networks beside dense ones of the same cost",
        "",
        "Test accuracy in percent after the last epoch, mean ± standard deviation over seeds "
        f"{sorted({row['seed'] for row in rows})}. LeNet with other widths, ERK, batch "
        f"{lenet.BATCH_SIZE}, {FLAGS.epochs} epochs, SGD 0.1, Nesterov momentum 0.9, cosine decay, "
        f"L2 1e-4; RigL updates masks every {_UPDATE_FREQUENCY} steps until 75 % of training, drop "
        f"fraction 0.3 (cosine). {words.L2}",
    ]
    for width in WIDTHS:
        heading = f"## With the weights of the dense network {_units(width)}"
        lines += ["", heading, "", *_table(width, rows)]
    lines += [
        "",
        "## What the paper finds",
        "",
        "With MobileNet-v1 on ImageNet: 76.4 % for 1.98 times the width and 75 % sparsity, beside "
        f"72.1 % for the dense network of the same FLOPs. {words.VERDICTS} In brackets is the "
        "difference in points, with its interval.",
        "",
        *tables.table(["claim", "here"], judged(rows).items()),
        "",
        f"![Accuracy over width]({_NAME}.png)",
    ]
    if missing:
        lines += ["", f"Not run yet: {missing} runs."]
    experiments.write_page(_NAME, lines, "scripts.rigl.big_sparse")
    shown = [{**row, "line": f"weights of {_units(row['width'])}"} for row in rows]
    names = [f"weights of {_units(width)}" for width in WIDTHS]
    plots.plot_means(
        shown,
        "line",
        "times",
        "accuracy",
        pathlib.Path(FLAGS.output_dir) / f"{_NAME}.png",
        names,
        "MNIST: equal cost, more width",
        "hidden units, of those of the dense network",
        "test error (%)",
        as_error=True,
        look={name: styles.numbered(number) for number, name in enumerate(names)},
    )


def main(_):
    data = experiments.load("mnist")
    rows = experiments.store(_NAME, _KEY)
    wanted = [
        {
            "width": width,
            "times": times,
            "seed": int(seed),
            "epochs": FLAGS.epochs,
            "examples": len(data.x_train),
        }
        for seed in FLAGS.seeds
        for width, of_width in WIDTHS.items()
        for times in of_width
    ]
    experiments.run_all(
        rows,
        wanted,
        lambda run: train(data, run),
        lambda run: 5 + run["epochs"] * (1.5 + run["width"] * run["times"]),
    )
    missing = sum(run not in rows for run in wanted)
    _report([row for row in rows.rows if row["examples"] == len(data.x_train)], missing)


if __name__ == "__main__":
    _define_flags()
    entry.run(main)
