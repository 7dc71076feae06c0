"""The page on weight correlation, and on fine-tuning against tickets: Liu et al."""

from scripts.common import claims, plots, styles, tables, words
from scripts.lottery.correlation import FINE_TUNED, PRUNINGS, P
from scripts.lottery.pages import common

_NETWORKS = ("dense", "ticket", "reinitialised")
_TRAINED = (FINE_TUNED, "rewound", "ticket", "reinitialised")
_WEAK = 0.01  # so far from P counts as chance; the paper says "close to"
_SIMILAR = 0.5  # percentage points, as Ma et al. have it for CIFAR-10


def _groups(rows, *columns):
    """The rows that agree in some columns, `{values: rows}`."""
    groups = {}
    for row in rows:
        groups.setdefault(tuple(row[column] for column in columns), []).append(row)
    return groups


def _at_rate(rows, choose):
    """The rows of the smallest (`min`) or largest (`max`) learning rate, or `_tenth`."""
    one_shot = [row for row in rows if row["pruning"] == "one_shot"]
    rate = choose((row["learning_rate"] for row in one_shot), default=None)
    return [
        of for (r, _), of in _groups(one_shot, "learning_rate", "sparsity").items() if r == rate
    ]


def _tenth(rates, default):
    """The rate next to a tenth of the largest: the paper's small one."""
    rates = list(rates)
    return min(rates, key=lambda rate: abs(rate - max(rates) / 10), default=default)


def _wins(rows):
    """By how much tickets have the winning property: as good as dense, clearly above others."""
    return [
        min(
            row["ticket"] - row["dense"] + _SIMILAR, row["ticket"] - row["reinitialised"] - _SIMILAR
        )
        for row in rows
    ]


def _dense_correlations(rows, choose):
    """How far the correlations of the dense network are above chance; it has no sparsity."""
    return [row["correlation_dense"] - P for of in _at_rate(rows, choose)[:1] for row in of]


def _small_less_large(rows, column):
    """Of the dense network, a column at the smallest learning rate less at the largest."""
    ends = ((_at_rate(rows, choose) or [[]])[0] for choose in (min, max))
    small, large = (_of_seeds(of, column) for of in ends)
    return claims.differences({"small": small, "large": large}, "small", "large")


def _of_seeds(rows, column):
    return {row["seed"]: row[column] for row in rows}


def _better(rows, one, other):
    """The verdict of all prunings and sparsities at the largest rate: `one` less `other`."""
    return common.together(
        [claims.verdict([row[one] - row[other] for row in of]) for of in _by_pruning(rows).values()]
    )


def _by_pruning(rows):
    """`{(pruning, sparsity): rows}` at the largest learning rate."""
    rate = max(row["learning_rate"] for row in rows)
    return _groups([row for row in rows if row["learning_rate"] == rate], "pruning", "sparsity")


def _better_pruning(one, other):
    def judge(rows):
        values = {key: _of_seeds(of, FINE_TUNED) for key, of in _by_pruning(rows).items()}
        return common.together(
            [
                claims.verdict(claims.differences(values, (one, sparsity), (other, sparsity)))
                for pruning, sparsity in values
                if pruning == one
            ]
        )

    return judge


def _tickets_win(rows, choose, sign=1):
    """The verdict of all sparsities; with `sign=-1` that they do not."""
    return common.together(
        [claims.verdict([sign * gain for gain in _wins(of)]) for of in _at_rate(rows, choose)]
    )


_CLAIMS = {
    "At a small learning rate the weights before and after training are correlated": (
        lambda rows: common.judged([x - _WEAK for x in _dense_correlations(rows, min)])
    ),
    "At a large one they are not: the correlation is that of chance": (
        lambda rows: common.judged(_dense_correlations(rows, max), margin=_WEAK)
    ),
    "The larger the learning rate, the less the correlation": lambda rows: common.judged(
        _small_less_large(rows, "correlation_dense")
    ),
    "At a small learning rate (a tenth of the large one, as in the paper) tickets win: as good as "
    "dense, better than reinitialised": lambda rows: _tickets_win(rows, _tenth),
    "At a large one they do not": lambda rows: _tickets_win(rows, max, sign=-1),
    "At the smallest learning rate the dense network is not trained enough": lambda rows: (
        common.judged([-gain for gain in _small_less_large(rows, "dense")])
    ),
    "Fine-tuning is better than the ticket": lambda rows: _better(rows, FINE_TUNED, "ticket"),
    "Fine-tuning is better than rewinding": lambda rows: _better(rows, FINE_TUNED, "rewound"),
    "Rewinding is better than the ticket": lambda rows: _better(rows, "rewound", "ticket"),
    "Iterative pruning is better than one-shot": _better_pruning("iterative", "one_shot"),
    "ADMM is better than iterative pruning": _better_pruning("admm", "iterative"),
    "Fine-tuned weights are those of the trained network rather than the first ones": (
        lambda rows: _better(rows, "correlation_with_trained", f"correlation_{FINE_TUNED}")
    ),
}


def lines(rows):
    """The lines of the page."""
    cases = {case: of for (case,), of in _groups(rows, "case").items()}
    found = [[claim, *(judge(of) for of in cases.values())] for claim, judge in _CLAIMS.items()]
    seeds = common.seeds(rows)
    introduction = _INTRODUCTION.format(seeds=seeds, p=P, weak=_WEAK, similar=_SIMILAR, l2=words.L2)
    page = [*introduction.splitlines(), "", *tables.table(["claim", *cases], found), ""]
    page += [*_READING.format(how=common.HOW).splitlines(), ""]
    page += ["![Weight correlation and accuracy over the learning rate](lottery_correlation.png)"]
    for case, of in cases.items():
        epochs = ", ".join(str(epochs) for (epochs,) in _groups(of, "epochs"))
        page += ["", f"## {case}", "", f"Epochs: {epochs}.", "", *_rate_table(of)]
        page += ["", *_pruning_table(of)]
    return page


_INTRODUCTION = """\
# Large weights: from the start, or from training?

Liu et al., "Lottery Ticket Preserves Weight Correlation: Is It Desirable or Not?" (ICML 2021, \
arXiv 2102.11068), on small networks. Means ± standard deviation over seeds {seeds}; test \
accuracy in percent after the last epoch.

The weight correlation R is the share of the largest weights of each kernel ({p:.0%} of those \
that are left) that are the largest before training and after it. Chance gives {p}; up to {weak} \
more or less counts as chance. A dense network is trained, pruned (all kernels to one sparsity; \
the first convolution stays dense) and fine-tuned for as many epochs, with the same learning \
rates. The same mask is trained from the first weights (ticket), from those after 10 % of the \
epochs, one at least, for the rest of them (rewound), and from others (reinitialised). So the \
epochs of the four are the same in total, but for those that rewound tickets skip. Between dense \
training and fine-tuning, iterative pruning takes away half of the weights and trains for an \
epoch, again and again; ADMM trains for four epochs with its penalty. Pruning and fine-tuning are \
compared at the largest learning rate. A ticket wins (the winning property) if it is at most \
{similar} points below the dense network and more than {similar} above the reinitialised one: the \
paper gives no numbers for "similar" and "notable". L2 is 1e-4 (ResNet-20: 2e-4): {l2}"""

_READING = """\
{how} Here they are the sparsities and prunings. The small learning rate is the smallest, a \
hundredth of the large one, unless a tenth is said. The paper trains ResNet-20, MobileNetV2 and \
VGG for 150 epochs: its accuracies, and whether a correlation goes away with so much more \
training, are not testable here. Correlations of very sparse networks come from a few hundred \
weights, so that chance alone goes 0.02 from 0.2. On MNIST the weights of pixels that are never \
used stay as they were but for their decay, at any learning rate: those of them that are among \
the largest can keep R above chance."""


def _rate_table(rows):
    one_shot = [row for row in rows if row["pruning"] == "one_shot"]
    groups = sorted(_groups(one_shot, "sparsity", "learning_rate").items())
    table = [
        [
            f"{sparsity:.0%}",
            f"{rate:g}",
            *(_spread(of, f"correlation_{name}", 3) for name in _NETWORKS),
            *(_spread(of, name) for name in _NETWORKS),
            claims.verdict(_wins(of)),
        ]
        for (sparsity, rate), of in groups
    ]
    head = ["sparsity", "learning rate", *(f"R, {name}" for name in _NETWORKS)]
    head += [*(f"{name}, %" for name in _NETWORKS), "ticket wins"]
    text = "Weight correlation and accuracy over the learning rate (one-shot pruning):"
    return [text, "", *tables.table(head, table)]


def _pruning_table(rows):
    rate = max(row["learning_rate"] for row in rows)
    text = (
        f"Pruning and fine-tuning against tickets, learning rate {rate:g}; R of the fine-tuned "
        "weights with the first and with the trained ones:"
    )
    head = ["sparsity", "pruning", "fine-tuned", *_TRAINED[1:], "R with first", "R with trained"]
    groups = _by_pruning(rows)
    table = []
    for pruning, sparsity in sorted(groups, key=lambda key: (key[1], PRUNINGS.index(key[0]))):
        of = groups[pruning, sparsity]
        cells = [_spread(of, name) for name in _TRAINED]
        cells += [_spread(of, f"correlation_{name}", 3) for name in (FINE_TUNED, "with_trained")]
        table.append([f"{sparsity:.0%}", pruning.replace("_", "-"), *cells])
    return [text, "", *tables.table(head, table)]


def _spread(rows, column, digits=2):
    return common.spread([row[column] for row in rows], digits)


def plot(rows, path):
    """For each case: correlation over the learning rate above, accuracy below."""
    cases = _groups([row for row in rows if row["pruning"] == "one_shot"], "case")
    size = {"figsize": (4.8 * max(2, len(cases)), 8), "squeeze": False}
    with plots.figure(path, nrows=2, ncols=len(cases), **size) as grid:
        for ((case,), of), (above, below) in zip(cases.items(), grid.T, strict=True):
            _plot(above, of, "correlation_")
            _plot(below, of, "")
            above.axhline(P, color="black", linestyle=":", label="chance")
            above.set(title=case, ylabel="weight correlation R", ylim=(0, 1))
            below.set(ylabel="test accuracy (%)")
            for axes in (above, below):
                axes.set(xlabel="learning rate", xscale="log")
                axes.grid(alpha=0.3)
                plots.legend(axes, loc="best", bbox_to_anchor=None, fontsize="x-small")


def _plot(axes, rows, prefix):
    sparsities = sorted({row["sparsity"] for row in rows})
    look = {name: styles.numbered(number) for number, name in enumerate(_NETWORKS)}
    for name, style in {**look, **styles.of(["dense"])}.items():
        # A dense network was trained for each sparsity, from one seed: they are the same.
        for number, sparsity in enumerate(sparsities[: 1 if name == "dense" else None]):
            chosen = [row for row in rows if row["sparsity"] == sparsity]
            values = tables.means(chosen, "sparsity", "learning_rate", prefix + name)
            points = sorted((rate, *value[:2]) for (_, rate), value in values.items())
            label = name if name == "dense" else f"{name}, {sparsity:.0%}"
            second = {"marker": "s", "markerfacecolor": "white"} if number else {}
            plots.with_errors(axes, *zip(*points, strict=True), {**style, **second}, label)
