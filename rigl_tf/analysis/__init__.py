"""What trained sparse networks look like: plain functions on models, masks and arrays."""

from rigl_tf.analysis.connectivity import bezier, error_barrier, interpolate, train_bezier

__all__ = ["bezier", "error_barrier", "interpolate", "train_bezier"]
