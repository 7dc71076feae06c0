"""What the pages of the protocols share: which rows count, means, verdicts, series in a column."""

import statistics

from scripts.protocols import networks


def setting(case):
    """The columns of a row that follow from the flags."""
    return {"epochs": case.epochs, "examples": len(networks.data_of(case).x_train)}


def current(rows, cases):
    """The rows whose epochs and examples are those of the flags; `cases` is `{name: Case}`."""
    found = []
    for name in {row["case"] for row in rows} & cases.keys():
        columns = setting(cases[name])
        found += [
            row
            for row in rows
            if row["case"] == name and all(row[key] == columns[key] for key in columns)
        ]
    return sorted(found, key=lambda row: (list(cases).index(row["case"]), row["seed"]))


def spread(values, digits=2):
    """Mean ± standard deviation of those values that there are, as text."""
    values = [value for value in values if value not in ("", None)]
    if not values:
        return "–"
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.{digits}f} ± {deviation:.{digits}f}"


def verdict(outcomes):
    """What to say of a claim that was true or not in each of some comparisons."""
    outcomes = list(outcomes)
    if not outcomes:
        return "not run"
    count = sum(map(bool, outcomes))
    text = {len(outcomes): "confirmed", 0: "not confirmed"}.get(count, "confirmed in part")
    return f"{text} ({count} of {len(outcomes)})"


def to_text(pairs):
    """A series of tuples of numbers in a column: `0:1.5 100:1.25`."""
    return " ".join(":".join(f"{number:.6g}" for number in pair) for pair in pairs)


def from_text(text):
    """The tuples of numbers of `to_text`."""
    return [tuple(map(float, pair.split(":"))) for pair in str(text).split()]
