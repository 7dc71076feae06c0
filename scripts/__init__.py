"""Experiments, checks and the training command, each in a package, with shared code in `common`."""
