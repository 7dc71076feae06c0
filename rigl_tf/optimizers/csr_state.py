"""What an optimizer keeps of a CSR kernel, and how it updates one."""

import tensorflow as tf

from rigl_tf.execution import csr, engine
from rigl_tf.optimizers import growth
from rigl_tf.optimizers.kernels import KernelState, gradients_over_replicas


class CSRState(KernelState):
    """What an optimizer keeps of one CSR kernel: all variables are of its active values.

    An update makes one kernel at a time dense.
    """

    @property
    def storage(self):
        return self.sparse.storage

    def start(self):
        self.storage.collect.assign(False)  # the first step is no update
        values = tf.convert_to_tensor(self.kernel)
        if self.initial_std is not None:
            self.initial_std.assign(growth.std_of_active(values, tf.ones_like(values, tf.bool)))
        if self.explored is not None:
            self.explored.ever_active.assign(self.sparse.mask)
            self.explored.num_replaced.assign(0)

    def trained_gradient(self, gradient):
        return tf.identity(gradient)  # a tensor of the graph of this branch

    def zero_inactive(self, strategy):
        """There is nothing to zero."""

    def moves_inactive(self):
        return tf.constant(False)

    def collect(self, is_update_next):
        """Lets the next backward pass keep what the dense gradient is made of, or not."""
        self.storage.collect.assign(is_update_next)

    def dense_gradient(self, strategy, loss_scale):
        """The gradient of the dense kernel, summed over the replicas, and empties the stash."""

        def of_one_replica():
            inputs, gradients = self.storage.stash.read()
            return tf.reshape(tf.matmul(inputs, gradients, transpose_a=True), self.sparse.shape)

        gradient = strategy.extended.call_for_each_replica(of_one_replica)
        return gradients_over_replicas(strategy, [gradient], [self.kernel.value], loss_scale)[0]

    def is_ready(self, strategy):
        """Whether a backward pass was kept, and holds numbers only."""

        def of_one_replica():
            inputs, gradients = self.storage.stash.read()
            finite = [tf.reduce_all(tf.math.is_finite(each)) for each in (inputs, gradients)]
            return tf.stack([tf.shape(inputs)[0], tf.cast(tf.reduce_all(finite), tf.int32)])

        counts = strategy.extended.call_for_each_replica(of_one_replica)
        counts = tf.stack(strategy.experimental_local_results(counts))
        return (tf.reduce_sum(counts[:, 0]) > 0) & tf.reduce_all(counts[:, 1] == 1)

    def clear(self, strategy):
        strategy.extended.call_for_each_replica(self.storage.stash.clear)

    def update(self, strategy, gradient, step, updated):
        shape, matrix_shape = self.sparse.shape, self.storage.matrix_shape

        def update_one(values, gradient, structure, step, initial_std, slots, explored):
            old_places = csr.places_of(
                engine.Structure(*map(tf.convert_to_tensor, structure)), matrix_shape
            )
            weights = tf.convert_to_tensor(values)
            kernel = csr.scatter(old_places, weights, shape)
            old = csr.scatter(old_places, tf.ones_like(old_places, tf.int8), shape) > 0
            new, grown = updated(
                self, kernel, old, gradient, tf.convert_to_tensor(step), initial_std
            )
            new_places = tf.where(tf.reshape(new, [-1]))[:, 0]
            new_places = tf.ensure_shape(new_places, old_places.shape)
            # Both are sorted: where each new place was before, if it was there.
            before = tf.searchsorted(old_places, new_places)
            before = tf.minimum(before, tf.shape(old_places)[0] - 1)
            was_there = tf.gather(old_places, before) == new_places
            grown = tf.gather(tf.reshape(tf.broadcast_to(grown, shape), [-1]), new_places)
            weights = tf.where(was_there, tf.gather(weights, before), grown)
            values.assign(self.sparse(weights))
            for variable, slot in zip(slots, self.slots, strict=True):
                start = slot.initializer(variable.shape, dtype=variable.dtype)
                kept = tf.gather(tf.convert_to_tensor(variable), before)
                variable.assign(tf.where(was_there, kept, start))
            for variable, tensor in zip(
                structure, engine.structure(new_places, matrix_shape), strict=True
            ):
                variable.assign(tensor)
            self.note_exploration(old, new, *explored)

        args = (
            gradient,
            [variable.value for variable in self.storage.structure_variables],
            step.value,
            None if self.initial_std is None else self.initial_std.value,
            self.slot_values(),
            self.explored_values(),
        )
        strategy.extended.update(self.kernel.value, update_one, args=args, group=False)


def state_of(kernel, *args, **kwargs):
    """The `KernelState` of a `masks.SparseKernel`."""
    kind = CSRState if kernel.execution == "csr" else KernelState
    return kind(kernel, *args, **kwargs)
