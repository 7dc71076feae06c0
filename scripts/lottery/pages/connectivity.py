"""The page on connectivity: the claims of Frankle et al. and Maene et al., and our results."""

import operator
import statistics

from scripts.common import claims, plots, styles, tables, words
from scripts.lottery import connectivity
from scripts.lottery.pages import common

_STABLE = 2.0  # percent of error, the threshold of Frankle et al.
_MATCHING = 0.2  # percent, a drop of accuracy that is none for Frankle et al.


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

    def drops(self, setting, level):
        """By how much the ticket of each seed is worse than the dense network from its step."""
        pairs = zip(*(self.of("accuracy", setting, k) for k in (0, level)), strict=True)
        return [dense - ticket for dense, ticket in pairs]

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
    at_start, later = (found.of("barrier", setting, 0) for setting in (_PLAIN, found.later))
    if found.plan.case.network == "resnet20":
        pairs = zip(at_start, later, strict=True)
        return common.judged([min(a - _STABLE, _STABLE - b) for a, b in pairs])
    return common.judged([_STABLE - barrier for barrier in at_start])


def _later_is_stabler(found):
    pairs = zip(
        *(_over_levels(found, "barrier", s, found.plan.levels) for s in (_PLAIN, found.later)),
        strict=True,
    )
    return common.judged([start - later for start, later in pairs])


def _over_levels(found, column, setting, levels):
    """The mean of a column over some levels, for each seed."""
    return _means([found.of(column, setting, level) for level in levels])


def _means(lists):
    """The means of the first numbers of some lists, of the second ones, and so on."""
    return list(map(statistics.mean, zip(*lists, strict=True)))


def _matches_where_stable(found):
    verdicts = []
    for ticket in [(setting, level) for setting in found.settings for level in found.pruned]:
        is_stable = claims.verdict([_STABLE - barrier for barrier in found.of("barrier", *ticket)])
        matches = claims.verdict([_MATCHING - drop for drop in found.drops(*ticket)])
        verdicts.append((is_stable, matches))
    decided = {is_stable for is_stable, _ in verdicts} - {claims.UNDECIDED}
    if len(decided) == 1:
        return common.not_testable(f"of {len(verdicts)} none is {_OTHER[decided.pop()]}")
    return common.together([_agree(*pair) for pair in verdicts])


_OTHER = {claims.CONFIRMED: "clearly not stable", claims.CONTRADICTED: "clearly stable"}


def _agree(one, other):
    """The verdict that two claims are both true or both false, from their verdicts."""
    if claims.UNDECIDED in (one, other):
        return claims.UNDECIDED
    return claims.CONFIRMED if one == other else claims.CONTRADICTED


def _rewinding(found):
    return common.judged(
        _means(
            [
                list(map(operator.sub, found.drops(_PLAIN, k), found.drops(found.later, k)))
                for k in found.pruned
            ]
        )
    )


def _stabilised(measure):
    """Whether each way of stable training lowers a measure of tickets from step 0."""

    def claim(found):
        plain, *others = [measure(found, setting) for setting in found.from_start]
        return common.judged(
            [start - max(each) for start, *each in zip(plain, *others, strict=True)]
        )

    return claim


def _mean_barrier(found, setting):
    return _over_levels(found, "barrier", setting, found.pruned)


def _mean_drop(found, setting):
    return _means([found.drops(setting, level) for level in found.pruned])


def _of_all(found, column, levels, choose):
    """The highest or lowest value of a column of tickets from step 0, for each seed."""
    lists = [found.of(column, setting, level) for setting in found.from_start for level in levels]
    return list(map(choose, zip(*lists, strict=True)))


def _connected_to_dense(found):
    barriers = _of_all(found, "barrier_to_dense", found.pruned[:1], max)
    return common.judged([_STABLE - barrier for barrier in barriers])


def _sparsest_is_not(found):
    if len(found.pruned) == 1:
        return common.not_testable("one sparsity")
    if statistics.mean(_of_all(found, "barrier_to_dense", found.pruned[:1], max)) >= _STABLE:
        return common.not_testable("nor is the medium one")
    barriers = _of_all(found, "barrier_to_dense", found.pruned[-1:], min)
    return common.judged([barrier - _STABLE for barrier in barriers])


def _same_region(found):
    return common.judged([0.5 - a for a in _of_all(found, "angle_to_dense", found.pruned, max)])


def _repelled(found):
    if not found.plan.repelled:
        return common.not_testable("not run, for its cost")
    pairs = zip(*(_loss(found, name) for name in ("ticket", "reinitialised")), strict=True)
    return common.judged([min(ticket - _MATCHING, ticket - other) for ticket, other in pairs])


def _loss(found, name):
    """What repulsion costs, the mean over the sparsities, for each seed."""
    columns = (
        _over_levels(found, each, _PLAIN, found.pruned) for each in (name, f"{name}_repelled")
    )
    return [plain - repelled for plain, repelled in zip(*columns, strict=True)]


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
        "the dense network)",
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
        _stabilised(_mean_drop),
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
    page += [
        "",
        *_reading(),
        "",
        *_notes(),
        "",
        f"![Barriers over sparsity]({connectivity.NAME}.png)",
    ]
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
        f"training is SGD with Nesterov momentum 0.9 and a cosine decay, but for the setting of "
        f"Maene et al., which is Adam with a constant learning rate. {words.L2} Large "
        "batches are ten times as large for as many epochs, a warm-up takes a fifth of training.",
        "",
        "Repelled: from step 0 the ticket is trained with the loss of Maene et al. "
        "(`analysis.repel`, weight 2), away from the dense solution and from that of the level "
        "before. A reinitialised network with the same mask tells what that loss costs alone.",
        "",
    ]


def _reading():
    return [
        f"{common.HOW} Barriers, errors and accuracies are compared in points, with the threshold "
        "where the claim names one. Where several trainings are meant, the one that says most "
        "against the claim counts for each seed. That a ticket matches if it is stable, and only "
        "then, is confirmed for a ticket of which both are confirmed or both contradicted.",
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
    how = f"Adam, kernels from {case.initializer}, " if case.adam else ""
    yield (
        f"{how}{case.epochs} epochs, batch {case.batch_size}, learning rate {case.learning_rate}, "
        f"L2 {2 * case.l2:g}; each level prunes {plan.prune_fraction:.0%}."
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
