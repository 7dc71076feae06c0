"""Verdicts on claims: paired t intervals over the seeds.

A claim is fixed before its runs. It says that one training is better than another, or that they do
not differ by more than a margin. The interval is that of the mean difference, at 95 %, over the
seeds that both have.
"""

import dataclasses
import math
import statistics

CONFIRMED, CONTRADICTED, UNDECIDED = "confirmed", "contradicted", "undecided"
NOT_RUN = "not run"
_LEVEL = 0.95


def interval(values, level=_LEVEL):
    """The t interval of a mean: `(mean, half of the width)`; `inf` for one value.

    Example:

    >>> mean, half = interval([1.0, 2.0, 3.0])
    >>> f"{mean:.1f} ± {half:.2f}"
    '2.0 ± 2.48'
    """
    if len(values) < 2:
        return values[0], math.inf
    from scipy import stats

    wide = stats.t.ppf((1 + level) / 2, len(values) - 1)
    return statistics.mean(values), wide * statistics.stdev(values) / math.sqrt(len(values))


def prediction_interval(values, level=_LEVEL):
    """The interval in which one more value would lie: `(mean, half of the width)`."""
    mean, half = interval(values, level)
    return mean, half * math.sqrt(len(values) + 1)


def verdict(differences, margin=None):
    """What the interval of the mean difference says of a claim.

    Args:
        differences: List of numbers, one for each seed: of the better less the other.
        margin: `None` if the claim is that the mean difference is above 0. Else the claim is that
            it is between `-margin` and `margin`.

    Example:

    >>> verdict([0.5, 0.6, 0.7]), verdict([0.5, 0.6, 0.7], margin=0.3), verdict([-1.0, 1.0])
    ('confirmed', 'contradicted', 'undecided')
    """
    if not differences:
        return NOT_RUN
    mean, half = interval(differences)
    low, high = mean - half, mean + half
    below, above = (0, math.inf) if margin is None else (-margin, margin)
    if (low > below and high < above) or (margin is None and low > 0):
        return CONFIRMED
    return CONTRADICTED if high < below or low > above else UNDECIDED


def signed(differences, digits=2):
    """The mean difference with its interval, as text: `+0.60 ± 0.25`."""
    if not differences:
        return "–"
    mean, half = interval(differences)
    return f"{mean:+.{digits}f}" + (f" ± {half:.{digits}f}" if half < math.inf else ", one seed")


@dataclasses.dataclass(frozen=True)
class Claim:
    """That one training is better than another, or no different, at each sparsity of a table.

    Attributes:
        text: The claim, in a sentence.
        source: Where it is from.
        first, second: `(method, times as long)` of the trainings, as in the table.
        margin: See `verdict`, in percentage points.
        sparsities: Those it is about; all of the table if there are none.
    """

    text: str
    source: str
    first: tuple
    second: tuple
    margin: float | None = None
    sparsities: tuple = ()


def differences(values, first, second):
    """`first` less `second` for each seed that both have, a list in the order of the seeds.

    Args:
        values: `{series: {seed: number}}`.
        first, second: Keys of `values`; what is not there has no seeds.
    """
    both = sorted(values.get(first, {}).keys() & values.get(second, {}).keys())
    return [values[first][seed] - values[second][seed] for seed in both]
