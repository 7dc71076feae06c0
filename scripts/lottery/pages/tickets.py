"""The page on tickets: the claims of Ma et al. and of Frankle and Carbin, and our results."""

import statistics

from rigl_tf import lottery
from scripts.common import plots, styles, tables
from scripts.lottery import tickets
from scripts.lottery.pages import common

_SIMILAR = _CLEAR = 0.5
_MATCHING = 0.2


class Found:
    """The accuracies of one case.

    Attributes:
        plan: Its `Plan`.
        judged: The compared levels whose sparsity is not trivial.
        sparsities: `{level: sparsity}`.
    """

    def __init__(self, plan, rows):
        self.plan = plan
        self._accuracies = {}
        self.sparsities = {}
        for row in rows:
            key = row["kind"], row["level"], row["learning_rate"]
            self._accuracies.setdefault(key, []).append(row["accuracy"])
            self.sparsities[row["level"]] = row["sparsity"]
        self.judged = [level for level in self.plan.compared if self.sparsities[level] >= 0.6]

    def of(self, kind, level, rate):
        """The accuracies of all seeds; `None` if that is not trained."""
        if kind == "dense":
            kind, level = "LT-IMP", 0
        return self._accuracies.get((kind, level, rate))

    def best_rate(self, kind):
        def mean(rate):
            of_levels = [statistics.mean(self.of(kind, level, rate)) for level in self.judged]
            return statistics.mean(of_levels)

        return max(self.plan.learning_rates, key=mean)

    def gaps(self, kind, other, rate=None):
        """For each seed, by how much `kind` is better: the mean over the judged levels.

        Each is taken at `rate`, or at the rate that is the best for it.
        """
        of_levels = [
            [
                a - b
                for a, b in zip(
                    self.of(kind, level, rate or self.best_rate(kind)),
                    self.of(other, level, rate or self.best_rate(other)),
                    strict=True,
                )
            ]
            for level in self.judged
        ]
        return [statistics.mean(values) for values in zip(*of_levels, strict=True)]

    def judge(self, way, level, rates=None):
        """The `Verdict`, of all learning rates together or of some; `None` if RR is not trained."""
        rates = rates or self.plan.learning_rates
        kinds = ("dense", f"LT-{way}", f"RR-{way}")
        of_rates = {rate: tuple(self.of(kind, level, rate) for kind in kinds) for rate in rates}
        if None in of_rates[rates[0]]:
            return None
        small = max((self.of("small dense", level, rate) for rate in rates), key=statistics.mean)
        sparsity = self.sparsities[level]
        return lottery.judge_ticket(of_rates, sparsity, small, similar=_SIMILAR, clear=_CLEAR)

    def prizes(self, names=("jackpot", "secondary")):
        """The sparsities at which a ticket wins one of these."""
        return [
            self.sparsities[level]
            for level in self.judged
            if any(
                verdict and verdict.verdict in names
                for verdict in (self.judge(way, level) for way in ("IMP", "OMP"))
            )
        ]


def _no_jackpot(found):
    won = found.prizes(["jackpot"])
    return common.verdict(not won, f"jackpot at {_percents(won)}" if won else "none")


def _iterative(found):
    gaps = found.gaps("LT-IMP", "LT-OMP")
    is_better = statistics.mean(gaps) > _CLEAR
    return common.verdict(is_better == found.plan.residual, common.spread(gaps, sign="+"))


def _learning_rate(found):
    ticket, dense = found.best_rate("LT-IMP"), found.best_rate("dense")
    is_small = ticket < dense
    return common.verdict(is_small == found.plan.residual, f"ticket {ticket}, dense {dense}")


def _initialisation(found):
    small, large = found.plan.learning_rates
    gaps = found.gaps("LT-IMP", "RR-IMP", large)
    seen = f"{common.spread(gaps, sign='+')} at {large}"
    if found.best_rate("LT-IMP") == small:
        return common.verdict(None, f"prefers {small}; {seen}")
    return common.verdict(statistics.mean(gaps) <= _CLEAR, seen)


def _small_rate(found):
    small, large = (found.gaps("LT-IMP", "RR-IMP", rate) for rate in found.plan.learning_rates)
    seen = f"{common.spread(small, sign='+')} against {common.spread(large, sign='+')}"
    return common.verdict(statistics.mean(small) > statistics.mean(large), seen)


def _matches(found):
    rate = found.best_rate("LT-IMP")
    dense = statistics.mean(found.of("dense", 0, rate))
    matching = [
        found.sparsities[level]
        for level in found.judged
        if round(dense - statistics.mean(found.of("LT-IMP", level, rate)), 6) <= _MATCHING
    ]
    seen = f"up to {_percents(matching[-1:])}" if matching else "at no sparsity"
    return common.verdict(max(matching, default=0) >= 0.8, seen)


def _better_than(other):
    def claim(found):
        gaps = found.gaps("LT-IMP", other)
        return common.verdict(statistics.mean(gaps) > 0, common.spread(gaps, sign="+"))

    return claim


_MA, _FRANKLE = "Ma et al.", "Frankle and Carbin"
_CLAIMS = [
    (_MA, "There is no jackpot ticket", _no_jackpot),
    (
        _MA,
        "Guideline 1: iterative pruning is clearly better than one-shot in residual networks, and "
        "in others it is not (LT-IMP − LT-OMP)",
        _iterative,
    ),
    (
        _MA,
        "Guideline 2: tickets of residual networks prefer a smaller learning rate than the dense "
        "network, others do not",
        _learning_rate,
    ),
    (
        _MA,
        "Guideline 4: where a ticket prefers the large learning rate, its initial weights do not "
        "matter (LT-IMP − RR-IMP is not clear)",
        _initialisation,
    ),
    (
        _MA,
        "Initial weights matter more at the small learning rate (LT-IMP − RR-IMP)",
        _small_rate,
    ),
    (
        _FRANKLE,
        f"Tickets of 80 % and more are as good as the dense network (within {_MATCHING}; of the "
        "sparsities with rivals)",
        _matches,
    ),
    (_FRANKLE, "Tickets are better than reinitialised ones", _better_than("RR-IMP")),
    (_FRANKLE, "Tickets are better than random ones", _better_than("random")),
    (_FRANKLE, "Iterative pruning is better than one-shot", _better_than("LT-OMP")),
]


def _redundancy(cases):
    pair = [cases.get("mnist_lenet_300_100"), cases.get("mnist_lenet5")]
    if None in pair:
        return common.verdict(None, "it takes both networks on MNIST")
    large, small = (max(found.prizes(), default=0.0) for found in pair)
    seen = f"LeNet-300-100 {_percents([large])}, LeNet-5 {_percents([small])}"
    return common.verdict(large > small if large or small else None, seen)


def _percents(shares):
    return ", ".join(f"{100 * share:.1f} %" for share in shares)


def lines(rows):
    """The lines of the page."""
    cases = _cases(rows)
    page = [
        *_head(common.seeds(rows)),
        "## Claims",
        "",
        *common.claims_table(_CLAIMS, cases),
        "",
        *_other_claims(cases),
    ]
    page += ["", f"![Accuracy over sparsity]({tickets.NAME}.png)"]
    for case, found in cases.items():
        page += ["", f"## {case}", "", *_about(found.plan), "", *_verdict_table(found), ""]
        page += _accuracy_table(found)
    return page


def _cases(rows):
    return {
        case: Found(tickets.CASES[case], of_case) for case, of_case in common.by_case(rows).items()
    }


def _head(seeds):
    return [
        "# Does a ticket win the jackpot?",
        "",
        "The definition, the guideline and the comparisons of [Ma et al., 2021]"
        '(https://arxiv.org/abs/2107.00166), "Sanity Checks for Lottery Tickets: Does Your Winning '
        'Ticket Really Win the Jackpot?", and the claims of [Frankle and Carbin, 2019]'
        "(https://arxiv.org/abs/1803.03635), on small networks.",
        "",
        f"Test accuracy in percent after the last epoch, mean ± standard deviation over seeds "
        f"{seeds}. LT: the mask of magnitude pruning (global, all kernels) with the weights that "
        "the network began with; IMP is iterative, OMP one-shot. RR: the same masks, other initial "
        "weights. Random: the first weights, the ticket's connections permuted within each layer. "
        "Small dense: a narrower network with at most as many kernel weights. Every network is "
        "trained for as many epochs as the dense one, by SGD with Nesterov momentum 0.9 and a "
        "cosine decay.",
        "",
        f'"Similar" is a drop of {_SIMILAR} at most, and "clear" a gap of more than {_CLEAR} '
        "points, the paper's numbers for CIFAR-10; for MNIST it has none, and half a point is a "
        "lot there. The gaps in the table of claims are means over the sparsities from 60 % on, "
        "each kind of network at the learning rate that is the best for it unless said otherwise. "
        "11.35 % on MNIST and 10.00 % on Fashion-MNIST are one answer for all images: such a "
        "network did not leave the start: of LeNet-5 nearly all very sparse ones that are not "
        "tickets, and some of its tickets by one-shot pruning.",
        "",
    ]


def _other_claims(cases):
    return [
        "- Ma et al., guideline 3, the more redundant network keeps a prize up to a higher "
        f"sparsity: {_redundancy(cases)}.",
        "- Ma et al., on large data sets OMP is better than IMP and a small learning rate is bad: "
        "not testable here (Tiny-ImageNet and ImageNet take days of two cores).",
        "- Ma et al., rewinding to early weights is better than to the first: see "
        "[the page on connectivity](lottery_connectivity.md).",
        "- Both papers train for far longer (78 and 160 epochs on CIFAR-10); a network that was "
        "not trained well is no good rival, so what is claimed for CIFAR-10 here is weak.",
    ]


def _about(plan):
    case = plan.case
    yield (
        f"{case.epochs} epochs, batch {case.batch_size}, L2 {2 * case.l2:g}; learning rates "
        f"{' and '.join(map(str, plan.learning_rates))}; each of {plan.levels} levels prunes "
        f"{plan.prune_fraction:.0%}."
    )


def _verdict_table(found):
    ways = [("IMP", None), *(("IMP", [rate]) for rate in found.plan.learning_rates), ("OMP", None)]
    head = [f"{way}, {f'{rates[0]} alone' if rates else 'both rates'}" for way, rates in ways]
    rows = [
        [
            _percents([found.sparsities[level]]),
            *(_verdict_text(found.judge(way, level, rates)) for way, rates in ways),
        ]
        for level in found.judged
    ]
    return tables.table(["sparsity", *head], rows)


def _verdict_text(verdict):
    if verdict is None:
        return "–"
    failed = [str(each.number) for each in verdict.conditions if not each.holds]
    return verdict.verdict + (f" (not condition {', '.join(failed)})" if failed else "")


def _accuracy_table(found):
    kinds = ("LT-IMP", *found.plan.rivals)
    rows = [
        [rate, _percents([found.sparsities[level]])]
        + [_cell(found.of(kind, level, rate)) for kind in kinds]
        for rate in found.plan.learning_rates
        for level in sorted(found.sparsities)
    ]
    return tables.table(["learning rate", "sparsity", *kinds], rows)


def _cell(values):
    return "–" if values is None else common.spread(values)


def plot(rows, path):
    """For each case and learning rate, accuracy over sparsity."""
    cases = _cases(rows)
    shape = {"nrows": len(cases), "ncols": 2, "squeeze": False}
    with plots.figure(path, (12, 4 * len(cases)), **shape) as grid:
        for row, (case, found) in zip(grid, cases.items(), strict=True):
            for axes, rate in zip(row, found.plan.learning_rates, strict=True):
                _plot_case(axes, found, rate)
                axes.set(title=f"{case}, learning rate {rate}", ylabel="test accuracy (%)")


def _plot_case(axes, found, rate):
    dense = found.of("dense", 0, rate)
    plots.across(axes, statistics.mean(dense))
    lowest = statistics.mean(dense)
    look = styles.of(["LT-IMP", *found.plan.rivals])
    for (kind, style), shift in zip(look.items(), plots.apart(len(look)), strict=True):
        levels = [k for k in sorted(found.sparsities) if k and found.of(kind, k, rate)]
        values = [found.of(kind, level, rate) for level in levels]
        means = [statistics.mean(each) for each in values]
        deviations = [statistics.stdev(each) if len(each) > 1 else 0 for each in values]
        places = [level + shift for level in levels]
        plots.with_errors(axes, places, means, deviations, style, styles.label(kind))
        if kind != "small dense":
            lowest = min(lowest, *means)
    ticks = sorted(set(found.sparsities) - {0})
    axes.set_xticks(ticks, [_percents([found.sparsities[level]]) for level in ticks])
    axes.set(xlabel="sparsity", ylim=(lowest - 1, None), xlim=(ticks[0] - 0.4, ticks[-1] + 0.4))
    axes.grid(alpha=0.3)
    plots.legend(axes, loc="lower left", bbox_to_anchor=None, fontsize="small")
