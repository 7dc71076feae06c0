"""Counts the connections of sparse kernels, and how many are new since the last time."""

import math
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from rigl_tf import masks
from rigl_tf.layers.axes import axes_of
from rigl_tf.walk import layers_of_weights

_MOST_PIXELS = 256
# The connections of the largest CSR kernel with a mark for each.
_MOST_MARKS = 1 << 22
_MOST_READINGS = np.iinfo(np.uint16).max  # A mark is such a number.


class Seen(NamedTuple):
    """The counts of a kernel at one moment. All are integers.

    Attributes:
        size: Number of connections.
        num_active: Number of active connections.
        num_grown: Number of active connections that were inactive at the moment before.
        num_ever: Number of connections that were active at any of the moments so far.
        num_units: Number of units, which are the outputs of the kernel.
        num_dead: Number of units without an active connection.
    """

    size: int
    num_active: int
    num_grown: int
    num_ever: int
    num_units: int
    num_dead: int


def watch(model, before=None):
    """`{path: watched}` for the sparse kernels of a model.

    `watched.look()` returns a `Seen`, `watched.image()` a picture of the mask, and `watched.kernel`
    is the `SparseKernel`.

    Args:
        model: A built `keras.Model`.
        before: What `watch` returned earlier. What it knows of the same kernels is kept.
    """
    layers = {id(weight): around[-1] for weight, around in layers_of_weights(model)}
    known = {id(each.kernel.variable): each for each in (before or {}).values()}
    watched = {}
    for path, kernel in masks.kernels_of(model).items():
        watched[path] = known.get(id(kernel.variable))
        if watched[path] is None:
            is_csr = kernel.execution == "csr"
            layer = layers[id(kernel.variable)]
            watched[path] = _WatchedPlaces(kernel) if is_csr else _WatchedMask(kernel, layer)
    return watched


def value_of(variable):
    """The value of a `keras.Variable`, a tensor. It takes half as long as `convert_to_tensor`."""
    return variable.value.value()


def squared_norm(values):
    """The sum of the squares of a tensor's entries, as a float."""
    if values.dtype != tf.float32:
        values = tf.cast(values, tf.float32)
    result = 2 * float(tf.nn.l2_loss(values))
    if math.isinf(result):  # Squares of large numbers are not in the range of float32.
        largest = float(tf.reduce_max(tf.abs(values)))
        if math.isfinite(largest):
            return largest**2 * squared_norm(values / largest)
    return result


class _WatchedMask:
    """A kernel that is stored with its zeros and a mask."""

    def __init__(self, kernel, layer):
        self.kernel = kernel
        axes = axes_of(layer, kernel.variable)
        self._outputs = tuple(axis % len(kernel.shape) for axis in axes.outputs)
        self._others = tuple(a for a in range(len(kernel.shape)) if a not in self._outputs)
        self._mask = self._read()
        self._ever = self._mask.copy()
        self._seen = self._count(num_grown=0)

    def _read(self):
        return value_of(self.kernel.kernel_mask).numpy()

    def look(self):
        """The `Seen` of now."""
        old, self._mask = self._mask, self._read()
        if np.array_equal(old, self._mask):
            return self._seen._replace(num_grown=0)
        self._ever |= self._mask
        self._seen = self._count(int(np.count_nonzero(self._mask > old)))
        return self._seen

    def _count(self, num_grown):
        is_alive = self._mask.any(axis=self._others)
        return Seen(
            self._mask.size,
            int(np.count_nonzero(self._mask)),
            num_grown,
            int(np.count_nonzero(self._ever)),
            is_alive.size,
            int(is_alive.size - np.count_nonzero(is_alive)),
        )

    def image(self):
        """The mask as a picture: a row for each input, a column for each unit, see `pooled`."""
        matrix = self._mask.transpose(*self._others, *self._outputs)
        num_units = math.prod(self._mask.shape[axis] for axis in self._outputs)
        return pooled(matrix.reshape(-1, num_units))


class _WatchedPlaces:
    """A CSR kernel. Of a large one only places are kept, no array of the size of a dense kernel."""

    def __init__(self, kernel):
        self.kernel = kernel
        self._structure = self._read()
        self._places = kernel.storage.places_in(*self._structure)
        self._history = (_Marks if kernel.size <= _MOST_MARKS else _Lists)(kernel, self._places)
        self._seen = self._count(num_grown=0)

    def _read(self):
        """Copies of the arrays from which the places follow. To compare them is quicker."""
        storage = self.kernel.storage
        return [value_of(each).numpy() for each in (storage.row_splits, storage.columns)]

    def look(self):
        """The `Seen` of now."""
        before, self._structure = self._structure, self._read()
        if all(map(np.array_equal, before, self._structure)):
            return self._seen._replace(num_grown=0)
        old, self._places = self._places, self.kernel.storage.places_in(*self._structure)
        self._seen = self._count(self._history.change(old, self._places))
        return self._seen

    def _count(self, num_grown):
        num_of_units = np.diff(value_of(self.kernel.storage.column_splits).numpy())
        return Seen(
            self.kernel.size,
            len(self._places),
            num_grown,
            self._history.num_ever,
            num_of_units.size,
            int(np.count_nonzero(num_of_units == 0)),
        )

    def image(self):
        """The same picture as of a kernel with a mask."""
        num_rows, num_units = self.kernel.storage.matrix_shape
        rows, columns = np.divmod(self._places, num_units)
        shape = min(num_rows, _MOST_PIXELS), min(num_units, _MOST_PIXELS)
        cells = rows * shape[0] // num_rows, columns * shape[1] // num_units
        counts = np.zeros(shape)
        np.add.at(counts, cells, 1)
        heights = np.bincount(np.arange(num_rows) * shape[0] // num_rows)
        widths = np.bincount(np.arange(num_units) * shape[1] // num_units)
        sizes = np.outer(heights, widths)
        return (counts / sizes).astype("float32")


class _Marks:
    """When each place was active last, as the number of a reading; 0 for never. Twice as fast.

    Attributes:
        num_ever: Integer, how many places were ever active.
    """

    def __init__(self, kernel, places):
        self._last = np.zeros(kernel.size, np.uint16)
        self._last[places] = self._reading = 1
        self.num_ever = len(places)

    def change(self, old, new):
        """Notes other active places; returns how many were not active before."""
        if self._reading == _MOST_READINGS:
            self._last[self._last > 0] = 1
            self._last[old] = self._reading = 2
        last = self._last[new]
        num_grown = int(np.count_nonzero(last != self._reading))
        self.num_ever += int(np.count_nonzero(last == 0))
        self._reading += 1
        self._last[new] = self._reading
        return num_grown


class _Lists:
    """The same as sorted places, with memory for these alone."""

    def __init__(self, kernel, places):
        self._ever = places

    @property
    def num_ever(self):
        return len(self._ever)

    def change(self, old, new):
        grown = _new(new, old)
        self._ever = _union(self._ever, grown)
        return len(grown)


def _new(now, before):
    """The numbers in `now` that are not in `before`. Both arrays are sorted, without repetition."""
    both = np.concatenate([2 * before, 2 * now + 1])
    both.sort(kind="stable")  # It is fast for two sorted parts, because it merges them.
    is_new = (both & 1).astype(bool)
    is_new[1:] &= both[1:] != both[:-1] + 1
    return both[is_new] >> 1


def _union(some, others):
    """The numbers of two sorted arrays without repetition, as such an array."""
    both = np.concatenate([some, others])
    both.sort(kind="stable")
    is_first = np.ones(len(both), bool)
    np.not_equal(both[1:], both[:-1], out=is_first[1:])
    return both[is_first]


def pooled(matrix, most=_MOST_PIXELS):
    """Shrinks a matrix to at most `most` rows and columns, as float32.

    The matrix is divided into cells. Each entry of the result is the mean of one cell.

    Example:

    >>> pooled(np.array([[1, 0, 0, 0], [1, 0, 1, 1]]), most=2).tolist()
    [[0.5, 0.0], [0.5, 1.0]]
    """
    for axis in (0, 1):
        size = matrix.shape[axis]
        if size > most:
            starts = np.searchsorted(np.arange(size) * most // size, np.arange(most))
            sums = np.add.reduceat(matrix.astype("float32"), starts, axis=axis)
            lengths = np.diff([*starts, size])
            matrix = sums / (lengths[:, np.newaxis] if axis == 0 else lengths)
    return np.asarray(matrix, "float32")
