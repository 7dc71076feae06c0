"""Finds the best small dense network for a number of weights: two widths, not one factor.

    python -m scripts.rigl.small_dense --data_dir=DATA
    python -m scripts.rigl.small_dense --data_dir=DATA --dataset=fashion_mnist

LeNet-300-100 made narrower by one factor is a poor rival of a sparse network: at 98 % it has a
second layer of two units. So for each sparsity of the table of methods this script trains networks
with two hidden layers of other widths, all with as many kernel weights as the sparse network has
active ones, as nearly as can be. The last 10,000 training examples are held out and choose; the
test data is not touched. 93 runs of 10 epochs, about 10 s each on one core. Finished runs are rows
of `results/small_dense.csv`; `scripts.rigl.methods_table` takes the best widths from there.
"""

import keras
from absl import flags

import models
import rigl_tf
from scripts.common import classifiers, entry, experiments, tables
from scripts.rigl import lenet

NAME = "small_dense"
KEY = ("dataset", "sparsity", "first", "second", "seed", "epochs", "examples")
SPARSITIES = (0.8, 0.9, 0.95, 0.98, 0.99)
_HELD_OUT = 1 / 6

FLAGS = flags.FLAGS


def _define_flags():
    # Seeds of their own, so that no network of the table is one of these.
    experiments.define_flags(epochs=10, seeds=("100", "101", "102"))
    flags.DEFINE_enum("dataset", "mnist", list(lenet.DATASETS), "Data to train on.")


def num_active(sparsity):
    """How many kernel weights sparse LeNet-300-100 has active (ERK)."""
    masks = rigl_tf.get_masks(rigl_tf.sparsify(models.lenet_300_100(), sparsity, "erk"))
    return sum(int(mask.sum()) for mask in masks.values())


def candidates(num_weights, num_inputs=784, num_classes=10):
    """Pairs of widths with at most `num_weights` weights, the second as wide as it can be.

    The widest first layers there can be, and ever larger steps below them.

    Example:

    >>> candidates(5324)
    [(6, 38), (5, 93), (4, 156), (2, 313)]
    """
    # A unit of the first layer needs its inputs and a unit of the second, which needs the classes.
    most = (num_weights - num_classes) // (num_inputs + 1)
    steps = [0, *(2**power for power in range(most.bit_length()))]
    firsts = [most - step for step in steps if step < most]
    return [
        (first, (num_weights - num_inputs * first) // (first + num_classes)) for first in firsts
    ]


def best(rows, dataset, sparsity, num_examples):
    """The pair of widths with the best mean accuracy on held-out examples.

    Args:
        rows: List of the rows of this script.
        dataset, sparsity: Of the rows that count.
        num_examples: Likewise, the training examples.

    Raises:
        ValueError: If there is no row.
    """
    wanted = {"dataset": dataset, "sparsity": sparsity, "examples": num_examples}
    mine = [row for row in rows if row.items() >= wanted.items()]
    if not mine:
        raise ValueError(
            "The widths of small-dense are chosen by `python -m scripts.rigl.small_dense`: run it "
            "before, with the same --dataset, --output_dir and --max_examples. "
            f"Received: no row of {wanted}"
        )
    values = tables.means(mine, "first", "second", "held_out")
    return max(values, key=lambda pair: values[pair][0])


def train(data, run):
    """One run. Returns the columns of its row: the accuracy on held-out examples in percent."""
    keras.utils.set_random_seed(run["seed"])
    keras.backend.clear_session()
    kept = len(data.x_train) - round(_HELD_OUT * len(data.x_train))
    part = data._replace(x_train=data.x_train[:kept], y_train=data.y_train[:kept])
    model = models.lenet_300_100(
        data.x_train.shape[1:], l2=lenet.L2, units=(run["first"], run["second"])
    )
    total_steps = run["epochs"] * classifiers.steps_per_epoch(part, lenet.BATCH_SIZE)
    optimizer = lenet.sgd(total_steps)
    classifiers.fit(model, optimizer, part, lenet.BATCH_SIZE, run["epochs"], run["seed"])
    return {
        "weights": models.count_kernel_weights(model),
        "held_out": classifiers.accuracy(model, data.x_train[kept:], data.y_train[kept:]),
    }


def _report(rows):
    lines = [
        "# Small-dense: which widths are best for a number of weights",
        "",
        "Networks with two hidden layers, all with at most as many kernel weights as LeNet-300-100 "
        "has active ones at that sparsity (ERK), trained as in the tables of methods. Accuracy in "
        "percent on the 10,000 training examples that were held out, mean ± standard deviation "
        "over the seeds; the best, in bold, is small-dense in these tables.",
    ]
    for dataset, title in lenet.DATASETS.items():
        mine = [row for row in rows if row["dataset"] == dataset]
        sparsities = sorted({row["sparsity"] for row in mine})
        if not mine:
            continue
        lines += ["", f"## {title}", ""]
        table = []
        for sparsity in sparsities:
            at = [row for row in mine if row["sparsity"] == sparsity]
            chosen = best(rows, dataset, sparsity, at[0]["examples"])
            for (first, second), value in tables.means(at, "first", "second", "held_out").items():
                text = tables.with_spread(value)
                shown = f"**{text}**" if (first, second) == chosen else text
                table.append([f"{sparsity:g}", f"784-{first}-{second}-10", shown])
        lines += tables.table(["sparsity", "network", "held-out accuracy"], table)
    experiments.write_page(NAME, lines, "scripts.rigl.small_dense")


def main(_):
    data = experiments.load(FLAGS.dataset)
    rows = experiments.store(NAME, KEY)
    same = {"dataset": FLAGS.dataset, "epochs": FLAGS.epochs, "examples": len(data.x_train)}
    wanted = [
        {"sparsity": sparsity, "first": first, "second": second, "seed": int(seed), **same}
        for sparsity in SPARSITIES
        for first, second in candidates(num_active(sparsity))
        for seed in FLAGS.seeds
    ]
    experiments.run_all(
        rows, wanted, lambda run: train(data, run), lambda run: 5 + 0.7 * run["epochs"]
    )
    _report([row for row in rows.rows if row["examples"] == same["examples"]])


if __name__ == "__main__":
    _define_flags()
    entry.run(main)
