"""Functions that make one model out of another: a sparse, a dense or a smaller one."""

from rigl_tf.transforms.compact import compact, live_units
from rigl_tf.transforms.execution import with_execution
from rigl_tf.transforms.sparsify import sparsify, strip

__all__ = ["compact", "live_units", "sparsify", "strip", "with_execution"]
