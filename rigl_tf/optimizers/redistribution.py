"""Decides how many connections each kernel grows, so that their total number stays the same."""

import tensorflow as tf


def num_to_grow(importance, num_drop, num_free):
    """How many connections each kernel grows.

    The total of all dropped connections is distributed in proportion to the importance of the
    kernels. A kernel grows at most 99 % of its inactive connections. What a kernel cannot take is
    given to the other kernels in equal parts.

    Reference:

    - [Dettmers and Zettlemoyer, 2019](https://arxiv.org/abs/1907.04840), algorithm 1, and their
      code. The code distributes what is left over again and again; this function computes the
      final result, in whole numbers.

    Args:
        importance: Floating-point vector, a number >= 0 for each kernel. If all are 0, each kernel
            grows as many connections as it drops.
        num_drop: `int32` vector, how many connections each kernel drops.
        num_free: `int32` vector, how many connections of each kernel are inactive after it has
            dropped.

    Returns:
        `int32` vector with the same sum as `num_drop`; no entry exceeds that of `num_free`.

    Example:

    >>> num_to_grow(tf.constant([3.0, 1.0]), tf.constant([10, 10]), tf.constant([100, 100])).numpy()
    array([15,  5], dtype=int32)
    """
    total = tf.reduce_sum(num_drop)
    most = num_free + -num_free // 100  # rounded down
    # If kernels are nearly dense, 99 % may not be enough.
    most = tf.where(tf.reduce_sum(most) >= total, most, num_free)
    importance = tf.cast(importance, tf.float32)
    whole = tf.reduce_sum(importance)
    shares = tf.cast(
        tf.math.divide_no_nan(importance, whole) * tf.cast(total, tf.float32), tf.int32
    )
    shares = tf.where(whole > 0, shares, num_drop)
    # Because of rounding in float32, the sum may be above the total.
    before = tf.cumsum(shares, exclusive=True)
    shares = tf.clip_by_value(total - before, 0, shares)
    return _filled(shares, most, total)


def _filled(shares, most, total):
    """Adds the same number to all shares, up to `most`, so that their sum is `total`.

    A remainder, smaller than the number of kernels that are not full, is given to the first of
    these kernels, one connection each.
    """
    full_at = tf.maximum(most - shares, 0)
    candidates = tf.concat([[0], full_at], axis=0)
    taken = tf.reduce_sum(tf.minimum(shares + candidates[:, tf.newaxis], most), axis=1)
    level = tf.reduce_max(tf.where(taken <= total, candidates, 0))
    filled = tf.minimum(shares + level, most)
    has_room = tf.cast(full_at > level, tf.int32)
    rest = total - tf.reduce_sum(filled)
    num_with_room = tf.maximum(tf.reduce_sum(has_room), 1)
    first = has_room * tf.cast(tf.cumsum(has_room) <= rest % num_with_room, tf.int32)
    return filled + has_room * (rest // num_with_room) + first
