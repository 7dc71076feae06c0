"""Makes the page and the plot of `scripts.benchmark.execution` from its results."""

import pathlib
import platform

import numpy as np

from scripts.benchmark import time_to_accuracy
from scripts.common import plots, styles, tables
from scripts.common.rows import Rows

LABELS = {
    "dense": "Keras, dense, graph mode",
    "dense_xla": "Keras, dense, XLA",
    "masked": "rigl_tf, RigL, masked, graph mode",
    "masked_xla": "rigl_tf, RigL, masked, XLA",
    "csr": "rigl_tf, RigL, CSR",
    "torch": "torch, dense",
    "sparselab": "sparselab",
    "tfmot": "TFMOT, magnitude pruning",
}
KERAS_DENSE = ("dense", "dense_xla")
_BASE = "Keras dense"
# How many times as fast CSR is to be, by sparsity.
AIMS = {
    _BASE: {0.9: 3, 0.95: 5, 0.98: 8},
    "torch": {0.9: 2.5, 0.95: 4, 0.98: 6},
    "sparselab": {0.9: 2, 0.95: 2, 0.98: 2},
}
# The share of dense Keras's weights, slots and gradients that CSR may take, by sparsity.
_MEMORY_AIM = {0.9: 0.35}
_UPDATES_EVERY = 100
_UPDATE_AIM = 2  # dense steps


class Times:
    """The times of all programs, by case.

    Args:
        rows: List of rows of `execution.csv`.
    """

    def __init__(self, rows):
        measured = [row for row in rows if row.get("ms", "") != ""]
        self.by_case = {
            (row["program"], row["sparsity"], row["width"], row["batch"]): row for row in measured
        }

    def row(self, program, sparsity, width, batch):
        """The row of a case, or `None`. `"Keras dense"` is the faster one of graph mode and XLA."""
        if program == _BASE:
            rows = [self.row(name, 0, width, batch) for name in KERAS_DENSE]
            rows = [row for row in rows if row is not None]
            return min(rows, key=lambda row: np.median(series(row)), default=None)
        if program in (*KERAS_DENSE, "torch"):
            sparsity = 0
        return self.by_case.get((program, sparsity, width, batch))

    def faster(self, program, sparsity, width, batch, than):
        """The speed-up of a program over another one, in each round; `None` if it is unknown."""
        row = self.row(program, sparsity, width, batch)
        other = self.row(than, sparsity, width, batch)
        if row is None or other is None:
            return None
        return series(other) / series(row)


def series(row, column="ms"):
    """The numbers of a column, one for each round."""
    return np.array([float(text) for text in str(row.get(column, "")).split()])


def ending(rows, names, line):
    """The last lines of a page: what was not measured, what was measured with, the command.

    Args:
        rows: List of rows, of what was measured and of what was not.
        names: The columns that say what was not measured; the first is the program.
        line: String, the command and the versions.
    """
    missing = [row for row in rows if row.get("missing", "") != ""]
    versions = {str(row["versions"]) for row in rows if row.get("ms", "") != ""}
    return [
        *[
            f"* Not measured: {row[names[0]]}, {' '.join(str(row[name]) for name in names[1:])}. "
            f"{row['missing']}"
            for row in missing
        ],
        *[f"* {each}" for each in sorted(versions)],
        f"* {processor()}",
        "",
        "Each run's commit is in the column `revision` of the CSV file; the line below is of this "
        "page.",
        "",
        line,
    ]


def with_quartiles(values, digits=2):
    """The median and the quartiles as text; `None` gives –."""
    if values is None or not len(values):
        return "–"
    low, middle, high = np.percentile(values, [25, 50, 75])
    return f"{middle:.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"


def _ms(row):
    return "–" if row is None else f"{np.median(series(row)):.1f}"


def independent_ms(steps):
    """What a step would take without an active weight, by the two highest sparsities.

    Args:
        steps: `{sparsity: milliseconds}`; two at least.
    """
    (lower, slower), (higher, faster) = sorted(steps.items())[-2:]
    return max(0.0, faster - (1 - higher) * (slower - faster) / (higher - lower))


def reason(name, needed, took, independent):
    """A line that says why an aim was missed; all are milliseconds."""
    left = f"so {needed - independent:.1f} ms are left for products with active weights, which take"
    if needed <= independent:
        left = "so no products are quick enough; they take"
    return (
        f"* {name}: a step of {needed:.1f} ms would be needed. {independent:.1f} ms do not depend "
        f"on the sparsity, {left} {took - independent:.1f} ms."
    )


def write(directory, rows, group, sparsity, provenance_line):
    """Writes `execution.md` and `execution.png`.

    Args:
        directory: `pathlib.Path`.
        rows: List of rows of `execution.csv`.
        group: The first `Group`, which has all sparsities.
        sparsity: Number, the sparsity of the other groups.
        provenance_line: String, the last line.
    """
    times = Times(rows)
    missing = [row for row in rows if row.get("missing", "") != ""]
    lines = [
        "# Sparse training in CSR: what a step costs",
        "",
        *_introduction(group),
        "",
        *_aims(times, group),
        "",
        "## By sparsity",
        "",
        "![How many times as fast CSR is](execution.png)",
        "",
        f"Milliseconds of a step, width {group.width}, batch {group.batch}, and how many times as "
        "fast CSR is: median (quartiles) of the rounds.",
        "",
        *_table("sparsity", times, [(s, group.width, group.batch) for s in group.sparsities], 0),
        "",
        "## By width and batch size",
        "",
        f"The same at {sparsity:.0%}.",
        "",
        *_table("width", times, _sizes(times, sparsity, group, 1), 1),
        "",
        *_table("batch", times, _sizes(times, sparsity, group, 2), 2),
        "",
        "## All programs, memory, mask updates",
        "",
        *_programs(times, group, sparsity),
        "",
        "## Time to accuracy",
        "",
        *_time_to_accuracy(directory),
        "",
        "## Where it does not pay",
        "",
        *_where_not(times, group, sparsity),
        "",
        "## What was measured with",
        "",
        *_versions(rows, missing),
        "",
        "Each run's commit is in the column `revision` of the CSV file; the line below is of this "
        "page.",
        "",
        provenance_line,
    ]
    _plot(times, group, sparsity, directory / "execution.png")
    (directory / "execution.md").write_text("\n".join(lines) + "\n")


def _introduction(group):
    return [
        f"A network 784-{group.width}-{group.width}-{group.width}-10, batches of {group.batch}, "
        "SGD with momentum. Each of the three hidden layers has the sparsity that is given; the "
        "last layer, of 10 outputs, is dense. With rigl_tf, RigL trains it; the steps are ordinary "
        "ones, mask updates are timed apart. Every program is a process of its own. They train in "
        "turn, a block of steps each, in rounds; a ratio is that of two blocks of the same round. "
        f"{_BASE} is the faster of graph mode and XLA. sparselab's masks stand still, and TFMOT "
        "is past its only mask update.",
    ]


def _aims(times, group):
    cells, num_reached, num_known, reasons = [], 0, 0, []
    steps = {
        share: np.median(series(row))
        for share in group.sparsities
        if (row := times.row("csr", share, group.width, group.batch)) is not None
    }
    for than, aims in AIMS.items():
        for sparsity, aim in aims.items():
            ratio = times.faster("csr", sparsity, group.width, group.batch, than)
            verdict = "not measured"
            if ratio is not None:
                num_known += 1
                is_reached = np.median(ratio) >= aim
                num_reached += is_reached
                verdict = "reached" if is_reached else "missed"
                if not is_reached and len(steps) > 1:
                    needed = steps[sparsity] * np.median(ratio) / aim
                    name = f"{sparsity:.0%}, than {LABELS.get(than, than)}"
                    reasons.append(reason(name, needed, steps[sparsity], independent_ms(steps)))
            name = LABELS.get(than, than)
            cells.append([f"{sparsity:.0%}", name, f"{aim:g}", with_quartiles(ratio), verdict])
    return [
        f"CSR was to be so many times as fast as the others. Of {num_known} aims that were "
        f"measured {num_reached} are reached.",
        "",
        *tables.table(["sparsity", "than", "aim", "times as fast", ""], cells),
        *_reasons(reasons, sorted(steps)[-2:]),
    ]


def _reasons(reasons, sparsities):
    """Why aims were missed."""
    if not reasons:
        return []
    of = " and ".join(f"{share:.0%}" for share in sparsities)
    return [
        "",
        "Why aims were missed. What does not depend on the sparsity is the dense last layer, the "
        "loss, biases and activations, the optimizer, and the start of each operation; it is what "
        f"the steps at {of} come to at 100%, along a line.",
        "",
        *reasons,
    ]


def _sizes(times, sparsity, group, axis):
    """The cases with other widths (axis 1) or batch sizes (axis 2), and the usual one."""
    usual = (sparsity, group.width, group.batch)
    cases = {
        case[1:] for case in times.by_case if case[0] in (*KERAS_DENSE, "csr", "torch", "sparselab")
    }
    sizes = {case[axis] for case in cases if case[3 - axis] == usual[3 - axis]}
    return [
        (sparsity, *(size if place == axis else usual[place] for place in (1, 2)))
        for size in sorted(sizes)
    ]


def _table(name, times, cases, axis):
    opponents = (_BASE, "torch", "sparselab")
    head = [name, "CSR", *(LABELS.get(each, each) for each in opponents)]
    head += [f"faster than {LABELS.get(each, each)}" for each in opponents]
    lines = []
    for case in cases:
        value = f"{case[0]:.0%}" if axis == 0 else case[axis]
        cells = [_ms(times.row(each, *case)) for each in ("csr", *opponents)]
        cells += [with_quartiles(times.faster("csr", *case, each)) for each in opponents]
        lines.append([value, *cells])
    return tables.table(head, lines)


def _programs(times, group, sparsity):
    case = (sparsity, group.width, group.batch)
    base = times.row(_BASE, *case)
    cells = []
    for program, label in LABELS.items():
        row = times.row(program, *case)
        if row is None:
            continue
        in_dense = None if base is None else series(row) / series(base)
        update = series(row, "update_ms")
        update_in_dense = None if base is None or not len(update) else update / series(base)
        amortised = "–"
        if len(update):
            ratio = 1 + (update / series(row) - 1) / _UPDATES_EVERY
            amortised = f"{np.median(ratio):.3f}"
        peak, imports = row.get("peak_mb", ""), row.get("imports_mb", "")
        cells.append(
            [
                label,
                _ms(row),
                with_quartiles(in_dense),
                f"{np.median(update):.0f}" if len(update) else "–",
                with_quartiles(update_in_dense),
                amortised,
                peak if peak != "" else "–",
                peak - imports if peak != "" and imports != "" else "–",
            ]
        )
    head = ["program", "step (ms)", f"in steps of {_BASE}", "mask update (ms)"]
    head += [f"update in steps of {_BASE}", f"a step, with an update in {_UPDATES_EVERY}"]
    head += ["peak memory (MB)", "without imports (MB)"]
    return [
        f"At {sparsity:.0%}, width {group.width}, batch {group.batch}. A mask update is the whole "
        "step in which it happens, forward and backward pass included; the column after it says "
        "what a step costs in its own ordinary steps where one of "
        f"{_UPDATES_EVERY} is an update. Peak memory is that of a new process that builds the "
        "model and trains a few steps, a mask update among them; the last column is without what "
        "the imports alone take.",
        "",
        *tables.table(head, cells),
        *_update(times, case),
        *_memory(times, case),
    ]


def _update(times, case):
    """Whether a mask update of CSR kernels is as cheap as it was to be, and if not, why."""
    row, base = times.row("csr", *case), times.row(_BASE, *case)
    if row is None or base is None or not len(series(row, "update_ms")):
        return []
    step, dense, update = (
        np.median(each) for each in (series(row), series(base), series(row, "update_ms"))
    )
    if np.median(series(row, "update_ms") / series(base)) <= _UPDATE_AIM:
        return ["", f"A mask update in CSR was to take {_UPDATE_AIM} dense steps at most: reached."]
    gradient = dense / 3
    return [
        "",
        f"A mask update in CSR was to take {_UPDATE_AIM} dense steps at most, {2 * dense:.0f} ms: "
        f"missed. Beside an ordinary step ({step:.0f} ms) it computes the gradient at all places, "
        f"about a third of the products of a dense step ({gradient:.0f} ms). The other "
        f"{update - step - gradient:.0f} ms choose connections, sort their places for both "
        "directions of the products, check the gradient that was stored and move slots: many "
        "operations that use one thread each.",
    ]


def _memory(times, case):
    peaks = {name: (times.row(name, *case) or {}).get("peak_mb", "") for name in LABELS}
    dense = [peaks[name] for name in KERAS_DENSE if peaks[name] != ""]
    if peaks["csr"] == "" or not dense:
        return []
    more = peaks["csr"] - min(dense)
    than = "above" if more > 0 else "below"
    text = f"The peak of CSR is {abs(more)} MB {than} that of dense Keras."
    states = [(times.row(name, *case) or {}).get("state_mb", "") for name in ("csr", _BASE)]
    if "" not in states:
        share, aim = states[0] / states[1], _MEMORY_AIM.get(case[0])
        verdict = f"; the aim was {aim}" if aim else ""
        text += (
            " Weights, their places or masks, the slots of the optimizer and the gradients take "
            f"{states[0]:.0f} MB in CSR and {states[1]:.0f} MB in dense Keras, {share:.2f} of "
            f"it{verdict}."
        )
    return ["", text]


def _time_to_accuracy(directory):
    path = pathlib.Path(directory) / f"{time_to_accuracy.NAME}.csv"
    rows = Rows(path, time_to_accuracy.KEY).rows
    if not rows:
        return ["Not measured."]
    return [
        f"Fashion-MNIST, the same network: [{time_to_accuracy.NAME}.md]({time_to_accuracy.NAME}.md)"
        " says how.",
        "",
        *time_to_accuracy.summary(rows),
    ]


def _where_not(times, group, sparsity):
    found = []
    for than in (_BASE, "torch", "sparselab"):
        slower = []
        for program, *case in times.by_case:
            ratio = times.faster("csr", *case, than) if program == "csr" else None
            if ratio is not None and np.median(ratio) < 1:
                text = f"{case[0]:.0%}, width {case[1]}, batch {case[2]}"
                slower.append(f"{text}: {np.median(ratio):.2f} times as fast")
        name = LABELS.get(than, than)
        if slower:
            found += [f"* CSR is slower than {name} at {'; '.join(slower)}."]
        else:
            found += [f"* No case that was measured is slower in CSR than with {name}."]
    least = [
        share
        for share in group.sparsities
        if (ratio := times.faster("csr", share, group.width, group.batch, _BASE)) is not None
        and np.median(ratio) >= 1
    ]
    if least:
        found += [f"* The lowest measured sparsity at which it pays is {min(least):.0%}."]
    return [
        *found,
        "* Kernels of recurrent layers and of grouped convolutions stay masked, and cost what "
        "dense ones cost. Networks of convolutions are on [a page of their own](networks.md).",
        "* CSR runs on CPUs alone, in float32, and without XLA.",
        "* The number of active connections stays what it is: gradual pruning and DNW need masks.",
    ]


def _versions(rows, missing):
    versions = sorted({str(row["versions"]) for row in rows if row.get("versions", "") != ""})
    lines = [f"* {text}" for text in versions]
    lines += [f"* {processor()}"]
    for row in missing:
        label = LABELS[row["program"]]
        case = ""
        if row.get("width", "") != "":
            case = f" at {row['sparsity']:.0%}, width {row['width']}, batch {row['batch']}"
        lines += [f"* Not measured: {label}{case}. {row['missing']}"]
    return lines


def processor():
    """The name of the processor, and its widest vector instructions."""
    path = pathlib.Path("/proc/cpuinfo")
    if not path.exists():
        return platform.processor() or platform.machine()
    facts = dict(
        (part.strip() for part in line.split(":", 1))
        for line in path.read_text().splitlines()
        if ":" in line
    )
    units = set(facts.get("flags", "").split())
    widest = [name for name in ("avx512f", "avx2", "avx") if name in units][:1]
    return ", ".join([facts.get("model name", platform.machine()), *widest])


def _plot(times, group, sparsity, path):
    panels = {
        "sparsity": [(share, group.width, group.batch) for share in group.sparsities],
        "width": _sizes(times, sparsity, group, 1),
        "batch size": _sizes(times, sparsity, group, 2),
    }
    with plots.figure(path, (11, 4), ncols=3, sharey=True) as axes:
        for axis, (axes_of, (name, cases)) in enumerate(zip(axes, panels.items(), strict=True)):
            for number, than in enumerate((_BASE, "torch", "sparselab")):
                ratios = [times.faster("csr", *case, than) for case in cases]
                known = [(at, np.median(r)) for at, r in enumerate(ratios) if r is not None]
                if known:
                    label = f"than {LABELS.get(than, than)}"
                    axes_of.plot(*zip(*known, strict=True), **styles.numbered(number), label=label)
            labels = [f"{case[0]:.0%}" if axis == 0 else case[axis] for case in cases]
            axes_of.set_xticks(range(len(cases)), labels)
            axes_of.axhline(1, color="black", linewidth=0.8)
            axes_of.set(xlabel=name)
            axes_of.grid(alpha=0.3)
        axes[0].set_yscale("log", base=2)
        axes[0].yaxis.set_major_formatter(lambda value, position: f"{value:g}")
        axes[0].set(ylabel="times as fast", title="CSR: how many times as fast")
        axes[1].set(title=f"at {sparsity:.0%}")
        axes[2].set(title=f"at {sparsity:.0%}")
        if axes[0].get_legend_handles_labels()[1]:
            plots.legend(axes[0])
