"""Counts what a model and its training cost: FLOPs, weights and bytes."""

from rigl_tf.flops.counting import Cost, KernelCost, count, estimate, training_flops

__all__ = ["Cost", "KernelCost", "count", "estimate", "training_flops"]
