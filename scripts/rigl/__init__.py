"""The experiments of the RigL paper, each with a page in `results/`."""
