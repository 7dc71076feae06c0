"""What a model costs: multiplications, additions, weights and bytes, dense and sparse."""

import contextlib
import dataclasses
import math
import re

import keras
import tensorflow as tf

from rigl_tf import masks
from rigl_tf.layers import all_layers
from rigl_tf.summary import KernelSummary

_CONVOLUTIONS = (
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Conv3D,
    keras.layers.DepthwiseConv1D,
    keras.layers.DepthwiseConv2D,
)
_TRANSPOSED = (
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2DTranspose,
    keras.layers.Conv3DTranspose,
)
_COUNTED = (keras.layers.Dense, *_CONVOLUTIONS, *_TRANSPOSED)


@dataclasses.dataclass(frozen=True)
class KernelCost(KernelSummary):
    """What one kernel costs per sample.

    Attributes:
        path, shape, num_active: As in `rigl_tf.summary.KernelSummary`.
        num_uses: How often each connection is used for one sample: 1 in a Dense layer, once for
            each output position in a convolution.
    """

    num_uses: int

    @property
    def dense_flops(self):
        """A multiplication and an addition for each use of each connection."""
        return 2 * self.size * self.num_uses

    @property
    def flops(self):
        return 2 * self.num_active * self.num_uses

    @property
    def num_bytes(self):
        """Float32 values of the active connections, and one bit for each if some are inactive."""
        bits = self.size if self.num_active < self.size else 0
        return 4 * self.num_active + math.ceil(bits / 8)


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a model costs per sample: see `count`."""

    kernels: tuple
    num_other_weights: int

    @property
    def dense_flops(self):
        return sum(kernel.dense_flops for kernel in self.kernels)

    @property
    def flops(self):
        return sum(kernel.flops for kernel in self.kernels)

    @property
    def flops_ratio(self):
        """FLOPs of the sparse model as a share of the dense model's; 1 if neither has any."""
        return self.flops / self.dense_flops if self.dense_flops else 1.0

    @property
    def dense_bytes(self):
        return 4 * (sum(kernel.size for kernel in self.kernels) + self.num_other_weights)

    @property
    def num_bytes(self):
        return sum(kernel.num_bytes for kernel in self.kernels) + 4 * self.num_other_weights


def count(model):
    """Counts what a built model costs for one sample.

    FLOPs are the multiplications and additions of Dense and convolution kernels, depthwise ones
    included; biases, normalisations and activations are left out, as in the paper (appendix H).
    Bytes are those of float32 weights, a sparse kernel stored as its active values and a bit mask.

    Args:
        model: A built `keras.Model` whose input shapes are known but for the batch size.

    Returns:
        A `Cost`: `kernels`, `flops`, `dense_flops`, `flops_ratio`, `num_bytes`, `dense_bytes`.

    Raises:
        ValueError: If the model is not built, an input dimension is unknown, or a layer with a
            sparse kernel is of a kind that cannot be counted.

    Example:

    >>> model = keras.Sequential([keras.Input((784,)), keras.layers.Dense(10)])
    >>> count(model).flops
    15680
    """
    num_uses = {}
    layers = [layer for layer in all_layers(model) if isinstance(layer, _COUNTED)]
    with _recorded_calls(layers) as calls:
        tf.function(model, autograph=False).get_concrete_function(input_specs(model))
    for layer, inputs_shape, outputs_shape in calls:
        uses = _num_uses(layer, inputs_shape, outputs_shape)
        num_uses[id(layer)] = num_uses.get(id(layer), 0) + uses
    kernels = tuple(_kernel_cost(layer, num_uses.get(id(layer), 0)) for layer in layers)
    uncounted = set(masks.sparse_kernels(model)) - {kernel.path for kernel in kernels}
    if uncounted:
        raise ValueError(
            "FLOPs are counted for Dense layers and convolutions only. "
            f"Received: sparse kernels of other layers, {sorted(uncounted)}"
        )
    num_other = sum(math.prod(weight.shape) for weight in model.weights)
    num_other -= sum(kernel.size for kernel in kernels)
    num_other -= sum(mask.size for mask in masks.get_masks(model).values())
    return Cost(kernels, num_other)


def input_specs(model):
    """The inputs of a built model for one sample, in the structure in which it is called.

    Raises:
        ValueError: If the model is not built, or an input dimension but the first is unknown.
    """
    if not model.built:
        raise ValueError(
            "The inputs of the model must be known: build it by calling it on a batch. "
            f"Received: model={model.name!r}, not built"
        )
    if not getattr(model, "inputs", None):
        raise ValueError(
            "The inputs of the model must be known, as those of Sequential and Functional models "
            f"are. Received: model={model.name!r} of class {type(model).__name__}"
        )

    def one_sample(tensor):
        if None in tensor.shape[1:]:
            raise ValueError(
                "The input dimensions of the model must be known, but for the batch size. "
                f"Received: input {tensor.name!r} of shape {tuple(tensor.shape)}"
            )
        # A Keras name may hold blanks; those of TensorFlow's arguments may not.
        name = re.sub(r"\W", "_", tensor.name)
        return tf.TensorSpec((1, *tensor.shape[1:]), tensor.dtype, name=name)

    # `input` of a Sequential model is there only after it was called.
    inputs = model.inputs[0] if isinstance(model, keras.Sequential) else model.input
    return tf.nest.map_structure(one_sample, inputs)


@contextlib.contextmanager
def _recorded_calls(layers):
    """Collects `(layer, shape of the first input, shape of the output)` of every call."""
    calls = []

    def record(layer):
        call = layer.call

        def recording(inputs, *args, **kwargs):
            outputs = call(inputs, *args, **kwargs)
            calls.append((layer, tuple(inputs.shape), tuple(outputs.shape)))
            return outputs

        layer.call = recording

    for layer in layers:
        record(layer)
    try:
        yield calls
    finally:
        for layer in layers:
            del layer.call


def _num_uses(layer, input_shape, output_shape):
    """How often one call on one sample uses each connection of a layer's kernel."""
    if isinstance(layer, keras.layers.Dense):
        return math.prod(output_shape[1:-1])
    # A convolution uses its kernel at each output position, a transposed one at each input.
    shape = input_shape if isinstance(layer, _TRANSPOSED) else output_shape
    return math.prod(shape[1:-1] if layer.data_format == "channels_last" else shape[2:])


def _kernel_cost(layer, num_uses):
    kernel = layer.kernel
    mask = masks.mask_of(kernel)
    shape = tuple(kernel.shape)
    num_active = math.prod(shape) if mask is None else int(tf.math.count_nonzero(mask.value))
    return KernelCost(kernel.path, shape, num_active, num_uses)
