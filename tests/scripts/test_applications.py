"""Every family of `keras.applications`, by the function that makes the table in `results/`."""

import gc
import pathlib
import re

import keras
import numpy as np
import pytest
from running import run

import rigl_tf
from scripts.checks import applications

RESULTS = pathlib.Path(__file__).parents[2] / "results"
# Cheap, and with depthwise convolutions, operations that are no layers, and squeeze-and-excitation.
QUICK = ("MobileNetV3Small",)


def family_of(name):
    """The module that the builder of a model comes from."""
    return getattr(keras.applications, name).__module__.rpartition(".")[2]


def test_every_family_is_listed():
    exported = [name for name in dir(keras.applications) if name[0].isupper()]
    assert {family_of(name) for name in applications.FAMILIES} == set(map(family_of, exported))
    assert len(set(map(family_of, exported))) >= 15
    assert set(QUICK) < set(applications.FAMILIES)


@pytest.fixture
def free_memory():
    yield
    gc.collect()  # Models are parts of cycles: those of all families together are 15 GB.


@pytest.mark.parametrize(
    "name",
    [
        name if name in QUICK else pytest.param(name, marks=pytest.mark.slow)
        for name in applications.FAMILIES
    ],
)
def test_family(name, free_memory):
    row = applications.check_family(name)
    assert row["sparse_kernels"] > 0
    assert 0.8995 < row["sparsity"] <= 0.9
    assert 0.1 < row["flops_ratio"] < 0.6
    # All other matrices are sparse.
    assert re.fullmatch(r"(\d+ depthwise)?", row["skipped"])


def dense_net():
    inputs = keras.Input((4,), name="inputs")
    x = keras.layers.Dense(16, name="first")(inputs)
    x = keras.layers.BatchNormalization(name="norm")(x)
    return keras.Model(inputs, keras.layers.Dense(10, name="second")(x))


def test_the_checks_can_fail():
    dense = dense_net()
    dense_outline, dense_weights = applications.outline(dense), dense.get_weights()
    sparse = rigl_tf.sparsify(dense, 0.9)
    applications.check_taken_over(sparse, dense_weights)
    applications.check_counts(sparse)
    assert applications.outline(sparse) != dense_outline
    stripped = rigl_tf.strip(rigl_tf.sparsify(dense_net(), 0.9))
    assert applications.outline(stripped) == dense_outline

    kernel = sparse.get_layer("first").layer.kernel
    kernel.assign(np.ones(kernel.shape))
    with pytest.raises(AssertionError, match="first/kernel"):
        applications.check_taken_over(sparse, dense_weights)
    with pytest.raises(AssertionError, match="first/kernel"):
        applications.check_counts(sparse)
    (path, mask), *_ = rigl_tf.get_masks(sparse).items()
    mask.flat[np.flatnonzero(mask)[0]] = False
    rigl_tf.set_masks(sparse, {path: mask})
    with pytest.raises(AssertionError, match="first/kernel"):
        applications.check_counts(sparse)
    sparse.get_layer("second").layer.kernel.assign(np.full((16, 10), np.nan))
    with pytest.raises(AssertionError, match="finite"):
        applications.predict(sparse, np.ones((2, 4)))


def test_the_table_has_a_row_for_each_family(tmp_path):
    rows = (RESULTS / "applications.csv").read_text()
    (tmp_path / "applications.csv").write_text(rows)
    run(applications, f"--output_dir={tmp_path}")
    # All families have their row, so none is tried again; the table is that of the rows.
    assert (tmp_path / "applications.csv").read_text() == rows
    *table, _ = (tmp_path / "applications.md").read_text().splitlines()
    *expected, _ = (RESULTS / "applications.md").read_text().splitlines()
    assert table == expected
    names = [line.split(" | ")[0] for line in table if line.startswith("| ")]
    assert names == ["| model", "| ---", *(f"| {name}" for name in applications.FAMILIES)]
