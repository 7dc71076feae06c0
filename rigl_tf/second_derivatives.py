"""Products with the Hessian of a loss, where TensorFlow's second derivatives are not exact, too."""

import contextlib
import re
import threading

import tensorflow as tf

_moments = tf.nn.moments
_CHANGING = threading.RLock()
# What TensorFlow says of an operation that has no derivative.
_NO_ENTRY = re.compile(r"no entry for: (\w+)|\(op type: (\w+)\)")
# TensorFlow takes their derivatives for zero.
_WITHOUT = {"ResizeBilinearGrad"}


@contextlib.contextmanager
def exact_moments():
    """A context in which normalisations can be differentiated twice.

    `tf.nn.moments`, which Keras calls, stops the gradient of the mean within the variance. First
    derivatives are exact without it, second ones are not. Functions that are traced in this context
    keep it; enter it outside of `strategy.run`.
    """
    with _CHANGING:
        tf.nn.moments = _differentiable_moments
        try:
            yield
        finally:
            tf.nn.moments = _moments


def _differentiable_moments(x, axes, shift=None, keepdims=False, name=None):
    x = tf.convert_to_tensor(x)
    exact = tf.cast(x, tf.float32) if x.dtype == tf.float16 else x
    mean = tf.reduce_mean(exact, axes, keepdims=True)
    variance = tf.reduce_mean(tf.math.squared_difference(exact, mean), axes, keepdims=True)
    moments = (tf.cast(each, x.dtype) for each in (mean, variance))
    return tuple(each if keepdims else tf.squeeze(each, axes) for each in moments)


def times_hessian(tape, gradients, values, along):
    """The product of a Hessian with a vector: the derivative of the gradients along it.

    Args:
        tape: The `tf.GradientTape` that recorded how the gradients were computed.
        gradients: List of tensors, the gradients by `values`.
        values: List of variables or tensors.
        along: List of tensors of their shapes.

    Returns:
        List of tensors of their shapes.

    Raises:
        ValueError: If TensorFlow cannot differentiate an operation twice. In eager mode, for some
            operations their part is missing instead.
    """
    if not tf.executing_eagerly():
        _refuse(_operations(tf.compat.v1.get_default_graph()) & _WITHOUT)
    try:
        return tape.gradient(
            gradients, values, output_gradients=along, unconnected_gradients="zero"
        )
    except LookupError as error:
        _refuse({name for names in _NO_ENTRY.findall(str(error)) for name in names if name})
        raise


def _operations(graph):
    """The types of all operations of a graph, also of the functions that it calls."""
    definition = graph.as_graph_def()
    nodes = [definition.node, *(function.node_def for function in definition.library.function)]
    return {node.op for each in nodes for node in each}


def _refuse(operations):
    if operations:
        names = sorted(name.removesuffix("Grad") for name in operations)
        raise ValueError(
            "The model and the loss must have second derivatives. "
            f"Received: operations that TensorFlow cannot differentiate twice: {names}"
        )
