"""Which axes of a kernel are inputs and outputs: what a structure needs to know of its layer."""

import keras

from rigl_tf.structures import Axes, last_two

_TRANSPOSED = (
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2DTranspose,
    keras.layers.Conv3DTranspose,
)
_DEPTHWISE = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)


def axes_of(layer, kernel):
    """The `Axes` of a kernel.

    Args:
        layer: The built layer that holds it, the innermost one.
        kernel: Its variable.
    """
    rank = len(kernel.shape)
    if isinstance(layer, keras.layers.EinsumDense):
        return _of_equation(layer.equation)
    if isinstance(layer, _TRANSPOSED):
        return Axes((rank - 1,), (rank - 2,))
    if isinstance(layer, _DEPTHWISE) or "depthwise_kernel" in kernel.name:
        # Each output channel reads one input channel only, at several positions.
        return Axes(tuple(range(rank - 2)), (rank - 2, rank - 1))
    return last_two(rank)


def _of_equation(equation):
    """What is summed is an input; what the inputs do not have, an output."""
    operands, outputs = equation.replace(" ", "").split("->")
    inputs, kernel = operands.split(",")
    summed = tuple(axis for axis, letter in enumerate(kernel) if letter not in outputs)
    own = tuple(axis for axis, letter in enumerate(kernel) if letter not in inputs)
    return Axes(summed, own)
