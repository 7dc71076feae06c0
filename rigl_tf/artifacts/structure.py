"""Finds the pattern of a kernel's zeros, and the smallest size in which it can be stored."""

import math

import numpy as np

_BLOCKS = (16, 8, 4, 2)


def structure_of(mask):
    """Says in words which pattern the active connections of a mask have.

    Args:
        mask: Boolean array in the layout of Keras: outputs are the last dimension.

    Returns:
        String. The first that fits of: dense, whole channels, blocks along the inputs, blocks along
        the outputs, N:M (along the inputs), constant fan-in, unstructured.

    Example:

    >>> structure_of(np.repeat(np.eye(4, dtype=bool), 4, axis=0))
    'blocks of (4, 1)'
    >>> structure_of(np.eye(8, dtype=bool))
    'constant fan-in'
    """
    mask = np.asarray(mask, bool)
    if mask.all():
        return "dense"
    matrix = mask.reshape(-1, mask.shape[-1]) if mask.ndim > 1 else mask.reshape(1, -1)
    inputs, outputs = np.any(matrix, axis=1), np.any(matrix, axis=0)
    if (matrix == inputs[:, np.newaxis] & outputs).all():
        return "whole channels"
    for size in _BLOCKS:
        if _is_blocks(matrix, size):
            return f"blocks of ({size}, 1)"
    for size in _BLOCKS:
        if _is_blocks(matrix.T, size):
            return f"blocks of (1, {size})"
    for size in (4, 8, 16):
        groups = (
            matrix.reshape(-1, size, matrix.shape[1]).sum(axis=1)
            if not len(matrix) % size
            else None
        )
        if groups is not None and len(groups) > 1 and (groups == groups.flat[0]).all():
            return f"{int(groups.flat[0])}:{size}"
    counts = matrix.sum(axis=0)
    return "constant fan-in" if (counts == counts[0]).all() else "unstructured"


def bound_bytes(size, num_active, value_bytes=4):
    """The smallest number of bytes for a kernel with any mask, if values are not compressed.

    Args:
        size: Integer, the number of connections.
        num_active: Integer, the number of active connections.
        value_bytes: Integer, bytes of one value.

    Returns:
        Integer, the bytes of the active values, and the entropy of the mask. The entropy is the
        binary logarithm of the number of masks with `num_active` active connections, in bits.

    Example:

    >>> bound_bytes(8, 4)  # 16 bytes of values; 70 masks need 6.1 bits
    17
    """
    places = (
        math.lgamma(size + 1) - math.lgamma(num_active + 1) - math.lgamma(size - num_active + 1)
    )
    return value_bytes * num_active + math.ceil(places / math.log(2) / 8)


def _is_blocks(matrix, size):
    if len(matrix) % size:
        return False
    groups = matrix.reshape(-1, size, matrix.shape[1])
    return bool((groups == groups[:, :1]).all())
