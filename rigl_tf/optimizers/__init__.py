"""Optimizers that train sparse models."""

from rigl_tf.optimizers.base import SparseOptimizer
from rigl_tf.optimizers.dnw import DNW
from rigl_tf.optimizers.dynamic import SET, SNFS, RigL, RigLInverted, StaticSparse
from rigl_tf.optimizers.gradual import GradualPruning

__all__ = [
    "DNW",
    "SET",
    "SNFS",
    "GradualPruning",
    "RigL",
    "RigLInverted",
    "SparseOptimizer",
    "StaticSparse",
]
