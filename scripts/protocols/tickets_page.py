"""The page of `scripts.protocols.tickets`: verdicts, accuracies and their plot."""

import pathlib
import statistics

from absl import flags

from scripts import experiments, results
from scripts.protocols import pages
from scripts.protocols.tickets_claims import CLAIMS, CLEAR, SIMILAR, percents, redundancy

FLAGS = flags.FLAGS


def write(name, cases, seeds):
    """Writes the page and the plot; `cases` is `{name: Found}`."""
    lines = [
        *_head(seeds),
        "## Claims",
        "",
        *pages.claims_table(CLAIMS, cases),
        "",
        *_other_claims(cases),
    ]
    lines += ["", f"![Accuracy over sparsity]({name}.png)"]
    for case, found in cases.items():
        lines += ["", f"## {case}", "", *_about(found.plan), "", *_verdict_table(found), ""]
        lines += _accuracy_table(found)
    experiments.write_page(name, lines, "scripts.lottery")
    if cases:
        _plot(cases, pathlib.Path(FLAGS.output_dir) / f"{name}.png")


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
        f'"Similar" is a drop of {SIMILAR} at most, and "clear" a gap of more than {CLEAR} '
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
        f"sparsity: {redundancy(cases)}.",
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
            percents([found.sparsities[level]]),
            *(_verdict_text(found.judge(way, level, rates)) for way, rates in ways),
        ]
        for level in found.judged
    ]
    return results.table(["sparsity", *head], rows)


def _verdict_text(verdict):
    if verdict is None:
        return "–"
    failed = [str(each.number) for each in verdict.conditions if not each.holds]
    return verdict.verdict + (f" (not condition {', '.join(failed)})" if failed else "")


def _accuracy_table(found):
    kinds = ("LT-IMP", *found.plan.rivals)
    rows = [
        [rate, percents([found.sparsities[level]])]
        + [_cell(found.of(kind, level, rate)) for kind in kinds]
        for rate in found.plan.learning_rates
        for level in sorted(found.sparsities)
    ]
    return results.table(["learning rate", "sparsity", *kinds], rows)


def _cell(values):
    return "–" if values is None else pages.spread(values)


def _plot(cases, path):
    shape = {"nrows": len(cases), "ncols": 2, "squeeze": False}
    with results.figure(path, (12, 4 * len(cases)), **shape) as grid:
        for row, (case, found) in zip(grid, cases.items(), strict=True):
            for axes, rate in zip(row, found.plan.learning_rates, strict=True):
                _plot_case(axes, found, rate)
                axes.set(title=f"{case}, learning rate {rate}", ylabel="test accuracy (%)")


def _plot_case(axes, found, rate):
    dense = found.of("dense", 0, rate)
    axes.axhline(statistics.mean(dense), color="black", linestyle="--", label="dense")
    lowest = statistics.mean(dense)
    for kind in ("LT-IMP", *found.plan.rivals):
        levels = [k for k in sorted(found.sparsities) if k and found.of(kind, k, rate)]
        values = [found.of(kind, level, rate) for level in levels]
        means = [statistics.mean(each) for each in values]
        deviations = [statistics.stdev(each) if len(each) > 1 else 0 for each in values]
        axes.errorbar(levels, means, deviations, marker="o", capsize=3, label=kind)
        if kind != "small dense":
            lowest = min(lowest, *means)
    ticks = sorted(set(found.sparsities) - {0})
    axes.set_xticks(ticks, [percents([found.sparsities[level]]) for level in ticks])
    axes.set(xlabel="sparsity", ylim=(lowest - 1, None))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left", fontsize="small")
