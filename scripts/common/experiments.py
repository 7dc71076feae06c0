"""Code that the experiments share: flags, runs that are not repeated, and pages.

An experiment is a list of runs, each a dictionary that says all about it. A finished run is a row
of a CSV file, and never repeated; so an experiment can be stopped and started at any time, and
shared by processes that do a part each (`--part=0/2` and `--part=1/2`).

All rows of a table are made by the same code, and by code that is committed: see `check_code`. To
go on with a table after the code has changed, run the script in a checkout of the commit that its
rows name (`git worktree add`), with `--output_dir` of this one.
"""

import pathlib
import re
import time
from fractions import Fraction

from absl import app, flags

from scripts.common import datasets, provenance
from scripts.common.rows import Rows

FLAGS = flags.FLAGS


def define_flags(epochs, seeds=("0", "1", "2")):
    """The flags of every experiment.

    Args:
        epochs: Integer, those of the published table; `None` if they depend on other flags.
        seeds: List of strings, likewise; empty if they depend on other flags.
    """
    flags.DEFINE_string("data_dir", None, "Directory with the data; else Keras downloads it.")
    flags.DEFINE_string(
        "output_dir", "results", "Directory for the results, the table and the plot."
    )
    flags.DEFINE_list("seeds", list(seeds), "Seeds to run.")
    flags.DEFINE_integer("epochs", epochs, "Epochs of each run.", lower_bound=1)
    flags.DEFINE_integer(
        "max_examples", None, "Use only this number of examples, for training and testing."
    )
    flags.DEFINE_bool("only_report", False, "Only make the page, from existing results.")
    flags.DEFINE_bool(
        "allow_dirty", False, "Add rows even if the code is not committed, or not that of the rows."
    )
    flags.DEFINE_string(
        "part", "0/1", "Part of the runs to do: `1/3` is the second of three parts."
    )
    flags.register_validator(
        "part",
        lambda part: re.fullmatch(r"\d+/[1-9]\d*", part) and Fraction(part) < 1,
        "--part must be like 1/3, the first number less than the second",
    )


def load(name):
    """The data set as the flags say."""
    return shortened(datasets.load(name, FLAGS.data_dir))


def shortened(data):
    """The first `--max_examples` of a `scripts.common.datasets.Dataset`, all of it without."""
    if FLAGS.max_examples:
        arrays = {
            array: getattr(data, array)[: FLAGS.max_examples]
            for array in ("x_train", "y_train", "x_test", "y_test")
        }
        data = data._replace(**arrays)
    return data


def store(name, key):
    """The rows of `name`.csv in the output directory, which is made if need be."""
    output_dir = pathlib.Path(FLAGS.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    return Rows(output_dir / f"{name}.csv", key)


def run_all(rows, wanted, do, seconds):
    """Says how long the runs without a row will take, does them, and adds their rows.

    Args:
        rows: The `scripts.common.rows.Rows` of the experiment.
        wanted: List of runs, dictionaries with the columns of the rows' key at least.
        do: Function that gets a run and returns the other columns of its row.
        seconds: Function that gets a run and returns what it takes on two cores, about.
    """
    # A part of all runs, finished or not: so it is the same whenever a process starts.
    part, num_parts = map(int, FLAGS.part.split("/"))
    todo = [run for run in wanted[part::num_parts] if run not in rows and not FLAGS.only_report]
    # Of now: what is imported stays, whatever is changed or committed during the runs.
    made_by = {"revision": f"git-{provenance.git_revision()}", "code": provenance.code()}
    if todo and not FLAGS.allow_dirty:
        check_code(rows, todo, made_by)
    minutes = sum(map(seconds, todo)) / 60
    print(f"{len(todo)} runs to do, about {minutes:.0f} minutes on two cores", flush=True)
    for number, run in enumerate(todo, 1):
        rows.refresh()
        if run in rows:
            continue  # Another process has done it in the meantime.
        begin = time.monotonic()
        result = do(run)
        took = time.monotonic() - begin
        rows.add({**run, **result, "seconds": round(took, 1), **made_by})
        columns = {name: str(value) for name, value in {**run, **result}.items()}
        shown = ", ".join(f"{name} {text}" for name, text in columns.items() if len(text) < 40)
        print(f"{number}/{len(todo)} {shown}: {took:.0f} s", flush=True)


# Of runs that are shown together; other columns of a key tell the runs of a table apart.
_TABLES = ("case", "dataset")


def table_of(row):
    """The table that a row belongs to: the case or data set, if rows of several are in one file."""
    return tuple(row.get(name, "") for name in _TABLES)


def check_code(rows, todo, made_by):
    """Raises a `UsageError` if new rows would not be of the same, committed code as the others.

    Args:
        rows: The `scripts.common.rows.Rows` of the experiment.
        todo: List of runs that are to be added.
        made_by: The columns `revision` and `code` of their rows.
    """
    how = "To add rows nevertheless, give --allow_dirty."
    if not provenance.is_clean(made_by["revision"]):
        raise app.UsageError(
            "Rows of results are made by committed code: commit the changes first. "
            f"{how} Received: revision={made_by['revision']}"
        )
    tables = {table_of(run) for run in todo}
    others = {
        row.get("revision")
        for row in rows.rows
        if table_of(row) in tables and row.get("code") != made_by["code"]
    }
    if others:
        raise app.UsageError(
            f"{rows.path} has rows of other code, of {', '.join(map(str, others))}; all rows of a "
            "table are of the same. Run the script in a checkout of that commit, with --output_dir "
            f"of this one, or give an --output_dir where no such table is. {how}"
        )


def write_page(name, lines, module):
    """Writes `name`.md into the output directory, the provenance last."""
    path = pathlib.Path(FLAGS.output_dir) / f"{name}.md"
    rows = "The column `revision` of the CSV file has the commit that each run was made with; the "
    rows += "line below is of this page."
    path.write_text("\n".join([*lines, "", rows, "", provenance.line(module)]) + "\n")
