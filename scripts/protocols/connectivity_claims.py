"""What Frankle et al. and Maene et al. claim of tickets' stability, asked of the rows of a case."""

import operator
import statistics

from scripts.protocols import pages

STABLE = 2.0  # percent of error, the threshold of Frankle et al.
_MATCHING = 0.2  # percent, a drop of accuracy that is none


class Found:
    """The rows of one case.

    Attributes:
        plan: Its `Plan`.
        settings: Those of the plan, pairs of how it is trained and the share rewound to.
        pruned: The levels of pruning, without the dense network.
    """

    def __init__(self, plan, rows):
        self.plan = plan
        self.settings = plan.settings
        self.pruned = [level for level in plan.levels if level]
        self._rows = rows

    def rows(self, setting, level):
        """One for each seed."""
        key = (*setting, level)
        return [r for r in self._rows if (r["training"], r["rewind"], r["level"]) == key]

    def of(self, column, setting, level):
        """The values of a column, one for each seed."""
        return [row[column] for row in self.rows(setting, level)]

    def mean(self, column, setting, level):
        return statistics.mean(self.of(column, setting, level))

    def drops(self, setting, level):
        """By how much the ticket of each seed is worse than the dense network from its step."""
        pairs = zip(*(self.of("accuracy", setting, k) for k in (0, level)), strict=True)
        return [dense - ticket for dense, ticket in pairs]

    def drop(self, setting, level):
        return round(statistics.mean(self.drops(setting, level)), 6)

    def mean_drop(self, setting):
        return statistics.mean(self.drop(setting, level) for level in self.pruned)

    def sparsity(self, level):
        return self.rows(self.settings[0], level)[0]["sparsity"]

    @property
    def from_start(self):
        """The settings that rewind to step 0; the first is ordinary training."""
        return [setting for setting in self.settings if not setting[1]]

    @property
    def later(self):
        """Ordinary training, rewound to the last of the steps."""
        return max(s for s in self.settings if s[0] == "plain")


_PLAIN = ("plain", 0)


def _dense_is_stable(found):
    barriers = [found.mean("barrier", setting, 0) for setting in (_PLAIN, found.later)]
    seen = f"{barriers[0]:.1f} from step 0, {barriers[1]:.1f} from {found.later[1]:.0%}"
    if found.plan.case.network == "resnet20":
        return pages.verdict(barriers[0] >= STABLE > barriers[1], seen)
    return pages.verdict(barriers[0] < STABLE, seen)


def _later_is_stabler(found):
    pairs = [
        [found.mean("barrier", setting, level) for setting in (_PLAIN, found.later)]
        for level in found.plan.levels
    ]
    first, last = map(statistics.mean, zip(*pairs, strict=True))
    return pages.verdict(last < first, f"{first:.2f} from step 0, {last:.2f} later")


def _matches_where_stable(found):
    tickets = [(setting, level) for setting in found.settings for level in found.pruned]
    agrees = [
        (found.mean("barrier", *ticket) < STABLE) == (found.drop(*ticket) <= _MATCHING)
        for ticket in tickets
    ]
    num_stable = sum(found.mean("barrier", *ticket) < STABLE for ticket in tickets)
    seen = f"{sum(agrees)} of {len(agrees)} agree, {num_stable} are stable"
    if num_stable in (0, len(tickets)):
        return pages.verdict(None, f"all alike: {seen}")
    return pages.verdict(all(agrees), seen)


def _rewinding(found):
    of_levels = [
        map(operator.sub, found.drops(_PLAIN, level), found.drops(found.later, level))
        for level in found.pruned
    ]
    gains = list(map(statistics.mean, zip(*of_levels, strict=True)))
    mean, deviation = statistics.mean(gains), statistics.stdev(gains) if len(gains) > 1 else 0.0
    text = f"{pages.spread(gains, sign='+')} from {found.later[1]:.0%} of training"
    return pages.verdict(mean > deviation, text)


def _stabilised(measure):
    """Whether each way of stable training lowers a measure of tickets from step 0."""

    def claim(found):
        plain, *others = [(measure(found, setting), setting[0]) for setting in found.from_start]
        seen = ", ".join(f"{value:.2f} {name}" for value, name in [plain, *others])
        return pages.verdict(all(value < plain[0] for value, _ in others), seen)

    return claim


def _mean_barrier(found, setting):
    return statistics.mean(found.mean("barrier", setting, level) for level in found.pruned)


def _connected_to_dense(found):
    barriers = [found.mean("barrier_to_dense", s, found.pruned[0]) for s in found.from_start]
    seen = f"{_listed(barriers)} at {found.sparsity(found.pruned[0]):.0%}"
    return pages.verdict(max(barriers) < STABLE, seen)


def _sparsest_is_not(found):
    level = found.pruned[-1]
    barriers = [found.mean("barrier_to_dense", setting, level) for setting in found.from_start]
    seen = f"{_listed(barriers)} at {found.sparsity(level):.1%}"
    if len(found.pruned) == 1:
        return pages.verdict(None, "one sparsity")
    medium = [found.mean("barrier_to_dense", s, found.pruned[0]) for s in found.from_start]
    if max(medium) >= STABLE:
        return pages.verdict(None, f"nor is the medium one; {seen}")
    return pages.verdict(min(barriers) >= STABLE, seen)


def _same_region(found):
    angles = [
        found.mean("angle_to_dense", setting, level)
        for setting in found.from_start
        for level in found.pruned
    ]
    return pages.verdict(max(angles) < 0.5, f"{min(angles):.2f} to {max(angles):.2f}")


def _repelled(found):
    if not found.plan.repelled:
        return pages.verdict(None, "not run, for its cost")
    losses = [
        statistics.mean(_loss(found, name, _PLAIN, k) for k in found.pruned)
        for name in ("ticket", "reinitialised")
    ]
    seen = f"{losses[0]:+.2f}, a reinitialised one {losses[1]:+.2f}"
    return pages.verdict(losses[0] > _MATCHING and losses[0] > losses[1], seen)


def _loss(found, name, setting, level):
    return found.mean(name, setting, level) - found.mean(f"{name}_repelled", setting, level)


def _listed(values):
    return ", ".join(f"{value:.1f}" for value in values)


_FRANKLE, _MAENE = "Frankle et al.", "Maene et al."
CLAIMS = [
    (
        _FRANKLE,
        "The dense network is stable: LeNet from the first step on, ResNet-20 only later "
        "(barrier below 2 %)",
        _dense_is_stable,
    ),
    (_FRANKLE, "From a later step on, training is more stable (mean barrier)", _later_is_stabler),
    (
        _FRANKLE,
        "A ticket matches the dense network (within 0.2) if it is stable, and only then",
        _matches_where_stable,
    ),
    (
        "Frankle et al., Ma et al.",
        "Rewinding to an early step is better than to step 0 (mean gain of accuracy, less that of "
        "the dense network; above its standard deviation over seeds)",
        _rewinding,
    ),
    (
        _MAENE,
        "Large batches or a warm-up make tickets from step 0 more stable (mean barrier)",
        _stabilised(_mean_barrier),
    ),
    (
        _MAENE,
        "With these, tickets from step 0 lose less accuracy against the dense network (mean drop)",
        _stabilised(Found.mean_drop),
    ),
    (
        _MAENE,
        "The ticket of medium sparsity is linearly connected to the dense solution (barriers of "
        "the trainings, below 2 %)",
        _connected_to_dense,
    ),
    (_MAENE, "The sparsest is not", _sparsest_is_not),
    (
        _MAENE,
        "Tickets train back to the region of the dense solution (angular distance, 1 if "
        "orthogonal: below 0.5)",
        _same_region,
    ),
    (
        _MAENE,
        "A ticket that is repelled from there loses accuracy, and more than a reinitialised one "
        "(ordinary training, mean loss)",
        _repelled,
    ),
]
