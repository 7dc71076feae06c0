"""Tests of `rigl_tf.pruning`: masks from scores that are known by arithmetic."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import rigl_tf
from rigl_tf import pruning

layers = keras.layers


def numbers(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def linear(sizes=(6, 5), sparsity=0.0):
    """A chain of Dense layers without bias or activation."""
    keras.utils.set_random_seed(0)
    dense = keras.Sequential(
        [keras.Input(sizes[:1]), *[layers.Dense(size, use_bias=False) for size in sizes[1:]]]
    )
    return rigl_tf.sparsify(dense, sparsity, dict.fromkeys)


def kernels_of(model):
    return [kernel.numpy() for kernel in rigl_tf.masks.sparse_kernels(model).values()]


def largest(scores, num):
    mask = np.zeros(scores.size, bool)
    mask[np.argsort(-scores.ravel(), kind="stable")[:num]] = True
    return mask.reshape(scores.shape)


def all_alike(shapes, sparsity):
    return dict.fromkeys(shapes, sparsity)


def squares(targets, outputs):
    return tf.reduce_sum((outputs - targets) ** 2) / 2


X, Y = numbers((7, 6)), numbers((7, 5), seed=1)


def test_magnitude_in_each_kernel_and_in_all_together():
    model = linear((6, 5, 4))
    one, two = kernels_of(model)
    got = pruning.magnitude_masks(model, 0.7, all_alike)
    np.testing.assert_array_equal(got["sequential/dense/kernel"], largest(np.abs(one), 30 - 21))
    np.testing.assert_array_equal(got["sequential/dense_1/kernel"], largest(np.abs(two), 20 - 14))
    got = pruning.magnitude_masks(model, 0.7)
    both = largest(np.abs(np.concatenate([one.ravel(), two.ravel()])), 50 - 35)
    np.testing.assert_array_equal(got["sequential/dense/kernel"], both[:30].reshape(6, 5))
    np.testing.assert_array_equal(got["sequential/dense_1/kernel"], both[30:].reshape(5, 4))
    assert all(mask.all() for mask in rigl_tf.get_masks(model).values())


def test_snip_by_hand():
    model = linear()
    (kernel,) = kernels_of(model)
    gradient = X.T @ (X @ kernel - Y)
    (mask,) = pruning.snip_masks(model, (X, Y), 0.8, squares).values()
    np.testing.assert_array_equal(mask, largest(np.abs(gradient * kernel), 6))
    # Not by the gradient alone.
    assert (mask != largest(np.abs(gradient), 6)).any()


def test_grasp_by_hand():
    model = linear()
    (kernel,) = kernels_of(model)
    gradient = X.T @ (X @ kernel - Y)
    flow = X.T @ X @ gradient  # The Hessian of each column is X.T X.
    (mask,) = pruning.grasp_masks(model, (X, Y), 0.8, squares, temperature=1).values()
    np.testing.assert_array_equal(mask, largest(kernel * flow, 6))


def test_batches_are_averaged():
    model = linear()
    halves = [(X[:3], Y[:3]), (X[3:6], Y[3:6])]
    (whole,) = pruning.snip_masks(model, (X[:6], Y[:6]), 0.8, "mse").values()
    (mask,) = pruning.snip_masks(model, halves, 0.8, "mse").values()
    np.testing.assert_array_equal(mask, whole)
    dataset = tf.data.Dataset.from_tensor_slices((X[:6], Y[:6])).batch(3)
    (mask,) = pruning.snip_masks(model, dataset, 0.8, "mse").values()
    np.testing.assert_array_equal(mask, whole)


def test_the_temperature():
    model = linear()
    labels = np.arange(7) % 5
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    (kernel,) = kernels_of(model)

    def scores(temperature):
        """By differences of the gradient `g` along itself: `H g`."""

        def gradient(weights):
            logits = X.astype("float64") @ weights / temperature
            p = np.exp(logits - logits.max(axis=1, keepdims=True))
            p /= p.sum(axis=1, keepdims=True)
            return X.T.astype("float64") @ (p - np.eye(5)[labels]) / temperature / 7

        g = gradient(kernel.astype("float64"))
        small = 1e-5 / np.abs(g).max()
        ahead, behind = gradient(kernel + small * g), gradient(kernel - small * g)
        return kernel * (ahead - behind) / (2 * small)

    for temperature in (1.0, 200.0):
        (mask,) = pruning.grasp_masks(
            model, (X, labels), 0.5, loss, temperature=temperature
        ).values()
        np.testing.assert_array_equal(mask, largest(scores(temperature), 15))


def test_random_masks():
    model = linear((6, 5, 4))
    got = pruning.random_masks(model, 0.7, all_alike, seed=3)
    assert [int(mask.sum()) for mask in got.values()] == [9, 6]
    again = pruning.random_masks(model, 0.7, all_alike, seed=3)
    other = pruning.random_masks(model, 0.7, all_alike, seed=4)
    for path, mask in got.items():
        np.testing.assert_array_equal(mask, again[path])
    assert any((mask != other[path]).any() for path, mask in got.items())


@pytest.mark.parametrize("distribution", [None, "erk", "uniform", all_alike])
@pytest.mark.parametrize("name", ["magnitude", "snip", "grasp", "random"])
def test_exact_counts_and_nothing_comes_back(name, distribution):
    model = linear((6, 5, 4), sparsity=0.2)
    before = rigl_tf.get_masks(model)
    weights = model.get_weights()
    data = () if name in ("magnitude", "random") else ((X, numbers((7, 4))),)
    loss = {"loss": "mse"} if data else {}
    function = getattr(pruning, f"{name}_masks")
    got = function(model, *data, sparsity=0.6, distribution=distribution, **loss)
    if distribution != "uniform":  # which keeps the first kernel dense
        assert sum(mask.sum() for mask in got.values()) in (50 - 30, 50 - 29)
        assert all((mask <= before[path]).all() for path, mask in got.items())
    for weight, same in zip(model.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(weight, same)
    rigl_tf.set_masks(model, got)


def test_batch_statistics_and_dropout_are_left_alone():
    inputs = keras.Input((6,))
    x = layers.BatchNormalization()(layers.Dense(8)(inputs))
    model = rigl_tf.sparsify(keras.Model(inputs, layers.Dense(5)(layers.Dropout(0.5)(x))), 0.0)
    weights = model.get_weights()
    pruning.grasp_masks(model, (X, Y), 0.5, "mse")
    for weight, same in zip(model.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(weight, same)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pruning.magnitude_masks(linear(), 1.0), "sparsity=1.0"),
        (lambda: pruning.magnitude_masks(linear(), 0.5, "erdos"), "identifier='erdos'"),
        (lambda: pruning.snip_masks(linear(), [], 0.5, "mse"), "none"),
        (lambda: pruning.snip_masks(linear(), (X, Y * np.nan), 0.5, "mse"), "NaN or inf in"),
        (
            lambda: pruning.grasp_masks(linear(), (X, Y), 0.5, "mse", temperature=0),
            "temperature=0",
        ),
        (
            lambda: pruning.random_masks(keras.Sequential([keras.Input((3,))]), 0.5),
            "model='sequential', without sparse kernels",
        ),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=f"Received: {message}"):
        call()
