"""What the pages share: choice of results, means and deviations, verdicts on claims."""

import pathlib
import statistics

from scripts.common import claims, experiments, tables, words

# What a page with verdicts says of them.
HOW = (
    f"{words.VERDICTS} In brackets is the mean of what is compared, with the interval: by how much "
    "the claim holds (below 0: does not hold). Where several comparisons are judged, each has an "
    "interval of its own, and in brackets are their verdicts: more than half of them must agree, "
    "or the claim is undecided, and fewer than all of them confirm or contradict it in part."
)


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


def judged(values, margin=None, digits=2):
    """What a page says of a claim: the verdict, and by how much the claim holds.

    Args:
        values: List of numbers, one for each seed: by how much the claim holds there, below 0 if it
            does not.
        margin: See `claims.verdict`.
        digits: Integer, digits after the point.

    Example:

    >>> judged([0.3, 0.3])
    'confirmed (+0.30 ± 0.00)'
    """
    if not values:
        return claims.NOT_RUN
    return f"{claims.verdict(values, margin)} ({claims.signed(values, digits)})"


def together(verdicts):
    """What a page says of a claim about several comparisons, each with a verdict of its own.

    It is confirmed or contradicted in part if more than half of the comparisons are.

    Args:
        verdicts: List of strings, those of `claims.verdict`.

    Example:

    >>> together(["confirmed", "undecided", "confirmed"])
    'confirmed in part (2 of 3 confirmed, 0 contradicted)'
    """
    verdicts = [each for each in verdicts if each != claims.NOT_RUN]
    total = len(verdicts)
    if not total:
        return claims.NOT_RUN
    counts = {name: verdicts.count(name) for name in (claims.CONFIRMED, claims.CONTRADICTED)}
    said = claims.UNDECIDED
    for name, count in counts.items():
        if 2 * count > total:
            said = name if count == total else f"{name} in part"
    confirmed, contradicted = counts.values()
    return f"{said} ({confirmed} of {total} confirmed, {contradicted} contradicted)"


def not_testable(why):
    """What a page says of a claim that cannot be told here."""
    return f"not testable here ({why})"


def claims_table(about, cases):
    """A table of claims and verdicts.

    Args:
        about: List of triples: the paper, the claim, a function that gets a case and returns the
            verdict.
        cases: `{name: case}`, a column each.
    """
    rows = [
        (paper, text, *(claim(found) for found in cases.values())) for paper, text, claim in about
    ]
    return tables.table(["paper", "claim", *cases], rows)
