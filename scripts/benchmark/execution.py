"""Measures steps of sparse training in CSR, against dense training and other libraries.

    make benchmark DATA_DIR=DATA
    python -m scripts.benchmark.execution

The first command makes the environments for torch and sparselab and for TFMOT, runs
`scripts.benchmark.time_to_accuracy`, this module, `scripts.benchmark.networks` and
`scripts.benchmark.crossover`. A network of three hidden layers is trained by SGD with momentum:
with Keras dense, with masks and in CSR; dense in torch; with sparselab; and with TFMOT's magnitude
pruning. Each of these programs is a process. They take turns, a block of steps each, in many
rounds, so other programs on the machine slow down all of them. Ratios are computed for each round.
If a program cannot be started, the page says so. It takes 17 minutes on two cores without other
work, and writes `results/execution.md`, `.csv` and `.png`.
"""

import concurrent.futures
import pathlib
import sys
import time
from typing import NamedTuple

from absl import flags

from scripts.benchmark import execution_page, keras_programs, opponents, rounds, workers
from scripts.common import entry, experiments, provenance

_KERAS = "scripts.benchmark.keras_programs"
_OPPONENTS = "scripts.benchmark.opponents"
# Programs that are measured at every sparsity, and programs without one. All others have one.
_AT_EACH_SPARSITY = ("csr", "sparselab")
_DENSE = ("dense", "dense_xla", "torch")

# In this network all that is sparse can be CSR: `"auto"` is `"csr"`.
PROGRAMS = (*(name for name in keras_programs.PROGRAMS if name != "auto"), *opponents.PROGRAMS)

FLAGS = flags.FLAGS


def _define_flags():
    flags.DEFINE_list("programs", list(PROGRAMS), "Programs to measure.")
    flags.DEFINE_list("sparsities", ["0.5", "0.8", "0.9", "0.95", "0.98", "0.99"], "Sparsities.")
    flags.DEFINE_float("sparsity", 0.9, "Sparsity of measurements at one sparsity only.", 0, 0.999)
    flags.DEFINE_integer("width", 2048, "Units of a hidden layer.", lower_bound=1)
    flags.DEFINE_integer("batch", 128, "Examples in a batch.", lower_bound=1)
    flags.DEFINE_list("widths", ["512", "1024", "4096"], "Widths to measure at --sparsity.")
    flags.DEFINE_list("batches", ["32", "512", "1024"], "Batch sizes to measure at --sparsity.")
    flags.DEFINE_integer("rounds", 15, "Rounds of each group of programs.", lower_bound=1)
    flags.DEFINE_integer("block_ms", 150, "Milliseconds of a block of steps.", lower_bound=1)
    flags.DEFINE_integer(
        "seconds",
        50,
        "Time limit of a group in seconds; twice as long for the first.",
        lower_bound=1,
    )
    flags.DEFINE_string("torch_python", ".venv-torch/bin/python", "A Python with torch.")
    flags.DEFINE_string("tfmot_python", ".venv-tfmot/bin/python", "A Python with TFMOT.")
    flags.DEFINE_string(
        "output_dir", "results", "Directory for the results, the page and the plot."
    )
    flags.DEFINE_bool("only_report", False, "Only make the page, from existing results.")
    flags.register_validator(
        "programs", lambda names: set(names) <= set(PROGRAMS), f"--programs must be in {PROGRAMS}"
    )


class Group(NamedTuple):
    """Cases that are measured in the same rounds."""

    width: int
    batch: int
    sparsities: tuple
    seconds: float

    def cases(self, program):
        """The cases of a program, in the form of `scripts.benchmark.serving`."""
        sparsities = (FLAGS.sparsity,)
        if program in _DENSE:
            sparsities = (0.0,)
        elif program in _AT_EACH_SPARSITY:
            sparsities = self.sparsities
        return [
            {"sparsity": sparsity, "width": self.width, "batch": self.batch}
            for sparsity in sparsities
        ]


def groups():
    """The groups for the given flags. Only the first one has all sparsities."""
    sparsities = tuple(sorted({*map(float, FLAGS.sparsities), FLAGS.sparsity}))
    others = [(int(width), FLAGS.batch) for width in FLAGS.widths]
    others += [(FLAGS.width, int(batch)) for batch in FLAGS.batches]
    return [
        Group(FLAGS.width, FLAGS.batch, sparsities, 2 * FLAGS.seconds),
        *(Group(*size, (FLAGS.sparsity,), FLAGS.seconds) for size in others),
    ]


def command(program):
    """The command that starts a program."""
    if program in keras_programs.PROGRAMS:
        return [sys.executable, "-m", _KERAS, program]
    python = FLAGS.tfmot_python if program == "tfmot" else FLAGS.torch_python
    return [python, "-m", _OPPONENTS, program]


def peak_memory(program):
    """Columns of a row: the peak memory of a new process that trains a few steps."""
    worker = workers.Worker(command(program))
    try:
        worker.wait_until_ready()
        worker.ask(make=groups()[0]._replace(sparsities=(FLAGS.sparsity,)).cases(program)[0])
        return {"imports_mb": worker.peak_mb, **worker.ask(peak=True)}
    except workers.Missing:
        return {}  # The group says why.
    finally:
        worker.close()


def run(rows):
    """Measures all groups, and adds their rows."""
    revision = f"git-{provenance.git_revision()}"
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        peaks = dict(zip(FLAGS.programs, pool.map(peak_memory, FLAGS.programs), strict=True))
    print(f"Peak memory in MB: { {name: peak.get('peak_mb') for name, peak in peaks.items()} }")
    ready, missing = rounds.start({program: command(program) for program in FLAGS.programs})
    for program, reason in missing.items():
        print(f"{program} is left out: {reason}")
        rows.add({"program": program, "missing": reason, "revision": revision})
    try:
        for number, group in enumerate(groups()):
            begin = time.monotonic()
            cases = {program: group.cases(program) for program in ready}
            for row in rounds.measure(ready, cases, FLAGS.rounds, group.seconds, FLAGS.block_ms):
                has_peak = number == 0 and row["sparsity"] in (0, FLAGS.sparsity)
                peak = peaks[row["program"]] if has_peak else {}
                rows.add({**row, **peak, "revision": revision})
            took = time.monotonic() - begin
            print(f"width {group.width}, batch {group.batch}: {took:.0f} s", flush=True)
    finally:
        for worker in ready.values():
            worker.close()


def main(_):
    """Measures, and writes the page."""
    path = pathlib.Path(FLAGS.output_dir) / "execution.csv"
    if not FLAGS.only_report:
        path.unlink(missing_ok=True)  # Times are of one run, on one machine.
    rows = experiments.store("execution", ("program", "sparsity", "width", "batch"))
    if not FLAGS.only_report:
        run(rows)
    execution_page.write(
        path.parent,
        rows.rows,
        groups()[0],
        FLAGS.sparsity,
        provenance.line("scripts.benchmark.execution"),
    )


if __name__ == "__main__":
    _define_flags()
    entry.run(main)
