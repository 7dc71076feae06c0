"""Writes trained models to files, runs the files, and compares them with the models."""

from rigl_tf.artifacts.export import export

__all__ = ["export"]
