"""The page on the recipe of the Gradient Flow paper: published numbers beside ours, and claims."""

import itertools

import numpy as np

from rigl_tf import analysis
from scripts.common import claims, plots, tables, words
from scripts.lottery import networks, recipe
from scripts.lottery.pages import common

# Points that are no difference: a fifth of what the paper's tickets are above other weights (1.48).
SAME = 0.3


class Found:
    """The networks of one case.

    Attributes:
        seeds: List of integers, one for each pruned network.
    """

    def __init__(self, rows, labels):
        self._labels = labels
        self._rows = {(row["network"], row["seed"], row["order"]): row for row in rows}
        self._predictions = {
            key: recipe.unpack(row["probabilities"]).reshape(len(labels), -1)
            for key, row in self._rows.items()
        }
        self.seeds = sorted({row["seed"] for row in rows})

    def orders(self, network, seed):
        """The keys of what was trained in several orders of the data."""
        return [key for key in sorted(self._rows) if key[:2] == (network, seed)]

    def starts(self, network):
        """The keys of the first order for each pruned network."""
        return [(network, seed, 0) for seed in self.seeds]

    def accuracy(self, key):
        return self._rows[key]["accuracy"]

    def disagreement(self, *keys):
        """In percent, the mean over all pairs of some networks."""
        pairs = itertools.combinations([self._predictions[key] for key in keys], 2)
        return 100 * float(np.mean([analysis.disagreement(*pair) for pair in pairs]))

    def to_pruned(self, key):
        """In percent, the disagreement with the pruned network whose masks it has."""
        return self.disagreement(key, ("pruned", key[1], 0))

    def ensemble(self, keys):
        """In percent, the accuracy of the mean of the probabilities."""
        each = [self._predictions[key] / recipe.PARTS for key in keys]
        return 100 * analysis.ensemble_accuracy(each, self._labels, from_logits=False)

    def gain(self, network, seed):
        """By how much two orders together are better than alone, on average."""
        keys = self.orders(network, seed)[:2]
        return self.ensemble(keys) - np.mean([self.accuracy(key) for key in keys])

    def within(self, network, seed):
        """In percent, the disagreement of the orders of one start."""
        return self.disagreement(*self.orders(network, seed))

    def differences(self, measure, first, second):
        """`measure` of one network less that of another, for each pruned network."""
        return [float(measure(first, seed) - measure(second, seed)) for seed in self.seeds]

    def more_accurate(self, first, second):
        return self.differences(lambda *key: self.accuracy((*key, 0)), first, second)


# Each with the difference that is to be above 0, or within a margin.
CLAIMS = (
    (
        "A ticket is more accurate than its masks on new weights",
        lambda found: found.more_accurate("ticket", "scratch"),
        None,
    ),
    (
        "… also on those of a sparsity-aware initialisation",
        lambda found: found.more_accurate("ticket", "scratch_aware"),
        None,
    ),
    (
        f"A ticket and the network that it is of do not differ by more than {SAME} points",
        lambda found: found.more_accurate("ticket", "pruned"),
        SAME,
    ),
    (
        "The ticket disagrees with the pruned network in fewer images than its masks on new "
        "weights (sparsity-aware) do",
        lambda found: found.differences(
            lambda *key: found.to_pruned((*key, 0)), "scratch_aware", "ticket"
        ),
        None,
    ),
    (
        "Tickets of one start disagree with each other in fewer images than trainings of one other "
        "start (sparsity-aware) do",
        lambda found: found.differences(found.within, "scratch_aware", "ticket"),
        None,
    ),
    (
        "Two of these tickets gain less by an ensemble than two of these trainings",
        lambda found: found.differences(found.gain, "scratch_aware", "ticket"),
        None,
    ),
    (
        "RigL is more accurate than its first masks and weights, trained as they are",
        lambda found: found.more_accurate("rigl", "scratch"),
        None,
    ),
    (
        "… also if both have a sparsity-aware initialisation",
        lambda found: found.more_accurate("rigl_aware", "scratch_aware"),
        None,
    ),
    (
        "RigL is more accurate with sparsity-aware initialisation",
        lambda found: found.more_accurate("rigl_aware", "rigl"),
        None,
    ),
)

# Accuracy, ensemble of five, disagreement with each other and with the pruned network, in percent.
_NONE = (None,) * 4
PUBLISHED = {
    "tickets of one start": (98.52, 98.58, 0.43, 0.89),
    "tickets": _NONE,
    "scratch, sparsity-aware, of one start": (97.04, 98.00, 3.16, 2.78),
    "scratch, sparsity-aware": (97.19, 98.43, 3.52, 2.78),
    "scratch": (97.19, 98.43, 3.52, 2.78),
    "pruned": (98.30, 99.07, 2.14, None),
    "RigL, sparsity-aware": _NONE,
    "RigL": _NONE,
}


def groups(found):
    """`{name in PUBLISHED: keys of its networks}`."""
    first = found.seeds[0]
    keys = (
        found.orders("ticket", first),
        found.starts("ticket"),
        found.orders("scratch_aware", first),
        found.starts("scratch_aware"),
        found.starts("scratch"),
        found.starts("pruned"),
        found.starts("rigl_aware"),
        found.starts("rigl"),
    )
    return dict(zip(PUBLISHED, keys, strict=True))


def lines(rows):
    """The lines of the page."""
    page = list(_HEAD)
    for case, found in _cases(rows).items():
        page += ["", f"## {case}", "", *_claims(found), "", *_numbers(found)]
        page += ["", f"![Accuracies and disagreements]({recipe.NAME}.png)"]
    return page


def _cases(rows):
    return {
        case: Found(of_case, networks.data_of(recipe.CASES[case]).y_test)
        for case, of_case in common.by_case(rows).items()
    }


_HEAD = (
    "# LeNet-5 by the recipe of the Gradient Flow paper",
    "",
    'Evci, Ioannou, Keskin and Dauphin, "Gradient Flow in Sparse Neural Networks and How Lottery '
    'Tickets Win" (AAAI 2022, [arXiv 2010.03533](https://arxiv.org/abs/2010.03533)), MNIST.',
    "",
    "The recipe is that of the authors' code (google-research/rigl, `rigl_tf2`): filters 6 and 16, "
    "units 120 and 84; 11,719 steps of 128 images (25 epochs); SGD with momentum 0.9, not "
    "Nesterov's; a learning rate that falls from 0.05 to 0 along a cosine; L2 1e-3 (their 5e-4 is "
    "of Keras, which does not halve the sum). Pruning goes from 0 to 95 % between steps 3000 and "
    "7000, every 100 steps, the same share of each kernel, also of the first. RigL updates its "
    "masks every 100 steps to the end of the training; the share that it drops is 0.3 at first and "
    f"follows the learning rate. {words.L2}",
    "",
    "Pruned: from five starts. Ticket: the masks of a pruned network at its end, the weights that "
    "it began with, another order of the data. Scratch: the same masks, new weights. RigL begins "
    "with what scratch does. The weights are drawn as Keras does it (Glorot's distribution, which "
    "counts all connections); sparsity-aware: from He's normal distribution, which counts the "
    "active connections of each neuron.",
    "",
    "What is not as in the authors' code: there RigL grows by the gradients of 1,000 fixed "
    "training images after a gradient step, here by those of the batch, whose gradient step it "
    "replaces; there the sparsity-aware variance has the factor 1 by default, here 2, as in the "
    "paper; there the file for tickets alone has no L2, here all networks have it.",
)


def _claims(found):
    table = []
    for text, differences, margin in CLAIMS:
        each = differences(found)
        table.append([text, claims.verdict(each, margin), claims.signed(each)])
    return [
        f"The claims were fixed in the code before the runs. {words.VERDICTS} Each seed (here "
        f"{found.seeds}) is a pruned network and what begins with its masks. Differences are in "
        "points: of accuracy, or of the share of images that two networks classify differently.",
        "",
        *tables.table(["claim", "verdict", "difference"], table),
    ]


def _numbers(found):
    table = []
    for name, keys in groups(found).items():
        accuracy, ensemble, within, to_pruned = PUBLISHED[name]
        accuracies = [found.accuracy(key) for key in keys]
        distances = [found.to_pruned(key) for key in keys if key[0] != "pruned"]
        table.append(
            [
                name,
                len(keys),
                _beside(accuracies, accuracy),
                f"{found.ensemble(keys):.2f}{_published(ensemble)}",
                f"{found.disagreement(*keys):.2f}{_published(within)}" if len(keys) > 1 else "–",
                _beside(distances, to_pruned),
            ]
        )
    return [
        "In percent of the test images. ± is the 95 % prediction interval: one more network of "
        "this kind would lie in it. In brackets is the published number (a mean of five networks), "
        "with a mark † if it is outside. The disagreement with each other is the mean over all "
        "pairs; the ensemble is that of the mean probabilities of all networks of a row, which are "
        f"kept in {recipe.PARTS}rds. Each network is compared with the pruned one that its masks "
        "are of. Of one start: other orders of the data. The others have a start each, so there "
        "are as many pruned networks, and masks of each; the paper's scratch trainings from five "
        "starts have the masks of one, and which initialisation they have is not known here. "
        "11.35 % is one answer for all images: such a network did not leave the start.",
        "",
        *tables.table(
            [
                "networks",
                "number",
                "accuracy",
                "ensemble",
                "disagreement with each other",
                "disagreement with the pruned network",
            ],
            table,
        ),
    ]


def _beside(values, published):
    """Mean and prediction interval, and the published number."""
    if not values:
        return "–"
    mean, half = claims.prediction_interval(values)
    if len(values) == 1:
        return f"{mean:.2f}{_published(published)}"
    is_outside = published is not None and abs(published - mean) > half
    return f"{mean:.2f} ± {half:.2f}{_published(published, ' †' if is_outside else '')}"


def _published(number, mark=""):
    return "" if number is None else f" ({number:.2f}{mark})"


def plot(rows, path):
    """Accuracies, and disagreements with the pruned network; a cross is a published number."""
    (found,) = _cases(rows).values()
    names = list(PUBLISHED)
    panels = (
        ("test accuracy (%)", found.accuracy, 0),
        ("images classified unlike the pruned network (%)", found.to_pruned, 3),
    )
    with plots.figure(path, (11, 4.5), ncols=2, sharey=True) as grid:
        for axes, (label, measure, published) in zip(grid, panels, strict=True):
            for place, (name, keys) in enumerate(groups(found).items()):
                values = [measure(k) for k in keys if k[0] != "pruned" or not published]
                axes.plot(values, [place] * len(values), "o", color="tab:blue", alpha=0.6)
                if PUBLISHED[name][published] is not None:
                    axes.plot(PUBLISHED[name][published], place, "x", color="black", markersize=9)
            axes.set_xlabel(label)
            axes.grid(alpha=0.3)
        grid[0].set_yticks(range(len(names)), names)
        grid[0].invert_yaxis()
