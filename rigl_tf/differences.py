"""How much outputs differ that should be the same, and how much of that is rounding."""

import math

import numpy as np
import tensorflow as tf

from rigl_tf.walk import all_layers

# As a share of the largest output. Programs that are compiled differently add float32 numbers in
# another order, so the last digits differ.
_TOLERANCE = 1e-4
# In a lower precision the limit is this many times the distance from 1 to the next number, because
# a graph does not round between all operations.
_NUM_ROUNDINGS = 4
_EPSILONS = {"bfloat16": 2.0**-7, "float16": 2.0**-10}


def differences(outputs, expected, equal_nan=False):
    """List of the largest difference of each output; infinite if shapes or strings differ.

    Args:
        outputs: Structure of tensors.
        expected: Structure of tensors.
        equal_nan: Boolean, whether two NaN at the same place are equal; then the difference of NaN
            and a number is infinite. Else the difference of an output with NaN is NaN.
    """
    pairs = zip(tf.nest.flatten(outputs), tf.nest.flatten(expected), strict=True)
    return [float(_difference_of_one(*pair, equal_nan)) for pair in pairs]


def _difference_of_one(output, expected, equal_nan):
    if expected.dtype == tf.string:
        return 0.0 if np.array_equal(np.asarray(output), np.asarray(expected)) else math.inf
    output, expected = np.asarray(output, "float64"), np.asarray(expected, "float64")
    if output.shape != expected.shape:
        return math.inf
    # Infinity minus infinity is NaN, so equal values are left out. Their difference is 0.
    is_other = output != expected
    if equal_nan:
        is_other &= ~(np.isnan(output) & np.isnan(expected))
    difference = np.zeros_like(expected)
    np.subtract(output, expected, out=difference, where=is_other)
    if equal_nan:
        difference[np.isnan(difference)] = math.inf
    return np.abs(difference).max(initial=0.0)


def numbers(outputs):
    """The outputs that are not strings, as a list of float64 arrays."""
    return [np.asarray(x, "float64") for x in tf.nest.flatten(outputs) if x.dtype != tf.string]


def largest(outputs):
    """The largest finite number of some outputs, 0 for strings."""
    arrays = numbers(outputs)
    return max((float(np.abs(x[np.isfinite(x)]).max(initial=0.0)) for x in arrays), default=0.0)


def tolerances(model, expected, tolerance=0.0):
    """List of how much each output of a model may differ by rounding.

    Args:
        model: The `keras.Model`.
        expected: Its outputs.
        tolerance: Float, a difference that is always allowed, as a share of the largest output.
    """
    epsilon = max(_EPSILONS.get(layer.compute_dtype, 0.0) for layer in all_layers(model))
    relative = max(_TOLERANCE, _NUM_ROUNDINGS * epsilon, tolerance)
    return [relative * largest(output) for output in tf.nest.flatten(expected)]


def are_within(found, allowed):
    """Whether each of the differences is at most what is allowed."""
    return all(each <= most for each, most in zip(found, allowed, strict=True))
