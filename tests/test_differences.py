"""Tests of how much outputs differ."""

import math

import numpy as np
import tensorflow as tf

from rigl_tf.differences import are_within, differences, largest

NAN, INF = math.nan, math.inf


def test_differences_by_hand():
    outputs = [np.array([1.0, 2.5, INF]), np.array([1.0, 1.0]), tf.constant(["a"])]
    expected = [np.array([1.0, 2.0, INF]), np.array([1.0]), tf.constant(["b"])]
    assert differences(outputs, expected) == [0.5, INF, INF]
    assert not are_within([0.5, INF], [1.0, 1.0])
    assert largest(outputs) == 2.5


def test_nan():
    one, other = [np.array([NAN, 1.0])], [np.array([NAN, 3.0])]
    assert np.isnan(differences(one, one)).all()
    assert differences(one, one, equal_nan=True) == [0.0]
    assert differences(one, other, equal_nan=True) == [2.0]
    assert differences(one, [np.array([0.0, 1.0])], equal_nan=True) == [INF]
