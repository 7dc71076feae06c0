"""What the pages of the protocols share."""

import doctest

import pytest

from scripts.common import claims
from scripts.lottery.pages import common


@pytest.mark.parametrize(
    ("letters", "says"),
    [
        ("++", "confirmed (2 of 2 confirmed, 0 contradicted)"),
        ("++-", "confirmed in part (2 of 3 confirmed, 1 contradicted)"),
        ("+-", "undecided (1 of 2 confirmed, 1 contradicted)"),
        ("+?", "undecided (1 of 2 confirmed, 0 contradicted)"),
        ("?--", "contradicted in part (0 of 3 confirmed, 2 contradicted)"),
        ("- ", "contradicted (0 of 1 confirmed, 1 contradicted)"),
        ("??", "undecided (0 of 2 confirmed, 0 contradicted)"),
        (" ", "not run"),
    ],
)
def test_together(letters, says):
    names = {"+": claims.CONFIRMED, "-": claims.CONTRADICTED, "?": claims.UNDECIDED}
    assert common.together([names.get(each, claims.NOT_RUN) for each in letters]) == says


@pytest.mark.parametrize(
    ("values", "arguments", "says"),
    [
        ([0.3, 0.3], {}, "confirmed (+0.30 ± 0.00)"),
        # t(1) = 12.71 for 95 %, a deviation of 0.1 over the root of 2.
        ([-1.0, -1.1414], {"digits": 1}, "contradicted (-1.1 ± 0.9)"),
        ([0.3], {}, "undecided (+0.30, one seed)"),
        ([0.0, 0.02], {"margin": 0.2}, "confirmed (+0.01 ± 0.13)"),
        ([], {}, "not run"),
    ],
)
def test_judged(values, arguments, says):
    assert common.judged(values, **arguments) == says


def test_spread():
    assert common.spread([1.0, "", 3.0], 1) == "2.0 ± 1.4"
    assert common.spread([1.0, 3.0], sign="+") == "+2.00 ± 1.41"
    assert common.spread([2.0]) == "2.00"
    assert common.spread([]) == common.spread([""]) == "–"


def test_examples():
    result = doctest.testmod(common)
    assert result.failed == 0
    assert result.attempted >= 4
