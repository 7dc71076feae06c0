"""Counts the connections of the sparse kernels of a model, for each input and each unit."""

import dataclasses
import math

import keras
import numpy as np

from rigl_tf import masks
from rigl_tf.layers.axes import axes_of, is_depthwise
from rigl_tf.layers.eligibility import dense_reason
from rigl_tf.reports.pixels import shape_of_image
from rigl_tf.walk import layers_by_weight, layers_of_weights

_CONVOLUTIONS = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)


@dataclasses.dataclass(frozen=True)
class Kernel:
    """The counts of one kernel.

    Attributes:
        path: Path of the kernel.
        shape: Shape of the kernel.
        num_active: Number of active connections.
        inputs: Array of integers, the number of active connections of each input. The inputs are
            the last axis. For a convolution, the axes before are the positions of its window.
        num_dead: Number of units without an active connection from the inputs.
        num_units: Number of units.
        layers: Tuple, the layers around the kernel, from the model to that which computes with it.
    """

    path: str
    shape: tuple
    num_active: int
    inputs: np.ndarray
    num_dead: int
    num_units: int
    layers: tuple

    @property
    def size(self):
        return math.prod(self.shape)

    @property
    def sparsity(self):
        return 1 - self.num_active / self.size

    @property
    def num_unread(self):
        """Number of inputs without an active connection."""
        return int((self.inputs.reshape(-1, self.inputs.shape[-1]).sum(axis=0) == 0).sum())


def kernels_of(model):
    """Returns a list of the sparse `Kernel`s, and whether they have masks.

    If no kernel has a mask, as after `rigl_tf.strip`, the kernels that contain zeros are returned.
    """
    around = layers_by_weight(model)
    found = masks.kernels_of(model)
    if found:
        kernels = []
        for path, kernel in found.items():
            layers = around[id(kernel.variable)]
            counts = kernel.counts(axes_of(layers[-1], kernel))
            counts = _by_channel(counts, layers[-1], kernel, lambda kernel=kernel: kernel.mask)
            kernels.append(_kernel(path, kernel.shape, counts, layers))
        return kernels, True
    plain = {
        weight.path: weight
        for weight, layers in layers_of_weights(model)
        if len(weight.shape) >= 2
        and "float" in weight.dtype
        and dense_reason(layers[-1], weight) not in ("bias", "normalisation", "activation")
    }
    kernels = []
    for path, weight in plain.items():
        active = weight.numpy() != 0
        if not active.all():
            layers = around[id(weight)]
            counts = masks.counts_of(active, axes_of(layers[-1], weight))
            counts = _by_channel(counts, layers[-1], weight, lambda active=active: active)
            kernels.append(_kernel(path, active.shape, counts, layers))
    return kernels, False


def _kernel(path, shape, counts, layers):
    of_inputs, of_units = counts
    num_dead = int(np.count_nonzero(of_units == 0))
    return Kernel(path, shape, int(of_units.sum()), of_inputs, num_dead, of_units.size, layers)


def _by_channel(counts, layer, kernel, read_mask):
    """The counts, with those of all input channels where outputs read different channels."""
    if is_depthwise(layer, kernel):
        return np.count_nonzero(read_mask(), axis=-1), counts[1]
    if not isinstance(layer, _CONVOLUTIONS) or layer.groups == 1:
        return counts
    mask = read_mask()
    *window, num_inputs, num_outputs = mask.shape
    by_group = mask.reshape(*window, num_inputs, layer.groups, num_outputs // layer.groups)
    of_channels = np.count_nonzero(by_group, axis=-1).swapaxes(-1, -2)
    return of_channels.reshape(*window, layer.groups * num_inputs), counts[1]


def as_image(kernel, model):
    """Puts the number of active connections of each input into a matrix, to show it as a picture.

    If the inputs are the pixels of the model's images, the matrix is such an image. For a
    convolution, the rows are the positions of the window and the columns are the input channels.
    Other inputs fill the matrix row by row.

    Returns:
        The matrix, and a phrase that says what each of its numbers belongs to.
    """
    counts = kernel.inputs
    shape = shape_of_image(kernel, model)
    if shape is not None:
        return counts.reshape(shape).sum(axis=-1), "each input pixel"
    if counts.ndim > 1:
        matrix = counts.reshape(-1, counts.shape[-1])
        return matrix, "each position of the window (down) and input channel (across)"
    width = counts.size if counts.size <= 64 else math.ceil(math.sqrt(2 * counts.size))
    matrix = np.full(math.ceil(counts.size / width) * width, np.nan)
    matrix[: counts.size] = counts
    return matrix.reshape(-1, width), "each input, row by row"
