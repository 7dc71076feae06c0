"""A page of HTML on a sparse model that was trained."""

from rigl_tf.reports.page import report

__all__ = ["report"]
