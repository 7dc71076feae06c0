"""What a sparse optimizer knows of the sparse kernels."""

import dataclasses

import keras
import tensorflow as tf


@dataclasses.dataclass(eq=False)
class SparseKernel:
    """What the optimizer knows of one sparse kernel (kept out of Keras's attribute tracking)."""

    kernel: keras.Variable
    mask: keras.Variable
    index: int
    slots: list  # (slot variable of the inner optimizer, its initializer)
    average: keras.Variable | None  # moving average of the dense gradient


class Plan:
    """The variables of an optimizer, and the sparse kernels by the identity of theirs."""

    def __init__(self, variables, kernels):
        self.variables = variables
        self.by_id = {id(sparse.kernel): sparse for sparse in kernels}


def sum_over_replicas(strategy, pairs):
    """The gradients of the kernels, summed over the replicas (equal to the global batch's)."""
    if not pairs:
        return []
    return strategy.extended.batch_reduce_to(
        tf.distribute.ReduceOp.SUM,
        [(gradient, sparse.kernel.value) for sparse, gradient in pairs],
    )
