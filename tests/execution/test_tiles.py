"""Tests of CSR kernels that are looked at tile by tile, against NumPy and whole kernels."""

import numpy as np
import pytest
import tensorflow as tf

from rigl_tf.execution import engine, tiles
from rigl_tf.optimizers import draws


@pytest.fixture(params=[40, 39], ids=["all_kept", "three_passes"])
def kernel(request, monkeypatch):
    """A kernel of ten rows of four, in three tiles, whose gradient has few different values."""
    monkeypatch.setattr(tiles, "_TILE", 16)
    monkeypatch.setattr(tiles, "_KEPT", request.param)
    rng = np.random.default_rng(0)
    x, dy = (rng.integers(-1, 2, size=shape).astype("float32") for shape in ((3, 10), (3, 4)))
    structure = engine.structure(np.array([1, 5, 17, 30]), (10, 4))
    values, gradient = tf.constant([1.0, -2.0, 3.0, 4.0]), tf.constant([0.0, 9.0, 1.0, -2.0])
    return tiles.Tiles(structure, values, (10, 4), (x, dy), gradient)


def gradient_of(kernel):
    """The dense gradient, in which that of the active connections has its own values."""
    x, dy = kernel.rows
    gradient = (x.T @ dy).ravel()
    gradient[kernel.places.numpy()] = kernel.gradient
    return gradient


def magnitude(tile):
    return tf.abs(tile.gradient)


@pytest.mark.parametrize("least", [None, 0.0, 2.0, 9.0])
def test_the_largest_and_of_ties_the_first(kernel, least):
    scores = np.abs(gradient_of(kernel))
    excluded = np.array([0, 5, 6, 39])
    scores[excluded] = -np.inf
    order = np.argsort(-scores, kind="stable")
    for k in (0, 1, 7, 20, 36):
        found = kernel.largest(magnitude, tf.constant(excluded), tf.constant(k), least)
        np.testing.assert_array_equal(found, np.sort(order[:k]))


@pytest.mark.parametrize("eligible", [[False] * 4, [True, True, False, True], [True] * 4])
def test_the_largest_gradients(kernel, eligible):
    scores = np.abs(gradient_of(kernel))
    scores[kernel.places.numpy()[~np.array(eligible)]] = -np.inf
    order = np.argsort(-scores, kind="stable")
    for k in (0, 1, 5, 20, np.isfinite(scores).sum()):  # the last: also more than are inactive
        found = kernel.largest_gradients(tf.constant(eligible), tf.constant(k, tf.int32))
        np.testing.assert_array_equal(found, np.sort(order[:k]))


def test_scores_of_active_connections(kernel):
    scores = kernel.scores_of_active(lambda tile: tile.kernel + tile.gradient)
    np.testing.assert_allclose(scores, kernel.values + kernel.gradient)


def test_random_numbers_of_a_part_are_those_of_the_whole():
    seed = tf.constant([3, 5], tf.int64)
    whole = draws.uniform((10, 4), seed)
    for start, size in ((0, 40), (8, 5), (16, 24)):
        part = draws.uniform_part(tf.constant(start, tf.int64), size, seed)
        np.testing.assert_array_equal(part, tf.reshape(whole, [-1])[start : start + size])


def test_sorted_places_are_merged():
    first, second = (tf.constant(each, tf.int64) for each in ([1, 4, 9], [0, 2, 10, 11]))
    assert tiles.merged(first, second).numpy().tolist() == [0, 1, 2, 4, 9, 10, 11]
    assert tiles.merged(first[:0], second).numpy().tolist() == [0, 2, 10, 11]
