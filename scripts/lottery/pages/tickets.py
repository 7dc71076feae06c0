"""The page on tickets: the claims of Ma et al. and of Frankle and Carbin, and our results."""

import statistics

from rigl_tf import lottery
from scripts.common import claims, plots, styles, tables, words
from scripts.lottery import tickets
from scripts.lottery.pages import common

_SIMILAR = _CLEAR = 0.5
_MATCHING = 0.2  # the drop that is none for Frankle et al.
_PLATEAU = 20  # epochs from which on a dense network counts as trained long enough for a rival


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
        return _means(of_levels)

    def judge(self, way, level, rates=None):
        """The `Verdict` of each seed, of all rates or some; `None` if RR is not trained."""
        rates = rates or self.plan.learning_rates
        kinds = ("dense", f"LT-{way}", f"RR-{way}")
        of_rates = [[self.of(kind, level, rate) for kind in kinds] for rate in rates]
        if None in of_rates[0]:
            return None
        small = zip(*(self.of("small dense", level, rate) for rate in rates), strict=True)
        sparsity = self.sparsities[level]
        return [
            lottery.judge_ticket(
                {
                    rate: tuple(kind[number] for kind in of)
                    for rate, of in zip(rates, of_rates, strict=True)
                },
                sparsity,
                max(of_seed),
                similar=_SIMILAR,
                clear=_CLEAR,
            )
            for number, of_seed in enumerate(small)
        ]

    def outcome(self, way, level, rates=None):
        """What a ticket wins, from the intervals of the margins of all conditions: text."""
        verdicts = self.judge(way, level, rates)
        if verdicts is None:
            return "–"
        margins = zip(*([each.margin for each in v.conditions] for v in verdicts), strict=True)
        # The first is the sparsity, which no seed decides.
        judged = {
            number: claims.verdict(list(values))
            for number, values in enumerate(margins, 1)
            if number > 1
        }
        for verdict, text in (
            (claims.CONTRADICTED, "none (not"),
            (claims.UNDECIDED, "undecided ("),
        ):
            which = [str(n) for n, found in judged.items() if n < 5 and found == verdict]
            if which:
                return f"{text} condition {', '.join(which)})".replace("( ", "(")
        return _PRIZES[judged[5]]

    def outcomes(self):
        """`{(way, level): outcome}` of all judged tickets that have rivals."""
        found = {
            (way, level): self.outcome(way, level)
            for level in self.judged
            for way in ("IMP", "OMP")
        }
        return {key: outcome for key, outcome in found.items() if outcome != "–"}

    def highest_prizes(self):
        """For each seed the highest sparsity at which a ticket wins a prize, 0 if none does."""
        judged = [self.judge(way, level) for level in self.judged for way in ("IMP", "OMP")]
        of_seeds = zip(*(verdicts for verdicts in judged if verdicts), strict=True)
        return [
            max((each.sparsity for each in of_seed if each.verdict != "none"), default=0.0)
            for of_seed in of_seeds
        ]

    def prefers_small(self, kind, levels):
        """For each seed, by how much the small learning rate is better, the mean over levels."""
        small, large = self.plan.learning_rates
        pairs = [(self.of(kind, level, small), self.of(kind, level, large)) for level in levels]
        return _means([[a - b for a, b in zip(*pair, strict=True)] for pair in pairs])


_PRIZES = {
    claims.CONFIRMED: "jackpot",
    claims.CONTRADICTED: "secondary",
    claims.UNDECIDED: "jackpot or secondary",
}


def _means(lists):
    """The means of the first numbers of some lists, of the second ones, and so on."""
    return list(map(statistics.mean, zip(*lists, strict=True)))


def _no_jackpot(found):
    outcomes = found.outcomes()
    won = [found.sparsities[level] for (_, level), each in outcomes.items() if each == "jackpot"]
    if won:
        return f"{claims.CONTRADICTED} (jackpot at {_percents(sorted(set(won)))})"
    without = sum(each.startswith(("none", "secondary")) for each in outcomes.values())
    verdict = claims.CONFIRMED if without == len(outcomes) else claims.UNDECIDED
    return f"{verdict} (none at {without} of {len(outcomes)})"


def _iterative(found):
    gaps = [gap - _CLEAR for gap in found.gaps("LT-IMP", "LT-OMP")]
    return common.judged(gaps if found.plan.residual else [-gap for gap in gaps])


def _learning_rate(found):
    pairs = zip(
        found.prefers_small("LT-IMP", found.judged), found.prefers_small("dense", [0]), strict=True
    )
    differ = [min(ticket, -dense) for ticket, dense in pairs]
    return common.judged(differ if found.plan.residual else [-value for value in differ])


def _initialisation(found):
    small, large = found.plan.learning_rates
    if found.best_rate("LT-IMP") == small:
        return common.not_testable(f"prefers {small}")
    return common.judged([_CLEAR - gap for gap in found.gaps("LT-IMP", "RR-IMP", large)])


def _small_rate(found):
    gaps = (found.gaps("LT-IMP", "RR-IMP", rate) for rate in found.plan.learning_rates)
    return common.judged([small - large for small, large in zip(*gaps, strict=True)])


def _matches(found):
    rate = found.best_rate("LT-IMP")
    dense = found.of("dense", 0, rate)
    verdicts = []
    for level in found.judged:
        if found.sparsities[level] >= 0.8:
            pairs = zip(found.of("LT-IMP", level, rate), dense, strict=True)
            verdicts.append(claims.verdict([ticket - full + _MATCHING for ticket, full in pairs]))
    return common.together(verdicts)


def _better_than(other):
    return lambda found: common.judged(found.gaps("LT-IMP", other))


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
        return common.not_testable("it takes both networks on MNIST")
    large, small = (found.highest_prizes() for found in pair)
    return common.judged([100 * (a - b) for a, b in zip(large, small, strict=False)], digits=1)


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
        common.HOW,
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
        f"cosine decay. {words.L2}",
        "",
        f'"Similar" is a drop of {_SIMILAR} at most, and "clear" a gap of more than {_CLEAR} '
        "points, the paper's numbers for CIFAR-10; for MNIST it has none, and half a point is a "
        "lot there. The gaps in the table of claims are means over the sparsities from 60 % on, "
        "each kind of network at the learning rate that is the best for it unless said otherwise; "
        'a claim with "clear" is judged by how far a gap is from that. A ticket wins what the '
        "intervals of the margins of all conditions say: undecided, if one of them holds 0. "
        "11.35 % on MNIST and 10.00 % on Fashion-MNIST are one answer for all images: such a "
        "network did not leave the start: of LeNet-5 nearly all very sparse ones that are not "
        "tickets, and some of its tickets by one-shot pruning.",
        "",
    ]


def _other_claims(cases):
    return [
        "- Ma et al., guideline 3, the more redundant network keeps a prize up to a higher "
        "sparsity (LeNet-300-100 less LeNet-5, in points of sparsity): "
        f"{_redundancy(cases)}.",
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
    if case.epochs < _PLATEAU:
        yield (
            f"These are fewer than {_PLATEAU} epochs, too few for the dense network to come to its "
            "own plateau: what is said of tickets here is about short trainings."
        )


def _verdict_table(found):
    ways = [("IMP", None), *(("IMP", [rate]) for rate in found.plan.learning_rates), ("OMP", None)]
    head = [f"{way}, {f'{rates[0]} alone' if rates else 'both rates'}" for way, rates in ways]
    rows = [
        [
            _percents([found.sparsities[level]]),
            *(found.outcome(way, level, rates) for way, rates in ways),
        ]
        for level in found.judged
    ]
    return tables.table(["sparsity", *head], rows)


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
