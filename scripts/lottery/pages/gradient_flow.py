"""The page on gradient flow and on tickets: the claims of Evci et al., and our results."""

import math
import statistics

import numpy as np

from rigl_tf import analysis
from scripts.common import plots, styles, tables, words
from scripts.lottery import gradient_flow, spectra
from scripts.lottery.pages import common

# A norm that is above another by a tenth at most counts as no gain: training alone moves it more.
_LARGER = 1.1
_NO_BARRIER = 2.0  # percentage points of test error
_INSIDE = (gradient_flow.COEFFICIENTS > -1e-9) & (gradient_flow.COEFFICIENTS < 1 + 1e-9)


def start_norm(row):
    """The gradient norm before the first step."""
    return tables.from_text(row["norms"])[0][1]


def mean_norm(row):
    """The mean gradient norm over the training, the first step left out."""
    later = [norm for _, norm in tables.from_text(row["norms"])[1:]]
    return statistics.mean(later) if later else start_norm(row)


def changes(row):
    """The relative change of the norm at each mask update."""
    return [after / before - 1 for _, before, after in tables.from_text(row["updates"])]


def barrier(row):
    """How far the test error rises on the line to the pruned network, in percentage points.

    Above the straight line between the errors of the ends, which are not equally good here.
    """
    return analysis.error_barrier(errors(row)[_INSIDE], above="line")


def errors(row):
    return np.array(list(map(float, row["errors_to_pruned"].split())))


def _gain(row):
    """What the ensemble has over the mean of its networks, in percentage points."""
    return row["ensemble_accuracy"] - statistics.mean(map(float, str(row["accuracies"]).split()))


def _above(norm, other):
    """The logarithm of how many times a norm is another."""
    return math.log(norm / other)


def claims(of_one):
    """By how much the paper's claims hold (below 0: do not), `None` for what is not run.

    Args:
        of_one: `{(network, init): row}` of a case and seed.
    """
    dense = of_one["pruned", "dense"]
    static, aware = of_one["static", "dense"], of_one["static", "neuron"]
    rigl, ticket = of_one["rigl", "dense"], of_one["ticket", "dense"]
    scratch, rewound = of_one["scratch", "dense"], of_one.get(("rewound", "dense"))
    return {
        "Sparse networks have a poor gradient flow at initialisation: the norm is below the dense "
        "network's": _above(start_norm(dense), start_norm(static)),
        "Sparsity-aware initialisation (per neuron) raises it": _above(
            start_norm(aware), start_norm(static)
        ),
        "… and static training with it is more accurate": aware["accuracy"] - static["accuracy"],
        "RigL has a better gradient flow during training than static masks": _above(
            mean_norm(rigl), mean_norm(static)
        ),
        "A mask update of RigL raises the norm, on average": statistics.mean(changes(rigl)),
        "RigL is more accurate than static masks": rigl["accuracy"] - static["accuracy"],
        "A ticket does not improve gradient flow during training: its norms are not above those "
        f"of its masks on new weights (by {_LARGER - 1:.0%} or more)": (
            _above(_LARGER * mean_norm(scratch), mean_norm(ticket))
        ),
        "A ticket is more accurate than its masks on new weights": (
            ticket["accuracy"] - scratch["accuracy"]
        ),
        "A ticket starts and ends nearer to the pruned solution (cosine)": min(
            ticket[f"{point}_cosine"] - scratch[f"{point}_cosine"] for point in ("start", "end")
        ),
        "A ticket ends in the basin of the pruned solution: no barrier": (
            _NO_BARRIER - barrier(ticket)
        ),
        "… and so does one that is rewound to early weights": (
            _NO_BARRIER - barrier(rewound) if rewound else None
        ),
        "… and its masks on new weights do not": barrier(scratch) - _NO_BARRIER,
        "A ticket re-learns the function of the pruned network: it disagrees with it in fewer "
        "images than scratch, and than pruned networks with each other": 100
        * (
            min(scratch["pruned_disagreement"], dense["disagreement"])
            - ticket["pruned_disagreement"]
        ),
        "The cost is novelty: tickets disagree with each other in fewer images than scratch "
        "trainings do": 100 * (scratch["disagreement"] - ticket["disagreement"]),
        "… and gain less by an ensemble": _gain(scratch) - _gain(ticket),
    }


def _verdicts(rows):
    found = {case: list(map(claims, _by_seed(of))) for case, of in common.by_case(rows).items()}
    names = next(iter(found.values()), [{}])[0]
    table = [
        [name, *(common.judged(_run(of_one[name] for of_one in seeds)) for seeds in found.values())]
        for name in names
    ]
    return [
        *tables.table(["claim of the paper", *found], table),
        "",
        "- Its figures of the Hessian's spectrum: not judged, as what the paper concludes from "
        "them could not be read; ours are below.",
        "- The same of ResNet-50 on ImageNet: not testable here, too large for two cores.",
        "",
        f"{common.HOW} Accuracies, ensembles, barriers and disagreements are compared in points; "
        "of norms the natural logarithms: +0.10 is a tenth more, +1.00 is 2.7 times as much. What "
        "an update changes is a share of the norm.",
    ]


def _run(values):
    return [value for value in values if value is not None]


def _by_seed(rows):
    """`{(network, init): row}` of each seed."""
    seeds = {}
    for row in rows:
        seeds.setdefault(row["seed"], {})[row["network"], row["init"]] = row
    return list(seeds.values())


def lines(rows):
    return [
        "# Gradient flow in sparse networks, and what lottery tickets learn",
        "",
        'Evci, Ioannou, Keskin and Dauphin, "Gradient Flow in Sparse Neural Networks and How '
        'Lottery Tickets Win" (AAAI 2022, arXiv 2010.03533).',
        "",
        *_verdicts(rows),
        "Mean norms over training are without that at the start. A barrier is "
        f"{_NO_BARRIER:g} percentage points of test error above the straight line between the "
        "errors of the ends, which are not equally good here.",
        "",
        f"![Gradient norms, spectra, errors on the line]({gradient_flow.NAME}.png)",
        "",
        "## Protocol",
        "",
        *_protocol(rows),
        "",
        *_flow_section(rows),
        *_similarity_section(rows),
        *_spectrum_section(rows),
    ]


def _protocol(rows):
    seeds = common.seeds(rows)
    epochs = " or ".join(str(number) for number in sorted({row["epochs"] for row in rows}))
    plan, of_resnet = (gradient_flow.PLANS[name] for name in ("lenet5", "resnet20"))
    return [
        f"Seeds {seeds}, mean ± standard deviation. LeNet-300-100 at 98 %, LeNet5 at 95 %, "
        f"ResNet-20 at 90 % (ERK), {epochs} epochs, batch 100, SGD 0.1 (LeNet5: 0.05; ResNet-20: "
        "batch 128, 0.2), Nesterov momentum 0.9, cosine decay, L2 1e-4 (ResNet-20: 2e-4; "
        f"{words.L2[:-1]}); RigL updates its masks at every sixtieth of the training but in its "
        "last quarter. Norms are "
        f"those of the active connections' gradients on {plan.num_held_out} test examples "
        f"(ResNet-20: {of_resnet.num_held_out}), without L2, measured as often. Lines between "
        f"networks have {len(gradient_flow.COEFFICIENTS)} points, where the authors' code has 29.",
        "",
        "Initialisation is He's: `dense` counts all connections, `layer` the mean of the active "
        "ones of a layer's neurons, `neuron` the active ones of each neuron. `pruned` starts dense "
        "and is pruned gradually; `ticket` has its final masks on its initial weights; `scratch` "
        f"has these masks on new weights. Of `pruned` ({plan.num_runs} starts), `ticket`, "
        f"`rewound` and `scratch, dense` ({plan.num_runs} orders of the examples from the same "
        f"start) {plan.num_runs} networks each are compared, of ResNet-20 {of_resnet.num_runs}; "
        "the paper has five. ResNet-20 has no `layer`. On the line between two of its networks the "
        "statistics of its normalisations are estimated anew at each point. Its training is not "
        "stable from the first step on (see [lottery_connectivity.md](lottery_connectivity.md)): "
        "that its tickets end in another basin is what Frankle et al. expect of them. `rewound`, "
        f"of ResNet-20 only, has the weights that `pruned` has after {of_resnet.rewind:.0%} of "
        "the training and goes on from there.",
    ]


def _by_network(rows):
    """`{"network, init": rows of all seeds}` of the rows of a case, in their order."""
    found = {}
    for row in rows:
        found.setdefault(f"{row['network']}, {row['init']}", []).append(row)
    return found


def _flow_section(rows):
    lines = ["## Gradient flow and accuracy", ""]
    head = ["network", "test accuracy (%)", "norm at the start", "mean norm over training"]
    head += ["change of the norm at updates (%)", "updates that raise it (%)"]
    for case, of_case in common.by_case(rows).items():
        cells = []
        for name, found in _by_network(of_case).items():
            moved = [changes(row) for row in found if row["updates"] and row["network"] == "rigl"]
            cells.append(
                [
                    name,
                    common.spread([row["accuracy"] for row in found]),
                    common.spread(map(start_norm, found), 3),
                    common.spread(map(mean_norm, found), 3),
                    common.spread([100 * statistics.mean(each) for each in moved], 1),
                    common.spread([100 * np.mean(np.array(each) > 0) for each in moved], 0),
                ]
            )
        lines += [f"{case}:", "", *tables.table(head, cells), ""]
    return lines


def _similarity_section(rows):
    lines = [
        "## What tickets learn",
        "",
        "Disagreements in percent of the test images; cosines to the pruned solution, at the start "
        "and at the end; the barrier on the line to it in percentage points of test error.",
        "",
    ]
    head = ["network", "test accuracy (%)", "ensemble (%)", "disagreement"]
    head += ["disagreement with pruned", "cosine, start", "cosine, end", "barrier"]
    for case, of_case in common.by_case(rows).items():
        cells = []
        for name, found in _by_network(of_case).items():
            if found[0]["network"] in ("static", "rigl"):
                continue
            with_line = [row for row in found if row["errors_to_pruned"]]
            cells.append(
                [
                    name,
                    common.spread([row["accuracy"] for row in found]),
                    common.spread([row["ensemble_accuracy"] for row in found]),
                    *(
                        common.spread([100 * row[key] for row in found if row[key] != ""])
                        for key in ("disagreement", "pruned_disagreement")
                    ),
                    *(common.spread([r[f"{point}_cosine"] for r in found]) for point in _ENDS),
                    common.spread(map(barrier, with_line)),
                ]
            )
        lines += [f"{case}:", "", *tables.table(head, cells), ""]
    return lines


_ENDS = ("start", "end")


def _spectra(rows):
    """`(row, point, spectrum)` of each one that there is."""
    return [
        (row, point, spectra.from_text(row[f"spectrum_{point}"]))
        for row in rows
        for point in gradient_flow.POINTS
        if row[f"spectrum_{point}"]
    ]


def _spectrum_section(rows):
    cells = []
    for row, point, spectrum in _spectra(rows):
        is_exact = gradient_flow.plan_of(gradient_flow.CASES[row["case"]]).lanczos_steps is None
        share = f"{100 * spectrum.negative_share:.1f}" if is_exact else "–"
        ends = f"{spectrum.smallest:g}", f"{spectrum.largest:g}"
        name = f"{row['network']}, {row['init']}"
        cells.append([row["case"], name, point.replace("_", " "), *ends, share])
    head = ["case", "network", "where", "smallest", "largest", f"below -{spectra.ABOUT_ZERO:g} (%)"]
    mlp, resnet = (gradient_flow.PLANS[name] for name in ("lenet_300_100", "resnet20"))
    return [
        "## Hessian spectra",
        "",
        "Of what is trained (active weights, biases, scale and offset of normalisations), seed "
        f"{gradient_flow.SPECTRUM_SEED}, without L2: exact for LeNet5; for LeNet-300-100 by "
        f"{mlp.lanczos_steps} Lanczos steps and for ResNet-20 by {resnet.lanczos_steps}, which "
        "find the ends of a spectrum, but do not tell what is on which side of zero in its middle. "
        f"It is that of the loss of {mlp.num_in_hessian} training examples, for ResNet-20 of "
        f"{resnet.num_in_hessian}, whose statistics its normalisations have there, as constants. "
        f"The update is one of RigL at {gradient_flow.UPDATE_SEEN:.0%} of the training.",
        "",
        *tables.table(head, cells),
    ]


def plot(rows, path):
    """For each case: norms over the steps, spectra of the first seed, errors on the line."""
    cases, look = common.by_case(rows), styles.of(_by_network(rows))
    size = {"figsize": (16, 4.2 * len(cases)), "squeeze": False}
    with plots.figure(path, nrows=len(cases), ncols=3, **size) as grid:
        for (case, of_case), axes in zip(cases.items(), grid, strict=True):
            _plot_norms(axes[0], case, of_case, look)
            _plot_spectra(axes[1], case, of_case)
            _plot_line(axes[2], case, of_case, look)
            for each in axes:
                each.grid(alpha=0.3)
                if each.get_legend_handles_labels()[0]:
                    each.legend(fontsize="x-small")


def _plot_norms(axes, case, rows, look):
    for name, found in _by_network(rows).items():
        if found[0]["init"] == "layer":
            continue
        curves = np.array([tables.from_text(row["norms"]) for row in found])
        means, label = curves[:, :, 1].mean(axis=0), styles.label(name)
        axes.plot(curves[0, :, 0], means, **look[name], markersize=3, markevery=0.1, label=label)
    axes.set(title=case, xlabel="step", ylabel="gradient norm", yscale="log")


def _plot_spectra(axes, case, rows):
    """Those after the training and around the update; the others are in the table."""
    drawn = [each for each in _spectra(rows) if each[1] != "start"]
    ends = [end for _, _, spectrum in drawn for end in spectrum[:2]]
    for number, (row, point, spectrum) in enumerate(drawn):
        label = f"{row['network']}, {row['init']}: {point.replace('_', ' ')}"
        style = styles.line(styles.numbered(number))
        axes.stairs(spectrum.shares, spectra.EDGES, label=label, **style)
    middle = spectra.ABOUT_ZERO
    axes.set_xscale("symlog", linthresh=middle)
    axes.set(title=case, xlabel="eigenvalue of the Hessian", ylabel="share", yscale="log")
    axes.set_ylim(1e-4, 100)  # room for the legend
    if drawn:
        axes.set_xlim(2 * min(0, *ends) - middle, 2 * max(0, *ends) + middle)
        axes.set_xticks([-1e-1, -1e-3, 0, 1e-3, 1e-1, 1e1])


def _plot_line(axes, case, rows, look):
    for name, found in _by_network(rows).items():
        curves = [errors(row) for row in found if row["errors_to_pruned"]]
        if curves:
            means, label = np.mean(curves, axis=0), styles.label(name)
            axes.plot(gradient_flow.COEFFICIENTS, means, **look[name], markersize=3, label=label)
    axes.set(title=case, xlabel="from the network (0) to the pruned one (1)")
    axes.set_ylabel("test error (%)")
