"""Files of trained models, each compared with the model that it was made of."""

from rigl_tf.artifacts.export import export

__all__ = ["export"]
