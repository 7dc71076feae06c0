"""Which axes of a kernel are inputs and which are outputs, for the structures of masks."""

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
        layer: The innermost built layer that holds it.
        kernel: Its variable.
    """
    rank = len(kernel.shape)
    if isinstance(layer, keras.layers.EinsumDense):
        return _of_equation(layer.equation)
    if isinstance(layer, _TRANSPOSED):
        return Axes((rank - 1,), (rank - 2,))
    if is_depthwise(layer, kernel):
        # Each output channel reads a single input channel, at several positions.
        return Axes(tuple(range(rank - 2)), (rank - 2, rank - 1))
    return last_two(rank)


def is_depthwise(layer, kernel):
    """Whether each output of a kernel reads one input channel; its last two axes are both."""
    return isinstance(layer, _DEPTHWISE) or "depthwise_kernel" in kernel.name


def _of_equation(equation):
    """Summed axes are inputs; axes that the inputs of the layer do not have are outputs."""
    operands, outputs = equation.replace(" ", "").split("->")
    inputs, kernel = operands.split(",")
    summed = tuple(axis for axis, letter in enumerate(kernel) if letter not in outputs)
    own = tuple(axis for axis, letter in enumerate(kernel) if letter not in inputs)
    return Axes(summed, own)
