"""Finds the largest gradients of a kernel tile by tile, without the whole dense gradient.

RigL grows connections where the gradient of the loss is largest, so it needs only the few largest
entries of the gradient. This makes RigL possible for kernels whose gradient does not fit into
memory; the RigL paper calls it online top-k (Evci et al., 2020, section 3). For masked kernels the
optimizers of `rigl_tf` cannot do it, because Keras computes all gradients before it calls an
optimizer. These functions are for your own training loops with a `tf.GradientTape`.
"""

import math
from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any

import tensorflow as tf

from rigl_tf import selection
from rigl_tf.checks import check_integers


def top_k_of_tiles(
    tile: Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]],
    num_tiles: int,
    k: int,
    dtype: str | tf.DType = "float32",
) -> tuple[tf.Tensor, tf.Tensor]:
    """Finds the `k` largest of many scores, with only one tile of scores in memory at a time.

    The result equals that of `rigl_tf.selection.top_k_mask` for all scores: it is exact, and ties
    go to the lower index. It needs memory for one tile and for `2 k` scores and indices. All shapes
    are static, so it compiles with XLA.

    Args:
        tile: Function of the number of a tile, a scalar int32 tensor. It returns two tensors of a
            constant length: the scores (floating-point numbers without NaN) and their indices
            (int64). Indices must increase within a tile and from tile to tile. Scores with a
            negative index are ignored, for example to fill up the last tile.
        num_tiles: Integer >= 1, the number of tiles.
        k: Integer >= 1, the number of scores to find.
        dtype: Type of the scores.

    Returns:
        `(scores, indices)`, each of length `k`, the largest score first. If there are fewer than
        `k` scores, the indices at the end are -1.

    Example:

    >>> data = tf.constant([3.0, 1.0, 4.0, 1.0, 5.0, 9.0])
    >>> def tile(number):
    ...     indices = 2 * tf.cast(number, tf.int64) + tf.range(2, dtype=tf.int64)
    ...     return tf.gather(data, indices), indices
    >>> scores, indices = top_k_of_tiles(tile, num_tiles=3, k=4)
    >>> scores.numpy().tolist(), indices.numpy().tolist()
    ([9.0, 5.0, 4.0, 3.0], [5, 4, 2, 0])
    """
    check_integers(1, num_tiles=num_tiles, k=k)

    def merge(number, scores, indices):
        # The scores found before come first: among equal keys, `top_k` takes the first ones.
        new_scores, new_indices = tile(number)
        scores = tf.concat([scores, new_scores], axis=0)
        indices = tf.concat([indices, new_indices], axis=0)
        keys = selection.ordered_keys(scores)
        keys = tf.where(indices < 0, keys.dtype.min, keys)  # below those of all scores
        best = tf.math.top_k(keys, k).indices
        return number + 1, tf.gather(scores, best), tf.gather(indices, best)

    nothing = (
        tf.fill([k], tf.constant(float("-inf"), dtype)),
        tf.fill([k], tf.constant(-1, tf.int64)),
    )
    _, scores, indices = tf.while_loop(
        lambda number, *_: number < num_tiles,
        merge,
        (tf.constant(0), *nothing),
        parallel_iterations=1,  # one tile at a time
    )
    return scores, indices


def largest_gradients(
    inputs: tf.Tensor,
    output_gradients: tf.Tensor,
    kept_mask: tf.Tensor,
    k: int,
    tile_rows: int | None = None,
    strides: int | Sequence[int] = 1,
    padding: str = "valid",
    dilation_rate: int | Sequence[int] = 1,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Finds the connections of a Dense layer or convolution with the largest gradients.

    A tile has `tile_rows` rows of the kernel's gradient. For a Dense layer these rows belong to
    inputs, for a convolution to input channels at one position of its window. The tile is the
    product of these inputs with `output_gradients`, as the whole gradient is; only rounding errors
    may differ. It needs memory for `k` scores and a tile, and for a convolution also a view of its
    inputs at one position. It takes about ten times as long as with the dense gradient, and longer
    with XLA, which sorts slowly on CPUs. If the gradient fits into memory, use
    `rigl_tf.selection.drop_and_grow` instead.

    Args:
        inputs: Floating-point tensor, the inputs of the layer, of shape `(..., inputs)`, or for a
            convolution `(batch, *spatial shape, channels)`.
        output_gradients: Tensor of the same dtype, in the shape of the layer's outputs: the
            gradient of the loss with respect to the outputs before the activation.
        kept_mask: Boolean tensor of the kernel's shape: the active connections that are kept, which
            must not be found. It has two dimensions for a Dense layer, three to five for Conv1D,
            Conv2D and Conv3D.
        k: Integer >= 1, the number of connections to find.
        tile_rows: Integer >= 1, the number of rows in a tile. By default a tile has about `k`
            entries. Most of the time is spent on merging a tile with the `k` best scores, so larger
            tiles are faster.
        strides: The strides of a convolution: an integer, or one for each spatial dimension.
        padding: The padding of a convolution: `"valid"` or `"same"`.
        dilation_rate: The dilation of a convolution: an integer, or one for each spatial dimension.

    Returns:
        `(gradients, indices)`, each of length `k`: the absolute gradients, the largest first, and
        int64 indices into the flattened kernel. Ties go to the lower index, and NaN counts as the
        lowest number. If there are fewer than `k` connections to find, the last indices are -1.

    Raises:
        ValueError: If the shapes do not fit each other (for example in a grouped convolution), or
            an argument is out of its range.

    Example:

    A step of RigL in your own training loop. The tape computes the gradient of the layer's outputs,
    not of its kernel:

    >>> x = inputs = keras.Input((8,))
    >>> x = keras.layers.Dense(6, name="hidden")(x)
    >>> x = keras.layers.Dense(1, name="last")(keras.layers.ReLU()(x))
    >>> model = rigl_tf.sparsify(keras.Model(inputs, x), 0.75, dense_layers="last")
    >>> layer = model.get_layer("hidden")
    >>> parts = keras.Model(inputs=model.input, outputs=[layer.input, layer.output, model.output])
    >>> with tf.GradientTape() as tape:
    ...     layer_inputs, layer_outputs, predictions = parts(np.ones((4, 8)), training=True)
    ...     loss = tf.reduce_mean((predictions - 1.0) ** 2)
    >>> gradient = tape.gradient(loss, layer_outputs)
    >>> mask = rigl_tf.get_masks(model)["hidden/kernel"]  # 12 of 48 connections; 3 are to move
    >>> kept = rigl_tf.selection.keep(mask, tf.abs(layer.kernel), num_active=12 - 3)
    >>> _, indices = largest_gradients(layer_inputs, gradient, kept, k=3, tile_rows=2)
    >>> rigl_tf.set_masks(model, {"hidden/kernel": grow(kept, indices)})
    >>> int(np.sum(rigl_tf.get_masks(model)["hidden/kernel"]))
    12
    """
    check_integers(1, k=k, tile_rows=1 if tile_rows is None else tile_rows)
    inputs, output_gradients, kept_mask = map(
        tf.convert_to_tensor, (inputs, output_gradients, kept_mask)
    )
    *window, channels, units = kept_mask.shape
    window = _Window(window, strides, dilation_rate)
    if not window.shape:
        inputs, output_gradients = (
            tf.reshape(each, [-1, each.shape[-1]]) for each in (inputs, output_gradients)
        )
    inputs = window.pad(inputs, padding)
    window.check(inputs.shape, output_gradients.shape, kept_mask.shape)
    rows = min(tile_rows or math.ceil(k / units), channels)
    num_blocks = math.ceil(channels / rows)
    kept_rows = tf.reshape(kept_mask, [-1, units])
    of_outputs = tf.reshape(output_gradients, [-1, units])

    def tile(number):
        position, block = number // num_blocks, number % num_blocks
        # The last block starts early enough to be full. Rows of the block before are ignored.
        channel = tf.minimum(block * rows, channels - rows)
        is_left_out = tf.range(rows)[:, tf.newaxis] + channel < block * rows
        row = position * channels + channel
        is_left_out |= tf.slice(kept_rows, [row, 0], [rows, units])
        view = window.view(inputs, output_gradients.shape, position, channel, rows)
        scores = tf.abs(tf.matmul(view, of_outputs, transpose_a=True))
        indices = tf.cast(row, tf.int64) * units + tf.range(rows * units, dtype=tf.int64)
        scores = tf.reshape(selection.where_eligible(~is_left_out, scores), [-1])
        return scores, tf.where(tf.reshape(is_left_out, [-1]), tf.constant(-1, tf.int64), indices)

    return top_k_of_tiles(tile, window.num_positions * num_blocks, k, inputs.dtype)


def grow(kept_mask: tf.Tensor, indices: Any, num_grow: int | tf.Tensor | None = None) -> tf.Tensor:
    """Adds connections to a mask.

    Args:
        kept_mask: Boolean tensor, the connections that are kept.
        indices: Integer tensor, the connections to grow, as indices into the flattened mask. For
            example from `largest_gradients`. They must not be in `kept_mask` or be -1.
        num_grow: Integer, scalar integer tensor, or `None`. Only the first `num_grow` indices are
            grown, because `k` is a constant, but the number of connections to grow may fall.

    Returns:
        Boolean tensor of the shape of `kept_mask`.

    Example:

    >>> grow(tf.constant([[True, False], [False, False]]), [3, 2], num_grow=1).numpy().tolist()
    [[True, False], [False, True]]
    """
    kept_mask = tf.convert_to_tensor(kept_mask)
    indices = tf.convert_to_tensor(indices)
    num_indices = indices.shape[0]
    is_grown = tf.range(num_indices) < (num_indices if num_grow is None else num_grow)
    flat = tf.reshape(kept_mask, [-1])
    grown = tf.tensor_scatter_nd_update(flat, indices[:, tf.newaxis], is_grown)
    return tf.reshape(grown, kept_mask.shape)


class _Window:
    """The window of a convolution. The window of a Dense layer has no dimension, one position."""

    def __init__(self, shape, strides, dilation_rate):
        self.shape = tuple(shape)
        self.num_positions = math.prod(self.shape)
        self._strides = self._of_each_dimension(strides=strides)
        self._dilations = self._of_each_dimension(dilation_rate=dilation_rate)
        # The distance from the first to the last input in the window.
        self._extents = [(n - 1) * d + 1 for n, d in zip(self.shape, self._dilations, strict=True)]

    def _of_each_dimension(self, **argument):
        ((name, value),) = argument.items()
        values = [value] * len(self.shape) if isinstance(value, Integral) else list(value)
        if len(values) != len(self.shape):
            raise ValueError(
                f"`{name}` must be an integer, or one for each of the window's {len(self.shape)} "
                f"dimensions. Received: {name}={value}"
            )
        for each in values:
            check_integers(1, **{name: each})
        return values

    def pad(self, inputs, padding):
        """The inputs with the zeros that the convolution adds around them."""
        if padding == "valid":
            return inputs
        if padding != "same":
            raise ValueError(f'`padding` must be "valid" or "same". Received: {padding=}')
        paddings = []
        for size, stride, extent in zip(
            inputs.shape[1:-1], self._strides, self._extents, strict=True
        ):
            total = max((math.ceil(size / stride) - 1) * stride + extent - size, 0)
            paddings.append([total // 2, total - total // 2])
        return tf.pad(inputs, [[0, 0], *paddings, [0, 0]])

    def check(self, inputs, outputs, kernel):
        """Checks that the shapes of padded inputs, outputs and kernel fit each other."""
        rank = len(self.shape) + 2
        fits = len(inputs) == len(outputs) == rank
        fits = fits and (inputs[-1], outputs[-1]) == (kernel[-2], kernel[-1])
        fits = fits and tuple(outputs[1:-1]) == tuple(
            (size - extent) // stride + 1
            for size, extent, stride in zip(inputs[1:-1], self._extents, self._strides, strict=True)
        )
        if not fits:
            raise ValueError(
                "The shapes of inputs and output gradients must fit a layer with this kernel, with "
                "channels last and without groups. Received: inputs of shape "
                f"{inputs} (padded), output_gradients of shape {outputs}, a kernel of {kernel}"
            )

    def view(self, inputs, outputs, position, channel, num_channels):
        """The inputs that are multiplied by one position of the kernel, for each output: a matrix.

        Args:
            inputs: The padded inputs.
            outputs: The shape of the outputs.
            position: Scalar integer tensor, the position in the flattened window.
            channel: Scalar integer tensor, the first channel.
            num_channels: Integer.
        """
        begin, size, strided = [channel], [num_channels], [slice(None)]
        for dimension in reversed(range(len(self.shape))):
            begin.insert(0, position % self.shape[dimension] * self._dilations[dimension])
            position = position // self.shape[dimension]
            size.insert(0, (outputs[1 + dimension] - 1) * self._strides[dimension] + 1)
            strided.insert(0, slice(None, None, self._strides[dimension]))
        view = tf.slice(inputs, [0, *begin], [tf.shape(inputs)[0], *size])
        return tf.reshape(view[(slice(None), *strided)], [-1, num_channels])
