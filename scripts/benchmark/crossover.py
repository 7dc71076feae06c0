"""Measures from which kernels on CSR is faster than masks, layer by layer.

    python -m scripts.benchmark.crossover

`execution="auto"` chooses between them by the shape and the sparsity of a kernel; this is where its
limits come from. A network of one sparse layer is trained by RigL, with masks and in CSR. Both
programs are processes. They take turns, a block of steps each, in rounds, and ratios are computed
for each round. It takes ten minutes on two cores without other work, and writes
`results/crossover.md` and `.csv`.
"""

import pathlib
import sys

import numpy as np
from absl import flags

from scripts.benchmark import execution_page, layer_programs, rounds
from scripts.common import entry, experiments, provenance, tables

_MODULE = "scripts.benchmark.layer_programs"
_PROGRAMS = ("masked", "csr")
_KEY = ("program", "layer", "sparsity", "batch")

FLAGS = flags.FLAGS


def _define_flags():
    names = list(layer_programs.LAYERS)
    flags.DEFINE_multi_string("layer", names, "A layer to measure; can be given several times.")
    flags.DEFINE_list("sparsities", ["0.8", "0.9"], "Sparsities.")
    flags.DEFINE_list("batches", ["1", "16", "128", "1024"], "Batch sizes of Dense layers.")
    flags.DEFINE_list("image_batches", ["1", "8", "64"], "Batch sizes of convolutions.")
    flags.DEFINE_integer("rounds", 11, "Rounds of each case.", lower_bound=1)
    flags.DEFINE_integer("block_ms", 50, "Milliseconds of a block of steps.", lower_bound=1)
    flags.DEFINE_string("output_dir", "results", "Directory for the results and the page.")
    flags.DEFINE_bool("only_report", False, "Only make the page, from existing results.")
    flags.register_validator(
        "layer", lambda given: set(given) <= set(names), f"--layer must be one of {names}"
    )


def _batches(layer):
    return FLAGS.image_batches if layer_programs.is_convolution(layer) else FLAGS.batches


def _command(program):
    return [sys.executable, "-m", _MODULE, program]


def run(rows):
    """Measures each layer, and adds the rows."""
    revision = f"git-{provenance.git_revision()}"
    ready, missing = rounds.start({name: _command(name) for name in _PROGRAMS})
    if missing:
        raise SystemExit(f"A program cannot be started: {missing}")
    try:
        for layer in FLAGS.layer:
            for sparsity in FLAGS.sparsities:
                for batch in _batches(layer):
                    case = {"layer": layer, "sparsity": float(sparsity), "batch": int(batch)}
                    wanted = {program: [case] for program in _PROGRAMS}
                    for row in rounds.measure(ready, wanted, FLAGS.rounds, 60, FLAGS.block_ms):
                        rows.add({**row, "revision": revision})
            print(layer, flush=True)
    finally:
        for worker in ready.values():
            worker.close()


class _Case:
    """What was measured of a layer at a sparsity and a batch size."""

    def __init__(self, masked, csr):
        self.layer, self.sparsity, self.batch = (csr[name] for name in _KEY[1:])
        self.is_chosen = csr["auto"] == "csr"
        self.ratios = execution_page.series(masked) / execution_page.series(csr)


def write(directory, rows, line):
    """Writes `crossover.md`."""
    measured = {tuple(row[name] for name in _KEY): row for row in rows if row.get("ms", "") != ""}
    cases = [
        _Case(measured[("masked", *key)], row)
        for (program, *key), row in measured.items()
        if program == "csr" and ("masked", *key) in measured
    ]
    chosen = [case for case in cases if case.is_chosen]
    slower = [case for case in chosen if np.quantile(case.ratios, 0.75) < 1]
    left = [case for case in cases if not case.is_chosen]
    text = [
        "# Where CSR is faster than masks, layer by layer",
        "",
        "Steps of a network of normalisation, one sparse layer and four classes, trained by RigL. "
        "The numbers say how many times as fast CSR is as masks: median (quartiles) of the rounds. "
        "`auto` chooses for each kernel when the layer is built, by shape and sparsity; the batch "
        "size is not known then.",
        "",
        f"`auto` chooses CSR in {len(chosen)} of {len(cases)} cases. In {len(slower)} of them CSR "
        "is slower than masks, in three quarters of the rounds. The lowest median is "
        f"{min((np.median(case.ratios) for case in chosen), default=1):.2f}, the median of all is "
        f"{np.median([np.median(case.ratios) for case in chosen] or [1]):.2f}. Of the "
        f"{len(left)} cases that stay masked, CSR would be faster in "
        f"{sum(np.quantile(case.ratios, 0.25) > 1 for case in left)}.",
    ]
    for is_convolution in (False, True):
        kind = [c for c in cases if layer_programs.is_convolution(c.layer) == is_convolution]
        batches = list(dict.fromkeys(case.batch for case in kind))
        found = {(case.layer, case.sparsity, case.batch): case for case in kind}
        cells = []
        for layer, sparsity in dict.fromkeys((case.layer, case.sparsity) for case in kind):
            of_batches = [found.get((layer, sparsity, batch)) for batch in batches]
            chooses = {case.is_chosen for case in of_batches if case}
            cells.append(
                [
                    layer,
                    f"{sparsity:.0%}",
                    "CSR" if chooses == {True} else "masks",
                    *[execution_page.with_quartiles(case and case.ratios) for case in of_batches],
                ]
            )
        if cells:
            head = ["layer", "sparsity", "`auto`", *[f"batch {batch}" for batch in batches]]
            text += ["", *tables.table(head, cells)]
    text += ["", *execution_page.ending(rows, ("program", "layer", "sparsity"), line)]
    (directory / "crossover.md").write_text("\n".join(text) + "\n")


def main(_):
    """Measures, and writes the page."""
    path = pathlib.Path(FLAGS.output_dir) / "crossover.csv"
    if not FLAGS.only_report:
        path.unlink(missing_ok=True)  # Times are of one run, on one machine.
    rows = experiments.store("crossover", _KEY)
    if not FLAGS.only_report:
        run(rows)
    write(path.parent, rows.rows, provenance.line("scripts.benchmark.crossover"))


if __name__ == "__main__":
    _define_flags()
    entry.run(main)
