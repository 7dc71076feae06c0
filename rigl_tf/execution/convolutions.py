"""Convolutions whose kernels are stored as CSR.

A kernel of shape `[*kernel_size, channels, outputs]` is seen as a matrix of shape
`[prod(kernel_size) * channels, outputs]`. A convolution multiplies patches with it: there is a row
for each output pixel, with all inputs that the kernel covers at this pixel.
"""

import math
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from rigl_tf.execution import engine

# The largest number of floats in patches at a time, if TensorFlow's own operations make them.
_MOST_FLOATS = 1 << 24
# Spatial dimensions of the operation in C++.
_DIMENSIONS = 3


class Geometry(NamedTuple):
    """How a convolution of channels-last images moves over their pixels.

    Attributes:
        kernel_size: Tuple of 1 to 3 integers.
        strides: Tuple of as many integers.
        dilations: Tuple of as many integers.
        padding: `"valid"`, `"same"` or `"causal"`.
    """

    kernel_size: tuple
    strides: tuple
    dilations: tuple
    padding: str

    @property
    def is_plain(self):
        """Whether each output pixel depends only on the input pixel at the same place."""
        return set(self.kernel_size) == {1} and set(self.strides) == {1}

    def reach(self):
        """How many pixels a kernel covers in each dimension."""
        sizes = zip(self.kernel_size, self.dilations, strict=True)
        return [(size - 1) * dilation + 1 for size, dilation in sizes]


def convolve(x, values, structure, outputs, geometry):
    """Convolves images with a sparse kernel.

    It can be differentiated, also several times, with respect to `x` and `values`. The gradient of
    the values is computed only at their places.

    Args:
        x: float32 tensor of shape `[batch, *pixels, channels]`; batch and pixels may be unknown.
        values: float32 tensor of shape `[n]`: the active values, sorted by place.
        structure: The `engine.Structure` of their places in the kernel as a matrix.
        outputs: Integer, the number of output channels.
        geometry: The `Geometry`.

    Returns:
        float32 tensor of shape `[batch, *pixels, outputs]`.
    """
    shape = (math.prod(geometry.kernel_size) * x.shape[-1], outputs)
    if geometry.is_plain:
        y = engine.matmul(_as_rows(x), values, structure, shape)
        return tf.reshape(y, tf.concat([tf.shape(x)[:-1], [outputs]], axis=0))
    native = engine.native()
    if native is None:
        return _by_patches(x, values, structure, shape, geometry)
    outer = [1] * (_DIMENSIONS - len(geometry.kernel_size))
    sizes = tf.shape(x)
    y = native.rigl_conv(
        tf.reshape(x, tf.concat([sizes[:1], outer, sizes[1:]], axis=0)),
        values,
        *map(tf.convert_to_tensor, structure),
        kernel_size=[*outer, *geometry.kernel_size],
        strides=[*outer, *geometry.strides],
        dilations=[*outer, *geometry.dilations],
        padding=geometry.padding.upper(),
    )
    return tf.squeeze(y, axis=list(range(1, 1 + len(outer)))) if outer else y


@tf.RegisterGradient("RiglConv")
def _gradient_of_conv(operation, dy):
    backward = engine.native().rigl_conv_grad
    return engine.gradients_of_product(backward, operation, dy, **_movement(operation))


@tf.RegisterGradient("RiglConvGrad")
def _gradient_of_conv_grad(operation, of_dx, of_dvalues):
    operations = engine.native()
    return engine.gradients_of_gradient(
        operations.rigl_conv,
        operations.rigl_conv_grad,
        operation,
        of_dx,
        of_dvalues,
        **_movement(operation),
    )


def _movement(operation):
    """The attributes of a convolution that say how it moves over the images."""
    names = ("kernel_size", "strides", "dilations", "padding")
    return {name: operation.get_attr(name) for name in names}


def _patches(x, geometry):
    """The inputs that the kernel covers at each output pixel.

    Args:
        x: Tensor of shape `[batch, *pixels, channels]`.
        geometry: The `Geometry`.

    Returns:
        Tensor of shape `[batch, *output pixels, prod(kernel_size) * channels]`.
    """
    pixels = tf.shape(x)[1:-1]
    out = _output_pixels(pixels, geometry)
    before, after = _padding(pixels, out, geometry)
    x = tf.pad(x, tf.pad(tf.stack([before, after], axis=1), [[1, 1], [0, 0]]))
    whole = 1 | 1 << len(geometry.kernel_size) + 1  # The batch and the channels.
    seen = []
    for place in np.ndindex(geometry.kernel_size):
        first = tf.constant(place) * geometry.dilations
        end = first + (out - 1) * geometry.strides + 1
        seen.append(
            tf.strided_slice(
                x,
                tf.pad(first, [[1, 1]]),
                tf.pad(end, [[1, 1]]),
                [1, *geometry.strides, 1],
                begin_mask=whole,
                end_mask=whole,
            )
        )
    return tf.concat(seen, axis=-1)


def rows(x, dy, geometry):
    """Two matrices whose product `a^T b` is the gradient of the dense kernel as a matrix.

    Patches would need too much memory. So the matrices are the (transposed) gradient itself, which
    a dense convolution computes, and the identity.

    Args:
        x: float32 tensor of shape `[batch, *pixels, channels]`.
        dy: float32 tensor of shape `[batch, *pixels, outputs]`, the gradient of the output.
        geometry: The `Geometry`.
    """
    gradient = _dense_gradient(x, dy, geometry)
    outputs = gradient.shape[-1]
    return tf.transpose(tf.reshape(gradient, [-1, outputs])), tf.eye(outputs)


@tf.function(autograph=False)
def _dense_gradient(x, dy, geometry):
    # Its values do not matter, because the output of the convolution is not used.
    kernel = tf.zeros([*geometry.kernel_size, x.shape[-1], dy.shape[-1]])
    padding = geometry.padding.upper()
    if padding == "CAUSAL":
        x = tf.pad(x, [[0, 0], [geometry.reach()[0] - 1, 0], [0, 0]])
        padding = "VALID"
    with tf.GradientTape() as tape:
        tape.watch(kernel)
        y = tf.nn.convolution(x, kernel, geometry.strides, padding, dilations=geometry.dilations)
    return tape.gradient(y, kernel, dy)


def _output_pixels(pixels, geometry):
    strides = tf.constant(geometry.strides)
    if geometry.padding == "valid":
        pixels = tf.maximum(pixels - geometry.reach() + 1, 0)
    return (pixels + strides - 1) // strides


def _padding(pixels, out, geometry):
    """The numbers of zeros before and after the pixels in each dimension."""
    reach = tf.constant(geometry.reach())
    missing = tf.maximum((out - 1) * geometry.strides + reach - pixels, 0)
    if geometry.padding == "causal":
        return reach - 1, tf.zeros_like(reach)
    before = missing // 2 if geometry.padding == "same" else tf.zeros_like(missing)
    return before, missing - before


def _as_rows(x):
    return tf.reshape(x, [-1, x.shape[-1]])


def _by_patches(x, values, structure, shape, geometry):
    """The convolution, with patches for a part of the batch at a time."""

    def product(x, values):
        seen = _patches(x, geometry)
        y = engine.matmul(tf.reshape(seen, [-1, shape[0]]), values, structure, shape)
        return tf.reshape(y, tf.concat([tf.shape(seen)[:-1], [shape[1]]], axis=0))

    @tf.custom_gradient
    def convolved(x, values):
        def of_part(part):
            return product(x[part], values), tf.zeros_like(values)

        def gradient(dy):
            def of_part(part):
                some = x[part]
                with tf.GradientTape() as tape:
                    tape.watch((some, values))
                    y = product(some, values)
                return tape.gradient(y, (some, values), dy[part])

            dx, dvalues = _for_parts(x, shape[0], geometry, of_part)
            return tf.ensure_shape(dx, x.shape), tf.ensure_shape(dvalues, values.shape)

        y, _ = _for_parts(x, shape[0], geometry, of_part)
        return tf.ensure_shape(y, [x.shape[0], *[None] * (x.shape.rank - 2), shape[1]]), gradient

    return convolved(x, values)


def _for_parts(x, width, geometry, function):
    """Calls a function for parts of the batch, slices that are not too large.

    Returns:
        The first results of the function, concatenated, and the sum of its second results.
    """
    batch = tf.shape(x)[0]
    out = _output_pixels(tf.shape(x)[1:-1], geometry)
    size = tf.maximum(_MOST_FLOATS // tf.maximum(tf.reduce_prod(out) * width, 1), 1)
    num_parts = tf.maximum((batch + size - 1) // size, 1)
    parts = tf.TensorArray(tf.float32, num_parts, infer_shape=False)

    def body(part, parts, total):
        some, other = function(slice(part * size, (part + 1) * size))
        return part + 1, parts.write(part, some), total + other

    _, parts, total = tf.while_loop(
        lambda part, *_: part < num_parts,
        body,
        (0, parts, 0.0),
        shape_invariants=(tf.TensorShape([]), None, tf.TensorShape(None)),
        parallel_iterations=1,
    )
    return parts.concat(), total
