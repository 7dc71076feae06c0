"""Means of results, tables in Markdown, and series of numbers as text in a column."""

import math
import statistics


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


def middle(rows, column):
    """The median of a column over the rows that have it; `nan` if none has."""
    found = [row[column] for row in rows if row.get(column) not in (None, "")]
    return statistics.median(found) if found else math.nan


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


def to_text(pairs):
    """A series of tuples of numbers in a column: `0:1.5 100:1.25`."""
    return " ".join(":".join(f"{number:.6g}" for number in pair) for pair in pairs)


def from_text(text):
    """The tuples of numbers of `to_text`."""
    return [tuple(map(float, pair.split(":"))) for pair in str(text).split()]
