"""The largest gradients of a kernel, found tile by tile: the dense gradient is never there.

RigL grows connections where the gradient of the loss is largest. Of the whole gradient it needs no
more than the few largest entries, so a kernel too big to hold its gradient can be grown all the
same, by what the RigL paper calls online top-k (Evci et al., 2020, section 3). The optimizers of
`rigl_tf` cannot do that: Keras computes all gradients before it calls them. These functions are for
training loops of one's own, with a `tf.GradientTape`.
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
    """Finds the `k` largest of many scores, of which only one tile is there at a time.

    The result is that of `rigl_tf.selection.top_k_mask` for all scores at once: exact, and ties go
    to the lower index. Memory is that of a tile and of `2 k` scores and indices. Shapes are
    static, so that it compiles with XLA.

    Args:
        tile: Gets the number of a tile, a scalar int32 tensor, and returns two tensors of a
            constant length: the scores, floating-point without NaN, and their indices, int64.
            Indices must increase from one score to the next and from tile to tile. Scores with a
            negative index are left out, say those that fill up the last tile.
        num_tiles: Integer, at least 1.
        k: Integer, at least 1.
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
        # What was found before comes first: of equal keys, `top_k` takes the first ones.
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

    A tile of the kernel's gradient has `tile_rows` rows: those of so many inputs of a Dense layer,
    or so many input channels at one position of a convolution's window. It is the product of these
    inputs with `output_gradients`, as the whole gradient is; only the rounding of the products may
    differ. Memory is `O(k + tile)`, and for a convolution a view of one position of its inputs. It
    is bought with time, about ten times that with the dense gradient, and more with XLA, which
    sorts slowly on CPUs: for kernels of which the gradient fits into memory, use `drop_and_grow`.

    Args:
        inputs: Floating-point tensor, the layer's inputs: `(..., inputs)`, or for a convolution
            `(batch, *spatial shape, channels)`.
        output_gradients: Tensor of the same dtype, the gradient of the loss with respect to the
            layer's outputs, before an activation; their shape.
        kept_mask: Boolean tensor of the kernel's shape: connections that are not to be found, as
            they are active and stay. Two dimensions for a Dense layer, three to five for Conv1D,
            Conv2D and Conv3D.
        k: Integer, at least 1.
        tile_rows: Integer, at least 1: the rows of the gradient that are there at a time. By
            default a tile is about as large as `k`. Time goes into merging tiles, `k + tile` scores
            each time, so larger tiles are faster.
        strides, padding, dilation_rate: Those of a convolution; `padding` is `"valid"` or
            `"same"`. Strides and dilations are integers or one for each spatial dimension.

    Returns:
        `(gradients, indices)`, each of length `k`: the absolute gradients, the largest first, and
        where they are in the flattened kernel, int64. Ties go to the lower index, NaN counts as
        the lowest number. If fewer than `k` connections are not kept, the indices at the end
        are -1.

    Raises:
        ValueError: If shapes do not fit each other, as those of a grouped convolution, or an
            argument is out of its range.

    Example:

    A step of RigL in a loop of one's own. The tape is asked for the gradient of the layer's
    outputs, not of its kernel:

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
        # The last block starts early enough to be as long; those of the one before are left out.
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
        kept_mask: Boolean tensor, the connections that stay.
        indices: Integer tensor, the connections to grow as indices into the flattened mask, such
            as from `largest_gradients`: none of them is in `kept_mask` or -1.
        num_grow: Integer or scalar integer tensor. Only so many of the first indices are grown:
            `k` is a constant, but the number of connections to grow may become less.

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
    """The window of a convolution; that of a Dense layer has no dimension and one position."""

    def __init__(self, shape, strides, dilation_rate):
        self.shape = tuple(shape)
        self.num_positions = math.prod(self.shape)
        self._strides = self._of_each_dimension(strides=strides)
        self._dilations = self._of_each_dimension(dilation_rate=dilation_rate)
        # From the first to the last input that it sees.
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
        """The inputs with the zeros around them that the convolution sees."""
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
                "The shapes of inputs and of the gradients of outputs must be those of a layer "
                "with this kernel, channels last, not grouped. Received: inputs of shape "
                f"{inputs} (padded), output_gradients of shape {outputs}, a kernel of {kernel}"
            )

    def view(self, inputs, outputs, position, channel, num_channels):
        """The inputs that meet one position of the kernel, for each output: a matrix.

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
