"""The page of `scripts.benchmark.deployment`: what to choose, with the measured numbers."""

import statistics

from scripts.benchmark.deployment_cases import (
    KEEP,
    NETWORKS,
    NUM_REPRESENTATIVE,
    SPARSITY,
    STRUCTURES,
    VARIANTS,
)
from scripts.common import tables

# A variant is chosen only if it loses at most so many points of accuracy, and is at least so many
# times as fast, or as small.
_POINTS, _TIMES = 1.0, 1.1
# A browser's clock has steps of 0.005 ms. A difference of two steps does not count.
_LEAST_SAVED = {"python": 0.0, "browser": 0.01}


def _summary(rows):
    """`{network: {variant: numbers}}`, in the order of the page.

    Accuracies and bytes are means over the seeds. Times and speed-ups over the dense network are
    medians. A number that was not measured is `None`.
    """
    summary = {}
    for network in NETWORKS:
        for variant in VARIANTS:
            of_variant = [
                row for row in rows if (row["network"], row["variant"]) == (network, variant)
            ]
            if of_variant:
                summary.setdefault(network, {})[variant] = _means(of_variant)
    return summary


def _means(rows):
    means = {}
    for name in ("accuracy", "bytes", "compressed_bytes", "kernels", "native", "native_in_browser"):
        means[name] = statistics.mean(row[name] for row in rows)
    for where in ("python", "browser"):
        measured = [row for row in rows if row.get(f"{where}_ms") not in (None, "")]
        for name in ("ms", "least_ms", "most_ms"):
            times = [row[f"{where}_{name}"] for row in measured]
            means[f"{where}_{name}"] = statistics.median(times) if times else None
        speedups = [row[f"{where}_dense_ms"] / row[f"{where}_ms"] for row in measured]
        means[f"{where}_speedup"] = statistics.median(speedups) if speedups else None
        saved = [row[f"{where}_dense_ms"] - row[f"{where}_ms"] for row in measured]
        means[f"{where}_saved"] = round(statistics.median(saved), 6) if saved else None
    return means


def _choice(variants, gain, words, among=tuple(VARIANTS)):
    """The best of a network's variants that keep its accuracy, as text.

    Args:
        variants: Dictionary `{variant: numbers}`.
        gain: Function of the numbers of a variant and of the dense network, that returns how many
            times better the variant is, or `None` if this is not known.
        words: The unit of the gain, such as `"times as fast"`.
        among: The variants to choose from.
    """
    dense = variants.get("dense")
    if dense is None:
        return "–"
    gains = {
        name: gain(means, dense)
        for name, means in variants.items()
        if name in among and name != "dense"
    }
    gains = {name: each for name, each in gains.items() if each is not None}
    if not gains:
        return "–"
    kept = [name for name in gains if _loss(variants[name], dense) <= _POINTS]
    best = max(kept, key=gains.get, default=None)
    text, least = "dense", _TIMES
    if best and gains[best] >= _TIMES:
        text, least = f"**{_told(best, gains, variants, words)}**", _TIMES * gains[best]
    # A variant that is better still, if more training can bring its accuracy back.
    first = max(gains, key=gains.get)
    return f"{text} ({_told(first, gains, variants, words)})" if gains[first] >= least else text


def _told(name, gains, variants, words):
    change = 0.0 - round(_loss(variants[name], variants["dense"]), 1)  # 0.0, not -0.0
    return f"{VARIANTS[name]}: {gains[name]:.1f} {words}, {change:+.1f} points"


def _loss(means, dense):
    return round(dense["accuracy"] - means["accuracy"], 3)


def _on_arm(variants):
    """Which sparse kernels run on ARM, as text."""
    parts = [
        f"{VARIANTS[name]}: {variants[name]['native_in_browser']:.0f} of "
        f"{variants[name]['kernels']:.0f} kernels"
        for name in STRUCTURES
        if name in variants
    ]
    return ", ".join(parts) or "–"


def _decisions(summary):
    """The lines of the table at the top of the page."""

    def speedup(where):
        def gain(means, _):
            saved = means[f"{where}_saved"]
            is_same = saved is not None and saved <= _LEAST_SAVED[where]
            return 1.0 if is_same else means[f"{where}_speedup"]

        return gain

    def fewer(column):
        return lambda means, dense: dense[column] / means[column]

    dense_storage = ("channels", "int8")
    choices = {
        "an x86 server or PC (LiteRT)": lambda v: _choice(v, speedup("python"), "times as fast"),
        "a web page (LiteRT.js)": lambda v: _choice(v, speedup("browser"), "times as fast"),
        "where the download must be small (compressed bytes)": lambda v: _choice(
            v, fewer("compressed_bytes"), "times smaller"
        ),
        "a microcontroller (bytes of flash; time not measured)": lambda v: _choice(
            v, fewer("bytes"), "times smaller", dense_storage
        ),
        "a phone with ARM (not measured): kernels that skip zeros there": _on_arm,
    }
    head = ["I deploy to ...", *(f"{NETWORKS[name].heading}: use ..." for name in summary)]
    return tables.table(
        head, [[target, *map(choose, summary.values())] for target, choose in choices.items()]
    )


def _measure_table(summary, cell):
    """A row for each network, a column for each variant."""
    rows = [
        [NETWORKS[name].heading, *(cell(v[each]) if each in v else "–" for each in VARIANTS)]
        for name, v in summary.items()
    ]
    return tables.table(["", *VARIANTS.values()], rows)


def _latency(where):
    def cell(means):
        if means[f"{where}_ms"] is None:
            return "–"
        median, least, most = (means[f"{where}_{each}"] for each in ("ms", "least_ms", "most_ms"))
        return f"{median:.3g} ({least:.3g}–{most:.3g}), **{means[f'{where}_speedup']:.2f}**"

    return cell


def page(rows):
    """The lines of `deployment.md`."""
    most = {}
    for row in rows:
        size = row["examples"], row["epochs"]
        most[row["network"]] = max(size, most.get(row["network"], size))
    rows = [row for row in rows if (row["examples"], row["epochs"]) == most[row["network"]]]
    summary = _summary(rows)
    seeds = sorted({row["seed"] for row in rows})
    lines = [
        "# What to deploy where",
        "",
        "What was best for each of four networks: look for the one that is most like yours. Chosen "
        f"is what is fastest, or smallest, among what loses at most {_POINTS:g} point of accuracy; "
        f"`dense` where nothing is {_TIMES:g} times as good. In brackets: what is better still, "
        "but lost more. The trainings are short and of few seeds, so look at the accuracies with "
        "care; bytes and times hardly depend on them.",
        "",
        *_decisions(summary),
        "",
        "The x86 and browser rows are measured, below. Not measured: ARM, where LiteRT has the "
        "sparse kernels that it has in the browser (how many, says the table; how fast they are "
        "there, it does not), and microcontrollers, for which files that are stored sparse are "
        "left out: whether a runtime reads them was not tried. A SavedModel, a `.keras` and an "
        "ONNX file multiply by all zeros: only fewer channels make these faster "
        '([how much](compaction.md)). Training is another matter: `execution="csr"` makes it '
        "[faster](execution.md) from 80 % on in wide layers, without any structure.",
        "",
        "## What was measured",
        "",
        "- **dense**: trained by Adam, a cosine to 0.",
        f"- **{VARIANTS['unstructured']}**, **{VARIANTS['block']}**: by RigL as long as dense, the "
        f"second with `structure=Block((4, 1))`. {SPARSITY:.0%} of the weights of the layers "
        "named below are zero; all other layers are dense.",
        f"- **{VARIANTS['channels']}**: `rigl_tf.compact(dense, keep={KEEP:g})`, then half as "
        "many epochs again, at a third of the learning rate. (To train with `Channels()` is the "
        "other way: [structures.md](structures.md).)",
        "- **int8**: dense, weights and activations quantised after training on "
        f"{NUM_REPRESENTATIVE} examples.",
        "",
        f"Seeds {seeds}.",
        "",
        *_settings(summary, rows),
        "",
        "Accuracy in percent, of the file run by LiteRT on the test examples:",
        "",
        *_measure_table(summary, lambda means: f"{means['accuracy']:.2f}"),
        "",
        "Bytes of the file (compressed by zlib, as a web server sends it):",
        "",
        *_measure_table(
            summary, lambda means: f"{means['bytes']:,.0f} ({means['compressed_bytes']:,.0f})"
        ),
        "",
        "Time of one example in Python, LiteRT on x86, in ms: median (range), and **how many times "
        "as fast** as a file of the dense network that took turns with it. That of the dense "
        "network itself says how exact this is:",
        "",
        *_measure_table(summary, _latency("python")),
        "",
        "The same in the browser, LiteRT.js (XNNPACK in WebAssembly, one thread) in headless "
        "Chromium, the inputs copied in and the outputs copied out. Its clock goes in steps of "
        f"0.005 ms; the table on top takes {_LEAST_SAVED['browser']:g} ms for no difference:",
        "",
        *_measure_table(summary, _latency("browser")),
    ]
    if any(v["browser_ms"] is None for variants in summary.values() for v in variants.values()):
        lines += ["", "A dash: not measured, as Chromium or LiteRT.js was not installed."]
    loads = [row["load"] for row in rows]
    lines += [
        "",
        "Sparse kernels that LiteRT multiplies by without their zeros (*native*), of all sparse "
        "kernels, on x86 and in the browser:",
        "",
        *tables.table(
            ["", *(VARIANTS[each] for each in STRUCTURES)],
            [
                [
                    NETWORKS[name].heading,
                    *(_native(v[each]) if each in v else "–" for each in STRUCTURES),
                ]
                for name, v in summary.items()
            ],
        ),
        "",
        f"The load of the machine at the end of a run was {min(loads, default=0):.1f} to "
        f"{max(loads, default=0):.1f}; "
        "the run itself makes it 1 to 2.",
    ]
    return lines


def _native(means):
    x86, web = means["native"], means["native_in_browser"]
    return f"{x86:.0f} and {web:.0f} of {means['kernels']:.0f}"


def _settings(summary, rows):
    lines = []
    for name in summary:
        network = NETWORKS[name]
        row = next(row for row in rows if row["network"] == name)
        sparse = [f"`{each}...`" if each.endswith("_") else f"`{each}`" for each in network.sparse]
        lines.append(
            [
                network.heading,
                network.data_heading,
                f"{row['examples']:,} and {row['test_examples']:,}",
                row["epochs"],
                ", ".join(sparse),
            ]
        )
    head = ["", "data", "examples for training and test", "epochs", "layers that are sparse"]
    return tables.table(head, lines)
