"""Tests of `rigl_tf.schedules`."""

import keras
import numpy as np
import pytest
import reference
import tensorflow as tf

from rigl_tf import schedules


@pytest.mark.parametrize("as_tensor", [False, True])
@pytest.mark.parametrize(
    ("begin", "end", "frequency", "want"),
    [
        (0, 11, 3, [3, 6, 9]),  # never at step 0
        (2, 11, 3, [2, 5, 8]),  # counted from `begin_step`
        (1, 4, 1, [1, 2, 3]),  # never at `end_step`
        (5, 20, 100, [5]),
        (0, 20, 100, []),
        (0, 1, 1, []),
    ],
)
def test_update_steps_by_hand(begin, end, frequency, want, as_tensor):
    steps = [tf.constant(t, tf.int64) if as_tensor else t for t in range(20)]
    got = [int(t) for t in steps if schedules.is_update_step(t, begin, end, frequency)]
    assert got == want


def test_update_steps_are_the_reference():
    rng = np.random.default_rng(0)
    for _ in range(200):
        begin = int(rng.integers(0, 10))
        end = begin + int(rng.integers(1, 30))
        frequency = int(rng.integers(1, 12))
        for t in range(45):
            want = reference.is_update_step(t, begin, end, frequency)
            assert schedules.is_update_step(t, begin, end, frequency) == want


def test_cosine_by_hand():
    # Half of a cosine from 0.4 to 0: the middle is 0.2, a third is 0.4 / 2 * (1 + 1/2) = 0.3.
    schedule = schedules.CosineDropFraction(0.4, begin_step=10, end_step=40)
    got = [float(schedule(step)) for step in (10, 20, 25, 30, 40)]
    np.testing.assert_allclose(got, [0.4, 0.3, 0.2, 0.1, 0.0], atol=1e-7)


def test_cosine_is_flat_outside():
    schedule = schedules.CosineDropFraction(0.4, begin_step=10, end_step=40)
    assert float(schedule(0)) == pytest.approx(0.4)
    assert float(schedule(1000)) == pytest.approx(0.0, abs=1e-7)


@pytest.mark.parametrize(("begin", "end"), [(0, 100), (37, 1037)])
def test_cosine_is_the_reference(begin, end):
    schedule = schedules.CosineDropFraction(0.3, begin, end)
    for step in range(begin, end + 1, 7):
        want = reference.cosine_drop_fraction(step, begin, end, 0.3)
        assert float(schedule(tf.constant(step, tf.int64))) == pytest.approx(want, abs=1e-6)


def test_power_by_hand():
    # 0.4 * (1 - p) ** 2 at p = 0, 1/2, 1, and beyond.
    schedule = schedules.PowerDropFraction(0.4, begin_step=10, end_step=30, power=2)
    got = [float(schedule(step)) for step in (0, 10, 20, 30, 50)]
    np.testing.assert_allclose(got, [0.4, 0.4, 0.1, 0.0, 0.0], atol=1e-7)


def test_shares_that_do_not_fall_below_a_minimum():
    # What is above 0.1 is annealed: 0.3 at the beginning, half of it, or a quarter, in the middle.
    cosine = schedules.CosineDropFraction(0.4, begin_step=10, end_step=30, minimum=0.1)
    got = [float(cosine(step)) for step in (0, 10, 20, 30, 50)]
    np.testing.assert_allclose(got, [0.4, 0.4, 0.25, 0.1, 0.1], atol=1e-7)
    power = schedules.PowerDropFraction(0.4, begin_step=10, end_step=30, power=2, minimum=0.1)
    got = [float(power(step)) for step in (0, 10, 20, 30, 50)]
    np.testing.assert_allclose(got, [0.4, 0.4, 0.175, 0.1, 0.1], atol=1e-7)


def test_in_proportion_to_the_learning_rate():
    rate = keras.optimizers.schedules.PiecewiseConstantDecay([5, 10], [0.2, 0.1, 1.0])
    schedule = schedules.LearningRateDropFraction(0.3, rate)
    got = [float(schedule(step)) for step in (0, 7, 20)]
    np.testing.assert_allclose(got, [0.3, 0.15, 1.0], rtol=1e-6)  # not 1.5


@pytest.mark.parametrize(
    "schedule",
    [
        schedules.CosineDropFraction(0.3, 5, 50),
        schedules.PowerDropFraction(0.3, 5, 50, power=3),
        schedules.CosineDropFraction(0.3, 5, 50, minimum=0.05),
        schedules.PowerDropFraction(0.3, 5, 50, power=2, minimum=0.05),
        schedules.ConstantDropFraction(0.3),
        schedules.LearningRateDropFraction(0.3, keras.optimizers.schedules.CosineDecay(0.1, 50)),
    ],
)
def test_config_round_trip(schedule):
    config = keras.saving.serialize_keras_object(schedule)
    copy = keras.saving.deserialize_keras_object(config)
    assert [float(copy(t)) for t in range(60)] == [float(schedule(t)) for t in range(60)]
    assert schedules.drop_fraction_schedule(schedule, 0, 10) is schedule


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: schedules.PowerDropFraction(0.3, 0, 10, power=0), "power=0"),
        (lambda: schedules.CosineDropFraction(0.3, 0, 10, minimum=0.4), "minimum=0.4"),
        (lambda: schedules.PowerDropFraction(0.3, 0, 10, minimum=-0.1), "minimum=-0.1"),
        (lambda: schedules.PowerDropFraction(0.3, 10, 10), "begin_step=10, end_step=10"),
        (lambda: schedules.ConstantDropFraction(1.5), "drop_fraction=1.5"),
        (lambda: schedules.LearningRateDropFraction(0.3, 0.1), "learning_rate=0.1"),
        (
            lambda: schedules.LearningRateDropFraction(
                0.3, keras.optimizers.schedules.PolynomialDecay(0.0, 10)
            ),
            r"learning_rate\(0\)=0.0",
        ),
    ],
)
def test_bad_schedules(make, message):
    with pytest.raises(ValueError, match=f"Received: {message}"):
        make()


@pytest.mark.parametrize(
    "fraction", [-0.1, 1.5, "x", None, float("nan"), True, schedules.CosineDropFraction]
)
def test_bad_drop_fraction(fraction):
    with pytest.raises(ValueError, match="`drop_fraction` must be a number"):
        schedules.drop_fraction_schedule(fraction, 0, 10)


def test_a_callable_drop_fraction_is_taken_as_it_is():
    constant = keras.optimizers.schedules.PiecewiseConstantDecay([5], [0.3, 0.1])
    assert schedules.drop_fraction_schedule(constant, 0, 10) is constant
    assert isinstance(schedules.drop_fraction_schedule(0.3, 0, 10), schedules.CosineDropFraction)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((5, 5, 1), "`end_step` must be greater"),
        ((7, 5, 1), "`end_step` must be greater"),
        ((-1, 5, 1), "begin_step=-1"),
        ((0, 5, 0), "update_frequency=0"),
        ((0, 5, -2), "update_frequency=-2"),
        ((0, 5.0, 1), "end_step=5.0"),
        ((True, 5, 1), "begin_step=True"),
        ((0, "5", 1), "end_step='5'"),
        ((0, None, 1), "end_step=None"),
    ],
)
def test_bad_steps(arguments, message):
    with pytest.raises(ValueError, match=message):
        schedules.check_update_steps(*arguments)


def test_numpy_integers_are_integers():
    schedules.check_update_steps(np.int64(0), np.int32(5), np.int64(1))


@pytest.mark.parametrize(
    ("arguments", "first"), [((0, 75, 100), 100), ((0, 100, 100), 100), ((0, 1, 1), 1)]
)
def test_no_update_at_all(arguments, first):
    message = f"the first would be at step {first}. Received: begin_step=0, end_step={arguments[1]}"
    with pytest.raises(ValueError, match=message):
        schedules.check_any_update(*arguments)


def test_an_update_at_the_last_moment():
    schedules.check_any_update(0, 101, 100)
    schedules.check_any_update(5, 6, 100)
