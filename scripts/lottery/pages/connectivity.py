"""The page on connectivity: the claims of Frankle et al. and Maene et al., and our results."""

import operator
import statistics

from scripts.common import plots, styles, tables
from scripts.lottery import connectivity
from scripts.lottery.pages import common

_STABLE = 2.0  # percent of error, the threshold of Frankle et al.
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
        return common.verdict(barriers[0] >= _STABLE > barriers[1], seen)
    return common.verdict(barriers[0] < _STABLE, seen)


def _later_is_stabler(found):
    pairs = [
        [found.mean("barrier", setting, level) for setting in (_PLAIN, found.later)]
        for level in found.plan.levels
    ]
    first, last = map(statistics.mean, zip(*pairs, strict=True))
    return common.verdict(last < first, f"{first:.2f} from step 0, {last:.2f} later")


def _matches_where_stable(found):
    tickets = [(setting, level) for setting in found.settings for level in found.pruned]
    agrees = [
        (found.mean("barrier", *ticket) < _STABLE) == (found.drop(*ticket) <= _MATCHING)
        for ticket in tickets
    ]
    num_stable = sum(found.mean("barrier", *ticket) < _STABLE for ticket in tickets)
    seen = f"{sum(agrees)} of {len(agrees)} agree, {num_stable} are stable"
    if num_stable in (0, len(tickets)):
        return common.verdict(None, f"all alike: {seen}")
    return common.verdict(all(agrees), seen)


def _rewinding(found):
    of_levels = [
        map(operator.sub, found.drops(_PLAIN, level), found.drops(found.later, level))
        for level in found.pruned
    ]
    gains = list(map(statistics.mean, zip(*of_levels, strict=True)))
    mean, deviation = statistics.mean(gains), statistics.stdev(gains) if len(gains) > 1 else 0.0
    text = f"{common.spread(gains, sign='+')} from {found.later[1]:.0%} of training"
    return common.verdict(mean > deviation, text)


def _stabilised(measure):
    """Whether each way of stable training lowers a measure of tickets from step 0."""

    def claim(found):
        plain, *others = [(measure(found, setting), setting[0]) for setting in found.from_start]
        seen = ", ".join(f"{value:.2f} {name}" for value, name in [plain, *others])
        return common.verdict(all(value < plain[0] for value, _ in others), seen)

    return claim


def _mean_barrier(found, setting):
    return statistics.mean(found.mean("barrier", setting, level) for level in found.pruned)


def _connected_to_dense(found):
    barriers = [found.mean("barrier_to_dense", s, found.pruned[0]) for s in found.from_start]
    seen = f"{_listed(barriers)} at {found.sparsity(found.pruned[0]):.0%}"
    return common.verdict(max(barriers) < _STABLE, seen)


def _sparsest_is_not(found):
    level = found.pruned[-1]
    barriers = [found.mean("barrier_to_dense", setting, level) for setting in found.from_start]
    seen = f"{_listed(barriers)} at {found.sparsity(level):.1%}"
    if len(found.pruned) == 1:
        return common.verdict(None, "one sparsity")
    medium = [found.mean("barrier_to_dense", s, found.pruned[0]) for s in found.from_start]
    if max(medium) >= _STABLE:
        return common.verdict(None, f"nor is the medium one; {seen}")
    return common.verdict(min(barriers) >= _STABLE, seen)


def _same_region(found):
    angles = [
        found.mean("angle_to_dense", setting, level)
        for setting in found.from_start
        for level in found.pruned
    ]
    return common.verdict(max(angles) < 0.5, f"{min(angles):.2f} to {max(angles):.2f}")


def _repelled(found):
    if not found.plan.repelled:
        return common.verdict(None, "not run, for its cost")
    losses = [
        statistics.mean(_loss(found, name, _PLAIN, k) for k in found.pruned)
        for name in ("ticket", "reinitialised")
    ]
    seen = f"{losses[0]:+.2f}, a reinitialised one {losses[1]:+.2f}"
    return common.verdict(losses[0] > _MATCHING and losses[0] > losses[1], seen)


def _loss(found, name, setting, level):
    return found.mean(name, setting, level) - found.mean(f"{name}_repelled", setting, level)


def _listed(values):
    return ", ".join(f"{value:.1f}" for value in values)


_FRANKLE, _MAENE = "Frankle et al.", "Maene et al."
_CLAIMS = [
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


def lines(rows):
    """The lines of the page."""
    cases = _cases(rows)
    page = [*_head(common.seeds(rows)), "## Claims", "", *common.claims_table(_CLAIMS, cases)]
    page += ["", *_notes(), "", f"![Barriers over sparsity]({connectivity.NAME}.png)"]
    for case, found in cases.items():
        page += ["", f"## {case}", "", *_about(found.plan), "", *_barrier_table(found)]
        if found.plan.repelled:
            page += ["", "Repelled:", "", *_repelled_table(found)]
    return page


def _cases(rows):
    return {
        case: Found(connectivity.CASES[case], of_case)
        for case, of_case in common.by_case(rows).items()
    }


def _head(seeds):
    return [
        "# Are tickets stable, and do they train back to where they were found?",
        "",
        "The instability analysis of [Frankle et al., 2020](https://arxiv.org/abs/1912.05671), "
        '"Linear Mode Connectivity and the Lottery Ticket Hypothesis", and the experiments of '
        '[Maene et al., 2021](https://arxiv.org/abs/2106.06955), "Towards Understanding Iterative '
        'Magnitude Pruning: Why Lottery Tickets Win", on small networks.',
        "",
        f"Seeds {seeds}, mean ± standard deviation; accuracies, errors and barriers in percent of "
        "the test images. A ticket is found by iterative magnitude pruning (global, all kernels), "
        "rewound to a share of the steps of training, and trained twice in two other orders of the "
        "data. The barrier is the highest error on the straight line between the two solutions "
        "less the mean of its ends, of 11 points (Frankle et al.: 30, Maene et al.: 20); below "
        "2 % the network is stable. `d` is their angle at the "
        "connections that both have, times 2/π: 0 in the same direction, 1 orthogonal. To dense: "
        "from the dense solution that pruning began with to the ticket as pruning trained it. All "
        "training is SGD with Nesterov momentum 0.9 and a cosine decay; large batches are ten "
        "times as large for as many epochs, a warm-up takes a fifth of training.",
        "",
        "Repelled: from step 0 the ticket is trained with the loss of Maene et al. "
        "(`analysis.repel`, weight 2), away from the dense solution and from that of the level "
        "before. A reinitialised network with the same mask tells what that loss costs alone.",
        "",
    ]


def _notes():
    return [
        "- Maene et al., the experiments with ResNet-50 on ImageNet (a drop of 2.4 at a high and "
        "2.0 at a low learning rate): not testable here, a training takes a year of two cores.",
        "- The papers' LeNet is LeNet-300-100 on MNIST; LeNet-5 and Fashion-MNIST are not theirs.",
        "- Maene et al., weight decay hurts where training is nearly stable: not run.",
        "- Where the dense network is stable from step 0, there is nothing for rewinding or for "
        "stable training to repair, and what they gain is chance.",
        "- With large batches LeNet-5 has 180 steps: too few to finish, so that their barriers say "
        "little. 11.35 % on MNIST is one answer for all images.",
        "- ResNet-20 is trained for 3 epochs instead of 160 (85 in Maene et al.), one seed. That "
        "does not finish the dense network, least of all without a warm-up, and a ticket, whose "
        "mask comes from another such training, is the better one: take its barriers for a "
        "result, not what is said of its accuracies.",
    ]


def _about(plan):
    case = plan.case
    yield (
        f"{case.epochs} epochs, batch {case.batch_size}, learning rate {case.learning_rate}, L2 "
        f"{2 * case.l2:g}; each level prunes {plan.prune_fraction:.0%}."
    )


def _barrier_table(found):
    head = ["training", "rewound to", "sparsity", "accuracy", "barrier", "stable", "d"]
    rows = []
    for setting in found.settings:
        for level in found.plan.levels:
            barriers = found.of("barrier", setting, level)
            row = [setting[0], f"{setting[1]:.0%}", f"{found.sparsity(level):.1%}"]
            row += [common.spread(found.of("accuracy", setting, level)), common.spread(barriers)]
            row += [f"{sum(b < _STABLE for b in barriers)} of {len(barriers)}"]
            row += [common.spread(found.of("angle", setting, level))]
            for column in ("barrier_to_dense", "angle_to_dense"):
                row += [common.spread(found.of(column, setting, level)) if level else "–"]
            rows.append(row)
    return tables.table([*head, "barrier to dense", "d to dense"], rows)


def _repelled_table(found):
    columns = {
        "ticket": "ticket",
        "ticket_repelled": "repelled",
        "ticket_repelled_angle": "its d to dense",
        "reinitialised": "reinitialised",
        "reinitialised_repelled": "reinitialised, repelled",
    }
    rows = [
        [setting[0], f"{found.sparsity(level):.1%}"]
        + [common.spread(found.of(column, setting, level)) for column in columns]
        for setting in found.from_start
        for level in found.pruned
    ]
    return tables.table(["training", "sparsity", *columns.values()], rows)


def plot(rows, path):
    """For each case: barriers and accuracy over sparsity."""
    cases = _cases(rows)
    titles = {
        "barrier": "between two solutions",
        "barrier_to_dense": "from the dense solution to the ticket's",
        "accuracy": "accuracy",
    }
    shape = {"nrows": len(cases), "ncols": 3, "squeeze": False}
    with plots.figure(path, (15, 4 * len(cases)), **shape) as grid:
        for row, (case, found) in zip(grid, cases.items(), strict=True):
            for axes, (column, title) in zip(row, titles.items(), strict=True):
                _plot_column(axes, found, column)
                axes.set(title=f"{case}:\n{title}", xlabel="sparsity")
            row[0].set(ylabel="barrier (% of error)")
            row[2].set(ylabel="test accuracy (%)")
            plots.legend(row[0])


def _plot_column(axes, found, column):
    levels = found.pruned if column == "barrier_to_dense" else list(found.plan.levels)
    shifts = plots.apart(len(found.settings))
    for number, (setting, shift) in enumerate(zip(found.settings, shifts, strict=True)):
        values = [found.of(column, setting, level) for level in levels]
        deviations = [statistics.stdev(each) if len(each) > 1 else 0 for each in values]
        label = f"{setting[0]}, rewound to {setting[1]:.0%}"
        means = list(map(statistics.mean, values))
        places = [level + shift for level in levels]
        plots.with_errors(axes, places, means, deviations, styles.numbered(number), label)
    if column != "accuracy":
        axes.axhline(_STABLE, color="black", linestyle=":")
    axes.set_xticks(levels, [f"{found.sparsity(level):.1%}" for level in levels])
    axes.set_xlim(levels[0] - 0.4, levels[-1] + 0.4)
    axes.grid(alpha=0.3)
