"""What leaves the training: files that are compared with the model they were made of."""

from rigl_tf.artifacts.export import export

__all__ = ["export"]
