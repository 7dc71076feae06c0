"""Compares the outputs of an artifact with the outputs of its model."""

import math
import re

import keras
import numpy as np
import tensorflow as tf

from rigl_tf.walk import all_layers

# As a share of the largest output. Programs that are compiled differently add float32 numbers in
# another order, so the last digits differ.
_TOLERANCE = 1e-4
# If large numbers cancel out, outputs differ by more. Then the limit is this many times the
# difference between eager execution and a graph of the model itself.
_NUM_OWN_DIFFERENCES = 10
# In a lower precision the limit is this many times the distance from 1 to the next number, because
# a graph does not round between all operations.
_NUM_ROUNDINGS = 4
_EPSILONS = {"bfloat16": 2.0**-7, "float16": 2.0**-10}


def outputs_of(model, batch):
    """The outputs of the model. Raises a `ValueError` if it cannot be called, or returns NaN.

    They are computed on the CPU, where artifacts are run too: GPUs may round products of float32.
    """
    try:
        # So a stateful layer of the model does not change its state.
        with keras.StatelessScope(), tf.device("CPU:0"):
            outputs = model(batch, training=False)
    except (TypeError, ValueError, tf.errors.InvalidArgumentError) as error:
        shapes = tf.nest.map_structure(lambda tensor: tuple(tensor.shape), batch)
        raise ValueError(
            "`inputs` must be a batch that the model can be called on. Received: "
            f"model={model.name!r} and arrays of shapes {shapes} ({in_a_line(error)})"
        ) from error
    if any(np.isnan(numbers).any() for numbers in _numbers(outputs)):
        raise ValueError(
            "The outputs of the model must not be NaN, which cannot be compared: mend its weights, "
            f"or give other `inputs`. Received: model={model.name!r} with NaN in its outputs"
        )
    return outputs


def checked(model, batch, expected, outputs, check=True, tolerance=0.0):
    """Returns the largest difference between the outputs, or raises a `RuntimeError`.

    Args:
        model: The `keras.Model`.
        batch: The inputs.
        expected: The outputs of the model.
        outputs: The outputs of the artifact.
        check: Boolean, whether a large difference is an error.
        tolerance: Float, a difference that is always allowed, as a share of the largest output. It
            is above 0 if the numbers of the artifact were rounded on purpose.
    """
    differences = _differences(outputs, expected)
    largest = float(np.max(differences))
    if check and not _are_within(differences, _tolerances(model, expected, tolerance)):
        own = _own_differences(model, batch, expected)
        if not _are_within(differences, [_NUM_OWN_DIFFERENCES * each for each in own]):
            raise _error(model, batch, expected, largest)
    return largest


def _are_within(differences, tolerances):
    return all(each <= most for each, most in zip(differences, tolerances, strict=True))


def _own_differences(model, batch, expected):
    """The differences between the outputs of the model in eager execution and in a graph."""

    @tf.function(autograph=False)
    def infer(batch):
        with keras.StatelessScope():
            return model(batch, training=False)

    differences = _differences(infer(batch), expected)
    # An output that changes from call to call is random. This is not a rounding error.
    again = _differences(outputs_of(model, batch), expected)
    return [0.0 if twice else once for once, twice in zip(differences, again, strict=True)]


def _differences(outputs, expected):
    """List of the largest difference of each output; NaN for an output with NaN."""
    pairs = zip(tf.nest.flatten(outputs), tf.nest.flatten(expected), strict=True)
    return [float(_difference_of_one(*pair)) for pair in pairs]


def _difference_of_one(output, expected):
    if expected.dtype == tf.string:
        return 0.0 if np.array_equal(np.asarray(output), np.asarray(expected)) else math.inf
    output, expected = np.asarray(output, "float64"), np.asarray(expected, "float64")
    if output.shape != expected.shape:
        return math.inf
    difference = np.zeros_like(expected)
    # Infinity minus infinity is NaN, so equal values are left out. Their difference is 0.
    np.subtract(output, expected, out=difference, where=output != expected)
    return np.abs(difference).max(initial=0.0)


def _numbers(outputs):
    return [np.asarray(x, "float64") for x in tf.nest.flatten(outputs) if x.dtype != tf.string]


def _largest(output):
    """The largest finite number of an output, 0 for strings."""
    numbers = _numbers(output)
    return max((np.abs(x[np.isfinite(x)]).max(initial=0.0) for x in numbers), default=0.0)


def _tolerances(model, expected, tolerance=0.0):
    """List of the largest allowed difference of each output."""
    epsilon = max(_EPSILONS.get(layer.compute_dtype, 0.0) for layer in all_layers(model))
    relative = max(_TOLERANCE, _NUM_ROUNDINGS * epsilon, tolerance)
    return [relative * _largest(output) for output in tf.nest.flatten(expected)]


def _error(model, batch, expected, difference):
    """The error for wrong outputs. It says so if the model itself is not deterministic."""
    message = (
        "The outputs of the exported model are not those of the model, so it was thrown away. "
        f"Received: largest difference {difference:.3g} between outputs up to "
        f"{_largest(expected):.3g}"
    )
    with keras.StatelessScope():
        once, again = model(batch, training=False), model(batch, training=False)
    differences = _differences(again, once)
    own = max(differences)
    if not _are_within(differences, _tolerances(model, expected)):
        message += (
            f"; and {own:.3g} between two calls of the model itself: it is not deterministic, "
            "draw random numbers by a `keras.random.SeedGenerator` of the layer, or leave out the "
            "comparison by `check=False`"
        )
    return RuntimeError(message)


def in_a_line(error):
    plain = re.sub(r"\x1b\[\d*m", "", str(error))  # Keras uses bold characters.
    return " ".join(plain.split())[:200]
