"""Sparsity-aware initialisation: the variance of a weight by the connections that there are."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from rigl_tf import masks
from rigl_tf.checks import check_choice, check_integers, check_numbers
from rigl_tf.walk import layers_of_weights

_MODES = ("fan_in", "fan_out", "fan_avg")
_DISTRIBUTIONS = ("normal", "uniform")
_FANS = ("neuron", "layer", "dense")

# Masks are drawn with the same pairs of seed and index: the values must be other numbers.
_STREAM = 0x1217


@keras.saving.register_keras_serializable(package="rigl_tf")
class SparseVarianceScaling:
    """Initial weights whose variance follows the active connections of each neuron.

    `keras.initializers.VarianceScaling` counts all connections of a layer, also those that are
    zero, so the signal fades in a sparse network. Here the weight of an active connection from
    unit `i` to unit `j` has mean 0 and variance `scale / max(1, n)`, where `n` is the number of
    active connections into `j`, out of `i`, or the mean of the two.

    It is called with a mask, not with a shape, so it is no `keras.initializers.Initializer`: use
    it with `rigl_tf.sparsify(..., initializer=...)`, or with `initialize` for a model whose masks
    were set later.

    Reference:

    - [Evci et al., 2022](https://arxiv.org/abs/2010.03533), with `fans="neuron"`; He's
      initialisation is `scale=2.0, mode="fan_in", distribution="normal"`
    - [Liu et al., 2019](https://arxiv.org/abs/1810.05270), with `fans="layer"`
    - [Evci et al., 2020](https://arxiv.org/abs/1911.11134), the ResNet-50 of the authors' code:
      `fans="layer"`, convolutions with `scale=2.0, mode="fan_out", distribution="normal"`

    Args:
        scale: Number > 0, the factor of the variance.
        mode: Which connections are counted: `"fan_in"`, `"fan_out"` or `"fan_avg"`, their mean.
        distribution: `"normal"` (not truncated) or `"uniform"`, between plus and minus
            `sqrt(3 * variance)`.
        fans: Whose connections are counted: `"neuron"`, the active ones of each neuron; `"layer"`,
            the mean of these over the neurons of the layer; `"dense"`, all, active or not, for
            comparison.

    Raises:
        ValueError: If an argument is out of its range.

    Example:

    >>> he = SparseVarianceScaling(2.0, mode="fan_in", distribution="normal")
    >>> model = keras.Sequential([keras.Input((784,)), keras.layers.Dense(10)])
    >>> model = rigl_tf.sparsify(model, sparsity=0.98, initializer=he)
    """

    def __init__(
        self,
        scale: float = 1.0,
        mode: str = "fan_avg",
        distribution: str = "uniform",
        fans: str = "neuron",
    ) -> None:
        check_numbers("(0, inf)", scale=scale)
        check_choice(_MODES, mode=mode)
        check_choice(_DISTRIBUTIONS, distribution=distribution)
        check_choice(_FANS, fans=fans)
        self.scale = scale
        self.mode = mode
        self.distribution = distribution
        self.fans = fans

    def __call__(
        self,
        kernel_mask: np.ndarray | tf.Tensor,
        seed: Sequence[int],
        axes: tuple[Sequence[int], Sequence[int]] | None = None,
    ) -> tf.Tensor:
        """The values of one kernel.

        Args:
            kernel_mask: Boolean array or tensor, `True` where active.
            seed: Pair of integers.
            axes: Pair of tuples of integers: the axes to sum the mask over for the connections
                into a neuron, and for those out of one. Defaults to those of Dense kernels
                `(in, out)` and convolution kernels `(height, width, in, out)`.

        Returns:
            Tensor of the mask's shape, in float32; zero where the mask is `False`.

        Raises:
            ValueError: If `seed` is no pair.
        """
        if np.shape(seed) != (2,):
            raise ValueError(f"`seed` must be a pair of integers. Received: seed={seed!r}")
        mask = tf.convert_to_tensor(kernel_mask, tf.bool)
        into, out = axes or _default_axes(mask.shape.rank)
        active = tf.cast(mask, tf.float64)
        fans = {
            "fan_in": lambda: self._fan(active, into),
            "fan_out": lambda: self._fan(active, out),
            "fan_avg": lambda: (self._fan(active, into) + self._fan(active, out)) / 2,
        }
        std = tf.sqrt(self.scale / tf.maximum(fans[self.mode](), 1.0))
        seed = tf.random.fold_in(tf.convert_to_tensor(seed), _STREAM, alg="philox")
        arguments = {"seed": seed, "dtype": tf.float64, "alg": "philox"}
        if self.distribution == "normal":
            values = tf.random.stateless_normal(mask.shape, **arguments)
        else:
            limit = math.sqrt(3)
            values = tf.random.stateless_uniform(
                mask.shape, minval=-limit, maxval=limit, **arguments
            )
        return tf.cast(masks.masked(std * values, mask), tf.float32)

    def _fan(self, active, axes):
        """The number of connections of each neuron, in a shape that broadcasts to the kernel's."""
        if self.fans == "neuron":
            return tf.reduce_sum(active, axes, keepdims=True)
        dense = tf.constant(math.prod(active.shape[axis] for axis in axes), tf.float64)
        return dense * tf.reduce_mean(active) if self.fans == "layer" else dense

    def get_config(self) -> dict[str, Any]:
        return {
            "scale": self.scale,
            "mode": self.mode,
            "distribution": self.distribution,
            "fans": self.fans,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "SparseVarianceScaling":
        return cls(**config)


def initialize(model: keras.layers.Layer, initializer: Callable[..., Any], seed: int = 0) -> None:
    """Gives the sparse kernels of a model new values, by the masks that they have.

    Biases and dense weights stay as they are. Call it before training begins: what an optimizer
    keeps of the weights is not reset.

    What is *in* and *out* is known of Dense, EinsumDense (from its equation: those inside of
    MultiHeadAttention too), convolutions with groups, transposed and depthwise ones; other kernels
    are taken to be `(..., in, out)`, as Keras does. In recurrent kernels, whose columns are those
    of several gates, a connection to each gate counts.

    Args:
        model: A built sparse `keras.Model` or layer.
        initializer: A `SparseVarianceScaling`, or a function of a mask, a pair of integers as the
            seed, and axes, see its `__call__`.
        seed: Integer. The values are a function of it and of each kernel's index and mask.

    Raises:
        ValueError: If the model has no sparse kernel, or an argument is out of its range.

    Example:

    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
    >>> model = rigl_tf.sparsify(model, sparsity=0.0)
    >>> batch = np.ones((2, 8), "float32"), np.zeros((2, 4), "float32")
    >>> rigl_tf.set_masks(model, rigl_tf.pruning.snip_masks(model, batch, 0.75, "mse"))
    >>> initialize(model, SparseVarianceScaling(), seed=1)
    >>> int(np.count_nonzero(model.layers[0].layer.kernel))
    8
    """
    check(initializer)
    check_integers(seed=seed)
    kernels = masks.kernels_of(model)
    if not kernels:
        raise ValueError(
            "`initialize` needs a built sparse model: make one with `rigl_tf.sparsify`, which "
            "takes `initializer=...` for a model that is built later. "
            f"Received: model={model.name!r}, without sparse kernels"
        )
    layers = {id(weight): around[-1] for weight, around in layers_of_weights(model)}
    for index, kernel in enumerate(kernels.values()):
        variable, mask = kernel.variable, kernel.kernel_mask
        kernel.assign(_values(initializer, layers[id(variable)], variable, (seed, index), mask))


def check(initializer: Callable[..., Any]) -> None:
    """Raises a `ValueError` unless it can be called with a mask."""
    if not callable(initializer) or isinstance(initializer, (type, keras.initializers.Initializer)):
        raise ValueError(
            "`initializer` must be a `rigl_tf.initializers.SparseVarianceScaling`, or a function "
            "of a mask, a seed and axes: initializers of Keras know no masks. "
            f"Received: initializer={initializer!r}"
        )


def draw(
    initializer: Callable[..., Any],
    model: keras.layers.Layer,
    kernel: keras.Variable,
    seed: tuple[int, int],
    kernel_mask: np.ndarray | tf.Tensor,
) -> tf.Tensor:
    """The values of one kernel of a model or layer, in its shape and dtype."""
    layers = {id(weight): around[-1] for weight, around in layers_of_weights(model)}
    return _values(initializer, layers[id(kernel)], kernel, seed, kernel_mask)


def _values(initializer, layer, kernel, seed, kernel_mask):
    """The values of one kernel of the layer that computes with it."""
    view, axes = _axes(layer, kernel)
    kernel_mask = tf.convert_to_tensor(kernel_mask)
    values = tf.convert_to_tensor(initializer(tf.reshape(kernel_mask, view), seed, axes))
    if values.shape != tuple(view):
        raise ValueError(
            f"`initializer` must return values of the mask's shape {tuple(view)}. "
            f"Received: shape={tuple(values.shape)}, for {kernel.path!r}"
        )
    values = tf.cast(tf.reshape(values, kernel.shape), kernel.dtype)
    return masks.masked(values, kernel_mask)


def _default_axes(rank):
    """Of kernels `(..., in, out)`: the axes of what goes into a neuron, and of what comes out."""
    receptive_field = tuple(range(rank - 2))
    return (*receptive_field, rank - 2), (*receptive_field, rank - 1)


def _axes(layer, kernel):
    """The shape in which to see a kernel, and the axes to sum over for fan-in and fan-out."""
    shape = tuple(kernel.shape)
    rank = len(shape)
    into, out = _default_axes(rank)
    depthwise = keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D
    transposed = (
        keras.layers.Conv1DTranspose,
        keras.layers.Conv2DTranspose,
        keras.layers.Conv3DTranspose,
    )
    if isinstance(layer, keras.layers.EinsumDense):
        return shape, _axes_of_equation(layer.equation)
    if isinstance(layer, depthwise) or "depthwise_kernel" in kernel.name:
        return shape, (into[:-1], out)  # (height, width, in, out per in)
    if isinstance(layer, transposed):
        return shape, (out, into)
    if isinstance(layer, (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)):
        # Each group of filters has inputs of its own.
        view = (*shape[:-1], layer.groups, shape[-1] // layer.groups)
        return view, (into, (*into[:-1], rank))
    return shape, (into, out)


def _axes_of_equation(equation):
    """Into a neuron goes what is not in the outputs; out of one comes what is not in the inputs."""
    operands, outputs = equation.split("->")
    inputs, kernel = operands.split(",")
    into = tuple(axis for axis, letter in enumerate(kernel) if letter not in outputs)
    out = tuple(axis for axis, letter in enumerate(kernel) if letter not in inputs)
    return into, out
