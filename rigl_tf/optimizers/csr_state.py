"""What an optimizer keeps of a CSR kernel, and how it updates one."""

import numpy as np
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

    def rows(self, strategy, gradient):
        """The rows of all replicas, the blocks that they come in, and the gradient of the values.

        Args:
            gradient: The gradient of the values, summed over the replicas.
        """
        rows = strategy.extended.call_for_each_replica(self.storage.stash.read)
        return (*(strategy.gather(each, axis=0) for each in rows), gradient)

    def is_ready(self, strategy):
        """Whether a backward pass was kept that holds numbers only."""

        def of_one_replica():
            return tf.math.count_nonzero(_are_finite(*self.storage.stash.read()))

        counts = strategy.extended.call_for_each_replica(of_one_replica)
        return tf.add_n(strategy.experimental_local_results(counts)) > 0

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
            shape, gradient = self.storage.matrix_shape, None
            if rows is not None:
                penalty = self._gradient_of_regularizer(weights)
                gradient = None if penalty is None else tf.cast(rows[-1], weights.dtype)
                rows = _applied(*rows, penalty, structure, shape)
            tiled = tiles.Tiles(places, weights, shape, rows, gradient)
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

    def _gradient_of_regularizer(self, weights):
        if self.kernel.regularizer is None:
            return None
        with tf.GradientTape() as tape:
            tape.watch(weights)
            penalty = self.kernel.regularizer(weights)
        return tf.cast(tape.gradient(penalty, weights), tf.float32)

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
        gradient, mask = tf.cast(gradient, kernel.dtype), self.mask_of(tiled.places)
        if tiled.gradient is not None:
            of_active = csr.scatter(tiled.places, tiled.gradient, shape)
            gradient = tf.where(mask, of_active, gradient)
        return kernel, mask, gradient


def _are_finite(inputs, gradients, blocks):
    """For each block of rows, whether it holds numbers only."""
    is_finite = [tf.reduce_all(tf.math.is_finite(each), axis=1) for each in (inputs, gradients)]
    is_finite = tf.cast(tf.reduce_all(is_finite, axis=0), tf.int32)
    num_blocks = 1 + tf.reduce_max(tf.concat([[-1], blocks], axis=0))
    return tf.math.unsorted_segment_min(is_finite, blocks, num_blocks) == 1


def _applied(inputs, gradients, blocks, gradient, penalty, structure, shape):
    """`(x, dy)` whose product, at the active places, is the gradient that the optimizer got.

    (Without that of a regularizer, `penalty`, if there is one.)

    Backward passes through a layer may be more than those that train it: of another loss, in a step
    that was skipped, or towards the inputs alone. And what they give may be scaled before it is
    applied. So each block gets the factor with which it is part of the gradient: the least squares
    of what they come to at the active places, which leave factors of 1 where these are open.
    """
    structure = engine.Structure(*map(tf.convert_to_tensor, structure))
    is_finite = _are_finite(inputs, gradients, blocks)
    gradient = tf.cast(gradient, tf.float32)

    def at_places(block):
        rows = blocks == block
        x, dy = tf.boolean_mask(inputs, rows), tf.boolean_mask(gradients, rows)
        values = tf.zeros_like(gradient)
        with tf.GradientTape() as tape:
            tape.watch(values)
            y = engine.matmul(x, values, structure, shape)
        return tape.gradient(y, values, dy)

    parts = tf.map_fn(at_places, tf.range(tf.size(is_finite)), fn_output_signature=tf.float32)
    parts = tf.where(is_finite[:, tf.newaxis], parts, 0)
    if penalty is not None:
        parts = tf.concat([parts, penalty[tf.newaxis]], axis=0)
    parts, gradient = tf.cast(parts, tf.float64), tf.cast(gradient, tf.float64)[:, tf.newaxis]
    products = tf.matmul(parts, parts, transpose_b=True)
    weight = 1e-9 * tf.linalg.trace(products) + np.finfo("float64").tiny
    factors = tf.linalg.solve(
        products + weight * tf.eye(tf.shape(parts)[0], dtype=tf.float64),
        tf.matmul(parts, gradient) + weight,
    )[: tf.size(is_finite), 0]
    factors = tf.where(tf.abs(factors - 1) < 1e-4, tf.ones_like(factors), factors)
    factors = tf.gather(tf.cast(tf.where(is_finite, factors, 0), tf.float32), blocks)
    is_finite = tf.gather(is_finite, blocks)[:, tf.newaxis]
    return (
        tf.where(is_finite, inputs, 0),
        tf.where(is_finite, gradients * factors[:, tf.newaxis], 0),
    )


def state_of(kernel, *args, **kwargs):
    """The `KernelState` of a `masks.SparseKernel`."""
    kind = CSRState if kernel.execution == "csr" else KernelState
    return kind(kernel, *args, **kwargs)
