"""What an optimizer keeps of a CSR kernel, and how it updates one."""

import tensorflow as tf

from rigl_tf.execution import csr, engine, tiles
from rigl_tf.optimizers import growth
from rigl_tf.optimizers.kernels import KernelState


class CSRState(KernelState):
    """What an optimizer keeps of one CSR kernel: all variables are of its active values."""

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

    def rows(self, strategy, loss_scale):
        """`(x, dy)` of all replicas: `x^T dy` is the gradient of the dense kernel."""

        def of_one_replica():
            inputs, gradients = self.storage.stash.read()
            if loss_scale is not None:
                gradients /= tf.cast(loss_scale, gradients.dtype)
            return inputs, gradients

        rows = strategy.extended.call_for_each_replica(of_one_replica)
        return tuple(strategy.gather(each, axis=0) for each in rows)

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

    def update(self, strategy, rows, step, optimizer):
        """Gives the kernel the places and grown values of an update, the same on every replica.

        Args:
            rows: As from the method `rows`, or `None` if the algorithm needs no gradients.
            optimizer: The `ScheduledUpdates`, whose `_updated_places` is asked.
        """

        def update_one(values, rows, structure, step, initial_std, slots, explored):
            places = self.storage.places_of(structure)
            weights = tf.convert_to_tensor(values)
            tiled = tiles.Tiles(places, weights, self.storage.matrix_shape, rows)
            new_places, grown = optimizer._updated_places(
                self, tiled, tf.convert_to_tensor(step), initial_std
            )
            new_places = tf.ensure_shape(new_places, places.shape)
            # Both are sorted: where each new place was before, if it was there.
            before = tf.minimum(tf.searchsorted(places, new_places), places.shape[0] - 1)
            was_there = tf.gather(places, before) == new_places
            weights = tf.where(was_there, tf.gather(weights, before), grown)
            values.assign(self.sparse(weights))
            for variable, slot in zip(slots, self.slots, strict=True):
                start = slot.initializer(variable.shape, dtype=variable.dtype)
                kept = tf.gather(tf.convert_to_tensor(variable), before)
                variable.assign(tf.where(was_there, kept, start))
            new = engine.structure(new_places, self.storage.matrix_shape)
            for variable, tensor in zip(structure, new, strict=True):
                variable.assign(tensor)
            if self.explored is not None:
                old, new = (self.mask_of(each) for each in (places, new_places))
                self.note_exploration(old, new, *explored)

        args = (
            rows,
            [variable.value for variable in self.storage.structure_variables],
            step.value,
            None if self.initial_std is None else self.initial_std.value,
            self.slot_values(),
            self.explored_values(),
        )
        strategy.extended.update(self.kernel.value, update_one, args=args, group=False)

    def mask_of(self, places):
        """The mask of the dense kernel."""
        return csr.scatter(places, tf.ones_like(places, tf.int8), self.sparse.shape) > 0

    def made_dense(self, tiled):
        """The kernel, its mask and its gradient, as dense tensors."""
        shape = self.sparse.shape
        kernel = csr.scatter(tiled.places, tiled.values, shape)
        gradient = tf.zeros_like(kernel)
        if tiled.rows is not None:
            gradient = tf.reshape(tf.matmul(*tiled.rows, transpose_a=True), shape)
        return kernel, self.mask_of(tiled.places), tf.cast(gradient, kernel.dtype)


def state_of(kernel, *args, **kwargs):
    """The `KernelState` of a `masks.SparseKernel`."""
    kind = CSRState if kernel.execution == "csr" else KernelState
    return kind(kernel, *args, **kwargs)
