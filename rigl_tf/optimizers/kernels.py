"""What a sparse optimizer knows of the sparse kernels, and what it does to one of them."""

import dataclasses

import keras
import tensorflow as tf

from rigl_tf import masks


@dataclasses.dataclass(eq=False)
class SparseKernel:
    """What the optimizer knows of one sparse kernel (kept out of Keras's attribute tracking)."""

    kernel: keras.Variable
    mask: keras.Variable
    index: int
    slots: list  # of `Slot`, those of the inner optimizer
    average: keras.Variable | None  # moving average of the dense gradient


class Plan:
    """The variables of an optimizer, and the sparse kernels by the identity of theirs."""

    def __init__(self, variables, kernels):
        self.variables = variables
        self.by_id = {id(sparse.kernel): sparse for sparse in kernels}
        # (sparse kernel, average of its weights), for an inner optimizer with `use_ema=True`.
        self.weight_averages = [
            (sparse, slot.variable)
            for sparse in kernels
            for slot in sparse.slots
            if slot.is_weight_average
        ]

    def check_known(self, variables):
        """Raises a `ValueError` if a variable is not one of those of `build`."""
        known = {id(variable) for variable in self.variables}
        unknown = [variable for variable in variables if id(variable) not in known]
        if unknown:
            raise ValueError(
                "An optimizer trains the variables that it was built with: make a new one for "
                "another model. Received: variables="
                f"{[getattr(variable, 'path', variable.name) for variable in unknown]}"
            )

    def dense_gradients(self, gradients, variables):
        """The gradients, those of sparse kernels as tensors.

        The gradient of a kernel that is read by rows, as in an embedding, is a `tf.IndexedSlices`.
        """
        return [
            tf.math.unsorted_segment_sum(gradient.values, gradient.indices, variable.shape[0])
            if isinstance(gradient, tf.IndexedSlices) and id(variable) in self.by_id
            else gradient
            for gradient, variable in zip(gradients, variables, strict=True)
        ]


def sum_over_replicas(strategy, pairs):
    """The gradients of the kernels, summed over the replicas (equal to the global batch's)."""
    if not pairs:
        return []
    return strategy.extended.batch_reduce_to(
        tf.distribute.ReduceOp.SUM,
        [(gradient, sparse.kernel.value) for sparse, gradient in pairs],
    )


def all_finite(strategy, gradients, pairs):
    """Whether the (reduced) gradients and the kernels of `pairs` hold numbers only."""
    first = [strategy.experimental_local_results(gradient)[0] for gradient in gradients]
    tensors = first + [tf.convert_to_tensor(sparse.kernel) for sparse, _ in pairs]
    return tf.reduce_all([tf.reduce_all(tf.math.is_finite(tensor)) for tensor in tensors])


def average_gradients(strategy, pairs, momentum):
    """Moves the average of each kernel's gradient by one step."""

    def average_one(kernel, gradient, average):
        new = momentum * average + (1 - momentum) * gradient
        # A step whose gradient overflowed must not stay in the average for ever.
        average.assign(tf.where(tf.math.is_finite(new), new, average))

    for (sparse, _), gradient in zip(pairs, sum_over_replicas(strategy, pairs), strict=True):
        strategy.extended.update(
            sparse.kernel.value, average_one, args=(gradient, sparse.average.value)
        )


def mask_weight_averages(strategy, plan):
    """Zeroes the averages of inactive connections.

    Keras averages a kernel before its constraint is applied, and knows nothing of `set_masks`.
    """

    def mask_one(average, mask):
        average.assign(masks.masked(average, mask))

    for sparse, average in plan.weight_averages:
        strategy.extended.update(average.value, mask_one, args=(sparse.mask.value,))


def update_kernel(strategy, sparse, gradient, step, new_mask):
    """Gives one kernel the mask `new_mask(index, kernel, mask, gradient, step)`, on every replica.

    What is dropped and what is grown starts at zero, in every slot at the slot's initial value.
    """

    def update_one(kernel, gradient, mask, step, *others):
        average = others[0] if sparse.average is not None else None
        slots = others if average is None else others[1:]
        old = tf.convert_to_tensor(mask)
        new = new_mask(
            sparse.index,
            tf.convert_to_tensor(kernel),
            old,
            gradient if average is None else tf.convert_to_tensor(average),
            tf.convert_to_tensor(step),
        )
        changed = tf.math.logical_xor(old, new)
        kernel.assign(tf.where(changed, tf.zeros([], kernel.dtype), kernel))
        for variable, slot in zip(slots, sparse.slots, strict=True):
            start = slot.initializer(variable.shape, dtype=variable.dtype)
            variable.assign(tf.where(changed, start, variable))
        mask.assign(new)

    variables = [sparse.mask, step]
    variables += [] if sparse.average is None else [sparse.average]
    variables += [slot.variable for slot in sparse.slots]
    args = (gradient, *(variable.value for variable in variables))
    strategy.extended.update(sparse.kernel.value, update_one, args=args, group=False)
