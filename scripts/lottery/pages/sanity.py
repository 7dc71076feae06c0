"""The page on the sanity checks: the claims of Su et al., and our results."""

from rigl_tf import lottery
from rigl_tf.lottery.sanity import CHECKS
from scripts.common import claims, plots, styles, tables, words
from scripts.lottery.pages import common
from scripts.lottery.sanity import HYBRID, INITIAL, PARTIALLY_TRAINED

_RANDOM = "random, smart ratio"
_ASCENDING = "random, ascending"
_THRESHOLD = 0.5  # points that count as no drop, as Ma et al. have it for CIFAR-10
_DATA = ("corrupted labels", "corrupted pixels and labels", "half data")
_LABELS = _DATA[:2]
_POSITIONS = ("rearranged masks", "shuffled weights", "random ticket")
_WEIGHTS = _POSITIONS[:2]


class _Found:
    """The accuracies of one case, of all its seeds.

    Attributes:
        sparsities: Those of pruned tickets, in order.
        tickets: Their names, without the dense network.
    """

    def __init__(self, rows):
        self._rows = rows
        pruned = [row for row in rows if row["ticket"] != "dense"]
        self.sparsities = sorted({row["sparsity"] for row in pruned})
        self.tickets = list(dict.fromkeys(row["ticket"] for row in pruned))

    def of(self, ticket, sparsity, column="accuracy"):
        """The accuracies of a ticket, or of what is left of it by a check; empty if not run."""
        values = [
            row[column]
            for row in self._rows
            if (row["ticket"], row["sparsity"]) == (ticket, sparsity)
        ]
        return [value for value in values if value != ""]

    def table(self, ticket, sparsity):
        """The `SanityTable` of a ticket, with the checks that were done."""
        checked = {check: self.of(ticket, sparsity, check) for check in CHECKS}
        checked = {check: values for check, values in checked.items() if values}
        accuracies = {"ticket": self.of(ticket, sparsity), **checked}
        return lottery.SanityTable(accuracies, _THRESHOLD)

    def checked(self):
        """`(ticket, sparsity, SanityTable)` of each that was checked for more than its counts."""
        for sparsity in self.sparsities:
            for ticket in self.tickets:
                table = self.table(ticket, sparsity)
                if set(table.accuracies) - {"ticket", "random ticket"}:
                    yield ticket, sparsity, table

    def by_seed(self, ticket, sparsity, column="accuracy"):
        """As `of`, `{seed: accuracy}`."""
        values = {
            row["seed"]: row[column]
            for row in self._rows
            if (row["ticket"], row["sparsity"]) == (ticket, sparsity)
        }
        return {seed: value for seed, value in values.items() if value != ""}

    def drops(self, ticket, sparsity, check):
        """By how many points the accuracy drops, for each seed; empty if that is not run."""
        values = {"ticket": self.by_seed(ticket, sparsity)}
        values["check"] = self.by_seed(ticket, sparsity, check)
        return claims.differences(values, "ticket", "check")

    def noticed(self, tickets, checks, sign=1):
        """The verdict of all these tickets and checks: drops of more than `_THRESHOLD`.

        With `sign=-1` it is that the drops are less.
        """
        drops = [
            self.drops(ticket, sparsity, check)
            for ticket in tickets
            for sparsity in self.sparsities
            for check in checks
        ]
        return common.together(
            [claims.verdict([sign * (drop - _THRESHOLD) for drop in each]) for each in drops]
        )

    def not_worse(self, ticket, others, sign=1):
        """The verdict of all sparsities and others: `ticket` is less than `_THRESHOLD` below.

        With `sign=-1` it is that it is more.
        """
        found = []
        for sparsity in self.sparsities:
            values = {name: self.by_seed(name, sparsity) for name in (ticket, *others)}
            for other in others:
                gains = claims.differences(values, ticket, other)
                found.append(claims.verdict([sign * (gain + _THRESHOLD) for gain in gains]))
        return common.together(found)


def _mean(values):
    return sum(values) / len(values)


_CLAIMS = {
    "Initial tickets (SNIP, GraSP, LT) do not notice corrupted data": lambda found: found.noticed(
        INITIAL, _DATA, sign=-1
    ),
    "Initial tickets do not notice rearranged masks or shuffled weights": (
        lambda found: found.noticed(INITIAL, _WEIGHTS, sign=-1)
    ),
    "Random tickets with the counts of an initial ticket are as good": (
        lambda found: found.noticed(INITIAL, ["random ticket"], sign=-1)
    ),
    "Random tickets with the smart ratio are as good as initial tickets, or better": (
        lambda found: found.not_worse(_RANDOM, INITIAL)
    ),
    "Partially trained tickets notice corrupted labels": lambda found: found.noticed(
        PARTIALLY_TRAINED, _LABELS
    ),
    "Partially trained tickets notice rearranged masks and shuffled weights": (
        lambda found: found.noticed(PARTIALLY_TRAINED, _WEIGHTS)
    ),
    "Hybrid tickets are as good as learning-rate rewinding, or better": lambda found: (
        found.not_worse(HYBRID, PARTIALLY_TRAINED[1:])
    ),
    "Densities must fall with the depth: the ascending ones are worse": (
        lambda found: found.not_worse(_ASCENDING, [_RANDOM], sign=-1)
    ),
}


def lines(rows):
    """The lines of the page."""
    cases = _by_case(rows)
    judged = [
        [claim, *(judge(found) for found in cases.values())] for claim, judge in _CLAIMS.items()
    ]
    text = _INTRODUCTION.format(seeds=common.seeds(rows), threshold=_THRESHOLD, l2=words.L2)
    page = [*text.splitlines(), "", *tables.table(["claim", *cases], judged), ""]
    page += [*_READING.format(how=common.HOW).splitlines(), ""]
    page += ["![By how much accuracies drop, and accuracy over sparsity](lottery_sanity.png)"]
    for case, found in cases.items():
        epochs = {row["epochs"] for row in rows if row["case"] == case}
        page += ["", f"## {case}", "", f"Epochs: {', '.join(map(str, sorted(epochs)))}.", ""]
        page += [*_accuracy_table(found), "", *_check_table(found)]
    return page


def _by_case(rows):
    return {case: _Found(of_case) for case, of_case in common.by_case(rows).items()}


_INTRODUCTION = """\
# Who notices corrupted data and moved connections?

Su et al., "Sanity-Checking Pruning Methods: Random Tickets can Win the Jackpot" (NeurIPS 2020, \
arXiv 2009.11094), on small networks. Test accuracy in percent after the last epoch, seeds \
{seeds}.

Tickets: SNIP and GraSP (10 examples per class, initial weights); LT (one-shot magnitude pruning \
of the trained network, all kernels together, initial weights); weight rewinding (the same mask, \
the weights after a fifth of the epochs, one at least) and learning-rate rewinding (the same \
mask, the trained weights), both trained for the other epochs, on the rest of the learning rates; \
random, with the smart ratio or one of its ablations; hybrid (learning-rate rewinding with the \
counts of the smart ratio). In the checks the pruner sees random labels, random labels and \
shuffled pixels, or half of the data, and the training after it true data; or the mask of each \
kernel, or its active weights, are permuted; or a random ticket with the same counts is trained \
from the first weights, for all epochs. A check is noticed if the accuracy drops by more than \
{threshold} points; "as good" is less than {threshold} points worse. L2 is 1e-4 (ResNet-20: 2e-4): \
{l2}

The smart ratio is for convolutions, and keeps 30 % of linear layers. In LeNet-5 the hidden Dense \
layers would then keep more weights than all layers may: here they count as convolutions (1x1), \
and the classifier only as linear. For LeNet-300-100 it says nothing, as its layers are Dense: \
what applies are random tickets with the counts of a pruner, and ERK."""

_READING = """\
{how} Here they are the tickets, checks and sparsities. The paper trains VGG-19 and ResNet-32 for \
160 epochs, which takes days here; that at 90, 95 and 98 % its random tickets have 93.77, 93.42 \
and 92.45 % (VGG-19, CIFAR-10; by a reproduction of it) is not testable here. One seed says \
nothing of the spread. Networks on MNIST have weights to spare (the images' borders are black), \
so moved connections need not hurt even where they were found with care, and where they do, it \
may be that a pruner knows which pixels are never used: images of objects do not have such \
pixels. 11.35 % on MNIST and 10 % on Fashion-MNIST are one answer for all images: LeNet-5, which \
has no batch normalisation, does not leave the start with a random mask of 98 %, in ten epochs no \
more than in two (with the variances that the active connections ask for, \
`SparseVarianceScaling`, it had 74 % after two and 81 % after five; by hand, one run each); so \
its checks are done at 95 %, where that still is so for some seeds, GraSP's own tickets among \
them, and for every ticket that LT and the rewindings find with random labels (that is what they \
notice): means with a deviation of 40 points are of networks that trained and of one that did \
not. Such a ticket can notice nothing; it is counted all the same. That GraSP can be worse than \
its own counts at random is known: Frankle et al., "Pruning Neural Networks at Initialization: \
Why Are We Missing the Mark?" (ICLR 2021, arXiv 2009.08576), find the accuracy of such methods \
the same or higher when what they keep is shuffled within each layer. It keeps what makes \
gradients large: where no batch normalisation bounds them, that can be too much (by hand: seed 0 \
of LeNet-5 at 90 % starts with a norm of 17 beside 0.12 with SNIP, and dies at a learning rate of \
0.05; at 0.01 it comes to 29 %)."""


def _accuracy_table(found):
    rows = []
    for ticket in found.tickets:
        of_ticket = {"": "accuracy", ", its counts at random": "random ticket"}
        for suffix, column in of_ticket.items():
            values = [found.of(ticket, sparsity, column) for sparsity in found.sparsities]
            if any(values):
                rows.append([ticket + suffix, *map(common.spread, values)])
    dense = common.spread(found.of("dense", 0.0))
    head = ["ticket", *(f"{sparsity:.0%}" for sparsity in found.sparsities)]
    return [f"Accuracy over sparsity; dense: {dense}.", "", *tables.table(head, rows)]


def _check_table(found):
    rows = [
        [
            ticket,
            f"{sparsity:.0%}",
            *(_drop(found.drops(ticket, sparsity, check)) for check in CHECKS),
        ]
        for ticket, sparsity, _ in found.checked()
    ]
    text = (
        "By how many points the accuracy drops, mean ± standard deviation; **bold** if that is "
        "noticed: the whole interval is above the threshold."
    )
    return [text, "", *tables.table(["ticket", "sparsity", *CHECKS], rows)]


def _drop(drops):
    text = common.spread(drops)
    is_noticed = claims.verdict([drop - _THRESHOLD for drop in drops]) == claims.CONFIRMED
    return f"**{text}**" if is_noticed else text


def plot(rows, path):
    """For each case, the drop by each check, and accuracy over sparsity."""
    cases = _by_case(rows)
    look = styles.of(dict.fromkeys(each for found in cases.values() for each in found.tickets))
    size = {"figsize": (17, 4.2 * len(cases)), "squeeze": False}
    with plots.figure(path, nrows=len(cases), ncols=2, **size) as grid:
        for (case, found), (left, right) in zip(cases.items(), grid, strict=True):
            _plot_drops(left, found, look)
            _plot_accuracies(right, found, look)
            left.set(title=f"{case}: checks", ylabel="drop of accuracy (points)")
            right.set(title=case, xlabel="sparsity (%)", ylabel="test accuracy (%)")
            for axes in (left, right):
                axes.grid(alpha=0.3)
                plots.legend(axes, loc="center left", bbox_to_anchor=(1, 0.5), fontsize="small")


def _plot_drops(axes, found, look):
    checked = list(found.checked())
    width = 0.8 / max(len(checked), 1)
    for number, (ticket, sparsity, table) in enumerate(checked):
        drops = {check: table.drop(check) for check in CHECKS if check in table.accuracies}
        places = [CHECKS.index(check) + width * number - 0.4 for check in drops]
        heights = [mean for mean, _ in drops.values()]
        errors = [deviation or 0 for _, deviation in drops.values()]
        label = f"{styles.label(ticket)}, {sparsity:g}"
        # Paler where a ticket is drawn at a second sparsity.
        paler = 0.5 if ticket in [each[0] for each in checked[:number]] else 1.0
        color = look[ticket]["color"]
        bars = {"color": color, "alpha": paler, "error_kw": {"elinewidth": 1}, "capsize": 2}
        axes.bar(places, heights, width, yerr=errors, align="edge", label=label, **bars)
    axes.axhline(_THRESHOLD, color="black", linestyle=":", linewidth=1)
    axes.set_xticks(range(len(CHECKS)), [check.replace(" ", "\n") for check in CHECKS])
    axes.set_xlim(-0.6, len(CHECKS) - 0.4)
    axes.set_yscale("symlog", linthresh=1)


def _plot_accuracies(axes, found, look):
    for ticket, shift in zip(found.tickets, plots.apart(len(found.tickets)), strict=True):
        sparsities = [sparsity for sparsity in found.sparsities if found.of(ticket, sparsity)]
        values = [found.of(ticket, sparsity) for sparsity in sparsities]
        places = [found.sparsities.index(sparsity) + shift for sparsity in sparsities]
        ranges = [[_mean(each) - min(each) for each in values]]
        ranges += [[max(each) - _mean(each) for each in values]]
        means = list(map(_mean, values))
        plots.with_errors(axes, places, means, ranges, look[ticket], styles.label(ticket))
    if dense := found.of("dense", 0.0):
        plots.across(axes, _mean(dense))
    axes.set_xticks(range(len(found.sparsities)), [f"{100 * s:g}" for s in found.sparsities])
    axes.set_xlim(-0.4, len(found.sparsities) - 0.6)
