"""The page on greedy selection: the claims of Ye et al., and our results."""

import numpy as np

from scripts.common import claims, plots, styles, tables, words
from scripts.lottery import greedy
from scripts.lottery.pages import common

# The smallest relative discrepancy that counts: below it is rounding.
_FLOOR = 1e-9


def fits(curve):
    """How well three laws fit the logarithm of a curve, a list of pairs `(n, discrepancy)`.

    Returns:
        `{law: R²}` of `"exponential"` (`a * exp(-b * n)`), `"power"` (`a * n ** -b`) and `"1/n"`
        (`a / n`), and the `b` of the first two as `"rate"` and `"exponent"`; `None` if the curve
        has fewer than three points.
    """
    points = np.array([(n, value) for n, value in curve if value > _FLOOR])
    if len(points) < 3:
        return None
    count, log = points[:, 0], np.log(points[:, 1])
    rate, start = np.polyfit(count, log, 1)
    exponent, scale = np.polyfit(np.log(count), log, 1)

    def r_squared(fitted):
        return 1 - float(np.sum((log - fitted) ** 2) / np.sum((log - log.mean()) ** 2))

    harmonic = -np.log(count)
    return {
        "exponential": r_squared(start + rate * count),
        "power": r_squared(scale + exponent * np.log(count)),
        "1/n": r_squared(harmonic + np.mean(log - harmonic)),
        "rate": -float(rate),
        "exponent": -float(exponent),
    }


def curves(rows, method, objective):
    """The curves of a method, one for each row that has one."""
    texts = [row[f"{objective}_curve"] for row in rows if row["method"] == method]
    return [tables.from_text(text) for text in texts if text]


def lines(rows):
    seeds = common.seeds(rows)
    return [
        "# Greedy forward selection: how few units do what all did",
        "",
        'Ye, Wu and Liu, "Greedy Optimization Provably Wins the Lottery: Logarithmic Number of '
        'Winning Tickets is Enough" (NeurIPS 2020, arXiv 2010.15969). Its claim: units of a '
        "trained layer, selected one after another, differ from the whole layer by a discrepancy "
        "that falls exponentially with their number. The paper was not at hand in full; what "
        "`rigl_tf.lottery.select_units` takes from notes of it is said in its docstring.",
        "",
        *_verdicts(rows),
        "",
        "Exponential counts as the law if it explains more of the logarithm of the discrepancy "
        "(R²) than 1/n and than any power of n; what is compared is R². `Below` is the method's "
        "own objective: the logarithms of the discrepancies, at each number of units. Accuracies "
        f"are compared in points. {common.HOW}",
        "",
        *_remark(rows),
        "",
        f"![Discrepancy and accuracy over the units kept]({greedy.NAME}.png)",
        "",
        "## Protocol",
        "",
        f"Seeds {seeds}, mean ± standard deviation. Each network is trained densely "
        f"({_epochs(rows)} epochs, batch 100, SGD 0.1 (LeNet-5: 0.05; ResNet-20: batch 128, 0.2), "
        "Nesterov momentum 0.9, cosine decay, L2 1e-4 (ResNet-20: 2e-4); units of the first Dense "
        f"layer (of ResNet-20 `{greedy.PLACES['resnet20'].layer}`) are selected by the first "
        f"{greedy.NUM_EXAMPLES} training examples; "
        f"the small dense model is fine-tuned for {greedy.FINE_TUNING:.0%} of the epochs (one at "
        "least), from a tenth of the learning rate. "
        f"{words.L2} The local objective is the change of the next "
        "layer's outputs, the global one that of the logits, both relative to the squared norm of "
        "what changes. Random units stand for all of them as a mean (weights 1/n); those with the "
        "largest incoming weights (sum of absolute values) stay as they are, as in pruning.",
        "",
        *_fit_section(rows),
        *_accuracy_section(rows),
    ]


def _epochs(rows):
    return " or ".join(str(epochs) for epochs in sorted({row["epochs"] for row in rows}))


_CLAIMS = {
    "The discrepancy falls exponentially, local imitation": lambda rows: _is_exponential(
        rows, "local", "local"
    ),
    "The discrepancy falls exponentially, global imitation": lambda rows: _is_exponential(
        rows, "global", "global"
    ),
    "Greedy units are below random ones, local imitation": lambda rows: _compare(
        rows, "local", greedy.RANDOM
    ),
    "Greedy units are below random ones, global imitation": lambda rows: _compare(
        rows, "global", greedy.RANDOM
    ),
    "Greedy units are below those of the largest weights, local imitation": lambda rows: _compare(
        rows, "local", greedy.LARGEST
    ),
    "With repetition it is below that without, local imitation": lambda rows: _compare(
        rows, "local", "local, no repetition"
    ),
    "The smallest models, fine-tuned: local imitation is better than random and than largest "
    "weights": lambda rows: _is_most_accurate(rows),
}


def _verdicts(rows):
    cases = common.by_case(rows)
    table = [
        [claim, *(judge(of_case) for of_case in cases.values())] for claim, judge in _CLAIMS.items()
    ]
    return [
        *tables.table(["claim", *cases], table),
        "",
        "- Better accuracy than other pruning of ResNet-50 and MobileNetV2/V3 on ImageNet: not "
        "testable here, no ImageNet on two cores.",
    ]


def _exponential(rows, method, objective):
    """By how much the R² of the exponential law is above the others', for each seed."""
    found = [fits(curve) for curve in curves(rows, method, objective)]
    return [fit["exponential"] - max(fit["power"], fit["1/n"]) for fit in found if fit]


def _is_exponential(rows, method, objective):
    return common.judged(_exponential(rows, method, objective), digits=3)


def _remark(rows):
    gains = _exponential(rows, greedy.LARGEST, "local")
    count = sum(gain > 0 for gain in gains)
    if count:
        yield (
            "The law alone tells little of the selection: units of the largest weights, which are "
            f"not selected by any discrepancy, follow it as well in {count} of {len(gains)} "
            "networks. What greedy selection changes is how low the discrepancy is."
        )


def _same(rows, *columns):
    """The rows of each case, seed and further columns, as `{method: row}`."""
    groups = {}
    for row in rows:
        key = tuple(row[column] for column in ("case", "seed", *columns))
        groups.setdefault(key, {})[row["method"]] = row
    return groups


def _compare(rows, method, other):
    """Of each number of units, how far the logarithm of the discrepancy is below the other."""
    column = f"{greedy.GREEDY[method]['imitate']}_discrepancy"
    of_sizes = {}
    for (_, _, size), group in _same(rows, "num_units").items():
        if {method, other} <= group.keys():
            logs = [np.log(max(group[name][column], _FLOOR)) for name in (other, method)]
            of_sizes.setdefault(size, []).append(float(logs[0] - logs[1]))
    return common.together([claims.verdict(values) for values in of_sizes.values()])


def _is_most_accurate(rows):
    gains = []
    for (case, _, size), group in _same(rows, "num_units").items():
        is_smallest = size == min(greedy.SIZES[greedy.CASES[case].network])
        if is_smallest and {"local", *greedy.BASELINES} <= group.keys():
            best = max(group[name]["fine_tuned_accuracy"] for name in greedy.BASELINES)
            gains.append(group["local"]["fine_tuned_accuracy"] - best)
    return common.judged(gains)


def _fit_section(rows):
    table = []
    for case, of_case in common.by_case(rows).items():
        for method in greedy.METHODS:
            for objective in greedy.OBJECTIVES:
                found = [fits(curve) for curve in curves(of_case, method, objective)]
                if found := [fit for fit in found if fit]:
                    table.append(_fit_row(case, method, objective, found))
    head = ["case", "method", "objective", "exponential", "halved every", "power of n", "exponent"]
    return [
        "## Which law",
        "",
        "R² of fits to the logarithm of the discrepancy, up to the largest number of units; the "
        "discrepancy is halved every `ln 2 / b` units by the exponential law.",
        "",
        *tables.table([*head, "1/n"], table),
    ]


def _fit_row(case, method, objective, found):
    def mean(name, digits=3):
        return common.spread([fit[name] for fit in found], digits)

    halving = [np.log(2) / fit["rate"] for fit in found if fit["rate"] > 0]
    cells = [case, method, objective, mean("exponential"), common.spread(halving, 1)]
    return [*cells, mean("power"), mean("exponent", 2), mean("1/n")]


def _accuracy_section(rows):
    lines = ["", "## Accuracy of the small models", ""]
    for case, of_case in common.by_case(rows).items():
        dense = common.spread([row["dense_accuracy"] for row in of_case if _is_first(row)])
        sizes = greedy.SIZES[greedy.CASES[case].network]
        table = []
        for method in greedy.METHODS:
            cells = [
                _accuracies([r for r in of_case if (r["method"], r["num_units"]) == (method, size)])
                for size in sizes
            ]
            table.append([method, *cells])
        lines += [
            f"{case}, test accuracy in percent: as selected → fine-tuned. Dense: {dense}.",
            "",
            *tables.table(["method", *(f"{size} units" for size in sizes)], table),
            "",
        ]
    return lines[:-1] + _stopped_short(rows)


def _is_first(row):
    size = max(greedy.SIZES[greedy.CASES[row["case"]].network])
    return (row["method"], row["num_units"]) == (greedy.METHODS[0], size)


def _accuracies(rows):
    columns = ("accuracy", "fine_tuned_accuracy")
    return " → ".join(common.spread([row[column] for row in rows]) for column in columns)


def _stopped_short(rows):
    short = [row for row in rows if row["selected"] < row["num_units"]]
    texts = [
        f"{row['case']} seed {row['seed']}, {row['method']}, {row['selected']} of "
        f"{row['num_units']}"
        for row in short
    ]
    if not texts:
        return []
    return ["", "The selection ended before (no step helped, or too many): " + "; ".join(texts)]


def plot(rows, path):
    """For each case: the local and the global discrepancy, and the accuracy after fine-tuning."""
    cases = common.by_case(rows)
    size = {"figsize": (14, 3.8 * len(cases)), "squeeze": False}
    with plots.figure(path, nrows=len(cases), ncols=3, **size) as grid:
        for (case, of_case), axes in zip(cases.items(), grid, strict=True):
            place = greedy.PLACES[greedy.CASES[case].network]
            for objective, each in zip(greedy.OBJECTIVES, axes, strict=False):
                _plot_curves(each, of_case, objective)
                each.set(title=f"{case}, {objective}", ylabel="relative discrepancy")
            _plot_accuracies(axes[-1], of_case)
            axes[-1].set(title=f"{case}, fine-tuned", ylabel="test accuracy (%)")
            for each in axes:
                each.set_xlabel(f"units of {place.layer} kept")
                each.grid(alpha=0.3)
                plots.legend(each, loc="best", bbox_to_anchor=None, fontsize="small")


def _plot_curves(axes, rows, objective):
    """The geometric mean over the seeds, at the numbers of units that all have."""
    largest = 1
    for method, style in styles.of(greedy.METHODS).items():
        found = [dict(curve) for curve in curves(rows, method, objective)]
        if not found:
            continue
        counts = sorted(set.intersection(*(set(curve) for curve in found)))
        means = [
            np.exp(np.mean([np.log(max(curve[n], _FLOOR)) for curve in found])) for n in counts
        ]
        axes.plot(counts, means, **style, markersize=4, markevery=0.15, label=method)
        largest = max(largest, *counts)
    counts = np.arange(1, largest + 1)
    axes.plot(counts, 1 / counts, color="black", linestyle=":", label="1/n")
    axes.set_yscale("log")


def _plot_accuracies(axes, rows):
    values = tables.means(rows, "method", "num_units", "fine_tuned_accuracy")
    look, sizes = styles.of(greedy.METHODS), sorted({size for _, size in values})
    for (method, style), shift in zip(look.items(), plots.apart(len(look)), strict=True):
        points = sorted((n, *value[:2]) for (name, n), value in values.items() if name == method)
        if points:
            num_units, means, deviations = zip(*points, strict=True)
            places = [n * (1 + shift) for n in num_units]
            plots.with_errors(axes, places, means, deviations, style, method)
    axes.set_xscale("log")
    axes.set_xticks(sizes, sizes)
    axes.minorticks_off()
    plots.across(axes, np.mean([row["dense_accuracy"] for row in rows]))
