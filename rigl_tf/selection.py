"""Which connections: tensors in, tensors out.

Every function here is exact, deterministic, free of sorting, and made of static shapes only, so it
compiles with XLA and gives the same answer in eager mode, in a graph and on every replica.
"""

import functools

import tensorflow as tf

_DIGIT_BITS = 16
_NUM_DIGITS = 1 << _DIGIT_BITS
_PAGE = 256


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
    # Whole 64-bit draws: with float32's 2**23 values a large kernel would have ties.
    draws = tf.random.stateless_uniform(shape, seed, minval=None, maxval=None, dtype=tf.int64)
    return _top_k_of_keys(draws, num_active)


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
    num_active = tf.math.count_nonzero(mask, dtype=tf.int32)
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
    most = tf.math.count_nonzero(mask, dtype=tf.int32)
    return top_k_mask(where_eligible(mask, scores), tf.minimum(tf.cast(num_active, tf.int32), most))


def where_eligible(eligible, scores):
    """Scores of the eligible entries; the others rank below them, whatever the scores are."""
    scores = tf.convert_to_tensor(scores)
    if not scores.dtype.is_floating:
        scores = tf.cast(scores, tf.float32)
    # NaN and -inf, say the logarithm of a zero weight, are the lowest scores there are.
    scores = tf.where(scores >= scores.dtype.min, scores, scores.dtype.min)
    return tf.where(eligible, scores, tf.constant(float("-inf"), scores.dtype))


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
    select = _top_k_of_rows if tf.executing_eagerly() else _traced_top_k(keys.dtype)
    return tf.reshape(select(keys, k), shape)


def _top_k_of_rows(keys, k):
    threshold, num_wanted, num_equal = _kth_largest(tf.reshape(keys, [-1]), k)
    return tf.cond(
        num_wanted == num_equal,
        lambda: keys >= threshold,
        lambda: (keys > threshold) | _first_true(keys == threshold, num_wanted),
    )


@functools.cache
def _traced_top_k(dtype):
    """`_top_k_of_rows` as one function of a graph, which calls it for each of its kernels.

    A copy for each of them would make graphs of large models slow to build. XLA compiles a call
    with the shapes that it has.
    """
    return tf.function(
        _top_k_of_rows,
        input_signature=[tf.TensorSpec([None, None], dtype), tf.TensorSpec([], tf.int32)],
        autograph=False,
        experimental_attributes={"_noinline": True},
    )


def _kth_largest(keys, k):
    """The k-th largest key, how many keys equal to it are wanted, and how many there are."""
    width = keys.dtype.size * 8
    # With its sign bit flipped, a signed number is ordered as an unsigned one.
    unsigned = tf.bitwise.bitwise_xor(keys, keys.dtype.min)
    prefix = tf.zeros([], keys.dtype)
    remaining = k
    for shift in range(width - _DIGIT_BITS, -1, -_DIGIT_BITS):
        digits = tf.bitwise.right_shift(unsigned, tf.constant(shift, keys.dtype))
        digits = tf.cast(tf.bitwise.bitwise_and(digits, _NUM_DIGITS - 1), tf.int32)
        if shift < width - _DIGIT_BITS:
            leading = tf.bitwise.right_shift(unsigned, tf.constant(shift + _DIGIT_BITS, keys.dtype))
            digits = tf.where(leading == prefix, digits, _NUM_DIGITS)
        counts = _histogram(digits)
        # Pages of 256 digits first: one long running sum takes XLA minutes to compile.
        page, remaining, _ = _reached(tf.reduce_sum(counts, axis=1), remaining)
        on_page = tf.where(tf.range(_PAGE)[:, tf.newaxis] == page, counts, 0)
        digit, remaining, num_equal = _reached(tf.reduce_sum(on_page, axis=0), remaining)
        digit += page * _PAGE
        prefix = tf.bitwise.left_shift(prefix, tf.constant(_DIGIT_BITS, keys.dtype))
        prefix = tf.bitwise.bitwise_or(prefix, tf.cast(digit, keys.dtype))
        prefix = _unsigned_prefix(prefix, width - shift)
    return tf.bitwise.bitwise_xor(prefix, keys.dtype.min), remaining, num_equal


def _reached(counts, num):
    """The largest index from which on there are `num` counts, its share of `num`, its count."""
    enough = tf.cumsum(counts, reverse=True) >= num
    index = tf.math.count_nonzero(enough, dtype=tf.int32) - 1
    count = tf.reduce_sum(tf.where(tf.range(_PAGE) == index, counts, 0))
    return index, num - tf.reduce_sum(tf.where(enough, 0, counts)), count


def _unsigned_prefix(prefix, num_bits):
    """Right shifts of signed integers copy the sign: let the prefix look the same."""
    lost = prefix.dtype.size * 8 - num_bits
    lost = tf.constant(lost, prefix.dtype)
    return tf.bitwise.right_shift(tf.bitwise.left_shift(prefix, lost), lost)


def _histogram(digits):
    """How often each 16-bit digit occurs, in pages of 256; the digit 65,536 is not counted."""
    counts = tf.raw_ops.DenseBincount(
        input=digits, size=_NUM_DIGITS + 1, weights=tf.zeros([0], tf.int32)
    )
    return tf.reshape(counts[:_NUM_DIGITS], [_PAGE, _PAGE])


def _first_true(candidates, num):
    """Of a matrix, the first `num` true entries in row-major order.

    Row sums find the row in which the count is reached; only this row is scanned entry by entry.
    """
    per_row = tf.math.count_nonzero(candidates, axis=1, dtype=tf.int32)
    up_to_row = tf.cumsum(per_row)
    full = up_to_row <= num
    rows = tf.range(tf.shape(candidates)[0])
    last = rows == tf.math.count_nonzero(full, dtype=tf.int32)
    left = num - tf.reduce_sum(tf.where(full, per_row, 0))
    in_last = candidates & last[:, tf.newaxis]
    seen = tf.cumsum(tf.math.count_nonzero(in_last, axis=0, dtype=tf.int32))
    return candidates & full[:, tf.newaxis] | in_last & (seen <= left)[tf.newaxis, :]
