"""Compares runs of `scripts.train`.

    python -m scripts.compare RUN RUN ...

Each RUN is a run directory, finished or not. The settings that differ are printed, and a row with
the results of each run. Both are also written to `--output_dir`, with a plot of the curves:
`comparison.md` and `comparison.png`.
"""

import csv
import json
import math
import os
import pathlib
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import rich.console
import rich.table
from absl import app, flags

from rigl_tf.reports.curves import Curves
from scripts.common import plots, tables
from scripts.train import runs

FLAGS = flags.FLAGS
_NAME = "comparison"
_CURVES = {"val_accuracy": "test accuracy", "loss": "training loss"}
# What is read of report.json.
_RESULTS = ("test_accuracy", "num_active", "flops_ratio", "compressed_bytes")


def _define_flags():
    flags.DEFINE_string("output_dir", ".", "Where comparison.md and comparison.png go.")


class Run:
    """Reads a run directory.

    Args:
        path: Its path.

    Raises:
        ValueError: If it is not a run directory, or has no finished epoch.
    """

    def __init__(self, path):
        directory = runs.RunDirectory(path)
        self.path = directory.path
        if not (self.path / "config.json").is_file():
            raise ValueError(
                "RUN must be a run directory of scripts.train, with a config.json. "
                f"Received: {self.path}"
            )
        self.config = directory.read_config()
        try:
            self.curves = Curves(self.path / "metrics.csv")
        except ValueError as error:
            raise ValueError(
                f"A run to compare must have a finished epoch in metrics.csv. Received: {self.path}"
            ) from error
        if not _is_whole(self.path / "metrics.csv"):
            raise ValueError(
                "metrics.csv must have whole rows of numbers, as the run wrote it. "
                f"Received: {self.path / 'metrics.csv'}"
            )
        self.result = self._read_result()

    def _read_result(self):
        path = self.path / "report.json"
        try:
            return _checked(json.loads(path.read_text())) if path.exists() else {}
        except ValueError as error:
            raise ValueError(
                f"report.json must be as the run wrote it. Received: {path} ({error})"
            ) from error

    def facts(self):
        """`{name: value}` of everything that determines the result of the run."""
        versions = {f"version of {name}": x for name, x in self.config["versions"].items()}
        data = {f"data: {name}": x for name, x in self.config["data"].items()}
        return {**self.config["settings"], **data, **versions}

    def outcome(self):
        """`{name: text}` of the results."""
        last = {name: numbers[-1] for name, numbers in self.curves.of_all.items()}
        of_all = self.config["settings"].get("epochs", "?")
        result = self.result
        return {
            "epochs": f"{self.curves.epochs[-1]} of {of_all}",
            "test accuracy": _share(result.get("test_accuracy", last.get("val_accuracy"))),
            "training loss": _number(last.get("loss")),
            "test loss": _number(last.get("val_loss")),
            "sparsity": _share(last.get("sparsity")),
            "active weights": _count(result.get("num_active")),
            "FLOPs ratio": _number(result.get("flops_ratio")),
            "bytes compressed": _count(result.get("compressed_bytes")),
        }


def _is_whole(path):
    """Whether each row of a CSV file has a number for each column."""
    text = path.read_text(errors="replace")
    head, *rows = csv.reader(text.splitlines())
    try:
        return text.endswith("\n") and all(len([*map(float, row)]) == len(head) for row in rows)
    except ValueError:
        return False


def _checked(result):
    """The result of a run; it raises a `ValueError` if this has other things than numbers."""
    if not isinstance(result, dict):
        raise ValueError(f"it is no dictionary: {result!r:.50}")
    for name in _RESULTS:
        if not isinstance(result.get(name), (int, float, type(None))):
            raise ValueError(f"{name} is no number: {result[name]!r:.50}")
    return result


def _number(value):
    return "" if value is None else f"{value:.4g}"


def _share(value):
    return "" if value is None or math.isnan(value) else f"{value:.2%}"


def _count(value):
    return "" if value is None else f"{value:,}"


def read_runs(paths):
    """`{name: Run}`, with names that are as short as possible.

    Raises:
        ValueError: If there are fewer than two runs, a run is named twice, or a path is not a run.
    """
    paths = [pathlib.Path(path).expanduser() for path in paths]
    if len(paths) < 2:
        given = ", ".join(map(str, paths)) or "none"
        raise ValueError(f"Give two run directories or more to compare. Received: {given}")
    resolved = [path.resolve() for path in paths]
    for path in paths:
        if resolved.count(path.resolve()) > 1:
            raise ValueError(f"Give each run directory once. Received: {path} twice")
    parts = [path.parts for path in resolved]
    length = 1
    while len({each[-length:] for each in parts}) < len(parts):
        length += 1
    return {
        str(pathlib.Path(*each[-length:])): Run(path)
        for each, path in zip(parts, paths, strict=True)
    }


def differing(found):
    """`{name: [value of each run]}` of the settings, data and versions that are not all the same.

    A value that a run does not have is an empty string.
    """
    facts = [run.facts() for run in found.values()]
    names = dict.fromkeys(name for each in facts for name in each)
    values = {name: [each.get(name, "") for each in facts] for name in names}
    return {name: of_runs for name, of_runs in values.items() if len(set(map(str, of_runs))) > 1}


def plot(found, path):
    """Draws the curves of all runs, with accuracy and loss side by side."""
    lines = {}
    with plots.figure(path, figsize=(11, 4.5), ncols=2, layout="constrained") as both:
        for axes, (column, label) in zip(both, _CURVES.items(), strict=True):
            for number, (name, run) in enumerate(found.items()):
                numbers = run.curves.of_all.get(column)
                if numbers is not None:
                    style = ("-", "--", ":", "-.")[number // 10 % 4]
                    few = "o" if np.isfinite(numbers).sum() == 1 else ""
                    shape = {"color": f"C{number % 10}", "linestyle": style, "marker": few}
                    (lines[name],) = axes.plot(run.curves.epochs, numbers, **shape)
            axes.set(title=label, xlabel="epoch")
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.grid(alpha=0.3)
        plots.legend_below(both[0].figure, lines)


def compare(paths, output_dir):
    """Prints tables of runs, and writes them with a plot.

    Args:
        paths: Paths of two or more run directories.
        output_dir: Path of the directory to write to. It is created if it does not exist.
    """
    found = read_runs(paths)
    other = differing(found)
    outcomes = {name: run.outcome() for name, run in found.items()}
    heads = list(next(iter(outcomes.values())))
    made = {
        "Settings that differ": (
            ["run", *other],
            [
                [name, *(str(values[index]) for values in other.values())]
                for index, name in enumerate(found)
            ],
        ),
        "What came out": (["run", *heads], [[n, *each.values()] for n, each in outcomes.items()]),
    }
    if not other:
        made.pop("Settings that differ")
        print("The runs have the same settings, data and versions")
    output_dir = pathlib.Path(output_dir).expanduser()
    output_dir.mkdir(parents=True, exist_ok=True)
    plot(found, output_dir / f"{_NAME}.png")
    lines = ["# Runs side by side", ""]
    for title, (head, rows) in made.items():
        _print(title, head, rows)
        lines += [f"## {title}", "", *tables.table(head, rows), ""]
    lines.append(f"![Curves]({_NAME}.png)")
    (output_dir / f"{_NAME}.md").write_text("\n".join(lines) + "\n")
    print(f"The tables are in {output_dir / _NAME}.md, the curves in {output_dir / _NAME}.png")


def _print(title, head, rows):
    table = rich.table.Table(title=title, title_justify="left")
    for name in head:
        table.add_column(name, justify="left" if name == "run" else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    width = None if sys.stdout.isatty() else 160
    console = rich.console.Console(width=width, markup=False, emoji=False)
    console.print(table)


def main(argv):
    try:
        compare(argv[1:], FLAGS.output_dir)
    except (ValueError, OSError) as error:
        print(f"compare.py: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    _define_flags()
    app.run(main)
