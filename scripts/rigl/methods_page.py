"""The page and the plots of the table of methods."""

import collections
import math
import pathlib

from absl import flags

from scripts.common import claims, costs, experiments, plots, styles, tables, words

FLAGS = flags.FLAGS


def write(setting, name, rows, missing):
    """Writes the page and its plots.

    Args:
        setting: The `scripts.rigl.methods_table.Setting`.
        name: Of the files.
        rows: List of rows; who trained longer is a method of its own on the page.
        missing: List of the runs that have no row yet.
    """
    rows = [
        {
            **row,
            "method": _label(row["method"], row["epochs"] / setting.epochs),
            "plain": row["method"],
        }
        for row in rows
    ]
    times = sorted({row["epochs"] / setting.epochs for row in rows})
    order = [_label(name, each) for name in setting.methods for each in times]
    seeds = sorted({row["seed"] for row in rows})
    how = setting.how.format(seeds=seeds, epochs=setting.epochs)
    lines = [
        f"# {setting.heading}",
        "",
        f"Test accuracy in percent after the last epoch, {how} {words.L2}",
        "",
        *_accuracies(rows, order),
        "",
        f"![Accuracy over sparsity]({name}.png)",
    ]
    costed = [row for row in rows if row.get("gflops") not in (None, "")]
    if _dense(costed) and len(costed) > len(_dense(costed)):
        lines += [
            "",
            *_costs(setting, costed, order),
            "",
            f"![Accuracy over cost]({name}_cost.png)",
        ]
        _plot_costs(setting, costed, pathlib.Path(FLAGS.output_dir) / f"{name}_cost.png")
    if any(row.get("live") for row in rows):
        lines += ["", *_units(rows, order)]
    if len(seeds) > 1 and setting.claims:
        lines += ["", *_claims(setting, rows)]
    if missing:
        counts = collections.Counter(run["method"] for run in missing)
        each = ", ".join(f"{name} {count}" for name, count in counts.items())
        lines += ["", f"Not run yet are {len(missing)} of the runs: {each}."]
    experiments.write_page(name, lines, "scripts.rigl.methods_table")
    at_once = [row for row in rows if row["epochs"] == setting.epochs]
    plots.plot_means(
        at_once,
        "method",
        "sparsity",
        "accuracy",
        pathlib.Path(FLAGS.output_dir) / f"{name}.png",
        order,
        title=setting.title,
        xlabel="sparsity",
        ylabel="test error (%)",
        as_error=True,
    )


def _label(method, times):
    return method if times == 1 else f"{method} {times:g}x"


def _marked(method):
    """The method, with a mark if it is not sparse all the way."""
    return f"{method} *" if method.split(" ")[0] in costs.DENSE else method


def _accuracies(rows, order):
    marked = [{**row, "method": _marked(row["method"])} for row in rows]
    lines = [tables.mean_table(marked, "method", "sparsity", "accuracy", map(_marked, order))]
    dense = {row["plain"] for row in rows} & costs.DENSE.keys()
    if dense:
        which = "; ".join(f"{name}: {costs.DENSE[name]}" for name in sorted(dense))
        lines += ["", f"\\* Not sparse all the way. {which[0].upper()}{which[1:]}."]
    return lines


def _dense(rows):
    """The rows of the dense network, not trained longer."""
    return [row for row in rows if row["method"] == "dense"]


def _costs(setting, rows, order):
    """What a training costs beside the dense one of the same page."""
    dense = _dense(rows)
    columns = sorted({row["sparsity"] for row in rows} - {0})
    table = []
    for name in order:
        cells = []
        for sparsity in columns:
            mine = [r for r in rows if r["method"] == name and r["sparsity"] in (sparsity, 0)]
            cells.append(_cost(mine, dense) if mine else "–")
        if any(cell != "–" for cell in cells):
            table.append([_marked(name), *cells])
    return [
        "## What a training costs",
        "",
        "Training FLOPs (appendix H of the paper) · bytes of weights, gradients, momentum and "
        "masks, both as a share of the dense network's · milliseconds for a step, median of the "
        f"epochs, of the seed where it is least. {setting.timed} {_execution(setting)}",
        "",
        *tables.table(["method", *(f"sparsity {column:g}" for column in columns)], table),
    ]


def _execution(setting):
    """Which methods hold active connections only, in a sentence."""
    if not setting.csr:
        return "All kernels are masked: they hold what the dense network does, and the masks."
    return (
        f'{", ".join(setting.csr)}: trained with `execution="csr"`, which holds active connections '
        "only. The others hold what the dense network does, and the masks."
    )


def _cost(rows, dense):
    flops = tables.middle(rows, "gflops") / tables.middle(dense, "gflops")
    memory = tables.middle(rows, "kilobytes") / tables.middle(dense, "kilobytes")
    fastest = min((row["step_ms"] for row in rows if row.get("step_ms")), default=math.nan)
    return f"{flops:.3f} · {memory:.2f} · {fastest:.2f}"


def _units(rows, order):
    """How many units are alive and fire, of the first hidden layer and of the second."""

    def number(row, column, layer):
        return int(row[column].split("-")[layer])

    marked = [
        {**row, "text": tuple(number(row, *where) for where in _PLACES)}
        for row in rows
        if row.get("live")
    ]
    columns = sorted({row["sparsity"] for row in marked} - {0})
    table = []
    for name in order:
        cells = []
        for sparsity in columns:
            mine = [r["text"] for r in marked if (r["method"], r["sparsity"]) == (name, sparsity)]
            pairs = zip(*mine, strict=True)
            cells.append(" · ".join(f"{sum(each) / len(mine):.0f}" for each in pairs) or "–")
        if any(cell != "–" for cell in cells):
            table.append([name, *cells])
    return [
        "## Units that are alive",
        "",
        "Mean over the seeds: pixels that are read · units of the first hidden layer that have a "
        "path from a pixel to an output · of them, those that are above 0 for any of the first "
        "10,000 training examples · the same two numbers of the second hidden layer.",
        "",
        *tables.table(["method", *(f"sparsity {column:g}" for column in columns)], table),
    ]


_PLACES = (("live", 0), ("live", 1), ("firing", 0), ("live", 2), ("firing", 1))


def claims_of(wanted, rows, epochs):
    """`[(claim, {sparsity: (verdict, difference as text)})]` of the rows of a table.

    Args:
        wanted: List of `scripts.common.claims.Claim`.
        rows: The rows of the CSV file.
        epochs: Integer, the epochs of a training that is not longer.
    """
    values = {}
    for row in rows:
        series = (row["method"], row["epochs"] / epochs, row["sparsity"])
        values.setdefault(series, {})[row["seed"]] = row["accuracy"]
    sparsities = sorted({row["sparsity"] for row in rows} - {0})
    found = []
    for claim in wanted:
        at = {}
        for sparsity in claim.sparsities or sparsities:
            first, second = (
                (*series, 0 if series[0] == "dense" else sparsity)
                for series in (claim.first, claim.second)
            )
            each = claims.differences(values, first, second)
            at[sparsity] = claims.verdict(each, claim.margin), claims.signed(each)
        found.append((claim, at))
    return found


def _claims(setting, rows):
    plain = [{**row, "method": row["plain"]} for row in rows]
    found = claims_of(setting.claims, plain, setting.epochs)
    columns = sorted({sparsity for _, at in found for sparsity in at})
    table = [
        [claim.text, claim.source]
        + ["<br>".join(at[column]) if column in at else "" for column in columns]
        for claim, at in found
    ]
    return [
        "## Claims",
        "",
        f"{_fixed(rows)} Under each verdict is the mean difference in percentage points with its "
        f"interval. {words.VERDICTS}",
        "",
        *tables.table(["claim", "from", *(f"{column:g}" for column in columns)], table),
    ]


def _fixed(rows):
    """Whether the claims are older than the rows: older rows do not name their code."""
    if all(row.get("code") for row in rows):
        return "They were fixed before the runs (`scripts/rigl/methods_claims.py`)."
    return "They were fixed after these runs, and before those that are to come."


def _plot_costs(setting, rows, path):
    """Accuracy over training FLOPs, as figure 2 of the paper, a panel for each sparsity."""
    dense = tables.middle(_dense(rows), "gflops")
    sparsities = sorted({row["sparsity"] for row in rows} - {0})[-4:]
    names = [name for name in setting.methods if any(row["plain"] == name for row in rows)]
    look = styles.of(names)
    columns = min(2, len(sparsities))
    rows_of_panels = -(-len(sparsities) // columns)
    size = 5.2 * columns + 1.5, 4 * rows_of_panels
    with plots.figure(path, size, ncols=columns, nrows=rows_of_panels) as axes:
        panels = list(getattr(axes, "flat", [axes]))
        for panel, sparsity in zip(panels, sparsities, strict=False):
            for name in names:
                mine = [r for r in rows if r["plain"] == name and r["sparsity"] in (sparsity, 0)]
                if mine:
                    _curve(panel, mine, dense, look[name], styles.label(name))
            panel.set(
                title=f"sparsity {sparsity:g}",
                xlabel="training FLOPs (of the dense network's)",
                ylabel="test error (%)",
                xscale="log",
            )
            plots.plain_numbers(panel)
            panel.grid(alpha=0.3, which="both")
        for panel in panels[len(sparsities) :]:
            panel.set_axis_off()
        panels[0].figure.suptitle(setting.title)
        # A method need not be in all panels.
        lines = {
            label: line
            for panel in panels
            for line, label in zip(*panel.get_legend_handles_labels(), strict=True)
        }
        beside = {"loc": "center left", "bbox_to_anchor": (1, 0.5), "fontsize": "small"}
        plots.legend(panels[columns - 1], handles=list(lines.values()), **beside)


def _curve(panel, rows, dense, style, label):
    values = tables.means(
        [{**r, "error": 100 - r["accuracy"]} for r in rows], "plain", "epochs", "error"
    )
    points = []
    for (_, epochs), (mean, deviation, _) in sorted(values.items()):
        mine = [row for row in rows if row["epochs"] == epochs]
        points.append((tables.middle(mine, "gflops") / dense, mean, deviation))
    plots.with_errors(panel, *map(list, zip(*points, strict=True)), style, label)
