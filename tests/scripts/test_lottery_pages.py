"""What the pages of the protocols share."""

import doctest

import numpy as np
import pytest

from scripts.lottery.pages import common


@pytest.mark.parametrize(
    ("outcomes", "says"),
    [
        ([True, True], "confirmed (2 of 2)"),
        ([False], "not confirmed (0 of 1)"),
        ([True, False], "confirmed in part (1 of 2)"),
        ([], "not run"),
    ],
)
def test_tally(outcomes, says):
    assert common.tally(outcomes) == says


@pytest.mark.parametrize(
    ("holds", "says"),
    [(np.True_, "confirmed (+1)"), (0, "not confirmed (+1)"), (None, "not testable here (+1)")],
)
def test_verdict(holds, says):
    assert common.verdict(holds, "+1") == says


def test_spread():
    assert common.spread([1.0, "", 3.0], 1) == "2.0 ± 1.4"
    assert common.spread([1.0, 3.0], sign="+") == "+2.00 ± 1.41"
    assert common.spread([2.0]) == "2.00"
    assert common.spread([]) == common.spread([""]) == "–"


def test_examples():
    result = doctest.testmod(common)
    assert result.failed == 0
    assert result.attempted >= 4
