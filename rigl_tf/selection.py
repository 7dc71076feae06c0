"""Which connections: tensors in, tensors out.

Every function here is exact, deterministic, free of sorting, and made of static shapes only, so it
compiles with XLA and gives the same answer in eager mode, in a graph and on every replica.
"""

import functools
import math

import numpy as np
import tensorflow as tf

_DIGIT_BITS = 16
_NUM_DIGITS = 1 << _DIGIT_BITS
_PAGE = 256
_TILE = 1 << 22  # how many numbers of a large kernel are looked at together
_DRAWS = 1 << 18  # how many numbers are drawn together, eagerly
_PHILOX = 1  # the number of the algorithm in TensorFlow


def random_mask(shape, num_active, seed):
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
    if size > _DRAWS and tf.executing_eagerly():
        mask = np.zeros(size, dtype=bool)
        mask[random_places(size, num_active, seed)] = True
        return tf.constant(mask.reshape(shape))
    # Whole 64-bit draws: with float32's 2**23 values a large kernel would have ties.
    draws = tf.random.stateless_uniform(shape, seed, minval=None, maxval=None, dtype=tf.int64)
    return _top_k_of_keys(draws, num_active)


def random_places(size, num_active, seed):
    """Where `random_mask` is `True`, found in memory that follows `num_active`, not `size`.

    The draws are made tile by tile, and only those that may be among the largest are kept: the
    number of draws above a threshold is known up to a few standard deviations.

    Args:
        size: Integer, the number of entries of the kernel.
        num_active: Integer, how many of them are chosen.
        seed: Pair of two integers, as for `tf.random.stateless_uniform`.

    Returns:
        Sorted array of `num_active` different integers in `[0, size)`, int64. Eager only.

    Example:

    >>> random_places(20, 3, seed=(0, 1)).tolist()
    [6, 8, 19]
    """
    share = num_active / size
    spread = 10 * math.sqrt(share * (1 - share) / size) + 100 / size
    while True:
        # Signed 64-bit draws are uniform in [-2**63, 2**63): these are surely and maybe chosen.
        surely, maybe = (_quantile(1 - share + sign * spread) for sign in (1, -1))
        places, keys = _draws_from(maybe, size, seed)
        is_sure = keys >= surely
        num_wanted = num_active - np.count_nonzero(is_sure)
        if 0 <= num_wanted <= np.count_nonzero(~is_sure):
            break
        spread *= 10
    # Ties go to the lower index: a stable sort of the few in between, the largest first.
    open_places = np.flatnonzero(~is_sure)
    largest = open_places[np.argsort(~keys[open_places], kind="stable")[:num_wanted]]
    is_sure[largest] = True
    return places[is_sure]


def _quantile(share):
    """The integer below which a share of all signed 64-bit numbers is."""
    return min(max(int(share * 2**64) - 2**63, -(2**63)), 2**63 - 1)


def _draws_from(threshold, size, seed):
    """The places and values of those of `size` draws that are not below a threshold."""
    key, counter = tf.raw_ops.StatelessRandomGetKeyCounter(seed=tf.constant(seed, tf.int64))
    found = []
    for start in range(0, size, _DRAWS):
        # The generator counts in blocks of two such draws, from where it may begin anywhere.
        here = counter + tf.constant([start // 2, 0], tf.uint64)
        draws = tf.raw_ops.StatelessRandomUniformFullIntV2(
            shape=[min(_DRAWS, size - start)], key=key, counter=here, alg=_PHILOX, dtype=tf.int64
        )
        places = tf.where(draws >= threshold)[:, 0]
        found.append(((places + start).numpy(), tf.gather(draws, places).numpy()))
    places, draws = zip(*found, strict=True)
    return np.concatenate(places), np.concatenate(draws)


def top_k_mask(scores, k):
    """Marks the `k` largest scores; ties go to the lower index.

    A radix selection: a histogram of the leading 16 bits finds the bucket of the k-th largest
    score, a histogram of the next 16 bits inside this bucket finds the score itself. Two passes
    over the data instead of a sort, whatever `k` is.

    Args:
        scores: Floating-point tensor of any shape, without NaN. `-inf` is the lowest score.
        k: Integer or scalar integer tensor; clipped to `[0, size]`.

    Returns:
        Boolean tensor of the shape of `scores` with exactly `k` entries `True`.

    Example:

    >>> top_k_mask(tf.constant([3.0, 1.0, 3.0, 3.0]), 2).numpy().tolist()
    [True, False, True, False]
    """
    return _top_k_of_keys(ordered_keys(scores), k)


def top_k_per_row(scores, k):
    """Marks the largest scores of each row; ties go to the lower index.

    A bisection on the bits of the scores, of all rows at once: as many passes over the data as a
    score has bits.

    Args:
        scores: Tensor of shape `(rows, columns)` without NaN, as in `top_k_mask`; or integers of 32
            or 64 bits with a sign.
        k: `int32` tensor of shape `(rows,)`, or one integer for all; clipped to `[0, columns]`.

    Returns:
        Boolean tensor of the shape of `scores`, with `k` entries `True` in each row.

    Example:

    >>> top_k_per_row(tf.constant([[3.0, 1.0, 3.0], [1.0, 2.0, 2.0]]), [1, 2]).numpy().tolist()
    [[True, False, False], [False, True, True]]
    """
    keys = tf.convert_to_tensor(scores)
    if not keys.dtype.is_integer:
        keys = ordered_keys(keys)
    num_rows, num_columns = keys.shape
    k = tf.broadcast_to(tf.clip_by_value(tf.cast(k, tf.int32), 0, num_columns), [num_rows])
    lowest, width = keys.dtype.min, keys.dtype.size * 8
    threshold = _kth_largest_per_row(keys, k, lowest, width)[:, tf.newaxis]
    above, equal = keys > threshold, keys == threshold
    # Of equal scores those at the lowest places, whose distances from the end are the largest.
    places = tf.where(equal, num_columns - tf.range(num_columns), 0)
    num_wanted = k - num_true(above, axis=1)
    last = _kth_largest_per_row(places, num_wanted, 0, num_columns.bit_length())
    return above | equal & (places >= last[:, tf.newaxis]) & (num_wanted > 0)[:, tf.newaxis]


def _kth_largest_per_row(keys, k, lowest, num_bits):
    """The k-th largest key of each row; all are in `[lowest, lowest + 2 ** num_bits)`."""

    def add(bit, threshold):
        higher = threshold + tf.bitwise.left_shift(tf.ones([], keys.dtype), bit)
        is_reached = num_true(keys >= higher[:, tf.newaxis], axis=1) >= k
        return bit - 1, tf.where(is_reached, higher, threshold)

    thresholds = tf.fill([keys.shape[0]], tf.constant(lowest, keys.dtype))
    start = (tf.constant(num_bits - 1, keys.dtype), thresholds)
    return tf.while_loop(lambda bit, _: bit >= 0, add, start)[1]


def drop_and_grow(mask, drop_scores, grow_scores, num_drop):
    """Drops the weakest active connections and grows as many elsewhere.

    A dropped connection competes with the inactive ones and may come back at once; only the
    connections that were kept cannot be grown (Evci et al., 2020, Algorithm 1). The number of
    active connections never changes.

    Args:
        mask: Boolean tensor, the connections active now.
        drop_scores: Tensor of the same shape. The lowest active ones are dropped.
        grow_scores: Tensor of the same shape. The highest are grown. Scores that are not
            floating-point, such as booleans, count as float32.
        num_drop: Integer or scalar integer tensor, at most the number of active connections.

    Returns:
        Two boolean tensors of the shape of `mask`: the new mask, and the connections that are
        active now and were not before.
    """
    mask = tf.convert_to_tensor(mask)
    num_active = num_true(mask)
    num_drop = tf.clip_by_value(tf.cast(num_drop, tf.int32), 0, num_active)
    kept = keep(mask, drop_scores, num_active - num_drop)
    chosen = top_k_mask(where_eligible(~kept, grow_scores), num_drop)
    new_mask = kept | chosen
    return new_mask, new_mask & ~mask


def keep(mask, scores, num_active):
    """Keeps the strongest of the active connections.

    Args:
        mask: Boolean tensor, the connections active now.
        scores: Tensor of the same shape. The highest active ones are kept.
        num_active: Integer or scalar integer tensor; all stay if there are no more.

    Returns:
        Boolean tensor of the shape of `mask`.

    Example:

    >>> keep(tf.constant([True, True, False]), tf.constant([1.0, 2.0, 3.0]), 1).numpy().tolist()
    [False, True, False]
    """
    mask = tf.convert_to_tensor(mask)
    most = num_true(mask)
    return top_k_mask(where_eligible(mask, scores), tf.minimum(tf.cast(num_active, tf.int32), most))


def where_eligible(eligible, scores):
    """Scores of the eligible entries; the others rank below them, whatever the scores are."""
    scores = tf.convert_to_tensor(scores)
    if not scores.dtype.is_floating:
        scores = tf.cast(scores, tf.float32)
    # NaN and -inf, say the logarithm of a zero weight, are the lowest scores there are.
    scores = tf.where(scores >= scores.dtype.min, scores, scores.dtype.min)
    return tf.where(eligible, scores, tf.constant(float("-inf"), scores.dtype))


def num_true(mask, axis=None):
    """How many entries are `True`, in int32, along `axis` or of all; XLA makes no copy for it."""
    return tf.reduce_sum(tf.cast(mask, tf.int32), axis)


def ordered_keys(scores):
    """Signed integers in the order of the scores, by their IEEE 754 bits.

    A negative number's bits count away from zero; subtracted from those of -0.0, towards it. So
    both zeros become 0 and tie. (Adding 0.0 to make them equal is optimized away in a graph.)
    """
    scores = tf.convert_to_tensor(scores)
    if scores.dtype != tf.float64:
        scores = tf.cast(scores, tf.float32)
    key_type = tf.int64 if scores.dtype == tf.float64 else tf.int32
    bits = tf.bitcast(scores, key_type)
    return tf.where(bits < 0, key_type.min - bits, bits)


def _top_k_of_keys(keys, k):
    """`top_k_mask` of signed integer keys."""
    shape = keys.shape
    keys = tf.reshape(keys, [-1, shape[-1] if shape.rank else 1])
    k = tf.clip_by_value(tf.cast(k, tf.int32), 0, shape.num_elements())
    is_long = shape.num_elements() > _TILE
    if tf.executing_eagerly():
        return tf.reshape(_top_k_of_rows(keys, k, is_long), shape)
    return tf.reshape(_traced_top_k(keys.dtype, is_long)(keys, k), shape)


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
    """`_top_k_of_rows` as one function of a graph, which calls it for each of its kernels.

    A copy for each of them would make graphs of large models slow to build. XLA compiles a call
    with the shapes that it has.
    """
    return tf.function(
        lambda keys, k: _top_k_of_rows(keys, k, is_long),
        input_signature=[tf.TensorSpec([None, None], dtype), tf.TensorSpec([], tf.int32)],
        autograph=False,
        experimental_attributes={"_noinline": True},
    )


def kth_largest(histogram, dtype, k):
    """The k-th largest key, how many keys equal to it are wanted, and how many there are.

    Args:
        histogram: `histogram(shift, prefix)` counts the 16-bit digits of all keys, as the function
            `histogram` of this module.
        dtype: `tf.int32` or `tf.int64`, of the keys.
        k: Scalar integer tensor, of the type of the counts.
    """
    width = dtype.size * 8
    prefix = tf.zeros([], dtype)
    remaining = k
    for shift in range(width - _DIGIT_BITS, -1, -_DIGIT_BITS):
        counts = histogram(shift, prefix if shift < width - _DIGIT_BITS else None)
        counts = tf.reshape(counts, [_PAGE, _PAGE])
        # Pages of 256 digits first: one long running sum takes XLA minutes to compile.
        page, remaining, _ = _reached(tf.reduce_sum(counts, axis=1), remaining)
        on_page = tf.where(tf.range(_PAGE)[:, tf.newaxis] == page, counts, 0)
        digit, remaining, num_equal = _reached(tf.reduce_sum(on_page, axis=0), remaining)
        digit += page * _PAGE
        prefix = tf.bitwise.left_shift(prefix, tf.constant(_DIGIT_BITS, dtype))
        prefix = tf.bitwise.bitwise_or(prefix, tf.cast(digit, dtype))
        prefix = _unsigned_prefix(prefix, width - shift)
    return tf.bitwise.bitwise_xor(prefix, dtype.min), remaining, num_equal


def _reached(counts, num):
    """The largest index from which on there are `num` counts, its share of `num`, its count."""
    enough = tf.cumsum(counts, reverse=True) >= num
    index = num_true(enough) - 1
    count = tf.reduce_sum(tf.where(tf.range(_PAGE) == index, counts, 0))
    return index, num - tf.reduce_sum(tf.where(enough, tf.zeros_like(counts), counts)), count


def _unsigned_prefix(prefix, num_bits):
    """Right shifts of signed integers copy the sign: let the prefix look the same."""
    lost = prefix.dtype.size * 8 - num_bits
    lost = tf.constant(lost, prefix.dtype)
    return tf.bitwise.right_shift(tf.bitwise.left_shift(prefix, lost), lost)


def histogram(keys, shift, prefix):
    """How often each 16-bit digit occurs in the keys with a prefix.

    Args:
        keys: Vector of signed integers.
        shift: Integer, how many bits are below the digit.
        prefix: Scalar tensor, the bits above the digit in the keys to count, or `None` for all.
    """
    return _count_digits(_digits(keys, shift, prefix))


def histogram_by_tiles(keys, shift, prefix):
    """`histogram` of many keys, whose digits never stand all in memory."""
    size = tf.shape(keys)[0]

    def add(begin, counts):
        # The last tile ends with the keys; what was in the tile before is not counted again.
        start = tf.minimum(begin, size - _TILE)
        digits = _digits(tf.slice(keys, [start], [_TILE]), shift, prefix)
        digits = tf.where(tf.range(_TILE) < begin - start, _NUM_DIGITS, digits)
        return begin + _TILE, counts + _count_digits(digits)

    start = (tf.constant(0), tf.zeros([_NUM_DIGITS], tf.int32))
    _, counts = tf.while_loop(lambda begin, _: begin < size, add, start, parallel_iterations=1)
    return counts


def _digits(keys, shift, prefix):
    """The 16-bit digit of each key, 65,536 where the bits above it are not `prefix`."""
    # With its sign bit flipped, a signed number is ordered as an unsigned one.
    unsigned = tf.bitwise.bitwise_xor(keys, keys.dtype.min)
    digits = tf.bitwise.right_shift(unsigned, tf.constant(shift, keys.dtype))
    digits = tf.cast(tf.bitwise.bitwise_and(digits, _NUM_DIGITS - 1), tf.int32)
    if prefix is None:
        return digits
    leading = tf.bitwise.right_shift(unsigned, tf.constant(shift + _DIGIT_BITS, keys.dtype))
    return tf.where(leading == prefix, digits, _NUM_DIGITS)


def _count_digits(digits):
    """How often each 16-bit digit occurs; the digit 65,536 is not counted."""
    counts = tf.raw_ops.DenseBincount(
        input=digits, size=_NUM_DIGITS + 1, weights=tf.zeros([0], tf.int32)
    )
    return counts[:_NUM_DIGITS]


def _first_true(candidates, num):
    """Of a matrix, the first `num` true entries in row-major order.

    Row sums find the row in which the count is reached; only this row is scanned entry by entry.
    """
    per_row = num_true(candidates, axis=1)
    up_to_row = tf.cumsum(per_row)
    full = up_to_row <= num
    rows = tf.range(tf.shape(candidates)[0])
    last = rows == num_true(full)
    left = num - tf.reduce_sum(tf.where(full, per_row, 0))
    in_last = candidates & last[:, tf.newaxis]
    seen = tf.cumsum(num_true(in_last, axis=0))
    return candidates & full[:, tf.newaxis] | in_last & (seen <= left)[tf.newaxis, :]
