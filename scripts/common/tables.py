"""Means of results, tables in Markdown, and lists of numbers as the text of a column."""

import math
import statistics


def means(rows, series, x, y):
    """`{(series value, x value): (mean, standard deviation, number of rows)}`.

    It is the sample standard deviation; 0 for a single row.
    """
    groups = {}
    for row in rows:
        groups.setdefault((row[series], row[x]), []).append(row[y])
    return {
        key: (statistics.mean(v), statistics.stdev(v) if len(v) > 1 else 0.0, len(v))
        for key, v in groups.items()
    }


def middle(rows, column):
    """The median of a column over the rows that have it; `nan` if there is none."""
    found = [row[column] for row in rows if row.get(column) not in (None, "")]
    return statistics.median(found) if found else math.nan


def table(head, rows):
    """The lines of a Markdown table."""
    lines = [f"| {' | '.join(map(_cell, cells))} |" for cells in (head, *rows)]
    return [lines[0], "|" + " --- |" * len(head), *lines[1:]]


def _cell(value):
    # A line, or a bar, would end the cell.
    return " ".join(str(value).splitlines()).replace("|", r"\|")


def with_spread(value, digits=2):
    """A value of `means` as text: mean ± standard deviation, or only the mean; – for `None`.

    Example:

    >>> with_spread((1.5, 0.25, 3)), with_spread((1.5, 0.0, 1))
    ('1.50 ± 0.25', '1.50')
    """
    if value is None:
        return "–"
    mean, deviation, number = value
    return f"{mean:.{digits}f}" + (f" ± {deviation:.{digits}f}" if number > 1 else "")


def mean_table(rows, series, x, y, order):
    """A Markdown table of mean ± standard deviation: a row per series, a column per x."""
    values = means(rows, series, x, y)
    columns = sorted({key[1] for key in values})
    lines = []
    for name in order:
        cells = [values.get((name, column)) for column in columns]
        if any(cells):
            lines.append([name, *map(with_spread, cells)])
    return "\n".join(table([series, *(f"{x} {column:g}" for column in columns)], lines))


def to_text(pairs):
    """Writes a list of tuples of numbers as the text of a column: `0:1.5 100:1.25`."""
    return " ".join(":".join(f"{number:.6g}" for number in pair) for pair in pairs)


def from_text(text):
    """Reads the tuples of numbers that `to_text` wrote."""
    return [tuple(map(float, pair.split(":"))) for pair in str(text).split()]
