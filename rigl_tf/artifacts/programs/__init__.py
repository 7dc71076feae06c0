"""Programs that run in a new Python process. They do not import `rigl_tf`."""
