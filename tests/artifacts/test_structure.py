"""Tests of the structure of zeros in words, and of the bytes that they need."""

import math

import numpy as np
import pytest

from rigl_tf.artifacts.structure import bound_bytes, structure_of


def random_mask(shape, density=0.3):
    return np.random.default_rng(1).random(shape) < density


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (np.ones((4, 4)), "dense"),
        (np.outer([1, 0, 1, 1], [1, 1, 0]), "whole channels"),
        (random_mask((16, 6)), "unstructured"),
        (random_mask((3, 3, 5, 7)), "unstructured"),
        (np.repeat(random_mask((4, 6)), 4, axis=0), "blocks of (4, 1)"),
        (np.repeat(random_mask((4, 6)), 16, axis=0), "blocks of (16, 1)"),
        (np.repeat(random_mask((7, 4)), 8, axis=1), "blocks of (1, 8)"),
        (np.argsort(np.random.default_rng(0).random((7, 9)), axis=0) < 2, "constant fan-in"),
        (np.zeros((4, 4)), "whole channels"),
    ],
)
def test_structures(mask, words):
    assert structure_of(mask) == words


def test_n_to_m():
    groups = np.argsort(np.random.default_rng(0).random((6, 4, 5)), axis=1) < 2
    assert structure_of(groups.reshape(24, 5)) == "2:4"


@pytest.mark.parametrize(("size", "active"), [(1, 0), (5, 5), (12, 3), (40, 17)])
def test_the_bound_is_the_number_of_masks(size, active):
    bits = math.log2(math.comb(size, active))
    assert bound_bytes(size, active) == 4 * active + math.ceil(round(bits, 9) / 8)
    assert bound_bytes(size, active, 1) == bound_bytes(size, active) - 3 * active
