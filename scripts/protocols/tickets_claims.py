"""What Ma et al., and Frankle and Carbin, claim of tickets, asked of the accuracies of a case."""

import statistics

from rigl_tf import lottery
from scripts.protocols import pages

SIMILAR = CLEAR = 0.5
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
        return lottery.judge_ticket(of_rates, sparsity, small, similar=SIMILAR, clear=CLEAR)

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
    return pages.verdict(not won, f"jackpot at {percents(won)}" if won else "none")


def _iterative(found):
    gaps = found.gaps("LT-IMP", "LT-OMP")
    is_better = statistics.mean(gaps) > CLEAR
    return pages.verdict(is_better == found.plan.residual, pages.spread(gaps, sign="+"))


def _learning_rate(found):
    ticket, dense = found.best_rate("LT-IMP"), found.best_rate("dense")
    is_small = ticket < dense
    return pages.verdict(is_small == found.plan.residual, f"ticket {ticket}, dense {dense}")


def _initialisation(found):
    small, large = found.plan.learning_rates
    gaps = found.gaps("LT-IMP", "RR-IMP", large)
    seen = f"{pages.spread(gaps, sign='+')} at {large}"
    if found.best_rate("LT-IMP") == small:
        return pages.verdict(None, f"prefers {small}; {seen}")
    return pages.verdict(statistics.mean(gaps) <= CLEAR, seen)


def _small_rate(found):
    small, large = (found.gaps("LT-IMP", "RR-IMP", rate) for rate in found.plan.learning_rates)
    seen = f"{pages.spread(small, sign='+')} against {pages.spread(large, sign='+')}"
    return pages.verdict(statistics.mean(small) > statistics.mean(large), seen)


def _matches(found):
    rate = found.best_rate("LT-IMP")
    dense = statistics.mean(found.of("dense", 0, rate))
    matching = [
        found.sparsities[level]
        for level in found.judged
        if round(dense - statistics.mean(found.of("LT-IMP", level, rate)), 6) <= _MATCHING
    ]
    seen = f"up to {percents(matching[-1:])}" if matching else "at no sparsity"
    return pages.verdict(max(matching, default=0) >= 0.8, seen)


def _better_than(other):
    def claim(found):
        gaps = found.gaps("LT-IMP", other)
        return pages.verdict(statistics.mean(gaps) > 0, pages.spread(gaps, sign="+"))

    return claim


_MA, _FRANKLE = "Ma et al.", "Frankle and Carbin"
CLAIMS = [
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


def redundancy(cases):
    pair = [cases.get("mnist_lenet_300_100"), cases.get("mnist_lenet5")]
    if None in pair:
        return pages.verdict(None, "it takes both networks on MNIST")
    large, small = (max(found.prizes(), default=0.0) for found in pair)
    seen = f"LeNet-300-100 {percents([large])}, LeNet-5 {percents([small])}"
    return pages.verdict(large > small if large or small else None, seen)


def percents(shares):
    return ", ".join(f"{100 * share:.1f} %" for share in shares)
