"""The page of `scripts.protocols.connectivity`: barriers, repelled tickets and their plot."""

import pathlib
import statistics

from absl import flags

from scripts import experiments, results
from scripts.protocols import pages
from scripts.protocols.connectivity_claims import CLAIMS, STABLE

FLAGS = flags.FLAGS


def write(name, cases, seeds):
    """Writes the page and the plot; `cases` is `{name: Found}`."""
    lines = [*_head(seeds), "## Claims", "", *pages.claims_table(CLAIMS, cases)]
    lines += ["", *_notes(), "", f"![Barriers over sparsity]({name}.png)"]
    for case, found in cases.items():
        lines += ["", f"## {case}", "", *_about(found.plan), "", *_barrier_table(found)]
        if found.plan.repelled:
            lines += ["", "Repelled:", "", *_repelled_table(found)]
    experiments.write_page(name, lines, "scripts.lottery")
    if cases:
        _plot(cases, pathlib.Path(FLAGS.output_dir) / f"{name}.png")


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
            row += [pages.spread(found.of("accuracy", setting, level)), pages.spread(barriers)]
            row += [f"{sum(b < STABLE for b in barriers)} of {len(barriers)}"]
            row += [pages.spread(found.of("angle", setting, level))]
            for column in ("barrier_to_dense", "angle_to_dense"):
                row += [pages.spread(found.of(column, setting, level)) if level else "–"]
            rows.append(row)
    return results.table([*head, "barrier to dense", "d to dense"], rows)


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
        + [pages.spread(found.of(column, setting, level)) for column in columns]
        for setting in found.from_start
        for level in found.pruned
    ]
    return results.table(["training", "sparsity", *columns.values()], rows)


def _plot(cases, path):
    titles = {
        "barrier": "between two solutions",
        "barrier_to_dense": "from the dense solution to the ticket's",
        "accuracy": "accuracy",
    }
    shape = {"nrows": len(cases), "ncols": 3, "squeeze": False}
    with results.figure(path, (15, 4 * len(cases)), **shape) as grid:
        for row, (case, found) in zip(grid, cases.items(), strict=True):
            for axes, (column, title) in zip(row, titles.items(), strict=True):
                _plot_column(axes, found, column)
                axes.set(title=f"{case}:\n{title}", xlabel="sparsity")
            row[0].set(ylabel="barrier (% of error)")
            row[2].set(ylabel="test accuracy (%)")
            row[0].legend()


def _plot_column(axes, found, column):
    levels = found.pruned if column == "barrier_to_dense" else list(found.plan.levels)
    for setting in found.settings:
        values = [found.of(column, setting, level) for level in levels]
        deviations = [statistics.stdev(each) if len(each) > 1 else 0 for each in values]
        label = f"{setting[0]}, rewound to {setting[1]:.0%}"
        means = list(map(statistics.mean, values))
        axes.errorbar(levels, means, deviations, marker="o", capsize=3, label=label)
    if column != "accuracy":
        axes.axhline(STABLE, color="black", linestyle=":")
    axes.set_xticks(levels, [f"{found.sparsity(level):.1%}" for level in levels])
    axes.grid(alpha=0.3)
