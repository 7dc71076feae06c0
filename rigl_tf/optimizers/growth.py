"""The first values of grown connections."""

import tensorflow as tf

from rigl_tf.checks import check_choice
from rigl_tf.optimizers import draws


def std_of_active(kernel, mask):
    """Standard deviation of the active entries of a kernel, 0 if there are none."""
    kernel = _wide(kernel)
    mean = mean_of_active(kernel, mask)
    return tf.sqrt(mean_of_active(tf.square(kernel - mean), mask))


def mean_of_active(values, mask):
    """Mean of the active entries of `values`, 0 if there are none."""
    values = _wide(values)
    mask = tf.cast(mask, values.dtype)
    return tf.math.divide_no_nan(tf.reduce_sum(values * mask), tf.reduce_sum(mask))


def _wide(values):
    """`values` in float32 or float64: 16 bits are too few for a sum of many values."""
    return values if values.dtype == tf.float64 else tf.cast(values, tf.float32)


def _normal(std, kernel, seed):
    return tf.cast(std, kernel.dtype) * tf.cast(draws.normal(kernel.shape, seed()), kernel.dtype)


def _zeros(kernel, mask, gradient, initial_std, seed):
    return tf.zeros([], kernel.dtype)


def _initial_distribution(kernel, mask, gradient, initial_std, seed):
    return _normal(initial_std, kernel, seed)


def _random_normal(kernel, mask, gradient, initial_std, seed):
    return _normal(std_of_active(kernel, mask), kernel, seed)


def _random_uniform(kernel, mask, gradient, initial_std, seed):
    width = mean_of_active(tf.abs(kernel), mask)
    return tf.cast(width, kernel.dtype) * tf.cast(
        2 * draws.uniform(kernel.shape, seed()) - 1, kernel.dtype
    )


def _gradient(kernel, mask, gradient, initial_std, seed):
    return tf.cast(gradient, kernel.dtype)


def _gradient_sign(kernel, mask, gradient, initial_std, seed):
    return tf.cast(tf.sign(gradient), kernel.dtype)


_INITIAL = {
    "zeros": _zeros,
    "initial_distribution": _initial_distribution,
    "random_normal": _random_normal,
    "random_uniform": _random_uniform,
    "gradient": _gradient,
    "gradient_sign": _gradient_sign,
}


# The choices that need the gradients of inactive connections.
OF_GRADIENTS = ("gradient", "gradient_sign")


def check(grow_init):
    """Raises a `ValueError` unless `grow_init` is a key of `_INITIAL`."""
    check_choice(_INITIAL, grow_init=grow_init)


def initial_values(grow_init, kernel, mask, gradient, initial_std, seed):
    """The values at which connections of a kernel start if they are grown.

    Args:
        grow_init: String, see `rigl_tf.SparseOptimizer`.
        kernel: Tensor, the kernel before the update.
        mask: Boolean tensor of the same shape, its mask before the update.
        gradient: Tensor of the same shape.
        initial_std: Scalar tensor, the standard deviation of the weights when training began, or
            `None` if it is not used.
        seed: Function that returns a pair of integers, as a tensor.

    Returns:
        Tensor of the kernel's shape and dtype, or a scalar for all of them.
    """
    return _INITIAL[grow_init](kernel, mask, gradient, initial_std, seed)
