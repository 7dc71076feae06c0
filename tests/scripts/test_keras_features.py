"""The features of Keras, each on one device and on two replicas."""

import dataclasses
import functools
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from scripts.checks import keras_features as features
from scripts.checks.keras_features import run
from scripts.common.rows import Rows

# The others run with `pytest -m slow`; each takes seconds.
QUICK_ON_TWO_REPLICAS = {
    "`use_ema=True`",
    "`LossScaleOptimizer` around, as `compile` does under `mixed_float16`",
    "a sparse `Embedding` (`tf.IndexedSlices`)",
    "`gradient_accumulation_steps=2`",
    "`use_ema=True`, `ema_overwrite_frequency=2`",
    "`steps_per_execution=2`",
}
SLOW = pytest.mark.slow
TABLE = pathlib.Path(__file__).parents[2] / "results" / "keras_features.csv"
LIMITED = ("refused, as Keras itself fails", "fails, as Keras itself fails")


def one_device():
    return tf.distribute.get_strategy()


@pytest.fixture(scope="module")
def mirrored():
    return run.two_replicas()


def by_name(chosen, built_in_fit=()):
    return [
        pytest.param(
            feature,
            id=feature.name.replace("`", ""),
            marks=[pytest.mark.built_in_fit] if feature in built_in_fit else [],
        )
        for feature in chosen
    ]


def slow_but(names, chosen):
    """Parameters; those of other names are slow."""
    params = by_name(chosen)
    return [
        param if feature.name in names else pytest.param(*param.values, id=param.id, marks=SLOW)
        for param, feature in zip(params, chosen, strict=True)
    ]


@functools.cache
def of_one_device(name):
    """What a feature gives on one device; both tests need it."""
    (feature,) = [each for each in features.FEATURES if each.name == name]
    return run.run(feature, one_device())


@pytest.mark.parametrize("feature", by_name(features.FEATURES, features.TRAINING))
def test_one_device(feature):
    of_one_device(feature.name)


@pytest.mark.parametrize("feature", slow_but(QUICK_ON_TWO_REPLICAS, features.FEATURES))
def test_two_replicas(feature, mirrored):
    if feature.limit:
        with pytest.raises(Exception) as caught:
            run.run(feature, mirrored)
        assert feature.limit in run.described(caught.value)
        with pytest.raises((RuntimeError, tf.errors.InvalidArgumentError)):
            run.run(feature, mirrored, sparse=False)
        return
    got = run.run(feature, mirrored)
    if not feature.differs:
        want = of_one_device(feature.name)
        run.assert_same(got, want, run.tolerance(feature))


def test_the_table_in_results_is_of_this_list():
    rows = Rows(TABLE, ("feature",))
    for feature in features.FEATURES:
        (row,) = [row for row in rows.rows if row["feature"] == feature.name]
        assert row["one device"] == "holds"
        as_one = "holds" if feature.differs else "holds, as one device"
        assert row["two replicas"].startswith(LIMITED if feature.limit else as_one)
    assert "**" not in TABLE.read_text()


def test_the_table_tells_what_was_seen():
    """What does not hold is not called so: here, a feature whose check fails."""

    def check(model, watch):
        raise AssertionError("the sky is falling")

    feature = features.Feature("a", check=check, compile={"run_eagerly": True})
    row = run.row(feature, one_device())
    assert row["one device"] == "**fails**: AssertionError: the sky is falling"
    # The dense model has no masks to check: it is not Keras that fails.
    assert row["two replicas"] == "**fails**: AssertionError: the sky is falling"


def test_watch_sees_a_kernel_that_is_not_sparse():
    def spoil(model, watch, directory):
        features.fit(model, watch, directory, epochs=1)
        model.layers[0].layer.kernel.assign(np.ones((6, 8)))

    feature = features.Feature("a", train=spoil, compile={"run_eagerly": True})
    with pytest.raises(AssertionError):
        run.run(feature, one_device())


@pytest.mark.parametrize("feature", by_name(features.SEEDED))
def test_two_runs_with_one_seed_are_equal(feature):
    feature = dataclasses.replace(feature, compile={"run_eagerly": True})
    runs = [run.run(feature, one_device()) for _ in range(2)]
    run.assert_same(*runs, tolerance=0)


@pytest.mark.slow
def test_op_determinism():
    """In a process of its own, because it cannot be switched off."""
    command = [sys.executable, "-m", "scripts.checks.keras_features.run", "--determinism"]
    subprocess.run(command, check=True)
