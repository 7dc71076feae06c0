"""Writes an HTML page about a sparse model and its training."""

from rigl_tf.reports.page import report

__all__ = ["report"]
