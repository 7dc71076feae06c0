"""Optimizers that train sparse models and change their masks."""

from rigl_tf.optimizers.dnw import DNW
from rigl_tf.optimizers.drop_and_grow import SparseOptimizer
from rigl_tf.optimizers.dynamic import SET, SNFS, RigL, RigLInverted
from rigl_tf.optimizers.gradual import GradualPruning
from rigl_tf.optimizers.static import StaticReinit, StaticSparse
from rigl_tf.optimizers.training import SparseTraining

# The classes by the names that scripts and `rigl_tf.flops.training_flops` use.
ALGORITHMS = {
    "static": StaticSparse,
    "static_reinit": StaticReinit,
    "set": SET,
    "snfs": SNFS,
    "rigl": RigL,
    "rigl_inverted": RigLInverted,
    "pruning": GradualPruning,
    "dnw": DNW,
}

__all__ = [
    "ALGORITHMS",
    "DNW",
    "SET",
    "SNFS",
    "GradualPruning",
    "RigL",
    "RigLInverted",
    "SparseOptimizer",
    "SparseTraining",
    "StaticReinit",
    "StaticSparse",
]
