"""Compares the outputs of an artifact with those of its model."""

import math
import re

import keras
import numpy as np
import tensorflow as tf

from rigl_tf.walk import all_layers

# Relative to the largest output: compiled differently, float32 sums differ in the last digits.
_TOLERANCE = 1e-4
# Outputs that cancel out differ by more. The model itself may differ by this many times less
# between eager execution and a graph.
_NUM_OWN_DIFFERENCES = 10
# In a lower precision it is this many times the distance from 1 to the next number: a graph leaves
# out roundings between operations.
_NUM_ROUNDINGS = 4
_EPSILONS = {"bfloat16": 2.0**-7, "float16": 2.0**-10}


def outputs_of(model, batch):
    """What the model itself computes; a `ValueError` if it cannot, or if these are NaN.

    It is computed on the CPU, as artifacts are run there: GPUs may round products of float32.
    """
    try:
        # A stateful layer of the model keeps its state.
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
    """The largest difference of the artifact's outputs; a `RuntimeError` if one is too large.

    Args:
        model: The model, called on `batch`.
        batch, expected, outputs: Inputs, its outputs, and those of the artifact.
        check: Whether a large difference is an error.
        tolerance: Float. A share of the largest output that is allowed in any case, as numbers were
            rounded on purpose.
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
    """By how much the outputs of the model differ between eager execution and a graph."""

    @tf.function(autograph=False)
    def infer(batch):
        with keras.StatelessScope():
            return model(batch, training=False)

    differences = _differences(infer(batch), expected)
    # What changes from call to call is no matter of rounding.
    again = _differences(outputs_of(model, batch), expected)
    return [0.0 if twice else once for once, twice in zip(differences, again, strict=True)]


def _differences(outputs, expected):
    """The largest difference of each of the outputs, NaN if one is NaN."""
    pairs = zip(tf.nest.flatten(outputs), tf.nest.flatten(expected), strict=True)
    return [float(_difference_of_one(*pair)) for pair in pairs]


def _difference_of_one(output, expected):
    if expected.dtype == tf.string:
        return 0.0 if np.array_equal(np.asarray(output), np.asarray(expected)) else math.inf
    output, expected = np.asarray(output, "float64"), np.asarray(expected, "float64")
    if output.shape != expected.shape:
        return math.inf
    difference = np.zeros_like(expected)
    # Equal infinities have no difference that could be computed.
    np.subtract(output, expected, out=difference, where=output != expected)
    return np.abs(difference).max(initial=0.0)


def _numbers(outputs):
    return [np.asarray(x, "float64") for x in tf.nest.flatten(outputs) if x.dtype != tf.string]


def _largest(output):
    """The largest finite number of an output, 0 for strings."""
    numbers = _numbers(output)
    return max((np.abs(x[np.isfinite(x)]).max(initial=0.0) for x in numbers), default=0.0)


def _tolerances(model, expected, tolerance=0.0):
    """By how much each of the outputs may differ."""
    epsilon = max(_EPSILONS.get(layer.compute_dtype, 0.0) for layer in all_layers(model))
    relative = max(_TOLERANCE, _NUM_ROUNDINGS * epsilon, tolerance)
    return [relative * _largest(output) for output in tf.nest.flatten(expected)]


def _error(model, batch, expected, difference):
    """What to raise for wrong outputs; it says so if the model is to blame."""
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
    plain = re.sub(r"\x1b\[\d*m", "", str(error))  # Keras writes in bold.
    return " ".join(plain.split())[:200]
