"""Tests of `rigl_tf.analysis.similarity`, on kernels whose largest weights are seen at a glance."""

import keras
import numpy as np
import pytest

import rigl_tf
from rigl_tf import analysis

layers = keras.layers


def correlation(a, b, p, **arguments):
    """Of one kernel."""
    return analysis.weight_correlation({"k": np.array(a)}, {"k": np.array(b)}, p, **arguments)


def test_one_kernel():
    # The two largest of five: {0, 1} and {0, 2}.
    got = correlation([5.0, 4, 3, 2, 1], [-5.0, 1, 6, 2, 1], 0.4)
    assert (got.total, got.layers, got.chance) == (0.5, {"k": 0.5}, pytest.approx(0.4))
    # Rounded to 2 at 0.3, too: by chance 2 / 5 of them.
    assert correlation([5.0, 4, 3, 2, 1], [-5.0, 1, 6, 2, 1], 0.3).chance == pytest.approx(0.4)
    # One at least.
    assert correlation([1.0, 2, 3], [3.0, 2, 4], 0.01).total == 1


def test_several_kernels():
    one = {"a": np.arange(1.0, 11).reshape(2, 5), "b": np.array([1.0, 2, 3, 4, 5])}
    other = {"a": np.arange(11.0, 21).reshape(2, 5), "b": np.array([5.0, 4, 3, 2, 1])}
    got = analysis.weight_correlation(one, other)
    # Two of ten, both common; one of five, not common.
    assert got.layers == {"a": 1.0, "b": 0.0}
    assert got.total == pytest.approx(2 / 3)
    assert got.chance == pytest.approx(0.2)
    assert str(got).splitlines() == [
        "| kernel | correlation |",
        "|---|---|",
        "| a | 1.0000 |",
        "| b | 0.0000 |",
        "| all kernels: positive, chance 0.2000 | 0.6667 |",
    ]


def test_of_equal_magnitudes_the_first_count():
    assert correlation([1.0, -1, 1, 1], [-2.0, 2, -2, 2], 0.5).total == 1
    assert correlation([1.0, -1, 1, 1], [1.0, 1, 2, 1], 0.5).total == 0.5


def test_verdict():
    weights = np.random.default_rng(0).normal(size=40_000)
    others = np.random.default_rng(1).normal(size=40_000)
    # The standard deviation of chance is 0.0018: sqrt(8000 * 0.2 * 0.8 * 0.8) / 8000 = 0.004.
    assert correlation(weights, others, 0.2).verdict == "weak"
    assert correlation(weights, weights + 0.5 * others, 0.2).verdict == "positive"
    assert correlation(weights, weights, 0.2).total == 1
    reverse = correlation(weights, 1 / weights, 0.2)
    assert (reverse.total, reverse.verdict) == (0, "negative")
    assert correlation(weights, weights, 0.2, tolerance=0.8).verdict == "weak"


def test_two_sparse_networks():
    """`p` is a share of the four weights left of eight."""
    one, other = [0, 4.0, 0, 3, 0, 2, 1, 0], [0, 1.0, 0, 3, 0, 4, 2, 0]
    got = correlation(one, other, 0.5)  # {1, 3} and {3, 5}
    assert (got.total, got.chance) == (0.5, 0.5)
    with pytest.raises(ValueError, match="'k', where the masks differ in 2 places"):
        correlation(one, [0, 0, 1.0, 3, 0, 4, 2, 0], 0.5)


def test_a_sparse_network_and_a_dense_one():
    """`p` is a share of all ten weights."""
    sparse = [0, 0, 0, 0, 0, 0, 4.0, 3, 2, 1]
    dense = [1.0, 2, 3, 4, 5, 6, 7, 8, 9, 10]
    for got in (correlation(sparse, dense, 0.3), correlation(dense, sparse, 0.3)):
        assert got.total == pytest.approx(2 / 3)  # {6, 7, 8} and {7, 8, 9}
        assert got.chance == pytest.approx(0.3)
    for p in (0.4, 0.5):
        with pytest.raises(ValueError, match="below the share of active weights"):
            correlation(sparse, dense, p)


def test_masks_tell_zeros_that_are_weights():
    one, other = [0, 0.0, 5, 4], [9.0, 8, 5, 0]
    mask = np.array([False, True, True, True])
    # Of three weights two: {2, 3} and {1, 2}.
    got = correlation(one, other, 0.6, masks_a={"k": mask}, masks_b={"k": mask})
    assert (got.total, got.chance) == (0.5, pytest.approx(2 / 3))


def make_model():
    return keras.Sequential(
        [
            keras.Input((4, 4, 2)),
            layers.Conv2D(3, 2, name="conv"),
            layers.BatchNormalization(),
            layers.Flatten(),
            layers.Dense(5, name="dense"),
        ],
        name="net",
    )


def test_models():
    dense = make_model()
    before = analysis.get_kernels(dense)
    assert [kernel.shape for kernel in before.values()] == [(2, 2, 2, 3), (27, 5)]
    assert analysis.weight_correlation(before, dense).total == 1
    twin = make_model()
    twin.set_weights(dense.get_weights())
    sparse = rigl_tf.sparsify(twin, 0.7, "uniform")
    # The largest fifth of the dense kernel's 135 weights, if they are left, are the largest there.
    (path, _), (dense_path, mask) = rigl_tf.get_masks(sparse).items()
    order = np.argsort(-abs(before[dense_path]), axis=None, kind="stable")
    left = [index for index in order if mask.ravel()[index]]
    got = analysis.weight_correlation(dense, sparse)
    assert got.layers[path] == 1
    assert got.layers[dense_path] == len({*order[:27]} & {*left[:27]}) / 27
    # Of a model the masks count, not the zeros: of 41 weights left, 8.
    start = analysis.get_kernels(sparse)
    kernel = sparse.get_layer("dense").kernel
    smallest = np.zeros(mask.shape, bool)
    smallest.ravel()[left[-1]] = True
    kernel.assign(np.where(smallest, 0, kernel))
    assert analysis.weight_correlation(sparse, start, masks_b=rigl_tf.get_masks(sparse)).total == 1
    before[dense_path] *= 2  # a copy
    np.testing.assert_allclose(dense.get_layer("dense").kernel, before[dense_path] / 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"p": 1.0}, "p=1.0"),
        ({"p": True}, "p=True"),
        ({"tolerance": -1}, "tolerance=-1"),
        ({"a": [np.ones(3)]}, "list"),
        ({"a": {}}, "none"),
        ({"b": {"k": np.ones(4)}}, r"\[\(3,\)\] and \[\(4,\)\]"),
        ({"masks_a": {"other": np.ones(3)}}, r"'other' of shape \(3,\)"),
        ({"masks_b": {"k": np.ones(2)}}, r"'k' of shape \(2,\)"),
        ({"a": {"k": np.zeros(3)}}, "'k' with 0 of 3 active"),
        ({"masks_a": {"k": np.full(3, 0.5)}}, "other values for 'k'"),
        ({"masks_a": [1]}, "list"),
        ({"b": {"k": np.full(3, np.nan)}}, r"NaN or inf in \['k'\]"),
    ],
)
def test_wrong_arguments(arguments, message):
    right = {"a": {"k": np.ones(3)}, "b": {"k": np.ones(3)}, "p": 0.2}
    with pytest.raises(ValueError, match=f"Received: {message}"):
        analysis.weight_correlation(**right | arguments)


def test_csr_kernels_are_compared_as_masked_ones():
    dense = keras.Sequential([keras.Input((8,)), layers.Dense(4), layers.Dense(3)])
    model = rigl_tf.sparsify(dense, 0.5, dict.fromkeys)
    masked = analysis.get_kernels(model)
    rigl_tf.with_execution(model, "csr")
    csr = analysis.get_kernels(model)
    assert list(csr) == list(masked)
    for path, kernel in csr.items():
        np.testing.assert_array_equal(kernel, masked[path])
    got = analysis.weight_correlation(model, masked, 0.3)
    assert (list(got.layers), got.total) == (list(masked), 1)


def test_a_dense_and_a_sparse_kernel_of_the_same_path():
    """A sparse kernel has the path that its mask has."""

    class Two(keras.Model):
        def __init__(self):
            super().__init__(name="two")
            self.left, self.right = (layers.Dense(8, name="same") for _ in range(2))

        def call(self, x):
            return self.left(x) + self.right(x)

    model = Two()
    model(np.ones((1, 3)))
    model = rigl_tf.sparsify(model, 0.5, dense_layers=[model.left])
    (path,) = rigl_tf.get_masks(model)
    mask = rigl_tf.get_masks(model)[path]
    np.testing.assert_array_equal(analysis.get_kernels(model)[path] != 0, mask)
    norms = analysis.gradient_norms(model, (np.ones((1, 3)), np.ones((1, 8))), "mse").by_weight
    assert norms[path] < norms[f"{path}#2"]
    itself = analysis.weight_correlation(
        analysis.get_kernels(model), model, masks_a={path: mask}, p=0.3
    )
    assert itself.total == 1
