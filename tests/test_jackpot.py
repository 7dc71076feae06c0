"""Tests of `lottery.judge_ticket` and `lottery.jackpot_protocol`, worked by hand."""

import numpy as np
import pytest

from rigl_tf import lottery


def judge(dense=92.0, ticket=92.0, random=90.0, small=90.0, sparsity=0.8, **others):
    return lottery.judge_ticket({0.1: (dense, ticket, random)}, sparsity, small, **others)


def held(verdict):
    return [condition.number for condition in verdict.conditions if condition.holds]


CASES = [
    # All as it should be.
    ({}, [1, 2, 3, 4, 5], "jackpot"),
    # Condition 1: a hard cut.
    ({"sparsity": 0.6}, [1, 2, 3, 4, 5], "jackpot"),
    ({"sparsity": 0.59}, [2, 3, 4, 5], "none"),
    ({"sparsity": 0.59, "min_sparsity": 0.5}, [1, 2, 3, 4, 5], "jackpot"),
    # Conditions 2 and 3: a gap of exactly .5 is not clear, whatever floats make of it.
    ({"ticket": 92.3, "small": 91.8}, [1, 3, 4, 5], "none"),
    ({"ticket": 92.3, "small": 91.79}, [1, 2, 3, 4, 5], "jackpot"),
    ({"ticket": 92.3, "random": 91.8}, [1, 2, 4, 5], "none"),
    ({"ticket": 92.3, "random": 91.79}, [1, 2, 3, 4, 5], "jackpot"),
    ({"ticket": 92.0, "random": 91.0, "clear": 1.0}, [1, 2, 4, 5], "none"),
    # Conditions 4 and 5: a drop of exactly .5 is still similar.
    ({"dense": 92.8, "ticket": 92.3}, [1, 2, 3, 4, 5], "jackpot"),
    ({"dense": 70.6, "ticket": 70.1, "random": 60, "small": 60}, [1, 2, 3, 4, 5], "jackpot"),
    ({"dense": 92.81, "ticket": 92.3}, [1, 2, 3], "none"),
    ({"dense": 93.5, "ticket": 92.0, "similar": 1.5}, [1, 2, 3, 4, 5], "jackpot"),
]


@pytest.mark.parametrize(("values", "holds", "name"), CASES)
def test_one_learning_rate(values, holds, name):
    verdict = judge(**values)
    assert held(verdict) == holds
    assert verdict.verdict == name


@pytest.mark.parametrize("tenth", range(500, 1000, 7))
def test_thresholds_are_exact_in_tenths(tenth):
    # In floats 50.1 - 49.6 is more than .5 and 57.1 - 56.6 is not.
    ticket, half_less = tenth / 10, (tenth - 5) / 10
    assert not judge(ticket=ticket, random=half_less).conditions[2].holds
    assert judge(dense=ticket, ticket=half_less).conditions[3].holds


def test_each_condition_has_a_learning_rate_of_its_own():
    # The small rate is as good as dense there (4), but not as the best dense (5): secondary.
    results = {0.1: (94.0, 91.0, 90.9), 0.01: (92.0, 91.9, 85.0)}
    verdict = lottery.judge_ticket(results, 0.9, 90.0)
    assert verdict.verdict == "secondary"
    values = [(c.value, c.margin, c.learning_rate) for c in verdict.conditions]
    assert values == [
        (0.9, 0.3, None),
        (1.9, 1.4, 0.01),  # 91.9 - 90
        (1.0, 0.5, 0.01),  # 91.9 - 90.9: the best reinitialised is at the other rate
        (-0.1, 0.4, 0.01),
        (-2.1, -1.6, 0.01),  # 91.9 - 94
    ]
    # Condition 4 at the rate where the ticket itself is worse.
    results = {0.1: (94.0, 93.0, 90.0), 0.01: (88.0, 88.0, 85.0)}
    verdict = lottery.judge_ticket(results, 0.9, 90.0)
    assert held(verdict) == [1, 2, 3, 4]
    assert verdict.conditions[3].learning_rate == 0.01
    # The best reinitialised at any rate takes the prize away.
    results[0.01] = (88.0, 88.0, 92.6)
    assert lottery.judge_ticket(results, 0.9, 90.0).verdict == "none"


def test_seeds_are_averaged():
    results = {0.1: ([92.0, 94.0], np.array([93.0, 92.0]), (90.0, 91.0))}
    verdict = lottery.judge_ticket(results, 0.9, [90.0, 91.0])
    assert [condition.value for condition in verdict.conditions] == [0.9, 2.0, 2.0, -0.5, -0.5]
    assert verdict.verdict == "jackpot"


def test_a_verdict_can_be_read():
    lines = str(judge(ticket=91.0)).splitlines()
    assert lines[0] == "none at sparsity 0.8"
    assert lines[1] == "1. yes  sparsity: 0.8 (must be >= 0.6; margin +0.2)"
    assert lines[3] == (
        "3. yes  ticket - best reinitialised, at learning rate 0.1: 1 (must be > 0.5; margin +0.5)"
    )
    assert lines[5] == (
        "5. no   ticket - best dense, at learning rate 0.1: -1 (must be >= -0.5; margin -0.5)"
    )


NONE = float("nan")
BAD = [
    ({"results": {}}, "one at least. Received: results={}"),
    ({"results": [(92, 92, 90)]}, "must map learning rates"),
    ({"results": {0.1: (92, 92)}}, r"must be three accuracies.*results\[0.1\]=\(92, 92\)"),
    ({"results": {0.1: 92}}, "must be three accuracies"),
    ({"results": {0.1: (92, NONE, 90)}}, r"from 0 to 100.*results\[0.1\]=nan"),
    ({"results": {0.1: (92, [], 90)}}, "from 0 to 100"),
    ({"results": {0.1: (92, "high", 90)}}, "from 0 to 100"),
    ({"results": {0.1: (92, 101, 90)}}, "from 0 to 100"),
    ({"results": {0.1: (0.92, 0.91, 0.9)}, "small_dense": 0.9}, "multiply them by 100"),
    ({"small_dense": None}, "Received: small_dense=None"),
    ({"sparsity": 1.0}, r"in \[0, 1\). Received: sparsity=1.0"),
    ({"sparsity": NONE}, r"in \[0, 1\). Received: sparsity=nan"),
    ({"min_sparsity": 60}, r"in \[0, 1\). Received: min_sparsity=60"),
    ({"similar": -0.5}, "`similar` must be a number >= 0"),
    ({"clear": NONE}, "`clear` must be a number >= 0"),
]


@pytest.mark.parametrize(("bad", "message"), BAD)
def test_bad_input_is_refused_in_a_sentence(bad, message):
    good = {"results": {0.1: (92, 92, 90)}, "sparsity": 0.9, "small_dense": 90}
    with pytest.raises(ValueError, match=message):
        lottery.judge_ticket(**{**good, **bad})
