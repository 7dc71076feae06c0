"""Callbacks for `fit`."""

from rigl_tf.callbacks.exploration import ExplorationLogger
from rigl_tf.callbacks.sparsity import SparsityLogger

__all__ = ["ExplorationLogger", "SparsityLogger"]
