"""Code that the pages share: choice of results, means and deviations, verdicts on claims."""

import pathlib
import statistics

from scripts.common import experiments, tables


def write(protocol, page, rows):
    """Writes the page and the plot of a protocol.

    Args:
        protocol: Module of `scripts.lottery`.
        page: Module of `scripts.lottery.pages`, with `lines(rows)` and `plot(rows, path)`.
        rows: List of dictionaries, the rows of finished runs.
    """
    rows = complete(rows, protocol)
    experiments.write_page(protocol.NAME, page.lines(rows), "scripts.lottery")
    if rows:
        page.plot(rows, pathlib.Path(experiments.FLAGS.output_dir) / f"{protocol.NAME}.png")


def complete(rows, protocol):
    """The rows of those cases and seeds of which every run is done, with the flags as they are."""
    done = {tuple(row[name] for name in protocol.KEY): row for row in rows}
    found = []
    for case in protocol.CASES:
        for seed in sorted({row["seed"] for row in rows if row["case"] == case}):
            keys = [
                tuple(run[name] for name in protocol.KEY) for run in protocol.wanted(case, seed)
            ]
            if all(key in done for key in keys):
                found += [done[key] for key in keys]
    return found


def by_case(rows):
    """`{case: its rows}`, in the order of the rows.

    Example:

    >>> by_case([{"case": "a", "seed": 0}, {"case": "b", "seed": 0}])
    {'a': [{'case': 'a', 'seed': 0}], 'b': [{'case': 'b', 'seed': 0}]}
    """
    found = {}
    for row in rows:
        found.setdefault(row["case"], []).append(row)
    return found


def seeds(rows):
    """The seeds of the rows, as text; of each case, if they are not the same.

    Example:

    >>> seeds([{"case": "a", "seed": 0}, {"case": "a", "seed": 1}, {"case": "b", "seed": 0}])
    '[0, 1] (a), [0] (b)'
    """
    found, cases = {}, {}
    for row in rows:
        found.setdefault(row["case"], set()).add(row["seed"])
    for case, of_case in found.items():
        cases.setdefault(str(sorted(of_case)), []).append(case)
    if len(cases) > 1:
        return ", ".join(f"{text} ({', '.join(of_text)})" for text, of_text in cases.items())
    return next(iter(cases), "[]")


def spread(values, digits=2, sign=""):
    """Mean ± standard deviation, without values that are missing; one value as it is."""
    values = [value for value in values if value not in ("", None)]
    if not values:
        return "–"
    mean = f"{statistics.mean(values):{sign}.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def verdict(holds, seen):
    """What a page says of a claim.

    Args:
        holds: Whether the claim is true; `None` if that cannot be told here.
        seen: String, what the verdict rests on.

    Example:

    >>> verdict(True, "+0.31")
    'confirmed (+0.31)'
    """
    name = {True: "confirmed", False: "not confirmed", None: "not testable here"}[
        holds if holds is None else bool(holds)
    ]
    return f"{name} ({seen})"


def tally(outcomes):
    """What a page says of a claim that was compared several times.

    Args:
        outcomes: For each comparison whether the claim was true; `None` for one that was not run.

    Example:

    >>> tally([True, False, True])
    'confirmed in part (2 of 3)'
    """
    outcomes = [outcome for outcome in outcomes if outcome is not None]
    if not outcomes:
        return "not run"
    count = sum(map(bool, outcomes))
    text = {len(outcomes): "confirmed", 0: "not confirmed"}.get(count, "confirmed in part")
    return f"{text} ({count} of {len(outcomes)})"


def claims_table(claims, cases):
    """A table of claims and verdicts.

    Args:
        claims: List of triples: the paper, the claim, a function that gets a case and returns the
            verdict.
        cases: `{name: case}`, a column each.
    """
    rows = [
        (paper, text, *(claim(found) for found in cases.values())) for paper, text, claim in claims
    ]
    return tables.table(["paper", "claim", *cases], rows)
