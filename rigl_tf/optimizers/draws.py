"""Random numbers that are the same on every replica, in every run, and with or without XLA.

This holds for TensorFlow's stateless operations that draw integers, if the algorithm is named. It
does not hold for those that draw floating-point numbers.
"""

import math

import tensorflow as tf

from rigl_tf import selection

_BITS = 23


def fold(seed, *data):
    """A new seed, a pair of integers, made of a seed and some integers."""
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
    """A vector of `size` numbers of `uniform`, from index `start` on, a multiple of 4."""
    draw = tf.raw_ops.StatelessRandomUniformFullIntV2
    return _of_bits(selection.part_of_draws(draw, tf.int32, seed, start, size))


def normal(shape, seed):
    """Normally distributed numbers, in float32, of mean 0 and standard deviation 1."""
    return math.sqrt(2) * tf.math.erfinv(2 * uniform(shape, seed) - 1)
