"""Sparse training for Keras 3 and TensorFlow: sparse from the first step to the last."""

from rigl_tf import (
    analysis,
    callbacks,
    distributions,
    flops,
    initializers,
    lottery,
    multi_worker,
    online,
    pruning,
    schedules,
    selection,
)
from rigl_tf.compact import compact, live_units
from rigl_tf.export import export
from rigl_tf.masks import get_masks, set_masks
from rigl_tf.optimizers import (
    DNW,
    SET,
    SNFS,
    GradualPruning,
    RigL,
    RigLInverted,
    SparseOptimizer,
    StaticSparse,
)
from rigl_tf.sparsify import sparsify, strip
from rigl_tf.summary import sparsity_summary
from rigl_tf.wrapper import SparseWrapper

__all__ = [
    "DNW",
    "SET",
    "SNFS",
    "GradualPruning",
    "RigL",
    "RigLInverted",
    "SparseOptimizer",
    "SparseWrapper",
    "StaticSparse",
    "analysis",
    "callbacks",
    "compact",
    "distributions",
    "export",
    "flops",
    "get_masks",
    "initializers",
    "live_units",
    "lottery",
    "multi_worker",
    "online",
    "pruning",
    "schedules",
    "selection",
    "set_masks",
    "sparsify",
    "sparsity_summary",
    "strip",
]
