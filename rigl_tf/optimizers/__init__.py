"""Optimizers that train sparse models."""

from rigl_tf.optimizers.base import SparseOptimizer
from rigl_tf.optimizers.dynamic import SET, SNFS, RigL, StaticSparse

__all__ = ["SET", "SNFS", "RigL", "SparseOptimizer", "StaticSparse"]
