"""Structures: which weights are dropped and grown together.

A structure (blocks, N:M, constant fan-in, channels) is an argument of `rigl_tf.sparsify` and
`rigl_tf.SparseWrapper`. For one kernel it defines `Units`: how many units the kernel has, and which
of them are the best by given scores. Without a structure, each weight is a unit.
"""

import dataclasses
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf

from rigl_tf import distributions, selection
from rigl_tf._types import Distribution
from rigl_tf.checks import check_choice, check_integers, check_numbers

if TYPE_CHECKING:
    from typing_extensions import Self

# A product that is less than this below a whole number was rounded down.
_ROUNDING = 1e-9

# A dense first layer of a large model lowers the sparsity by about this much.
_TOLERANCE = 0.005


# Kernels.


@dataclasses.dataclass(frozen=True)
class Axes:
    """Which axes of a kernel are its inputs, and which are its outputs.

    All other axes are positions, such as the height and width of a convolution.

    Attributes:
        inputs: Tuple of integers, the axes of the inputs in ascending order.
        outputs: Tuple of integers, the axes of the outputs in ascending order.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    def positions(self, rank: int) -> tuple[int, ...]:
        """The axes of the positions of a kernel with `rank` axes."""
        return tuple(axis for axis in range(rank) if axis not in (*self.inputs, *self.outputs))


def last_two(rank: int) -> Axes:
    """The `Axes` of most kernels: Dense `(in, out)`, Conv2D `(height, width, in, out)`.

    Args:
        rank: Integer, the number of axes of the kernel.
    """
    return Axes((rank - 2,), (rank - 1,))


class _View:
    """Converts a kernel to another shape, and back.

    The axes of the kernel are transposed to `order`, and it is reshaped to `split`. Then these axes
    are transposed to `regrouped`, and the result is reshaped to `shape`.
    """

    def __init__(self, kernel_shape, order, split, regrouped=None, shape=None):
        self._ordered = [kernel_shape[axis] for axis in order]
        self._order, self._split = order, split
        self._regrouped = regrouped or tuple(range(len(split)))
        self._moved = [split[axis] for axis in self._regrouped]
        self.shape = tuple(shape or split)

    def of(self, tensor):
        tensor = tf.reshape(_transposed(tf.convert_to_tensor(tensor), self._order), self._split)
        return tf.reshape(_transposed(tensor, self._regrouped), self.shape)

    def back(self, tensor):
        tensor = _transposed(tf.reshape(tensor, self._moved), np.argsort(self._regrouped))
        return _transposed(tf.reshape(tensor, self._ordered), np.argsort(self._order))


def _transposed(tensor, order):
    order = tuple(map(int, order))
    return tensor if order == tuple(range(len(order))) else tf.transpose(tensor, order)


class _Matrices:
    """The order and shape to view a kernel as one matrix of inputs and outputs per position."""

    def __init__(self, shape, axes):
        positions = axes.positions(len(shape))
        self.order = (*positions, *axes.inputs, *axes.outputs)
        self.shape = tuple(
            math.prod(shape[axis] for axis in part)
            for part in (positions, axes.inputs, axes.outputs)
        )


# Units of a kernel.


class Units:
    """The units of one kernel. In this class, without a structure, each weight is a unit.

    All numbers count units and are exact. Masks and scores have the shape of the kernel. All masks
    that the methods return fit the structure.

    Args:
        shape: Tuple of integers, the shape of the kernel.

    Attributes:
        structure: The structure, or `None`.
        num_units: Integer, how many units the kernel has.
        unit_size: Integer, how many weights a unit has.
        step: Integer, the smallest possible change of the number of active weights.
    """

    structure: Any = None
    unit_size = step = 1

    def __init__(self, shape: Sequence[int]) -> None:
        self.shape = tuple(shape)
        self.size = self.num_units = math.prod(self.shape)

    def count(self, sparsity: float | np.ndarray) -> np.ndarray:
        """The number of active units at a sparsity, at least one.

        Args:
            sparsity: Float in `[0, 1)`, or an array.

        Returns:
            Integer, or array of integers.
        """
        num_zeros = np.floor(np.asarray(sparsity) * self.num_units)
        return self.num_units - num_zeros.astype("int64")

    def check_sparsity(self, sparsity: float) -> None:
        """Raises a `ValueError` if the structure sets another sparsity."""

    def start_with(self, sparsity: float) -> None:
        """Called with the sparsity of the first mask."""

    def num_active(self, mask: tf.Tensor | np.ndarray) -> tf.Tensor:
        """The number of active units of a mask, a scalar tensor."""
        return selection.num_true(mask)

    def random_mask(self, count: int, seed: tuple[int, int]) -> tf.Tensor:
        """A random mask with `count` active units, as `selection.random_mask`."""
        return selection.random_mask(self.shape, int(count), seed)

    def top(self, scores: tf.Tensor, count: int | tf.Tensor) -> tf.Tensor:
        """The mask of the `count` best units; units with the score `-inf` come last."""
        return selection.top_k_mask(scores, count)

    def keep(self, mask: tf.Tensor, scores: tf.Tensor, count: int | tf.Tensor) -> tf.Tensor:
        """The mask of the `count` best among the active units, as `selection.keep`."""
        return selection.keep(mask, scores, count)

    def drop_and_grow(
        self,
        mask: tf.Tensor,
        drop_scores: tf.Tensor,
        grow_scores: tf.Tensor,
        num_drop: int | tf.Tensor,
    ) -> tf.Tensor:
        """The mask after dropping and growing `num_drop` units, as `selection.drop_and_grow`."""
        return selection.drop_and_grow(mask, drop_scores, grow_scores, num_drop)[0]

    def spread(self, scores: tf.Tensor) -> tf.Tensor:
        """Scores of weights with which units of different kernels can be compared."""
        return scores

    def check(self, mask: np.ndarray, name: str) -> None:
        """Raises a `ValueError` if a mask does not fit the structure.

        Args:
            mask: Boolean array of the kernel's shape.
            name: String, the name of the kernel in the error message.
        """


class _Pooled(Units):
    """Units of several weights, which are active together and have a common score."""

    def __init__(self, structure, shape, view, block, pooling):
        super().__init__(shape)
        self.structure = structure
        self._view = view
        self._pooling = pooling
        self._grid = [size // each for size, each in zip(view.shape, block, strict=True)]
        # The axes across blocks and within blocks, as few as possible: TensorFlow limits the rank.
        self._blocks, self._within, self._across = [], [], []
        for num, each in zip(self._grid, block, strict=True):
            self._blocks.append(num)
            self._across.append(num)
            if each > 1:
                self._within.append(len(self._blocks))
                self._blocks.append(each)
                self._across.append(1)
        self.unit_size = self.step = math.prod(block)
        self.num_units = self.size // self.unit_size

    def _in_blocks(self, tensor):
        return tf.reshape(self._view.of(tensor), self._blocks)

    def _reduced(self, reduce, tensor):
        return tf.reshape(reduce(self._in_blocks(tensor), axis=self._within), self._grid)

    def _active(self, mask):
        return self._reduced(tf.reduce_any, mask)

    def _pooled(self, scores):
        scores = tf.convert_to_tensor(scores)
        if not scores.dtype.is_floating or scores.dtype.size < 4:
            scores = tf.cast(scores, tf.float32)
        reduce = tf.reduce_max if self._pooling == "max" else tf.reduce_sum
        return self._reduced(reduce, scores)

    def _expanded(self, units):
        units = tf.broadcast_to(tf.reshape(units, self._across), self._blocks)
        return self._view.back(tf.reshape(units, self._view.shape))

    def num_active(self, mask):
        return selection.num_true(self._active(mask))

    def random_mask(self, count, seed):
        return self._expanded(selection.random_mask(tuple(self._grid), int(count), seed))

    def top(self, scores, count):
        return self._expanded(selection.top_k_mask(self._pooled(scores), count))

    def keep(self, mask, scores, count):
        kept = selection.keep(self._active(mask), self._pooled(scores), count)
        return self._expanded(kept)

    def drop_and_grow(self, mask, drop_scores, grow_scores, num_drop):
        drop, grow = (self._pooled(each) for each in (drop_scores, grow_scores))
        return self._expanded(selection.drop_and_grow(self._active(mask), drop, grow, num_drop)[0])

    def spread(self, scores):
        pooled = self._pooled(scores)
        if self._pooling != "max":
            pooled /= self.unit_size
        return self._expanded(pooled)

    def check(self, mask, name):
        num_all = np.count_nonzero(self._reduced(tf.reduce_all, mask))
        num_broken = np.count_nonzero(self._active(mask)) - num_all
        if num_broken:
            raise ValueError(
                f"The mask of {name!r} must fit its structure {self.structure}, whose units are "
                f"active or inactive as a whole. Received: {num_broken} units that are active in "
                "part"
            )


class _Rows(Units):
    """Weights in rows with the same number of active weights in each row.

    An update drops the weakest connections of the whole kernel. Then each row grows its best
    connections until it has this number again.
    """

    def __init__(self, structure, shape, view):
        super().__init__(shape)
        self.structure = structure
        self._view = view
        self.num_rows, self.num_columns = view.shape
        self.step = self.num_rows

    @property
    def _least(self):
        """The smallest number of active weights in a row that is used."""
        return 1

    def _per_row(self, is_used, count):
        """The number of active weights of each row, if the used rows share `count` of them."""
        num_used = tf.maximum(selection.num_true(is_used), 1)
        share = tf.cast(count, tf.int32) // num_used
        share = tf.clip_by_value(share, self._least, self.num_columns)
        return tf.where(is_used, share, 0)

    def _regrown(self, mask, kept, grow_scores, num_drop):
        """The number of active weights of each row after an update; the arguments are in rows."""
        return selection.num_true(mask, axis=1)

    def random_mask(self, count, seed):
        draws = tf.random.stateless_uniform(self._view.shape, seed, None, None, tf.int64)
        num = self._per_row(tf.fill([self.num_rows], True), count)
        return self._view.back(selection.top_k_per_row(draws, num))

    def top(self, scores, count):
        scores = self._view.of(scores)
        is_used = tf.reduce_any(scores > float("-inf"), axis=1)
        # All rows, if those with a score do not have enough weights.
        is_used |= selection.num_true(is_used) * self.num_columns < tf.cast(count, tf.int32)
        return self._view.back(selection.top_k_per_row(scores, self._per_row(is_used, count)))

    def keep(self, mask, scores, count):
        mask = self._view.of(mask)
        num_now = selection.num_true(mask, axis=1)
        num = tf.minimum(self._per_row(num_now > 0, count), num_now)
        return self._view.back(_best(mask, self._view.of(scores), num))

    def drop_and_grow(self, mask, drop_scores, grow_scores, num_drop):
        mask, drop_scores, grow_scores = map(self._view.of, (mask, drop_scores, grow_scores))
        num_active = selection.num_true(mask)
        num_drop = tf.clip_by_value(tf.cast(num_drop, tf.int32), 0, num_active)
        kept = selection.keep(mask, drop_scores, num_active - num_drop)
        num = self._regrown(mask, kept, grow_scores, num_drop)
        kept = _best(kept, drop_scores, tf.minimum(num, selection.num_true(kept, axis=1)))
        grown = _best(~kept, grow_scores, num - selection.num_true(kept, axis=1))
        return self._view.back(kept | grown)


def _best(eligible, scores, num):
    return selection.top_k_per_row(selection.where_eligible(eligible, scores), num)


class _Groups(_Rows):
    """Groups of M inputs with N active ones, or more than N in a kernel that will be pruned."""

    @property
    def _least(self):
        return self.structure.n

    def count(self, sparsity):
        num_zeros = np.floor(np.asarray(sparsity) * self.num_columns + _ROUNDING).astype("int64")
        return self.num_rows * np.maximum(self.num_columns - num_zeros, self.structure.n)

    def check_sparsity(self, sparsity):
        self.structure.check_sparsity(sparsity)

    def check(self, mask, name):
        numbers = np.unique(selection.num_true(self._view.of(mask), axis=1))
        if len(numbers) > 1 or numbers[0] < self.structure.n:
            raise ValueError(
                f"The mask of {name!r} must fit its structure {self.structure}: each group of "
                f"{self.num_columns} has {self.structure.n} active connections, or all groups have "
                f"the same larger number. Received: from {numbers[0]} to {numbers[-1]} in a group"
            )


class _FanIns(_Rows):
    """A row for each output. Outputs that are not ablated have the same number of active inputs."""

    _wanted = 0

    def count(self, sparsity):
        return np.maximum(super().count(sparsity) // self.num_rows, 1) * self.num_rows

    def start_with(self, sparsity):
        # The number may not be divisible by all outputs, but by those that are left after ablation.
        self._wanted = int(max(super().count(sparsity), self.num_rows))

    def _budget(self, mask):
        """How many connections a kernel shares among its outputs.

        If only rounding made the mask smaller than it started, the number at the start.
        """
        num_active, num_used = selection.num_true(mask), selection.num_true(tf.reduce_any(mask, 1))
        is_first = (num_active <= self._wanted) & (self._wanted < num_active + num_used)
        return tf.where(is_first, self._wanted, num_active)

    def _regrown(self, mask, kept, grow_scores, num_drop):
        """Ablates outputs with too few salient connections; the others share their connections."""
        budget = self._budget(mask)
        salient = kept | selection.keep(~kept, grow_scores, num_drop)
        num_salient, num_now = (selection.num_true(each, axis=1) for each in (salient, mask))
        fan_in = tf.cast(tf.reduce_max(num_now), tf.float64)
        least_salient = self.structure.min_salient * fan_in - _ROUNDING
        # An ablated output comes back if it has salient connections.
        is_enough = tf.cast(num_salient, tf.float64) >= least_salient
        is_enough &= (num_now > 0) | (num_salient > 0)
        least = tf.maximum(1, -(-budget // self.num_columns))
        most = tf.maximum(least, tf.minimum(self.num_rows, budget))
        num_used = tf.clip_by_value(selection.num_true(is_enough), least, most)
        rank = num_salient + tf.where(is_enough, self.num_columns + 1, 0)
        is_used = selection.top_k_mask(tf.cast(rank, tf.float32), num_used)
        return self._per_row(is_used, budget)

    def check(self, mask, name):
        numbers = np.unique(selection.num_true(self._view.of(mask), axis=1))
        numbers = numbers[numbers > 0]
        if len(numbers) > 1:
            raise ValueError(
                f"The mask of {name!r} must fit its structure {self.structure}: each output has "
                "the same number of active inputs, or none. "
                f"Received: from {numbers[0]} to {numbers[-1]}"
            )


# Structures.


@dataclasses.dataclass(frozen=True)
class Structure:
    """Base class of the structures. Two structures are equal if their arguments are equal.

    Attributes:
        sparsity: Float, if the structure sets the sparsity, else `None`.
    """

    sparsity = None

    def units(self, shape: Sequence[int], axes: Axes | None = None, name: str = "kernel") -> Units:
        """The `Units` of a kernel.

        Args:
            shape: Tuple of two or more integers, the shape of the kernel.
            axes: Its `Axes`. Defaults to `last_two`.
            name: String, the name of the kernel in error messages.

        Returns:
            The `Units`.

        Raises:
            ValueError: If the shape does not fit this structure.
        """
        shape = tuple(shape)
        if len(shape) < 2:
            raise self._misfit("a kernel of inputs and outputs", name, shape)
        return self._units(shape, axes or last_two(len(shape)), name)

    def _units(self, shape, axes, name) -> Units:
        raise NotImplementedError

    def _misfit(self, needed, name, shape, received=""):
        return ValueError(
            f"`structure` must fit each sparse kernel: {self} needs {needed}. Keep other layers "
            "dense (`dense_layers` of `rigl_tf.sparsify`). "
            f"Received: {name!r} of shape {shape}{received}"
        )

    def get_config(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Self":
        return cls(**config)


@keras.saving.register_keras_serializable(package="rigl_tf")
@dataclasses.dataclass(frozen=True)
class Block(Structure):
    """Blocks of neighbouring weights, each active or inactive as a whole.

    The weights of a block have a common score, and the number of active blocks is exact.

    Args:
        shape: Tuple of integers. Either two, `(inputs, outputs)`, for a Dense kernel, for the
            kernel of a convolution at each position, and for an EinsumDense kernel seen as a
            matrix: `(4, 1)` is four inputs of one output, the blocks for which XNNPACK has sparse
            kernels on x86. Or one integer for each axis of the kernel: `(3, 3, 1, 1)` is a whole
            3x3 filter between two channels. Each integer must divide the size of its axis.
        pooling: String, how the scores of a block are combined: `"sum"` or `"max"`.

    Raises:
        ValueError: If an argument is out of its range.

    Example:

    >>> dense = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
    >>> sparse = rigl_tf.sparsify(dense, 0.75, structure=Block((4, 1)))
    >>> sparse.layers[0].kernel_mask.numpy().reshape(2, 4, 4).sum(axis=1).max().item()
    4
    """

    shape: tuple[int, ...]
    pooling: str = "sum"

    def __post_init__(self):
        is_shape = isinstance(self.shape, (tuple, list)) and len(self.shape) >= 2
        if not is_shape:
            raise ValueError(
                "`shape` of a Block must be a tuple of two or more integers, such as (4, 1). "
                f"Received: shape={self.shape!r}"
            )
        for size in self.shape:
            check_integers(1, shape=size)
        check_choice(("sum", "max"), pooling=self.pooling)
        object.__setattr__(self, "shape", tuple(map(int, self.shape)))

    def __str__(self):
        return f"Block({self.shape})"

    def _units(self, shape, axes, name):
        if len(self.shape) == 2:
            matrices = _Matrices(shape, axes)
            view, block = _View(shape, matrices.order, matrices.shape), (1, *self.shape)
        elif len(self.shape) == len(shape):
            view, block = _View(shape, tuple(range(len(shape))), shape), self.shape
        else:
            raise self._misfit(f"a kernel of {len(self.shape)} axes", name, shape)
        if any(size % each for size, each in zip(view.shape, block, strict=True)):
            have = view.shape[-len(self.shape) :]
            of = "inputs and outputs" if len(self.shape) == 2 else "axes"
            raise self._misfit(
                f"{of} that its numbers divide", name, shape, f", with {have} {of}" * (of[0] == "i")
            )
        return _Pooled(self, shape, view, block, self.pooling)


@keras.saving.register_keras_serializable(package="rigl_tf")
@dataclasses.dataclass(frozen=True)
class Channels(Structure):
    """Whole channels: all weights of an output (such as a filter), or of an input.

    Inactive channels can be removed from the network, see `rigl_tf.compact`. Keep the last layer
    dense (`dense_layers`), because its outputs are the classes.

    In front of a ReLU, a channel that was never active has no gradient, and a channel that is grown
    with zeros gets none. So algorithms that grow by gradients rarely find new channels.
    `rigl_tf.SET` with `grow_init="random_normal"` tries new ones.

    Args:
        of: String. `"outputs"`: all weights of an output, which are the columns of a Dense kernel
            and the filters of a convolution. `"inputs"`: all weights of an input.

    Raises:
        ValueError: If `of` is another value.

    Example:

    >>> head = keras.layers.Dense(2)
    >>> dense = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4), head])
    >>> sparse = rigl_tf.sparsify(dense, 0.75, structure=Channels(), dense_layers=head)
    >>> sorted(sparse.layers[0].kernel_mask.numpy().sum(axis=0).tolist())
    [0, 0, 0, 8]
    """

    of: str = "outputs"

    def __post_init__(self):
        check_choice(("outputs", "inputs"), of=self.of)

    def __str__(self):
        return "Channels()" if self.of == "outputs" else f"Channels({self.of!r})"

    def _units(self, shape, axes, name):
        matrices = _Matrices(shape, axes)
        num_positions, num_inputs, num_outputs = matrices.shape
        block = (num_positions, num_inputs, 1)
        if self.of == "inputs":
            block = (num_positions, 1, num_outputs)
        view = _View(shape, matrices.order, matrices.shape)
        return _Pooled(self, shape, view, block, "sum")


@keras.saving.register_keras_serializable(package="rigl_tf")
@dataclasses.dataclass(frozen=True)
class NM(Structure):
    """N:M sparsity: of each group of M consecutive inputs of an output, N weights are active.

    The sparsity of every kernel is `1 - n / m`. The sparse matrix units of GPUs use `NM(2, 4)`. In
    a convolution, a group consists of input channels at one position. An update drops the weakest
    connections of the kernel, and then each group grows its best ones. A model for pruning starts
    with the sparsity 0, with all M weights active.

    Reference:

    - [Zhou et al., 2021](https://arxiv.org/abs/2102.04010), N:M sparsity

    Args:
        n: Integer, `1 <= n < m`, the number of active weights in a group.
        m: Integer, the size of a group. It must divide the number of inputs.

    Raises:
        ValueError: If an argument is out of its range.

    Example:

    >>> dense = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3)])
    >>> sparse = rigl_tf.sparsify(dense, structure=NM(2, 4))
    >>> sparse.layers[0].kernel_mask.numpy().reshape(2, 4, 3).sum(axis=1).tolist()
    [[2, 2, 2], [2, 2, 2]]
    """

    n: int
    m: int

    def __post_init__(self):
        check_integers(1, n=self.n, m=self.m)
        if self.n >= self.m:
            raise ValueError(f"`n` must be below `m`. Received: n={self.n}, m={self.m}")

    def __str__(self):
        return f"NM({self.n}, {self.m})"

    @property
    def sparsity(self) -> float:
        """Share of zeros, `1 - n / m`."""
        return 1 - self.n / self.m

    def check_sparsity(self, sparsity: float) -> None:
        """Raises a `ValueError` unless the sparsity is that of the structure, or 0."""
        if sparsity and not math.isclose(sparsity, self.sparsity, abs_tol=1e-6):
            raise ValueError(
                f"{self} has a sparsity of {self.sparsity:g}: leave `sparsity` out, or pass this "
                f"number (or 0 for a kernel that will be pruned). Received: sparsity={sparsity:g}"
            )

    def _units(self, shape, axes, name):
        matrices = _Matrices(shape, axes)
        num_positions, num_inputs, num_outputs = matrices.shape
        if num_inputs % self.m:
            needed = f"a number of inputs that {self.m} divides"
            raise self._misfit(needed, name, shape, f", with {num_inputs} inputs")
        num_groups = num_inputs // self.m
        view = _View(
            shape,
            matrices.order,
            (num_positions, num_groups, self.m, num_outputs),
            (0, 1, 3, 2),
            (num_positions * num_groups * num_outputs, self.m),
        )
        return _Groups(self, shape, view)


@keras.saving.register_keras_serializable(package="rigl_tf")
@dataclasses.dataclass(frozen=True)
class ConstantFanIn(Structure):
    """The same number of active inputs for each output (neuron or filter), as in SRigL.

    This number, the fan-in, is the number of active connections of the kernel divided by its
    outputs, rounded down, and at least one. An update drops the weakest connections of the kernel.
    Then each output grows its best connections until it has the full fan-in again.

    Before that, outputs with too few salient connections are ablated: they lose all connections,
    and the other outputs share these. A connection is salient if it is kept, or if it is among the
    best candidates for growth, of which as many are considered as were dropped. An output is
    ablated if it has fewer salient connections than `min_salient` times the fan-in. It comes back
    when it has enough of them.

    A kernel never has more active connections than its sparsity allows, and at most one less for
    each output that is not ablated. But if this were less than one connection for each output, each
    output has one.

    Reference:

    - [Lasby et al., 2023](https://arxiv.org/abs/2305.02299), Structured RigL

    Args:
        min_salient: Number in `[0, 1]`. With 0 no output is ablated. The default 0.3 is the paper's
            value for convolutional networks; for vision transformers it uses 0.95.

    Raises:
        ValueError: If `min_salient` is out of its range.

    Example:

    >>> dense = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
    >>> sparse = rigl_tf.sparsify(dense, 0.75, structure=ConstantFanIn())
    >>> sparse.layers[0].kernel_mask.numpy().sum(axis=0).tolist()
    [2, 2, 2, 2]
    """

    min_salient: float = 0.3

    def __post_init__(self):
        check_numbers("[0, 1]", min_salient=self.min_salient)

    def __str__(self):
        is_default = self.min_salient == ConstantFanIn.min_salient
        return f"ConstantFanIn({'' if is_default else f'{self.min_salient:g}'})"

    def _units(self, shape, axes, name):
        matrices = _Matrices(shape, axes)
        num_positions, num_inputs, num_outputs = matrices.shape
        rows = (num_outputs, num_positions * num_inputs)
        return _FanIns(self, shape, _View(shape, matrices.order, matrices.shape, (2, 0, 1), rows))


def get(identifier: Structure | Mapping[str, Any] | None) -> Structure | None:
    """Returns a structure.

    Args:
        identifier: A structure, its serialized form, or `None`.

    Returns:
        The structure, or `None`.

    Raises:
        ValueError: If `identifier` is something else.
    """
    structure = identifier
    if isinstance(identifier, Mapping) and "class_name" in identifier:
        structure = keras.saving.deserialize_keras_object(dict(identifier))
    if structure is not None and not isinstance(structure, Structure):
        raise ValueError(
            "`structure` must be a value of `rigl_tf.structures`, such as `Block((4, 1))`, or "
            f"None. Received: structure={identifier!r}"
        )
    return structure


# Shares.


def allocate(
    distribution: Distribution, units: Mapping[str, Units], sparsity: float
) -> dict[str, float]:
    """The sparsity of each kernel by a distribution, as `distributions.allocate`, in whole units.

    The number of zeros of a kernel with a structure is rounded to whole units. The zeros that are
    lost by rounding down are given to the kernels that were nearest to one unit more, while they
    make up a whole unit. So the total is never above `sparsity`.

    Args:
        distribution: See `rigl_tf.sparsify`. It is not used for structures that set the sparsity.
        units: Ordered `{path: Units}`.
        sparsity: Share of zeros over all kernels, in `[0, 1)`.

    Returns:
        `{path: sparsity}`.

    Raises:
        ValueError: As `distributions.allocate`; or if a structure sets another sparsity.
    """
    fixed = {
        path: sparsity
        for path, each in units.items()
        if each.structure is not None and each.structure.sparsity is not None
    }
    for path in fixed:
        units[path].check_sparsity(distributions.check_sparsity(sparsity))
    shapes = {path: each.shape for path, each in units.items() if path not in fixed}
    shares = distributions.allocate(distribution, shapes, sparsity) if shapes else {}
    shares = {path: fixed[path] if path in fixed else shares[path] for path in units}
    return shares | _of_whole_units(units, shares)


def warn_if_missed(
    caller: str,
    units: Mapping[str, Units],
    shares: Mapping[str, float],
    sparsity: float,
    distribution: Distribution,
    zeros_now: Mapping[str, int] | None = None,
) -> None:
    """Warns if the zeros that a distribution gives are not those of the overall sparsity.

    Args:
        caller: String, the name of the function or class that was given the sparsity.
        units: `{path: Units}`.
        shares: `{path: sparsity}` by the distribution.
        sparsity: The share of zeros that was asked for.
        distribution: The distribution that was given.
        zeros_now: `{path: number of zeros}` if these zeros stay, or `None`.
    """
    zeros = {
        path: each.size - int(each.count(shares[path])) * each.unit_size
        for path, each in units.items()
    }
    sparser = {path: num for path, num in (zeros_now or {}).items() if num > zeros[path]}
    zeros |= sparser
    size = sum(each.size for each in units.values())
    reached = sum(zeros.values()) / size
    # Each kernel may miss a whole weight, or a whole unit.
    step = sum(each.step for each in units.values())
    if abs(reached - sparsity) <= _TOLERANCE + step / size:
        return
    dense = [path for path, num in zeros.items() if not num]
    reasons = [f"its distribution leaves {dense} dense"] if dense else []
    reasons += [f"{list(sparser)} are sparser already"] if sparser else []
    reasons = reasons or ["this is the result of its distribution"]
    warnings.warn(
        f"{caller} reaches a sparsity of {reached:.3f} instead of {sparsity}, because "
        f'{" and ".join(reasons)}; `distribution="erk"` reaches the target for a dense model. '
        f"Received: distribution={distribution!r}",
        stacklevel=3,
    )


def _of_whole_units(units, shares):
    """The shares of the kernels whose units are larger than one weight."""
    pooled = {
        path: each for path, each in units.items() if isinstance(each, _Pooled) and shares[path]
    }
    exact = {path: shares[path] * each.num_units for path, each in pooled.items()}
    zeros = {path: math.floor(number) for path, number in exact.items()}
    # Rounding errors must not hide the last weight of a unit.
    missing = math.floor(sum(shares[path] * each.size for path, each in pooled.items()) + 1e-6)
    missing -= sum(number * pooled[path].unit_size for path, number in zeros.items())
    for path in sorted(pooled, key=lambda path: zeros[path] - exact[path]):
        each = pooled[path]
        has_more = zeros[path] < exact[path] and zeros[path] + 1 < each.num_units
        if has_more and each.unit_size <= missing:
            zeros[path] += 1
            missing -= each.unit_size
    return {path: _share(number, pooled[path].num_units) for path, number in zeros.items()}


def _share(num_zeros, num):
    """A sparsity for which `Units.count` gives exactly `num_zeros` zeros among `num`."""
    share = num_zeros / num
    return share if math.floor(share * num) == num_zeros else math.nextafter(share, 1.0)
