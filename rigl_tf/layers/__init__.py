"""Sparse layers: the wrapper that holds the masks, which weights it takes, the first masks."""

from rigl_tf.layers.wrapper import SparseWrapper

__all__ = ["SparseWrapper"]
