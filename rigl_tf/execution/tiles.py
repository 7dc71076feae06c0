"""Dense tiles of a CSR kernel, a few rows at a time, to visit all places with little memory."""

import dataclasses
import functools
import math
from typing import Any

import tensorflow as tf

from rigl_tf import selection
from rigl_tf.execution import engine

# The largest number of connections in a tile, unless one row has more.
_TILE = 1 << 20
# The largest kernel whose scores are all kept; those of larger ones are computed three times.
_KEPT = 1 << 22


@dataclasses.dataclass(frozen=True)
class Tile:
    """Some rows of a kernel, its mask and its gradient: tensors of the same shape, two-dimensional.

    Attributes:
        start: Scalar int64 tensor, the index of the first connection in the flattened kernel, a
            multiple of 4.
        shape: Int32 tensor of two numbers, `[rows, outputs]`. It can be used without the tensors
            below, which are not computed then.
        kernel: Tensor of shape `[rows, outputs]`.
        mask: Boolean tensor of the same shape.
        gradient: Tensor of the same shape.
    """

    start: tf.Tensor
    shape: tf.Tensor
    kernel: tf.Tensor
    mask: tf.Tensor
    gradient: tf.Tensor


class Tiles:
    """The tiles of one kernel.

    Args:
        structure: The `engine.Structure` of the `n` active connections.
        values: Tensor of shape `[n]`, their weights.
        matrix_shape: Pair of integers, the shape of the dense kernel as a matrix.
        rows: Matrices `(x, dy)` whose product `x^T dy` is the gradient of the dense kernel. With
            `None` the gradient is zero in all tiles.
        gradient: Tensor of shape `[n]`, the gradient of the active connections, which differs from
            that product if there is a regularizer or a weight decay; `None` if `rows` is.
    """

    def __init__(
        self, structure, values, matrix_shape, rows: Any = None, gradient: Any = None
    ) -> None:
        self.structure = engine.Structure(*map(tf.convert_to_tensor, structure))
        places = engine.places_of(self.structure, matrix_shape)
        self.places = tf.ensure_shape(places, values.shape)
        self.values = values
        self.matrix_shape = matrix_shape
        self.rows = rows
        self.gradient = gradient
        self.height = max(4, _TILE // matrix_shape[1] // 4 * 4)
        self._num_tiles = -(-matrix_shape[0] // self.height)

    def tile(self, index):
        """The tile with an index, a scalar integer tensor."""
        num_rows, width = self.matrix_shape
        first = index * self.height
        last = tf.minimum(first + self.height, num_rows)
        start, end = (tf.cast(each, tf.int64) * width for each in (first, last))
        shape = tf.stack([last - first, width])
        inside = self.inside(self.places, start, end)
        kernel = self._dense(self.places[inside] - start, self.values[inside], shape)
        mask = self.mask_of(self.places, start, end)
        gradient = tf.zeros(shape, kernel.dtype)
        if self.rows is not None:
            x, dy = self.rows
            gradient = tf.cast(tf.matmul(x[:, first:last], dy, transpose_a=True), kernel.dtype)
            of_active = self._dense(self.places[inside] - start, self.gradient[inside], shape)
            gradient = tf.where(mask, of_active, gradient)
        tensors = [tf.ensure_shape(each, [None, width]) for each in (kernel, mask, gradient)]
        return Tile(start, shape, *tensors)

    def inside(self, places, start, end):
        """The slice of sorted places that are in `[start, end)`."""
        first, last = tf.unstack(tf.searchsorted(places, tf.stack([start, end])))
        return slice(first, last)

    def mask_of(self, places, start, end):
        """A tile that is `True` at these sorted places."""
        width = self.matrix_shape[1]
        chosen = places[self.inside(places, start, end)] - start
        shape = tf.stack([tf.cast(end - start, tf.int32) // width, width])
        return self._dense(chosen, tf.ones_like(chosen, tf.int8), shape) > 0

    def _dense(self, places, values, shape):
        flat = tf.scatter_nd(places[:, tf.newaxis], values, [tf.reduce_prod(shape)])
        return tf.reshape(flat, shape)

    def scores_of_active(self, score):
        """The scores of the active connections, a vector.

        Args:
            score: Function of a `Tile` that returns a tensor of its shape.
        """

        def of_tile(index):
            tile = self.tile(index)
            return [tf.boolean_mask(tf.cast(score(tile), tf.float32), tile.mask)]

        return tf.ensure_shape(self._concatenated(of_tile, [tf.float32])[0], self.places.shape)

    def largest(self, score, excluded, k, least=None):
        """The places where a score is largest; ties go to the lower place.

        Args:
            score: Function of a `Tile` that returns a tensor of its shape, used as float32.
            excluded: Sorted int64 tensor of places that cannot be chosen.
            k: Scalar integer tensor, how many places are wanted.
            least: `None`, or a scalar tensor: a score that at least `k` places probably reach. Then
                one pass over the tiles is usually enough. The result is the same.

        Returns:
            Sorted int64 tensor of shape `[k]`.
        """
        if least is not None:
            places, keys = self._reaching(score, excluded, least)
            return tf.cond(
                tf.size(places) >= k,
                lambda: _largest_of(places, keys, k),
                lambda: self.largest(score, excluded, k),
            )

        keys = functools.partial(self._keys, score, excluded)
        if math.prod(self.matrix_shape) <= _KEPT:
            [every] = self._concatenated(lambda index: keys(index)[:1], [tf.int32])
            mask = selection.top_k_of_keys(tf.reshape(every, self.matrix_shape), k)
            return tf.where(tf.reshape(mask, [-1]))[:, 0]

        def histogram(shift, prefix):
            def add(index, counts):
                return index + 1, counts + tf.cast(
                    selection.histogram(keys(index)[0], shift, prefix), tf.int64
                )

            start = (tf.constant(0), tf.zeros([1 << 16], tf.int64))
            return self._loop(add, start)[1]

        threshold, num_wanted, _ = selection.kth_largest(histogram, tf.int32, tf.cast(k, tf.int64))

        def of_tile(index):
            tile, start = keys(index)
            found = (tf.where(tile > threshold), tf.where(tile == threshold))
            return [each[:, 0] + start for each in found]

        above, equal = self._concatenated(of_tile, (tf.int64, tf.int64))
        return merged(above, equal[:num_wanted])

    def largest_gradients(self, is_eligible, k):
        """The places where the magnitude of the gradient is largest; ties go to the lower place.

        It is `largest` for this one score, without tiles.

        Args:
            is_eligible: Boolean tensor of shape `[n]`, which of the active connections can be
                chosen. All others can be.
            k: Scalar integer tensor, how many places are wanted.

        Returns:
            Sorted int64 tensor of shape `[k]`.
        """
        x, dy = self.rows
        return engine.largest_gradients(
            x, dy, self.structure, self.matrix_shape, k, self.gradient, is_eligible
        )[0]

    def _keys(self, score, excluded, index):
        """The keys of a tile's scores, a vector, and the place of its first connection."""
        tile = self.tile(index)
        eligible = ~self.mask_of(
            excluded, tile.start, tile.start + tf.reduce_prod(tf.cast(tile.shape, tf.int64))
        )
        scores = tf.cast(score(tile), tf.float32)
        keys = selection.ordered_keys(selection.where_eligible(eligible, scores))
        return tf.reshape(keys, [-1]), tile.start

    def _reaching(self, score, excluded, least):
        """The places whose score is at least `least`, and their keys."""
        least = selection.ordered_keys(tf.cast(least, tf.float32))

        def of_tile(index):
            keys, start = self._keys(score, excluded, index)
            found = tf.where(keys >= least)[:, 0]
            return found + start, tf.gather(keys, found)

        return self._concatenated(of_tile, (tf.int64, tf.int32))

    def _concatenated(self, function, dtypes):
        """The vectors that a function returns for each tile, concatenated."""

        def add(index, *arrays):
            vectors = function(index)
            written = [each.write(index, one) for each, one in zip(arrays, vectors, strict=True)]
            return (index + 1, *written)

        arrays = [
            tf.TensorArray(dtype, self._num_tiles, infer_shape=False, element_shape=[None])
            for dtype in dtypes
        ]
        return [array.concat() for array in self._loop(add, (tf.constant(0), *arrays))[1:]]

    def _loop(self, body, start):
        return tf.while_loop(
            lambda index, *_: index < self._num_tiles, body, start, parallel_iterations=1
        )


def _largest_of(places, keys, k):
    """The places of the `k` largest keys, in ascending order; ties go to the first place."""
    histogram = functools.partial(selection.histogram, keys)
    threshold, num_wanted, _ = selection.kth_largest(histogram, keys.dtype, tf.cast(k, tf.int32))
    equal = tf.boolean_mask(places, keys == threshold)
    return merged(tf.boolean_mask(places, keys > threshold), equal[:num_wanted])


def merged(first, second):
    """The sorted union of two sorted vectors without common entries."""
    return engine.replaced(first, tf.fill(tf.shape(first), True), second)[0]
