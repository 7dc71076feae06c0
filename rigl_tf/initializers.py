"""Sparsity-aware initialisation: the variance of weights follows the active connections."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from rigl_tf import masks, selection
from rigl_tf.checks import check_choice, check_numbers, check_seed
from rigl_tf.walk import layers_by_weight

_MODES = ("fan_in", "fan_out", "fan_avg")
_DISTRIBUTIONS = ("normal", "uniform")
_FANS = ("neuron", "layer", "dense")

# Masks are drawn with the same pairs of seed and index, so the values need a different stream.
_STREAM = 0x1217
_DRAWS = 1 << 18  # how many numbers are drawn together


@keras.saving.register_keras_serializable(package="rigl_tf")
class SparseVarianceScaling:
    """Initial weights whose variance follows the active connections of each neuron.

    `keras.initializers.VarianceScaling` counts all connections of a layer, also inactive ones, so
    the signal becomes too small in a sparse network. Here the weight of an active connection from
    unit `i` to unit `j` has the mean 0 and the variance `scale / max(1, n)`, where `n` is the
    number of active connections into `j`, out of `i`, or the mean of both.

    It is called with a mask instead of a shape, so it is not a `keras.initializers.Initializer`.
    Use it with `rigl_tf.sparsify(..., initializer=...)`, or with `initialize` if the masks are set
    later.

    Reference:

    - [Evci et al., 2022](https://arxiv.org/abs/2010.03533), with `fans="neuron"`; He's
      initialisation is `scale=2.0, mode="fan_in", distribution="normal"`
    - [Liu et al., 2019](https://arxiv.org/abs/1810.05270), with `fans="layer"`
    - [Evci et al., 2020](https://arxiv.org/abs/1911.11134), the ResNet-50 of the authors' code:
      `fans="layer"`, convolutions with `scale=2.0, mode="fan_out", distribution="normal"`

    Args:
        scale: Number > 0, a factor of the variance.
        mode: String, which connections are counted: `"fan_in"` (into a neuron), `"fan_out"` (out of
            a neuron) or `"fan_avg"` (the mean of both).
        distribution: String: `"normal"` (not truncated), or `"uniform"` between plus and minus
            `sqrt(3 * variance)`.
        fans: String, how the connections are counted: `"neuron"`, the active connections of each
            neuron; `"layer"`, their mean over the neurons of a layer; `"dense"`, all connections,
            active or not, for comparison.

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
        """Draws the values of one kernel.

        Args:
            kernel_mask: Boolean array or tensor, `True` where connections are active.
            seed: Pair of integers.
            axes: Pair of tuples of integers: the axes over which the mask is summed to count the
                connections into a neuron, and out of a neuron. Defaults to the axes of Dense
                kernels `(in, out)` and convolution kernels `(height, width, in, out)`.

        Returns:
            Float32 tensor of the mask's shape, zero where the mask is `False`.

        Raises:
            ValueError: If `seed` is not a pair of integers.
        """
        if np.shape(seed) != (2,) or not tf.convert_to_tensor(seed).dtype.is_integer:
            raise ValueError(f"`seed` must be a pair of integers. Received: seed={seed!r}")
        mask = tf.convert_to_tensor(kernel_mask, tf.bool)
        into, out = axes or _default_axes(mask.shape.rank)
        # The active connections alone are computed: in float64, whole kernels would be large.
        active = tf.where(mask)
        fans = {
            "fan_in": lambda: self._fan(mask, into, active),
            "fan_out": lambda: self._fan(mask, out, active),
            "fan_avg": lambda: (self._fan(mask, into, active) + self._fan(mask, out, active)) / 2,
        }
        std = tf.sqrt(self.scale / tf.maximum(fans[self.mode](), 1.0))
        values = std * self._draws(tf.where(tf.reshape(mask, [-1]))[:, 0], mask.shape, seed)
        return tf.scatter_nd(active, tf.cast(values, tf.float32), tf.shape(mask, tf.int64))

    def _fan(self, mask, axes, active):
        """The number of connections of the neuron of each active connection."""
        connections = tf.cast(mask, tf.int32)
        if self.fans == "neuron":
            counts = tf.reduce_sum(connections, axes, keepdims=True)
            neurons = active * [int(size > 1) for size in counts.shape]
            return tf.cast(tf.gather_nd(counts, neurons), tf.float64)
        dense = tf.constant(math.prod(mask.shape[axis] for axis in axes), tf.float64)
        share = tf.reduce_sum(connections) / max(mask.shape.num_elements(), 1)
        return dense * share if self.fans == "layer" else dense

    def _draws(self, places, shape, seed):
        """Random numbers of variance 1 in float64, out of one for each entry of a kernel.

        Args:
            places: Sorted int64 tensor, the entries that are wanted, in the flattened kernel.
            shape: The kernel's shape.
            seed: As in `__call__`.
        """
        seed = tf.random.fold_in(tf.convert_to_tensor(seed), _STREAM, alg="philox")
        is_normal = self.distribution == "normal"
        draw = (
            tf.raw_ops.StatelessRandomNormalV2 if is_normal else tf.raw_ops.StatelessRandomUniformV2
        )
        starts = range(0, shape.num_elements(), _DRAWS)
        borders = tf.unstack(tf.searchsorted(places, tf.constant([*starts, 2**62], tf.int64)))
        parts = [tf.zeros([0], tf.float64)]
        for start, first, last in zip(starts, borders, borders[1:], strict=False):
            num_draws = min(_DRAWS, shape.num_elements() - start)
            draws = selection.part_of_draws(draw, tf.float64, seed, start, num_draws)
            parts.append(tf.gather(draws, places[first:last] - start))
        values = tf.concat(parts, axis=0)
        limit = math.sqrt(3)
        return values if is_normal else values * (2 * limit) - limit

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
    """Gives new values to the sparse kernels of a model, which fit their masks.

    Biases and dense weights stay as they are. Call it before training: the slots of an optimizer
    are not reset.

    The inputs and outputs of a kernel are known for Dense, EinsumDense (by its equation, also in
    MultiHeadAttention), and convolutions (also grouped, transposed and depthwise ones). For other
    kernels the axes are taken to be `(..., in, out)`, as in Keras. The columns of recurrent kernels
    belong to several gates; a connection to each gate counts.

    Args:
        model: A built sparse `keras.Model` or layer.
        initializer: A `SparseVarianceScaling`, or a function with the arguments of its `__call__`:
            a mask, a pair of integers as the seed, and axes.
        seed: Integer. The values depend on it, and on the index and the mask of each kernel.

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
    check_seed(seed)
    by = "`rigl_tf.sparsify`, which takes `initializer=...` for a model that is built later"
    kernels = masks.check_sparse(model, "`initialize`", by)
    around = layers_by_weight(model)
    for index, kernel in enumerate(kernels.values()):
        layer = around[id(kernel.variable)][-1]
        kernel.assign(_values(initializer, layer, kernel, (seed, index), kernel.mask))


def check(initializer: Callable[..., Any]) -> None:
    """Raises a `ValueError` unless an initializer can be called with a mask.

    Args:
        initializer: The initializer.
    """
    if not callable(initializer) or isinstance(initializer, (type, keras.initializers.Initializer)):
        raise ValueError(
            "`initializer` must be a `rigl_tf.initializers.SparseVarianceScaling`, or a function "
            "of a mask, a seed and axes; the initializers of Keras do not take masks. "
            f"Received: initializer={initializer!r}"
        )


def draw(
    initializer: Callable[..., Any],
    model: keras.layers.Layer,
    kernel: keras.Variable,
    seed: tuple[int, int],
    kernel_mask: np.ndarray | tf.Tensor,
) -> tf.Tensor:
    """Draws the values of one kernel of a model or layer, in its shape and dtype."""
    layer = layers_by_weight(model)[id(kernel)][-1]
    return _values(initializer, layer, masks.kernel_of(kernel), seed, kernel_mask)


def _values(initializer, layer, kernel, seed, kernel_mask):
    """Draws the values of one `SparseKernel`; `layer` is the layer that computes with it."""
    view, axes = _axes(layer, kernel)
    kernel_mask = tf.convert_to_tensor(kernel_mask)
    values = tf.convert_to_tensor(initializer(tf.reshape(kernel_mask, view), seed, axes))
    if values.shape != tuple(view):
        raise ValueError(
            f"`initializer` must return values of the mask's shape {tuple(view)}. "
            f"Received: shape={tuple(values.shape)}, for {kernel.path!r}"
        )
    values = tf.cast(tf.reshape(values, kernel.shape), kernel.variable.dtype)
    return masks.masked(values, kernel_mask)


def _default_axes(rank):
    """The axes to sum over for fan-in and fan-out of a kernel `(..., in, out)`."""
    receptive_field = tuple(range(rank - 2))
    return (*receptive_field, rank - 2), (*receptive_field, rank - 1)


def _axes(layer, kernel):
    """The shape to which a kernel is reshaped, and the axes to sum over for fan-in and fan-out."""
    shape = kernel.shape
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
    if isinstance(layer, depthwise) or "depthwise_kernel" in kernel.variable.name:
        return shape, (into[:-1], out)  # (height, width, in, out per in)
    if isinstance(layer, transposed):
        return shape, (out, into)
    if isinstance(layer, (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)):
        # Each group of filters has its own inputs.
        view = (*shape[:-1], layer.groups, shape[-1] // layer.groups)
        return view, (into, (*into[:-1], rank))
    return shape, (into, out)


def _axes_of_equation(equation):
    """Fan-in sums over axes that the outputs do not have, fan-out over axes not in the inputs."""
    operands, outputs = equation.split("->")
    inputs, kernel = operands.split(",")
    into = tuple(axis for axis, letter in enumerate(kernel) if letter not in outputs)
    out = tuple(axis for axis, letter in enumerate(kernel) if letter not in inputs)
    return into, out
