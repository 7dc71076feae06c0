"""Runs the core tests with several versions of Python and Keras.

    make matrix
    make matrix CELLS=3.11:3.12,3.13:3.15
    python -m scripts.checks.matrix --processes=1

Each cell is a Python and a Keras version. For each Python, a virtual environment is made in
`.venv-matrix/`: by uv, if it is installed, which can download the Python; else by the Python
itself, if it is installed. This takes a few minutes and 2 GB, once. Then the tests of `SUITES` run,
about two minutes for each cell on two cores. If a Python is not available, its cells are left out,
and a message says so. The last run of each cell is a row of `results/matrix.csv`.
`results/matrix.md` is made from all rows.

This module needs no package, so any Python can run it.
"""

import argparse
import collections
import csv
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree

from scripts.common import provenance

ROOT = pathlib.Path(__file__).parents[2]
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
KERAS = ("3.12", "3.15")
# Keras 3.13 and later have no release for Python 3.10.
IMPOSSIBLE = {("3.10", "3.15"): "no release of Keras 3.15 is for Python 3.10"}
CELLS = [(p, k) for p in PYTHONS for k in KERAS if (p, k) not in IMPOSSIBLE]
# The tests that depend on Keras and Python: all kinds of models, files, masks, optimizers, CSR.
SUITES = (
    "tests/callbacks/test_exploration.py",
    "tests/test_masks.py",
    "tests/test_moved.py",
    "tests/execution/test_csr.py",
    "tests/transforms/test_sparsify.py",
    "tests/whole/test_saving.py",
)
COLUMNS = ("python", "keras", "tensorflow", "numpy", "passed", "failed", "seconds", "revision")
_VERSIONS = """\
import platform, keras, numpy, tensorflow
print("versions", platform.python_version(), keras.__version__, tensorflow.__version__,
      numpy.__version__)
"""


def interpreter(version):
    """The path of a Python of this version, such as `"3.12"`; `None` if none is installed."""
    if sys.version_info[:2] == tuple(map(int, version.split("."))):
        return sys.executable
    found = shutil.which(f"python{version}")
    # The command may be one of a version manager, which only says that this Python is missing.
    works = found and subprocess.run([found, "--version"], capture_output=True).returncode == 0
    return found if works else None


def makers(version):
    """The commands that can make a virtual environment with this Python, the best one first."""
    commands = []
    if shutil.which("uv"):
        commands.append(["uv", "venv", "--quiet", "--clear", "--seed", "--python", version])
    if found := interpreter(version):
        commands.append([found, "-m", "venv", "--clear"])
    return commands


def made(command, folder):
    """Whether a command of `makers` made the environment in this folder."""
    return subprocess.run([*command, folder]).returncode == 0


def environment(version, folder):
    """The Python of a virtual environment with all requirements; `None` if this fails."""
    python = folder / version / "bin" / "python"
    complete = folder / version / "complete"
    requirements = ROOT / "requirements.txt"
    if complete.exists() and complete.read_text() == requirements.read_text():
        return python
    if not any(made(command, folder / version) for command in makers(version)):
        return None
    install(python, "--requirement", requirements)
    complete.write_text(requirements.read_text())
    return python


def install(python, *what):
    """Installs with pip."""
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, *what], check=True)


def run(python, keras, report, suites=SUITES, processes="2"):
    """Runs the tests with a version of Keras, such as `"3.12"`. Returns the row of the cell."""
    major, minor = keras.split(".")
    install(python, f"keras>={keras},<{major}.{int(minor) + 1}")
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "KERAS_BACKEND": "tensorflow"}
    same = {"cwd": ROOT, "env": variables}
    begin = time.monotonic()
    tests = ["-m", "pytest", "-m", "not slow", "-n", processes, f"--junitxml={report}", *suites]
    code = subprocess.run([python, *tests], **same).returncode
    if code not in (0, 1):
        raise RuntimeError(f"The tests did not run: pytest ended with exit code {code}")
    seconds = round(time.monotonic() - begin)
    told = subprocess.run(
        [python, "-c", _VERSIONS], stdout=subprocess.PIPE, text=True, check=True, **same
    ).stdout
    versions = re.search("versions (.*)", told)[1].split()
    counts = collections.Counter()
    for case in xml.etree.ElementTree.parse(report).iter("testcase"):
        tags = {child.tag for child in case}
        if "skipped" not in tags:
            counts["failed" if tags & {"failure", "error"} else "passed"] += 1
    return {
        **dict(zip(COLUMNS[:4], versions, strict=True)),
        "passed": counts["passed"],
        "failed": counts["failed"],
        "seconds": seconds,
        "revision": f"git-{provenance.git_revision()}",
    }


def short(version):
    """The first two numbers of a version.

    Example:

    >>> short("3.12.4")
    '3.12'
    """
    return ".".join(version.split(".")[:2])


def read(path):
    """`{(python, keras): row}`, the last run of each cell."""
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {(short(row["python"]), short(row["keras"])): row for row in rows}


def write(path, rows):
    """Writes all rows. If it is interrupted, the file of before stays."""
    temporary = path.with_suffix(".tmp")
    with temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows[cell] for cell in sorted(rows, key=_order))
    os.replace(temporary, path)


def _order(cell):
    return [tuple(map(int, version.split("."))) for version in cell]


def page(rows):
    """The lines of the page."""
    pythons = sorted({*PYTHONS, *(python for python, _ in rows)}, key=lambda v: _order([v]))
    versions = sorted({*KERAS, *(keras for _, keras in rows)}, key=lambda v: _order([v]))

    def cell(python, keras):
        if row := rows.get((python, keras)):
            failed = int(row["failed"])
            return f"{row['passed']} passed" + (f", **{failed} failed**" if failed else "")
        return "–" if (python, keras) in IMPOSSIBLE else "not run"

    def table(head, lines):
        lines = [head, ["---"] * len(head), *lines]
        return [f"| {' | '.join(map(str, cells))} |" for cells in lines]

    missing = [f"{p} with Keras {k}" for p, k in CELLS if (p, k) not in rows]
    lines = [
        "# Versions of Python and Keras",
        "",
        "The core tests: models of every kind, files, masks, callbacks and CSR kernels. "
        "`make test` runs all tests with the newest Keras of one Python.",
        "",
        *table(
            ["Python", *(f"Keras {keras}" for keras in versions)],
            [[python, *(cell(python, keras) for keras in versions)] for python in pythons],
        ),
        "",
        *(f"–: {reason}." for reason in IMPOSSIBLE.values()),
    ]
    if missing:
        lines += [
            "",
            f"Not run: Python {', '.join(missing)}. `make matrix` runs each Python that it finds.",
        ]
    lines += ["", "The last run of each cell:", ""]
    lines += table(COLUMNS, [[rows[c][name] for name in COLUMNS] for c in sorted(rows, key=_order)])
    return [*lines, "", "`make matrix`, which is `python -m scripts.checks.matrix`"]


def cells_of(text):
    """The cells in an argument such as `3.11:3.12,3.13:3.15`; all cells if it is empty.

    Raises:
        ValueError: If a part is not a Python and a Keras version.
    """
    found = [tuple(each.split(":")) for each in text.split(",") if each]
    for cell in found:
        if len(cell) != 2 or not all(re.fullmatch(r"\d+\.\d+", version) for version in cell):
            raise ValueError(
                "`--cells` must be like 3.11:3.12,3.13:3.15, Python and Keras versions. "
                f"Received: {text}"
            )
        if cell in IMPOSSIBLE:
            raise ValueError(f"`--cells` has {':'.join(cell)}, but {IMPOSSIBLE[cell]}")
    return found or CELLS


def main(arguments=None):
    """Runs the cells, one after the other. Returns the exit code: 1 if a test failed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cells", default="", help="Such as 3.11:3.12,3.13:3.15; else all.")
    parser.add_argument("--processes", default="2", help="How many processes run the tests.")
    parser.add_argument("--folder", default=ROOT / ".venv-matrix", type=pathlib.Path)
    parser.add_argument("--output_dir", default=ROOT / "results", type=pathlib.Path)
    given = parser.parse_args(arguments)
    try:
        cells = cells_of(given.cells)
    except ValueError as error:
        parser.error(str(error))
    given.folder.mkdir(parents=True, exist_ok=True)
    path, failed = given.output_dir / "matrix.csv", 0
    for version, keras in cells:
        python = environment(version, given.folder)
        if python is None:
            print(f"Python {version}, Keras {keras}: not run, there is no python{version}")
            continue
        print(f"Python {version}, Keras {keras}", flush=True)
        report = given.folder / f"{version}-keras{keras}.xml"
        row = run(python, keras, report, processes=given.processes)
        write(path, {**read(path), (version, keras): row})
        failed += row["failed"]
        print(f"{row['passed']} passed, {row['failed']} failed", flush=True)
    path.with_suffix(".md").write_text("\n".join(page(read(path))) + "\n", encoding="utf-8")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
