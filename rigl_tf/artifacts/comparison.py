"""Compares the outputs of an artifact with the outputs of its model."""

import re

import keras
import numpy as np
import tensorflow as tf

from rigl_tf.differences import are_within, differences, largest, numbers, tolerances

# If large numbers cancel out, outputs differ by more. Then the limit is this many times the
# difference between eager execution and a graph of the model itself.
_NUM_OWN_DIFFERENCES = 10


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
    if any(np.isnan(array).any() for array in numbers(outputs)):
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
    found = differences(outputs, expected)
    most = float(np.max(found))
    if check and not are_within(found, tolerances(model, expected, tolerance)):
        own = _own_differences(model, batch, expected)
        if not are_within(found, [_NUM_OWN_DIFFERENCES * each for each in own]):
            raise _error(model, batch, expected, most)
    return most


def _own_differences(model, batch, expected):
    """The differences between the outputs of the model in eager execution and in a graph."""

    @tf.function(autograph=False)
    def infer(batch):
        with keras.StatelessScope():
            return model(batch, training=False)

    once = differences(infer(batch), expected)
    # An output that changes from call to call is random. This is not a rounding error.
    twice = differences(outputs_of(model, batch), expected)
    return [0.0 if random else own for own, random in zip(once, twice, strict=True)]


def _error(model, batch, expected, difference):
    """The error for wrong outputs. It says so if the model itself is not deterministic."""
    message = (
        "The outputs of the exported model are not those of the model, so it was thrown away. "
        f"Received: largest difference {difference:.3g} between outputs up to "
        f"{largest(expected):.3g}"
    )
    with keras.StatelessScope():
        once, again = model(batch, training=False), model(batch, training=False)
    found = differences(again, once)
    own = max(found)
    if not are_within(found, tolerances(model, expected)):
        message += (
            f"; and {own:.3g} between two calls of the model itself: it is not deterministic, "
            "draw random numbers by a `keras.random.SeedGenerator` of the layer, or leave out the "
            "comparison by `check=False`"
        )
    return RuntimeError(message)


def in_a_line(error):
    plain = re.sub(r"\x1b\[\d*m", "", str(error))  # Keras uses bold characters.
    return " ".join(plain.split())[:200]
