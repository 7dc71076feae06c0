"""Tests of `rigl_tf.masks`."""

import keras
import numpy as np
import pytest
from helpers import half, mlp

import rigl_tf
from rigl_tf import masks

PATHS = ["model/first/kernel", "model/second/kernel"]


@pytest.fixture
def model():
    dense = keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(4, name="first"),
            keras.layers.Dense(3, name="second"),
        ],
        name="model",
    )
    return rigl_tf.sparsify(dense, 0.5, "uniform")


def weights(model):
    return [weight.numpy() for weight in model.weights]


def test_get_masks(model):
    got = rigl_tf.get_masks(model)
    assert list(got) == PATHS
    for mask, shape in zip(got.values(), [(6, 4), (4, 3)], strict=True):
        assert isinstance(mask, np.ndarray)
        assert mask.dtype == bool
        assert mask.shape == shape
    assert got["model/second/kernel"].sum() == 6


def test_get_masks_gives_copies(model):
    rigl_tf.get_masks(model)["model/second/kernel"][:] = True
    assert rigl_tf.get_masks(model)["model/second/kernel"].sum() == 6


def test_get_masks_of_a_dense_model_and_of_a_layer(model):
    assert rigl_tf.get_masks(rigl_tf.strip(model)) == {}
    assert list(rigl_tf.get_masks(model.layers[1])) == ["model/second/kernel"]


def test_set_masks_zeroes_what_becomes_inactive(model):
    kernel = model.layers[0].layer.kernel
    before = kernel.numpy()
    mask = np.arange(24).reshape(6, 4) % 3 == 0
    rigl_tf.set_masks(model, {"model/first/kernel": mask})
    np.testing.assert_array_equal(rigl_tf.get_masks(model)["model/first/kernel"], mask)
    np.testing.assert_array_equal(kernel, np.where(mask, before, 0))
    assert rigl_tf.get_masks(model)["model/second/kernel"].sum() == 6


def test_connections_that_become_active_start_at_zero(model):
    kernel = model.layers[1].layer.kernel
    before = kernel.numpy()
    rigl_tf.set_masks(model, {"model/second/kernel": np.ones((4, 3), bool)})
    np.testing.assert_array_equal(kernel, before)
    assert np.count_nonzero(kernel) == 6


@pytest.mark.parametrize("dtype", ["bool", "int8", "int64", "float32", "float64"])
def test_set_masks_takes_zeros_and_ones(model, dtype):
    mask = (np.arange(12).reshape(4, 3) % 2).astype(dtype)
    rigl_tf.set_masks(model, {"model/second/kernel": mask})
    np.testing.assert_array_equal(rigl_tf.get_masks(model)["model/second/kernel"], mask == 1)


def test_masks_are_set_as_they_were_got(model):
    got = rigl_tf.get_masks(model)
    before = weights(model)
    rigl_tf.set_masks(model, got)
    for old, new in zip(before, weights(model), strict=True):
        np.testing.assert_array_equal(new, old)


@pytest.mark.parametrize(
    ("path", "mask", "message"),
    [
        ("unknown/kernel", np.ones((5, 3)), "must be the path .* Received: 'unknown/kernel'"),
        ("model/second/bias", np.ones(3), "must be the path"),
        ("model/second/kernel", np.ones((3, 4)), r"shape \(4, 3\). Received: shape=\(3, 4\)"),
        ("model/second/kernel", np.ones(12), "must have the kernel's shape"),
        ("model/second/kernel", np.full((4, 3), 0.5), "numbers that are 0 or 1"),
        ("model/second/kernel", np.full((4, 3), 2), "numbers that are 0 or 1"),
        ("model/second/kernel", np.full((4, 3), np.nan), "numbers that are 0 or 1"),
        (
            "model/second/kernel",
            np.full((4, 3), "x"),
            "numbers that are 0 or 1. Received: dtype=<U1$",
        ),
    ],
)
def test_nothing_changes_when_one_mask_is_bad(model, path, mask, message):
    before = weights(model)
    with pytest.raises(ValueError, match=message):
        rigl_tf.set_masks(model, {"model/first/kernel": np.zeros((6, 4), bool), path: mask})
    for old, new in zip(before, weights(model), strict=True):
        np.testing.assert_array_equal(new, old)


def test_masked_is_zero_whatever_stands_there():
    values = np.array([np.nan, np.inf, -1.0, 2.0], "float32")
    got = masks.masked(values, np.array([False, False, False, True])).numpy()
    assert got.tolist() == [0.0, 0.0, 0.0, 2.0]


def test_two_kernels_of_one_path():
    # A generator and a discriminator, say, with layers of the same name.
    def part():
        return keras.Sequential(
            [keras.Input((4,)), rigl_tf.SparseWrapper(keras.layers.Dense(4, name="same"), 0.5)],
            name="part",
        )

    class Both(keras.Model):
        def __init__(self):
            super().__init__()
            self.first, self.second = part(), part()

        def call(self, inputs):
            return self.second(self.first(inputs))

    model = Both()
    masks_before = rigl_tf.get_masks(model)
    assert list(masks_before) == ["part/same/kernel", "part/same/kernel#2"]
    mask = ~masks_before["part/same/kernel#2"]
    rigl_tf.set_masks(model, {"part/same/kernel#2": mask})
    np.testing.assert_array_equal(model.second.layers[0].kernel_mask, mask)
    np.testing.assert_array_equal(
        model.first.layers[0].kernel_mask, masks_before["part/same/kernel"]
    )


def test_the_users_constraint_is_applied_first():
    layer = rigl_tf.SparseWrapper(
        keras.layers.Dense(3, kernel_constraint=keras.constraints.UnitNorm(axis=None)), 0.5
    )
    layer.build((None, 4))
    kernel, mask = layer.layer.kernel, layer.kernel_mask.numpy()
    raw = np.arange(1, 13, dtype="float32").reshape(4, 3)
    # 1 + 4 + 9 + ... + 144 = 12 * 13 * 25 / 6 = 650
    want = np.where(mask, raw / np.sqrt(650), 0)
    np.testing.assert_allclose(kernel.constraint(raw), want, rtol=1e-5)


def test_what_others_know_of_a_sparse_kernel():
    model = half(mlp(6, 8, 3, names="ab", name="m"))
    first, second = masks.kernels_of(model).values()
    assert (first.path, first.shape, first.size, first.num_active) == ("m/a/kernel", (6, 8), 48, 24)
    assert first.variable is model.layers[0].kernel
    assert masks.kernel_of(second.variable) is second
    assert masks.kernel_of(model.layers[0].bias) is None
    first.assign(np.ones((6, 8)))
    np.testing.assert_array_equal(first.numpy(), first.mask)
    first.set_mask(np.eye(6, 8) > 0)
    assert first.num_active == 6
    np.testing.assert_array_equal(first.numpy(), first.mask & (first.numpy() != 0))
    first.variable.assign(np.ones((6, 8)))
    first.zero_inactive()
    np.testing.assert_array_equal(first.numpy(), np.eye(6, 8))
    others = masks.without_masks(model, model.weights)
    assert [each.path for each in others] == ["m/a/kernel", "m/a/bias", "m/b/kernel", "m/b/bias"]
