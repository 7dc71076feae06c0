"""Rows, tables, plots and provenance of the experiments in `results/`."""

import contextlib
import csv
import fcntl
import os
import platform
import statistics
import subprocess
import sys


class Rows:
    """Finished runs in a CSV file; a run is known by the columns in `key`.

    Every added row is on disk before `add` returns, so that a script can be stopped at any time.
    Several processes may add rows to the same file. Columns that only some of the rows have, as
    those of an older version of the script do, are kept; the others are empty there.

    Args:
        path: `pathlib.Path` of the CSV file, which need not exist.
        key: Names of the columns that make a run.
    """

    def __init__(self, path, key):
        self.path = path
        self.key = key
        self.rows = self._read()

    def _read(self):
        if not self.path.exists():
            return []
        with self.path.open(newline="") as file:
            return [
                {name: _number(value) for name, value in row.items()}
                for row in csv.DictReader(file)
            ]

    def __contains__(self, run):
        return any(all(row.get(name) == run[name] for name in self.key) for row in self.rows)

    def add(self, row):
        """Appends one row; the file is written anew and renamed, so it is never half-written."""
        with _locked(self.path.parent):
            self.rows = [*self._read(), row]
            temporary = self.path.with_suffix(".tmp")
            with temporary.open("w", newline="") as file:
                names = dict.fromkeys(name for each in (row, *self.rows) for name in each)
                writer = csv.DictWriter(file, list(names), lineterminator="\n")
                writer.writeheader()
                writer.writerows(self.rows)
            os.replace(temporary, self.path)


@contextlib.contextmanager
def _locked(directory):
    """Keeps other processes waiting that want the same."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _number(text):
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def means(rows, series, x, y):
    """`{(series value, x value): (mean, standard deviation, number of rows)}`.

    The standard deviation is that of the sample, and 0 for one row.
    """
    groups = {}
    for row in rows:
        groups.setdefault((row[series], row[x]), []).append(row[y])
    return {
        key: (statistics.mean(v), statistics.stdev(v) if len(v) > 1 else 0.0, len(v))
        for key, v in groups.items()
    }


def table(head, rows):
    """The lines of a Markdown table."""
    lines = [f"| {' | '.join(map(str, cells))} |" for cells in (head, *rows)]
    return [lines[0], "|" + " --- |" * len(head), *lines[1:]]


def with_spread(value, digits=2):
    """One of `means` as text: mean ± standard deviation, the mean alone of one row, `None`: –.

    Example:

    >>> with_spread((1.5, 0.25, 3)), with_spread((1.5, 0.0, 1))
    ('1.50 ± 0.25', '1.50')
    """
    if value is None:
        return "–"
    mean, deviation, number = value
    return f"{mean:.{digits}f}" + (f" ± {deviation:.{digits}f}" if number > 1 else "")


def mean_table(rows, series, x, y, order):
    """A Markdown table of mean ± standard deviation, a row for each series, a column for each x."""
    values = means(rows, series, x, y)
    columns = sorted({key[1] for key in values})
    lines = []
    for name in order:
        cells = [values.get((name, column)) for column in columns]
        if any(cells):
            lines.append([name, *map(with_spread, cells)])
    return "\n".join(table([series, *(f"{x} {column:g}" for column in columns)], lines))


def plot_means(rows, series, x, y, path, order, title, xlabel, ylabel, as_error=False):
    """Draws mean ± standard deviation over x, a line for each series; x = 0 across the plot.

    With `as_error` it draws `100 - y`, on a logarithmic axis.
    """
    if as_error:
        rows = [{**row, y: 100 - row[y]} for row in rows]
    values = means(rows, series, x, y)
    ticks = sorted({key[1] for key in values if key[1] > 0})
    with figure(path) as axes:
        for number, name in enumerate(order):
            style = ("-", "--", ":")[number // 10 % 3]
            points = sorted((key[1], *value) for key, value in values.items() if key[0] == name)
            if len(points) == 1 and points[0][0] == 0:
                axes.axhline(points[0][1], color="black", linestyle="--", label=name)
            elif points:
                xs, ys, errors, _ = zip(*points, strict=True)
                positions = [ticks.index(value) for value in xs]
                axes.errorbar(
                    positions, ys, errors, marker="o", capsize=3, label=name, linestyle=style
                )
        axes.set_xticks(range(len(ticks)), [f"{tick:g}" for tick in ticks])
        axes.set(title=title, xlabel=xlabel, ylabel=ylabel)
        if as_error:
            axes.set_yscale("log")
        axes.grid(alpha=0.3, which="both")
        # Many lines leave no room between them.
        beside = {"loc": "center left", "bbox_to_anchor": (1, 0.5), "fontsize": "small"}
        axes.legend(**(beside if len(axes.get_legend_handles_labels()[1]) > 6 else {}))


@contextlib.contextmanager
def figure(path, figsize=(7, 4.5), **subplots):
    """The axes of a figure, saved as PNG at the end; for `subplots` see `pyplot.subplots`."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=figsize, **subplots)
    yield axes
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def versions():
    """Versions of what a result depends on, and the machine, as `{name: text}`."""
    import keras
    import numpy
    import tensorflow as tf

    return {
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "numpy": numpy.__version__,
        "revision": git_revision(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }


def git_revision():
    """The commit that is checked out, with `+changes` if the tree differs; `unknown` outside.

    What differs in `results/` is no change: it is what scripts write.
    """
    try:
        revision = _git("rev-parse", "--short", "HEAD")
        changes = _git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":!/results")
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return f"{revision}+changes" if changes else revision


def _git(*arguments):
    here = os.path.dirname(os.path.abspath(__file__))
    done = subprocess.run(
        ["git", *arguments], cwd=here, capture_output=True, text=True, check=True, timeout=10
    )
    return done.stdout.strip()


def provenance(module):
    """One line for the end of a result: the command that was given, versions and machine."""
    flags = [
        "--data_dir=DATA" if flag.startswith("--data_dir=") else flag
        for flag in sys.argv[1:]
        if not flag.startswith(("--output_dir=", "--only_report", "--part="))
    ]
    command = " ".join(["python -m", module, *flags])
    facts = ", ".join(f"{name} {value}" for name, value in versions().items())
    return f"`{command}` ({facts})"
