"""Sparse layers: the wrapper that holds the masks, and the choice of kernels and first masks."""

from rigl_tf.layers.wrapper import SparseWrapper

__all__ = ["SparseWrapper"]
