"""What a model costs, and its training: counted in the graph that is traced of it."""

from rigl_tf.flops.counting import Cost, KernelCost, count, estimate, training_flops

__all__ = ["Cost", "KernelCost", "count", "estimate", "training_flops"]
