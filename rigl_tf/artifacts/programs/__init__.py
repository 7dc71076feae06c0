"""Programs for an interpreter of their own: they import neither `rigl_tf` nor TensorFlow."""
