"""The sparsity that an optimizer makes: of each kernel, and of all together."""

import math
import warnings

import tensorflow as tf

from rigl_tf import distributions, masks

_TOLERANCE = 0.005  # as much is lost by the dense first layer of a large model


def allocate(optimizer, kernels, sparsity, keeps_zeros=False):
    """The sparsity that each kernel gets by `optimizer.distribution`, in the order of `kernels`.

    Warns if the kernels together do not get the sparsity that was asked for.

    Args:
        optimizer: The optimizer, for its distribution and its name.
        kernels: List of sparse kernels.
        sparsity: Share of zeros of all of them together, in `[0, 1)`.
        keeps_zeros: Whether connections that are inactive now stay so.
    """
    shapes = {path: tuple(kernel.shape) for path, kernel in masks.by_path(kernels).items()}
    shares = distributions.allocate(optimizer.distribution, shapes, sparsity)
    zeros = {
        path: distributions.num_zeros(math.prod(shape), shares[path])
        for path, shape in shapes.items()
    }
    if keeps_zeros:
        now = (num_inactive(kernel) for kernel in kernels)
        zeros = {path: max(num, next(now)) for path, num in zeros.items()}
    size = sum(math.prod(shape) for shape in shapes.values())
    reached = sum(zeros.values()) / size
    # Each kernel may miss a whole weight.
    if abs(reached - sparsity) > _TOLERANCE + len(zeros) / size:
        dense = [path for path, num in zeros.items() if not num]
        warnings.warn(
            f"{type(optimizer).__name__} makes a sparsity of {reached:.3f} of {sparsity}: "
            f'`distribution` leaves {dense} dense, and `distribution="erk"` holds the number. '
            f"Received: distribution={optimizer.distribution!r}"
            if reached < sparsity
            else f"{type(optimizer).__name__} makes a sparsity of {reached:.3f} instead of "
            f"{sparsity}, by its distribution and the connections that are inactive already. "
            f"Received: distribution={optimizer.distribution!r}",
            stacklevel=2,
        )
    return list(shares.values())


def num_inactive(kernel):
    """The number of inactive connections of a sparse kernel."""
    with tf.init_scope():
        mask = tf.convert_to_tensor(masks.mask_of(kernel))
        return int(tf.math.count_nonzero(~mask))
