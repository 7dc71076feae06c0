"""How kernels share the connections that are grown, so that their total stays what it is."""

import tensorflow as tf


def num_to_grow(importance, num_drop, num_free):
    """How many connections each kernel grows.

    Each gets its share of the importance of the total that is dropped, at most 99 % of the
    connections it could grow. What kernels cannot take is given to the others in equal parts.

    Reference:

    - [Dettmers and Zettlemoyer, 2019](https://arxiv.org/abs/1907.04840), algorithm 1, and their
      code, which gives the rest away over and over: this is where that ends, in whole numbers

    Args:
        importance: Floating-point vector >= 0, of a number for each kernel. If all are 0, each
            kernel grows what it drops.
        num_drop: `int32` vector, how many connections each kernel drops.
        num_free: `int32` vector, how many connections each kernel could grow: those that are
            inactive once it has dropped.

    Returns:
        `int32` vector with the sum of `num_drop`, none above that of `num_free`.

    Example:

    >>> num_to_grow(tf.constant([3.0, 1.0]), tf.constant([10, 10]), tf.constant([100, 100])).numpy()
    array([15,  5], dtype=int32)
    """
    total = tf.reduce_sum(num_drop)
    most = num_free + -num_free // 100  # rounded down
    # Among nearly dense kernels 99 % may not be enough.
    most = tf.where(tf.reduce_sum(most) >= total, most, num_free)
    importance = tf.cast(importance, tf.float32)
    whole = tf.reduce_sum(importance)
    shares = tf.cast(
        tf.math.divide_no_nan(importance, whole) * tf.cast(total, tf.float32), tf.int32
    )
    shares = tf.where(whole > 0, shares, num_drop)
    # By float32, the sum of many may be above the total.
    before = tf.cumsum(shares, exclusive=True)
    shares = tf.clip_by_value(total - before, 0, shares)
    return _filled(shares, most, total)


def _filled(shares, most, total):
    """Raises all shares by the same number, up to `most`, so that their sum is `total`.

    What is left over, less than one for each kernel that is not full, goes to the first of these.
    The number lies between two at which a kernel becomes full.
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
