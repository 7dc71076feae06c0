"""Distributions: how the kernels of a model share an overall sparsity.

A distribution is a function `fn(shapes, sparsity) -> {path: sparsity}`. `shapes` is an ordered,
non-empty `{path: shape}` in Keras layout: Dense `(in, out)`, Conv2D `(height, width, in, out)`. The
result has the same paths in the same order. A sparsity is a share of zeros, a float in `[0, 1)`, so
each kernel keeps at least one weight. Only kernels count, not biases or normalisations.
"""

from rigl_tf.checks import check_sparsity
from rigl_tf.distributions.densities import (
    allocate,
    erdos_renyi,
    erk,
    get,
    num_zeros,
    str_resnet50,
    uniform,
)
from rigl_tf.distributions.smart_ratios import smart_ratio

__all__ = [
    "allocate",
    "check_sparsity",
    "erdos_renyi",
    "erk",
    "get",
    "num_zeros",
    "smart_ratio",
    "str_resnet50",
    "uniform",
]
