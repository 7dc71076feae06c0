"""Random numbers that are the same on every replica, in every run, and with XLA or without.

Of TensorFlow's stateless operations, those that draw integers are, if the algorithm is named;
those that draw floating-point numbers are not.
"""

import math

import tensorflow as tf

_BITS = 23
_PHILOX = 1  # the number of the algorithm in TensorFlow


def fold(seed, *data):
    """A seed, as a pair of integers, made of another one and of some integers."""
    for each in data:
        seed = tf.random.experimental.stateless_fold_in(seed, each, alg="philox")
    return seed


def uniform(shape, seed):
    """Numbers in `(0, 1)`, in float32: odd multiples of `2**-24`."""
    bits = tf.random.stateless_uniform(shape, seed, None, None, tf.int32, alg="philox")
    return _of_bits(bits)


def _of_bits(bits):
    bits = tf.bitwise.bitwise_and(bits, 2**_BITS - 1)
    return tf.cast(2 * bits + 1, tf.float32) / 2 ** (_BITS + 1)


def uniform_part(start, size, seed):
    """So many of the numbers of `uniform`, as a vector, from a multiple of 4 on."""
    key, counter = tf.raw_ops.StatelessRandomGetKeyCounter(seed=tf.cast(seed, tf.int64))
    # The generator counts in blocks of four such draws.
    here = counter + tf.stack([tf.cast(start // 4, tf.uint64), tf.constant(0, tf.uint64)])
    bits = tf.raw_ops.StatelessRandomUniformFullIntV2(
        shape=[size], key=key, counter=here, alg=_PHILOX, dtype=tf.int32
    )
    return _of_bits(bits)


def normal(shape, seed):
    """Normally distributed numbers, in float32, of mean 0 and standard deviation 1."""
    return math.sqrt(2) * tf.math.erfinv(2 * uniform(shape, seed) - 1)
