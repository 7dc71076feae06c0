"""What the pages of the protocols share: finished rows, tables, and claims with our verdict."""

import statistics


def complete(rows, protocol_key, wanted):
    """The rows of those cases and seeds of which every run is done, with the flags as they are.

    Args:
        rows: List of dictionaries.
        protocol_key: Names of the columns that make a run; `case` and `seed` are among them.
        wanted: Function `wanted(case, seed)`, the runs.
    """
    done = {tuple(row[name] for name in protocol_key): row for row in rows}
    found = []
    for case, seed in dict.fromkeys((row["case"], row["seed"]) for row in rows):
        keys = [tuple(run[name] for name in protocol_key) for run in wanted(case, seed)]
        if all(key in done for key in keys):
            found += [done[key] for key in keys]
    return found


def spread(values, digits=2, sign=""):
    """Mean ± standard deviation; of one value itself alone."""
    mean = f"{statistics.mean(values):{sign}.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def table(head, rows):
    """The lines of a Markdown table."""
    lines = [f"| {' | '.join(map(str, cells))} |" for cells in (head, *rows)]
    return [lines[0], "|" + " --- |" * len(head), *lines[1:]]


def verdict(holds, seen):
    """`holds` is a Boolean, or `None` if that cannot be told; `seen` is what the verdict rests on.

    Example:

    >>> verdict(True, "+0.31")
    'confirmed (+0.31)'
    """
    name = {True: "confirmed", False: "not confirmed", None: "not testable here"}[
        holds if holds is None else bool(holds)
    ]
    return f"{name} ({seen})"
