"""Tests of how SNFS shares grown connections between kernels."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import drop_half, updates_only

import rigl_tf
from rigl_tf.optimizers import redistribution

layers = keras.layers
pytestmark = updates_only


def num_to_grow(importance, num_drop, num_free):
    result = redistribution.num_to_grow(
        tf.constant(importance, tf.float32),
        tf.constant(num_drop, tf.int32),
        tf.constant(num_free, tf.int32),
    )
    return result.numpy().tolist()


@pytest.mark.parametrize(
    ("importance", "num_drop", "num_free", "want"),
    [
        ([3, 1], [10, 10], [100, 100], [15, 5]),
        ([1, 1, 1], [30, 0, 0], [90, 90, 90], [10, 10, 10]),
        # 18 of 20 are the first's share, which takes 9 of 10: the other 9 are the second's.
        ([9, 1], [10, 10], [10, 100], [9, 11]),
        # The 50 that the first cannot take are shared equally; the second takes 5 of them.
        ([6, 2, 2], [100, 0, 0], [10, 26, 1000], [9, 25, 66]),
        # Rounded down; what is left goes to the first that have room.
        ([1, 1, 1], [5, 0, 0], [9, 9, 9], [2, 2, 1]),
        # Kernels without importance keep what they had, all alike.
        ([0, 0], [3, 7], [20, 20], [3, 7]),
        # Nearly dense: 99 % of what is free is too little.
        ([1, 1], [10, 20], [10, 20], [10, 20]),
        ([1, 0], [0, 0], [5, 5], [0, 0]),
        ([1], [7], [9], [7]),
    ],
)
def test_by_hand(importance, num_drop, num_free, want):
    assert num_to_grow(importance, num_drop, num_free) == want


def handed_around(importance, num_drop, num_free):
    """As the authors' code: what is too much is given to all again, until nothing is."""
    total = num_drop.sum()
    most = np.floor(0.99 * num_free + 1e-9)
    grown = np.floor(importance / importance.sum() * total)
    grown = grown + (total - grown.sum()) / len(grown)
    for _ in range(20_000):
        rest = np.maximum(grown - most, 0)
        grown = np.minimum(grown, most) + rest.sum() / len(grown)
    return grown


def test_it_is_where_the_authors_code_ends():
    rng = np.random.default_rng(0)
    compared = 0
    for _ in range(40):
        num = rng.integers(1, 7)
        sizes = rng.integers(50, 2000, num)
        active = (sizes * rng.uniform(0.05, 0.6, num)).astype(int)
        drop = (active * 0.3).astype(int)
        importance = rng.random(num) ** 4
        got = np.array(num_to_grow(importance, drop, sizes - active + drop))
        want = handed_around(importance, drop, sizes - active + drop)
        assert got.sum() == drop.sum()
        np.testing.assert_allclose(got, want, atol=1.01)
        compared += (np.abs(want - np.floor(importance / importance.sum() * drop.sum())) > 2).any()
    assert compared > 3  # in so many of them a kernel was full


def test_totals_beyond_what_float32_counts():
    free = [50_000_001, 150_000_000, 999]
    got = num_to_grow([0.61, 0.38, 0.01], [40_000_001, 30_000_000, 3], free)
    assert sum(got) == 70_000_004
    assert got[2] == 989  # 999 - ceil(9.99)
    assert got[0] / got[1] == pytest.approx(0.61 / 0.38, rel=0.02)


def model_of(*kernels):
    """A model of two kernels whose masks and values are given."""
    dense = keras.Sequential(
        [keras.Input((4,)), layers.Dense(5, use_bias=False), layers.Dense(6, use_bias=False)]
    )
    model = rigl_tf.sparsify(dense, 0.0)
    for kernel, value in zip(model.trainable_weights, kernels, strict=True):
        kernel.assign(value)
        rigl_tf.masks.kernel_of(kernel).set_mask(value != 0)
    return model


def test_an_update_by_hand():
    """Of 20 connections 10 are active, of 30 there are 12; half of each is dropped: 5 and 6.

    The average gradient is 3 at the first kernel's active connections and 1 at the second's, so of
    these 11 the first grows int(8.25) = 8 and the second int(2.75) = 2. The last is the first's.
    """
    one = np.where(np.arange(20) < 10, np.arange(1, 21), 0).reshape(4, 5)
    two = np.where(np.arange(30) < 12, np.arange(1, 31), 0).reshape(5, 6)
    model = model_of(one, two)
    gradients = [np.where(one != 0, 3, 4), np.where(two != 0, 1, np.arange(30).reshape(5, 6))]
    optimizer = rigl_tf.SNFS(
        keras.optimizers.SGD(0.0),
        9,
        update_frequency=1,
        drop_fraction=drop_half,
        gradient_momentum=0.0,
        redistribute=True,
    )
    gradients = [tf.constant(gradient, tf.float32) for gradient in gradients]
    for _ in range(2):
        optimizer.apply(gradients, model.trainable_weights)
    first, second = rigl_tf.get_masks(model).values()
    assert first.sum() == 10 - 5 + 9
    assert second.sum() == 12 - 6 + 2
    # The weakest went, and the largest averages came, ties at the lower index.
    np.testing.assert_array_equal(np.flatnonzero(first), np.arange(5, 19))
    np.testing.assert_array_equal(np.flatnonzero(second), [*range(6, 12), 28, 29])


def test_an_important_kernel_that_is_nearly_dense_keeps_more():
    """18 of 20 are active: 10 % are not, so 10 % of them is dropped, 1; of 12 the half."""
    one = np.where(np.arange(20) < 18, np.arange(1, 21), 0).reshape(4, 5)
    two = np.where(np.arange(30) < 12, np.arange(1, 31), 0).reshape(5, 6)
    model = model_of(one, two)
    optimizer = rigl_tf.SNFS(
        keras.optimizers.SGD(0.0),
        9,
        update_frequency=1,
        drop_fraction=drop_half,
        gradient_momentum=0.0,
        redistribute=True,
    )
    gradients = [tf.fill((4, 5), 2.0), tf.fill((5, 6), 1.0)]
    for _ in range(2):
        optimizer.apply(gradients, model.trainable_weights)
    # 7 are dropped. The first could grow 3, and takes 99 % of them: 2. The second grows 5.
    first, second = rigl_tf.get_masks(model).values()
    assert [first.sum(), second.sum()] == [18 - 1 + 2, 12 - 6 + 5]


@pytest.mark.parametrize("redistribute", [False, True])
def test_a_step_that_trains_no_sparse_kernel(redistribute):
    model = rigl_tf.sparsify(keras.Sequential([keras.Input((4,)), layers.Dense(5)]), 0.5)
    optimizer = rigl_tf.SNFS("sgd", 9, update_frequency=1, redistribute=redistribute)
    optimizer.build(model.trainable_weights)
    before = [weight.numpy() for weight in model.weights]
    bias = model.trainable_weights[1]
    for _ in range(2):
        optimizer.apply([tf.zeros(5)], [bias])
    assert int(optimizer.step) == 2
    for weight, old in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(weight, old)


def test_no_average():
    with pytest.raises(ValueError, match=r"`gradient_momentum` must be .* gradient_momentum=None"):
        rigl_tf.SNFS("sgd", 9, gradient_momentum=None)
