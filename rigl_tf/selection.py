"""Selects connections by scores: functions of tensors that return tensors.

Every function is exact and deterministic. Most need no sorting and have static shapes only, so they
compile with XLA and give the same result in eager mode, in a graph and on every replica.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

_DIGIT_BITS = 16
_NUM_DIGITS = 1 << _DIGIT_BITS
_PAGE = 256
_TILE = 1 << 22  # how many numbers of a large kernel are processed together
_ROW = 1 << 16  # up to how many numbers no histogram is made, which would have more counts
_DRAWS = 1 << 18  # how many numbers are drawn together in eager mode
_PHILOX = 1  # the number of the algorithm in TensorFlow


def random_mask(shape: Sequence[int], num_active: int, seed: Any) -> tf.Tensor:
    """A uniformly random mask with an exact number of active connections.

    Args:
        shape: Tuple of integers, the kernel's shape.
        num_active: Integer, how many entries are `True`.
        seed: Tensor or pair of two integers, as for `tf.random.stateless_uniform`.

    Returns:
        Boolean tensor of shape `shape`.

    Example:

    >>> int(tf.reduce_sum(tf.cast(random_mask((4, 5), 7, seed=(0, 1)), "int32")))
    7
    """
    size = math.prod(shape)
    if size and tf.executing_eagerly():
        mask = np.zeros(size, dtype=bool)
        mask[random_places(size, min(max(num_active, 0), size), seed)] = True
        return tf.constant(mask.reshape(shape))
    # Random 64-bit integers: float32 has only 2**23 values, so large kernels would have ties.
    draws = tf.random.stateless_uniform(shape, seed, minval=None, maxval=None, dtype=tf.int64)
    return top_k_of_keys(draws, num_active)


def random_places(size: int, num_active: int, seed: tuple[int, int]) -> np.ndarray:
    """The places where `random_mask` is `True`, found with memory for `num_active`, not `size`.

    Random numbers are drawn tile by tile, and only those that can be among the largest are kept:
    the number of draws above a threshold is known up to a few standard deviations.

    Args:
        size: Integer, the number of entries of the kernel.
        num_active: Integer, how many of them are chosen.
        seed: Pair of two integers, as for `tf.random.stateless_uniform`.

    Returns:
        Sorted int64 array of `num_active` different integers in `[0, size)`. The function works
        only in eager mode.

    Example:

    >>> random_places(20, 3, seed=(0, 1)).tolist()
    [6, 8, 19]
    """
    share = num_active / size
    spread = 10 * math.sqrt(share * (1 - share) / size) + 100 / size
    while True:
        # Draws are uniform in [-2**63, 2**63). Those above `surely` are chosen, those between
        # `maybe` and `surely` may be chosen.
        surely, maybe = (_quantile(1 - share + sign * spread) for sign in (1, -1))
        places, keys = _draws_from(maybe, size, seed)
        is_sure = keys >= surely
        num_wanted = num_active - np.count_nonzero(is_sure)
        if 0 <= num_wanted <= np.count_nonzero(~is_sure):
            break
        spread *= 10
    # Ties go to the lower index: a stable sort of the few draws in between, the largest first.
    open_places = np.flatnonzero(~is_sure)
    largest = open_places[np.argsort(~keys[open_places], kind="stable")[:num_wanted]]
    is_sure[largest] = True
    return places[is_sure]


def _quantile(share):
    """The integer below which a share of all signed 64-bit integers lies."""
    return min(max(int(share * 2**64) - 2**63, -(2**63)), 2**63 - 1)


def _draws_from(threshold, size, seed):
    """The places and values of all draws, out of `size`, that are not below a threshold."""
    found = []
    draw = tf.raw_ops.StatelessRandomUniformFullIntV2
    for start in range(0, size, _DRAWS):
        draws = part_of_draws(draw, tf.int64, seed, start, min(_DRAWS, size - start))
        places = tf.where(draws >= threshold)[:, 0]
        found.append(((places + start).numpy(), tf.gather(draws, places).numpy()))
    places, draws = zip(*found, strict=True)
    return np.concatenate(places), np.concatenate(draws)


def part_of_draws(
    draw: Callable[..., tf.Tensor], dtype: tf.DType, seed: Any, start: Any, size: Any
) -> tf.Tensor:
    """Some of the numbers that a random operation draws with a seed, without those before.

    Args:
        draw: The operation, of `tf.raw_ops`, such as `tf.raw_ops.StatelessRandomUniformV2`.
        dtype: The type of the numbers.
        seed: Pair of integers.
        start: Integer or scalar integer tensor, how many numbers are left out: a multiple of 4.
        size: Integer or scalar integer tensor, how many numbers are returned.

    Returns:
        Tensor of shape `[size]`.
    """
    key, counter = tf.raw_ops.StatelessRandomGetKeyCounter(seed=tf.cast(seed, tf.int64))
    # The generator's counter grows by one for each block of 16 bytes.
    num_blocks = tf.cast(start // (16 // dtype.size), tf.uint64)
    here = counter + tf.stack([num_blocks, tf.constant(0, tf.uint64)])
    return draw(shape=[size], key=key, counter=here, alg=_PHILOX, dtype=dtype)


def top_k_mask(scores: tf.Tensor | np.ndarray, k: int | tf.Tensor) -> tf.Tensor:
    """Marks the `k` largest scores; ties go to the lower index.

    It is a radix selection: a histogram of the leading 16 bits finds the bucket of the k-th largest
    score, and a histogram of the next 16 bits inside this bucket finds the score itself. This takes
    two passes over the data for any `k`, and no sort. Up to 65,536 scores are one row of
    `top_k_per_row`, which XLA compiles in a third of the time.

    Args:
        scores: Floating-point tensor of any shape, without NaN. `-inf` is the lowest score.
        k: Integer or scalar integer tensor. It is clipped to `[0, size]`.

    Returns:
        Boolean tensor of the shape of `scores` with exactly `k` entries `True`.

    Example:

    >>> top_k_mask(tf.constant([3.0, 1.0, 3.0, 3.0]), 2).numpy().tolist()
    [True, False, True, False]
    """
    return top_k_of_keys(ordered_keys(scores), k)


def top_k_per_row(scores: tf.Tensor | np.ndarray, k: Any) -> tf.Tensor:
    """Marks the largest scores of each row; ties go to the lower index.

    It is a bisection on the bits of the scores, for all rows together. It takes as many passes over
    the data as a score and the number of a column have bits.

    Args:
        scores: Tensor of shape `(rows, columns)`: floating-point numbers without NaN, or signed
            integers of 32 or 64 bits.
        k: `int32` tensor of shape `(rows,)`, or one integer for all rows. It is clipped to
            `[0, columns]`.

    Returns:
        Boolean tensor of the shape of `scores` with `k` entries `True` in each row.

    Example:

    >>> top_k_per_row(tf.constant([[3.0, 1.0, 3.0], [1.0, 2.0, 2.0]]), [1, 2]).numpy().tolist()
    [[True, False, False], [False, True, True]]
    """
    keys = tf.convert_to_tensor(scores)
    if not keys.dtype.is_integer:
        keys = ordered_keys(keys)
    num_rows, num_columns = keys.shape
    k = tf.broadcast_to(tf.clip_by_value(tf.cast(k, tf.int32), 0, num_columns), [num_rows])
    return _traced_top_k_per_row(keys.dtype)(keys, k)


def _top_k_of_each_row(keys, k):
    """`top_k_per_row` of signed integer keys, with a clipped `k` for each row."""
    num_columns = tf.shape(keys)[1]
    num_bits = num_true(tf.bitwise.left_shift(1, tf.range(31)) < num_columns)
    # Among equal scores, the lowest places are chosen: their distance from the end is largest.
    distances = num_columns - 1 - tf.range(num_columns)
    if keys.dtype == tf.int32:
        # With the distances as lower bits, no two keys are equal, and one search is enough.
        num_bits = tf.cast(num_bits, tf.int64)
        keys = tf.bitwise.left_shift(tf.cast(keys, tf.int64), num_bits)
        keys |= tf.cast(distances, tf.int64)
        lowest = tf.bitwise.left_shift(tf.constant(tf.int32.min, tf.int64), num_bits)
        threshold = _kth_largest_per_row(keys, k, lowest, 32 + num_bits)
        return (keys >= threshold) & (k > 0)[:, tf.newaxis]
    threshold = _kth_largest_per_row(keys, k, keys.dtype.min, keys.dtype.size * 8)
    above = keys > threshold
    distances = tf.where(keys == threshold, distances, -1)
    num_wanted = k - num_true(above, axis=1)
    threshold = _kth_largest_per_row(distances, num_wanted, 0, num_bits)
    return above | (distances >= threshold) & (num_wanted > 0)[:, tf.newaxis]


def _kth_largest_per_row(keys, k, lowest, num_bits):
    """The k-th largest key of each row, as a column; all are in `lowest + [0, 2 ** num_bits)`."""

    def add(bit, threshold):
        higher = threshold + tf.bitwise.left_shift(tf.ones([], keys.dtype), bit)
        is_reached = num_true(keys >= higher, axis=1) >= k
        return bit - 1, tf.where(is_reached[:, tf.newaxis], higher, threshold)

    thresholds = tf.fill([tf.shape(k)[0], 1], tf.cast(lowest, keys.dtype))
    start = (tf.cast(num_bits, keys.dtype) - 1, thresholds)
    return tf.while_loop(lambda bit, _: bit >= 0, add, start)[1]


@functools.cache
def _traced_top_k_per_row(dtype):
    return _traced(_top_k_of_each_row, [None, None], [None], dtype)


def drop_and_grow(
    mask: tf.Tensor | np.ndarray,
    drop_scores: tf.Tensor | np.ndarray,
    grow_scores: tf.Tensor | np.ndarray,
    num_drop: int | tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Drops the weakest active connections, and grows as many others.

    Dropped connections can be grown again in the same update; only connections that were kept
    cannot be grown (Evci et al., 2020, Algorithm 1). The number of active connections never
    changes.

    Args:
        mask: Boolean tensor, the active connections.
        drop_scores: Tensor of the same shape. The active connections with the lowest scores are
            dropped.
        grow_scores: Tensor of the same shape. The connections with the highest scores are grown.
            Scores that are not floating-point numbers, such as booleans, are converted to float32.
        num_drop: Integer or scalar integer tensor, at most the number of active connections.

    Returns:
        Two boolean tensors of the shape of `mask`: the new mask, and the connections that are
        active now and were inactive before.

    Example:

    >>> mask = tf.constant([True, True, False, False])
    >>> drop, grow = tf.constant([0.1, 3.0, 0.0, 0.0]), tf.constant([0.0, 0.0, 1.0, 2.0])
    >>> drop_and_grow(mask, drop, grow, num_drop=1)[0].numpy().tolist()
    [False, True, False, True]
    """
    mask = tf.convert_to_tensor(mask)
    num_active = num_true(mask)
    num_drop = tf.clip_by_value(tf.cast(num_drop, tf.int32), 0, num_active)
    kept = keep(mask, drop_scores, num_active - num_drop)
    chosen = top_k_mask(where_eligible(~kept, grow_scores), num_drop)
    new_mask = kept | chosen
    return new_mask, new_mask & ~mask


def keep(
    mask: tf.Tensor | np.ndarray, scores: tf.Tensor | np.ndarray, num_active: int | tf.Tensor
) -> tf.Tensor:
    """Keeps the strongest of the active connections.

    Args:
        mask: Boolean tensor, the active connections.
        scores: Tensor of the same shape. The active connections with the highest scores are kept.
        num_active: Integer or scalar integer tensor, how many are kept. If there are fewer, all of
            them are kept.

    Returns:
        Boolean tensor of the shape of `mask`.

    Example:

    >>> keep(tf.constant([True, True, False]), tf.constant([1.0, 2.0, 3.0]), 1).numpy().tolist()
    [False, True, False]
    """
    mask = tf.convert_to_tensor(mask)
    most = num_true(mask)
    return top_k_mask(where_eligible(mask, scores), tf.minimum(tf.cast(num_active, tf.int32), most))


def where_eligible(eligible: tf.Tensor | np.ndarray, scores: tf.Tensor | np.ndarray) -> tf.Tensor:
    """Returns scores in which all entries that are not eligible rank below the eligible ones.

    Args:
        eligible: Boolean tensor.
        scores: Tensor of the same shape.

    Returns:
        Floating-point tensor of the same shape: `-inf` where `eligible` is `False`; NaN and `-inf`
        of eligible entries become the lowest finite number.
    """
    values = tf.convert_to_tensor(scores)
    if not values.dtype.is_floating:
        values = tf.cast(values, tf.float32)
    # NaN and -inf, such as the logarithm of a zero weight, become the lowest finite score.
    values = tf.where(values >= values.dtype.min, values, values.dtype.min)
    return tf.where(eligible, values, tf.constant(float("-inf"), values.dtype))


def num_true(mask: tf.Tensor | np.ndarray, axis: int | None = None) -> tf.Tensor:
    """The number of entries that are `True`, in int32.

    Args:
        mask: Boolean tensor.
        axis: Integer, the axis to count along, or `None` for all entries.

    Returns:
        Int32 tensor.
    """
    return tf.reduce_sum(tf.cast(mask, tf.int32), axis)


def ordered_keys(scores: tf.Tensor | np.ndarray) -> tf.Tensor:
    """Signed integers with the same order as the scores, made of their IEEE 754 bits.

    The bits of negative numbers have the reverse order, so they are subtracted from the bits of
    -0.0. Then both zeros become 0 and are equal. (Adding 0.0 to the scores would make them equal,
    too, but this is optimized away in a graph.)

    Args:
        scores: Floating-point tensor without NaN.

    Returns:
        Int32 tensor of the same shape, or int64 for float64 scores.
    """
    scores = tf.convert_to_tensor(scores)
    if scores.dtype != tf.float64:
        scores = tf.cast(scores, tf.float32)
    key_type = tf.int64 if scores.dtype == tf.float64 else tf.int32
    bits = tf.bitcast(scores, key_type)
    return tf.where(bits < 0, key_type.min - bits, bits)


def top_k_of_keys(keys: tf.Tensor, k: int | tf.Tensor) -> tf.Tensor:
    """`top_k_mask` of signed integer keys, such as those of `ordered_keys`.

    Args:
        keys: Integer tensor, int32 or int64, whose shape is known.
        k: As in `top_k_mask`.

    Returns:
        Boolean tensor of the shape of `keys`.
    """
    shape = keys.shape
    size = shape.num_elements()
    if size <= _ROW:
        return tf.reshape(top_k_per_row(tf.reshape(keys, [1, size]), k), shape)
    keys = tf.reshape(keys, [-1, shape[-1]])
    k = tf.clip_by_value(tf.cast(k, tf.int32), 0, size)
    return tf.reshape(_traced_top_k(keys.dtype, size > _TILE)(keys, k), shape)


def _top_k_of_rows(keys, k, is_long):
    count = histogram_by_tiles if is_long else histogram
    count = functools.partial(count, tf.reshape(keys, [-1]))
    threshold, num_wanted, num_equal = kth_largest(count, keys.dtype, k)
    return tf.cond(
        num_wanted == num_equal,
        lambda: keys >= threshold,
        lambda: (keys > threshold) | _first_true(keys == threshold, num_wanted),
    )


@functools.cache
def _traced_top_k(dtype, is_long):
    return _traced(functools.partial(_top_k_of_rows, is_long=is_long), [None, None], [], dtype)


def _traced(select, keys_shape, k_shape, dtype):
    """A selection as one TensorFlow function that is called for each kernel.

    With a copy for each kernel, graphs of large models would be slow to build. XLA still compiles
    each call with its own shapes. In eager mode, its hundreds of operations would each be called
    from Python.
    """
    return tf.function(
        select,
        input_signature=[tf.TensorSpec(keys_shape, dtype), tf.TensorSpec(k_shape, tf.int32)],
        autograph=False,
        experimental_attributes={"_noinline": True},
    )


def kth_largest(
    histogram: Callable[..., tf.Tensor], dtype: tf.DType, k: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Finds the k-th largest key.

    Args:
        histogram: Function `histogram(shift, prefix)` that counts the 16-bit digits of all keys, as
            the function `histogram` of this module.
        dtype: The type of the keys: `tf.int32` or `tf.int64`.
        k: Scalar integer tensor with the type of the counts.

    Returns:
        Three scalar tensors: the k-th largest key, how many keys equal to it belong to the `k`
        largest, and how many keys equal to it there are.
    """

    def next_digit(shift, prefix, remaining, _):
        counts = tf.reshape(histogram(shift, prefix), [_PAGE, _PAGE])
        # First pages of 256 digits, because XLA needs minutes to compile one long cumulative sum.
        page, remaining, _ = _reached(tf.reduce_sum(counts, axis=1), remaining)
        digit, remaining, num_equal = _reached(tf.gather(counts, page), remaining)
        prefix = tf.bitwise.left_shift(prefix, tf.constant(_DIGIT_BITS, dtype))
        prefix = tf.bitwise.bitwise_or(prefix, tf.cast(digit + page * _PAGE, dtype))
        # Its sign is extended, because right shifts of signed integers copy the sign bit.
        prefix = tf.bitwise.right_shift(tf.bitwise.left_shift(prefix, shift), shift)
        return shift - _DIGIT_BITS, prefix, remaining, num_equal

    # A loop, although there are only two digits or four: XLA compiles its body once.
    start = (tf.constant(dtype.size * 8 - _DIGIT_BITS, dtype), tf.zeros([], dtype), k, k)
    _, prefix, remaining, num_equal = tf.while_loop(
        lambda shift, *_: shift >= 0, next_digit, start, parallel_iterations=1
    )
    return tf.bitwise.bitwise_xor(prefix, dtype.min), remaining, num_equal


def _reached(counts, num):
    """Finds the digit of the `num`-th largest key.

    Returns:
        The digit, how many keys with this digit are still wanted, and how many keys have it.
    """
    reached = tf.cumsum(counts, reverse=True)
    index = num_true(reached >= num) - 1
    count = tf.gather(counts, index)
    return index, num - tf.gather(reached, index) + count, count


def histogram(keys: tf.Tensor, shift: tf.Tensor, prefix: tf.Tensor) -> tf.Tensor:
    """Counts how often each 16-bit digit occurs in the keys with a prefix.

    Args:
        keys: Vector of signed integers.
        shift: Scalar tensor of the type of the keys, the number of bits below the digit.
        prefix: Scalar tensor of this type: only keys with these bits above the digit count. For the
            leading digit all keys count.

    Returns:
        Int32 vector of 65,536 counts.
    """
    return _count_digits(_digits(keys, shift, prefix))


def histogram_by_tiles(keys: tf.Tensor, shift: tf.Tensor, prefix: tf.Tensor) -> tf.Tensor:
    """Counts digits as `histogram` does, but tile by tile, to save memory.

    Args:
        keys: Vector of signed integers.
        shift: Scalar tensor, as in `histogram`.
        prefix: Scalar tensor, as in `histogram`.

    Returns:
        Int32 vector of 65,536 counts.
    """
    size = tf.shape(keys)[0]

    def add(begin, counts):
        # The last tile ends with the keys and may overlap the tile before, which is not counted
        # again.
        start = tf.minimum(begin, size - _TILE)
        digits = _digits(tf.slice(keys, [start], [_TILE]), shift, prefix)
        digits = tf.where(tf.range(_TILE) < begin - start, _NUM_DIGITS, digits)
        return begin + _TILE, counts + _count_digits(digits)

    start = (tf.constant(0), tf.zeros([_NUM_DIGITS], tf.int32))
    _, counts = tf.while_loop(lambda begin, _: begin < size, add, start, parallel_iterations=1)
    return counts


def _digits(keys, shift, prefix):
    """The 16-bit digit of each key, or 65,536 where the bits above it are not `prefix`."""
    # With a flipped sign bit, signed numbers have the order of unsigned ones.
    unsigned = tf.bitwise.bitwise_xor(keys, keys.dtype.min)
    shifted = tf.bitwise.right_shift(unsigned, shift)
    digits = tf.cast(tf.bitwise.bitwise_and(shifted, _NUM_DIGITS - 1), tf.int32)
    above = tf.bitwise.right_shift(shifted, tf.constant(_DIGIT_BITS, keys.dtype))
    is_leading = shift == keys.dtype.size * 8 - _DIGIT_BITS
    return tf.where(is_leading | (above == prefix), digits, _NUM_DIGITS)


def _count_digits(digits):
    """How often each 16-bit digit occurs; the digit 65,536 is not counted."""
    counts = tf.raw_ops.DenseBincount(
        input=digits, size=_NUM_DIGITS + 1, weights=tf.zeros([0], tf.int32)
    )
    return counts[:_NUM_DIGITS]


def _first_true(candidates, num):
    """The first `num` true entries of a matrix in row-major order.

    Sums of rows find the row in which the number is reached. Only this row is scanned by entries.
    """
    per_row = num_true(candidates, axis=1)
    up_to_row = tf.cumsum(per_row)
    last = num_true(up_to_row < num)
    left = num - tf.gather(up_to_row - per_row, last)
    is_first = tf.cumsum(tf.cast(tf.gather(candidates, last), tf.int32)) <= left
    rows = tf.range(tf.shape(candidates)[0])[:, tf.newaxis]
    return candidates & ((rows < last) | (rows == last) & is_first)
