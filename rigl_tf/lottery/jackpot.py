"""Judges whether a ticket is a winner, by the five conditions of Ma et al.

Reference:

- [Ma et al., 2021](https://arxiv.org/abs/2107.00166), "Sanity Checks for Lottery Tickets: Does Your
  Winning Ticket Really Win the Jackpot?", sections 2.2 and 3
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from typing import Any

import numpy as np

from rigl_tf import distributions
from rigl_tf.checks import check_numbers, is_integer, is_number
from rigl_tf.lottery.run import check_percent


@dataclasses.dataclass(frozen=True)
class Condition:
    """One of the five conditions.

    Attributes:
        number: Integer, 1 to 5, as in the paper.
        text: String, the meaning of `value`.
        value: Float, the highest value over the learning rates.
        threshold: Float. The condition holds if `value` is above it, or equal if not `strict`.
        strict: Boolean, whether `value` must be above the threshold.
        learning_rate: The learning rate of `value`, or `None` if it does not depend on it.
    """

    number: int
    text: str
    value: float
    threshold: float
    strict: bool
    learning_rate: Any = None

    @property
    def holds(self) -> bool:
        """Whether the condition holds."""
        return self.margin > 0 or (self.margin == 0 and not self.strict)

    @property
    def margin(self) -> float:
        """The distance of `value` from the threshold, below 0 if the condition does not hold."""
        return _difference(self.value, self.threshold)

    def __str__(self):
        at = "" if self.learning_rate is None else f", at learning rate {self.learning_rate}"
        return (
            f"{self.number}. {'yes' if self.holds else 'no '}  {self.text}{at}: {self.value:.4g} "
            f"(must be {'>' if self.strict else '>='} {self.threshold:g}; "
            f"margin {self.margin:+.4g})"
        )


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The result of `judge_ticket`; `print` shows the conditions with their margins.

    Attributes:
        verdict: String: `"jackpot"`, `"secondary"` or `"none"`.
        sparsity: Float, the sparsity of the ticket.
        conditions: The five `Condition`s in their order, with `holds`, `value` and `margin`.
    """

    verdict: str
    sparsity: float
    conditions: tuple[Condition, ...]

    def __str__(self):
        lines = [f"{self.verdict} at sparsity {self.sparsity:.4g}", *map(str, self.conditions)]
        return "\n".join(lines)


def judge_ticket(
    results: Mapping[float, Sequence[Any]],
    sparsity: float,
    small_dense: float | Sequence[float],
    similar: float = 0.5,
    clear: float = 0.5,
    min_sparsity: float = 0.6,
) -> Verdict:
    """Decides whether a ticket wins the jackpot, the secondary prize or nothing.

    There are five conditions:

    1. The sparsity is not trivial: at least `min_sparsity`.
    2. The ticket is clearly better than the small dense network.
    3. The ticket is clearly better than the reinitialised network at any learning rate.
    4. The ticket is similar to the dense network at the same learning rate, or better.
    5. The ticket is similar to the best dense network, or better.

    If all five hold, it is the jackpot; without the last one, it is the secondary prize. Each
    condition may hold at a different learning rate. A drop of exactly `similar` is still similar; a
    gap of exactly `clear` is not clear yet. Make sure that all networks were trained long enough.

    Args:
        results: `{learning rate: (dense, ticket, random reinitialisation)}`, the test accuracies in
            percent. Each is a number, or a list with a number for each seed, whose mean is used.
        sparsity: Share of zeros of the ticket, in `[0, 1)`.
        small_dense: Accuracy in percent (or a list with one for each seed) of the dense network
            with as many parameters as the ticket, at its best learning rate.
        similar: Number >= 0, in percentage points. The paper uses 0.5 for CIFAR-10, 1 for CIFAR-100
            and Tiny-ImageNet, and 1.5 for ImageNet.
        clear: Number >= 0, in percentage points. The paper uses 0.5 for condition 3 and gives no
            number for condition 2; here both use the same number.
        min_sparsity: Number in `[0, 1)`. The paper says about 60 %.

    Returns:
        A `Verdict`, with `verdict` and `conditions`.

    Raises:
        ValueError: If there are no results, an argument is out of its range, or all accuracies of
            `results` or `small_dense` are at most 1, so that they are probably not in percent.

    Example:

    >>> results = {0.1: (92.3, 87.3, 87.2), 0.005: (89.6, 89.4, 82.9)}
    >>> judge_ticket(results, sparsity=0.914, small_dense=86.0).verdict
    'secondary'
    """
    results = _check_results(results)
    small = _mean("small_dense", small_dense)
    check_percent([value for row in results.values() for value in row])
    check_percent([small], "Those of `small_dense`")
    check_thresholds(similar, clear, min_sparsity)
    sparsity = distributions.check_sparsity(sparsity)
    return decide(results, sparsity, small, similar, clear, min_sparsity)


def decide(results, sparsity, small, similar, clear, min_sparsity):
    """The `Verdict` for means over seeds, without checks; see `judge_ticket`."""
    dense, ticket, random = zip(*results.values(), strict=True)
    rates = list(results)
    best = int(np.argmax(ticket))
    gaps = [_difference(a, b) for a, b in zip(ticket, dense, strict=True)]
    closest = int(np.argmax(gaps))

    def compared(number, text, other, threshold, strict):
        value = _difference(ticket[best], other)
        return Condition(number, text, value, threshold, strict, rates[best])

    conditions = (
        Condition(1, "sparsity", sparsity, float(min_sparsity), False),
        compared(2, "ticket - small dense", small, clear, True),
        compared(3, "ticket - best reinitialised", max(random), clear, True),
        Condition(
            4, "ticket - dense of the same rate", gaps[closest], -similar, False, rates[closest]
        ),
        compared(5, "ticket - best dense", max(dense), -similar, False),
    )
    return Verdict(_name(conditions), sparsity, conditions)


def _name(conditions):
    *first_four, fifth = [condition.holds for condition in conditions]
    if not all(first_four):
        return "none"
    return "jackpot" if fifth else "secondary"


def _difference(a, b):
    # 92.3 - 92.0 must be 0.3; in floats it is 0.29999999999999716.
    return round(a - b, 9)


def _check_results(results):
    if not isinstance(results, Mapping) or not results:
        raise ValueError(
            "`results` must map at least one learning rate to (dense, ticket, random "
            f"reinitialisation). Received: results={results!r}"
        )
    for rate, row in results.items():
        if not isinstance(row, (tuple, list, np.ndarray)) or len(row) != 3:
            raise ValueError(
                "Each of `results` must be three accuracies, (dense, ticket, random "
                f"reinitialisation). Received: results[{rate!r}]={row!r}"
            )
    return {
        rate: tuple(_mean(f"results[{rate!r}]", value) for value in row)
        for rate, row in results.items()
    }


def _mean(name, accuracy):
    """The mean over seeds."""
    try:
        values = np.asarray(accuracy, dtype=float)
    except (TypeError, ValueError):
        values = np.array(math.nan)
    in_range = values.ndim <= 1 and values.size and ((values >= 0) & (values <= 100)).all()
    if not in_range:
        raise ValueError(
            "An accuracy must be a number from 0 to 100, in percent, or a list of such numbers, "
            f"one for each seed. Received: {name}={accuracy!r}"
        )
    return float(values.mean())


def check_thresholds(similar, clear, min_sparsity):
    """Raises a `ValueError` unless these are arguments for `judge_ticket`."""
    check_numbers("[0, inf)", similar=similar, clear=clear)
    distributions.check_sparsity(min_sparsity, "min_sparsity")


def check_different(name, values, kind):
    """`values` as a list; a `ValueError` unless they are different numbers >= 0 of this kind.

    Example:

    >>> check_different("seeds", 3, Integral)
    Traceback (most recent call last):
        ...
    ValueError: `seeds` must be different integers >= 0, one at least. Received: seeds=3
    """
    listed = list(values) if isinstance(values, Iterable) else []
    is_right = is_integer if kind is Integral else is_number
    are_right = all(is_right(value) and value >= 0 for value in listed)
    if not listed or not are_right or len(set(listed)) < len(listed):
        rule = "integers" if kind is Integral else "numbers"
        raise ValueError(
            f"`{name}` must be different {rule} >= 0, one at least. Received: {name}={values!r}"
        )
    return list(map(int, listed)) if kind is Integral else listed
