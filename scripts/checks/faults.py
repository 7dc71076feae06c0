"""Kills training runs with `kill -9`, resumes them, and checks that the result is the same.

    python -m scripts.checks.faults --num_tries=50

Each try starts `python -m scripts.train` in a process, kills it at a random moment, checks every
file that is there, and resumes the run until it ends. (In tries with several kills it is killed
again.) Then the results must be equal, bit for bit, to those of a run that was never killed. A kill
at any time rarely happens while a file is written, so each try aims at a certain phase:

| aim | the kill comes at a random moment of |
| --- | --- |
| export | the writing of `model.keras`, the export and `report.json` |
| checkpoint | the writing of a random epoch's metrics and checkpoint |
| mask update | an epoch in which every step updates the masks (`--update_frequency=1`) |
| any time | the run, from `config.json` on |
| several | a checkpoint, then the start of the resumed run, then the export of the next |

The files that are there after the kill tell what was interrupted. A try takes about a minute on two
cores. Finished tries are rows of `results/faults.csv` and are never repeated. The page is made from
all rows. Expect the same result from every run, and no half-written file.

`kill -9` loses nothing that was written, whether it was synced to the disk or not. A power failure
can lose data, because files are not synced.
"""

import itertools
import pathlib
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np
from absl import flags

from scripts.checks import run_files
from scripts.common import entry, provenance, tables
from scripts.common.rows import Rows

_EPOCHS = 6
_SETTINGS = (f"--epochs={_EPOCHS}", "--batch_size=16", "--nojit_compile")
# With a frequency of 1, all steps up to 75 % of training are updates, except the first.
_FREQUENCIES = {"mask update": 1}
_UPDATE_EPOCHS = (1, 2, 3)
_POLL_SECONDS = 0.0005
_PROCESS_SECONDS = 600
_MAX_ATTEMPTS = 10

AIMS = ("export", "checkpoint", "mask update", "any time", "several")

FLAGS = flags.FLAGS


def _define_flags():
    flags.DEFINE_integer("num_tries", 50, "Number of tries for all aims together.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "Seed of the moments at which runs are killed.")
    flags.DEFINE_string("output_dir", "results", "Directory for the results and the page.")


class Reference:
    """A run that is not killed, and the durations of its phases.

    Args:
        directory: `pathlib.Path` of the run directory.
        frequency: Integer, its `--update_frequency`.
    """

    def __init__(self, directory, frequency):
        self.directory = directory
        self.frequency = frequency
        begin = time.monotonic()
        process = start(directory, frequency)
        seen = {}  # {name: [first time, last time]}
        while process.poll() is None:
            now = time.monotonic()
            for path in directory.glob("*"):
                seen.setdefault(path.name, [now, now])[1] = now
            time.sleep(_POLL_SECONDS)
        if process.wait() != 0:
            raise RuntimeError(f"The run that was not killed failed. Received: {directory}")
        checkpoints = [seen[f"checkpoint-{epoch:04d}.keras"][0] for epoch in range(1, _EPOCHS + 1)]
        epochs = [b - a for a, b in itertools.pairwise(checkpoints)]
        writing = [last - first for name, (first, last) in seen.items() if ".tmp-check" in name]
        export = min(seen[name][0] for name in seen if name.startswith((".tmp-model", "model")))
        self.seconds = {
            "export": seen["report.json"][0] - export,
            "checkpoint": statistics.median(writing),
            "mask update": statistics.median(epochs),
            "any time": seen["report.json"][0] - seen["config.json"][0],
            # The process reads the run after some seconds; then it builds, traces and trains.
            "resumed": 1.5 * (seen["config.json"][0] - begin),
        }


def start(directory, frequency):
    """Starts or resumes a run in a process. Its output goes to a file beside the directory."""
    command = [sys.executable, "-m", "scripts.train", f"--output_dir={directory}"]
    if (directory / "config.json").exists():
        command.append("--resume")
    else:
        command += [*_SETTINGS, f"--update_frequency={frequency}"]
    with _output(directory).open("w") as output:
        return subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)


def _output(directory):
    return directory.with_suffix(".txt")


def kill(process, directory, aim, epoch, seconds):
    """Waits until a run reaches the phase that is aimed at, waits `seconds` more, and kills it.

    Returns:
        Whether it was killed; `False` if it had ended before.
    """
    pattern = {
        "export": ".tmp-model-*",
        "checkpoint": f".tmp-checkpoint-{epoch:04d}-*",
        "mask update": f"checkpoint-{epoch:04d}.keras",
        "any time": "config.json",
        "resumed": "config.json",
    }[aim]
    while process.poll() is None and not any(directory.glob(pattern)):
        time.sleep(_POLL_SECONDS)
    time.sleep(seconds)
    process.kill()
    code = process.wait()
    if code not in (0, -signal.SIGKILL):
        raise RuntimeError(f"The run failed by itself. Received: exit code {code} of {directory}")
    return code != 0


def state(directory):
    """The names of the files of a run, and when each was written."""
    return {path.name: path.stat().st_mtime_ns for path in directory.glob("*")}


def moment(directory, frequency, before):
    """What a killed process was doing, judged by its files. `before`: their first `state`."""
    if state(directory) == before:
        return "resumed, nothing written yet"
    temporaries = " ".join(run_files.temporaries(directory))
    for part, what in (
        (".export-", "export"),
        (".tmp-model", "model.keras"),
        (".tmp-checkpoint", "checkpoint"),
        (".tmp-", "metrics, report or config"),
    ):
        if part in temporaries:
            return f"writing {what}"
    if (directory / "model.keras").exists():
        return "before or after the export"
    epoch = run_files.last_checkpoint(directory)
    if epoch == 0:
        return "before the first checkpoint"
    return "mask update" if frequency == 1 and epoch in _UPDATE_EPOCHS else "training"


def attempt(reference, directory, aim, generator):
    """One try.

    Args:
        reference: The `Reference`.
        directory: `pathlib.Path` of a new run directory.
        aim: One of `AIMS`.
        generator: `numpy.random.Generator`.

    Returns:
        Dictionary: the moments that were hit, and the lists of broken files and of differences to
        the reference. `None` if the run ended before it could be killed.
    """
    moments, broken = [], []
    for each in ("checkpoint", "resumed", "export") if aim == "several" else (aim,):
        epochs = _UPDATE_EPOCHS if each == "mask update" else range(1, _EPOCHS)
        epoch = int(generator.choice(epochs))
        before = state(directory)
        process = start(directory, reference.frequency)
        if not kill(process, directory, each, epoch, generator.uniform(0, reference.seconds[each])):
            return None
        moments.append(moment(directory, reference.frequency, before))
        broken += run_files.broken_files(directory)
    last = run_files.last_checkpoint(directory)
    code = start(directory, reference.frequency).wait(_PROCESS_SECONDS)
    broken += run_files.broken_files(directory)
    problems = [] if code == 0 else [f"exit code {code}"]
    trained = [int(n) for n in re.findall(r"^Epoch (\d+)/", _output(directory).read_text(), re.M)]
    if trained != list(range(last + 1, _EPOCHS + 1)):
        problems.append(f"resumed after epoch {last}, it trained epochs {trained}")
    problems = problems or run_files.differences(directory, reference.directory)
    return {"moments": moments, "broken": broken, "differences": problems}


def _outcome(reference, aim, run, work):
    """The result of the first attempt that killed the run before it ended."""
    generator = np.random.default_rng((run["seed"], run["try"]))
    for _ in range(_MAX_ATTEMPTS):
        with tempfile.TemporaryDirectory(dir=work) as directory:
            outcome = attempt(reference, pathlib.Path(directory, "run"), aim, generator)
        if outcome is not None:
            return outcome
    raise RuntimeError(f"No run could be killed before it ended. Received: {run}, aim {aim!r}")


def _report(rows, output_dir):
    hits = {}
    for row in rows:
        for what in row["moments"].split("; "):
            hits.setdefault(row["aim"], {}).setdefault(what, 0)
            hits[row["aim"]][what] += 1
    head = ["aim", "tries", "kills", "identical", "half-written files", "moments"]
    cells = []
    for aim in [*AIMS, "all"]:
        of_aim = [row for row in rows if aim in (row["aim"], "all")]
        counts = hits.get(aim, {})
        kills = sum(len(row["moments"].split("; ")) for row in of_aim)
        moments = ", ".join(f"{what} {n}" for what, n in sorted(counts.items()))
        identical, broken = (sum(r[name] for r in of_aim) for name in ("identical", "half_written"))
        cells.append([aim, len(of_aim), kills, identical, broken, moments])
    text = [
        "# Runs that were killed and resumed",
        "",
        f"`kill -9` at random moments of `python -m scripts.train {' '.join(_SETTINGS)}`, then "
        "`--resume`. Identical: the run went on from its last checkpoint and ended with the bits "
        "of a run that was never killed: metrics.csv, the numbers in report.json, weights, masks "
        "and optimizer state in the checkpoint and in model.keras, the exported weights; and no "
        "other file was left. Half-written: files with a final name that did not load, counted "
        "after every kill and at the end; every .keras file was loaded with its optimizer, the "
        "export was run. The moment is told by the files that were there after the kill. `mask "
        "update`: in an epoch (its few milliseconds of validation included) in which every step "
        "updates the masks; elsewhere every third step does. `resumed, nothing written yet`: a "
        "resumed run was importing, building, or in its first epoch.",
        "",
        *tables.table(head, cells),
        "",
        "`kill -9` loses nothing that was written, so this says nothing of power failures.",
        "",
        provenance.line("scripts.checks.faults"),
    ]
    (output_dir / "faults.md").write_text("\n".join(text) + "\n")


def main(_):
    output_dir = pathlib.Path(FLAGS.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    store = Rows(output_dir / "faults.csv", ("seed", "try"))
    wanted = [{"seed": FLAGS.seed, "try": number} for number in range(FLAGS.num_tries)]
    references = {}
    with tempfile.TemporaryDirectory() as work:
        for run in [run for run in wanted if run not in store]:
            aim = AIMS[run["try"] % len(AIMS)]
            frequency = _FREQUENCIES.get(aim, 3)
            if frequency not in references:
                path = pathlib.Path(work, f"reference-{frequency}")
                references[frequency] = Reference(path, frequency)
            outcome = _outcome(references[frequency], aim, run, work)
            store.add(
                {
                    **run,
                    "aim": aim,
                    "moments": "; ".join(outcome["moments"]),
                    "identical": int(not outcome["differences"]),
                    "half_written": len(outcome["broken"]),
                }
            )
            print({**run, "aim": aim, **outcome}, flush=True)
    _report(store.rows, output_dir)


if __name__ == "__main__":
    _define_flags()
    entry.run(main)
