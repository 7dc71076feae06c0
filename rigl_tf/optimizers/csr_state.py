"""The state that an optimizer keeps for a CSR kernel, and the mask updates of CSR kernels."""

import warnings
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from rigl_tf.execution import csr, engine, tiles
from rigl_tf.optimizers.kernels import KernelState
from rigl_tf.optimizers.shared import Shared


class CSRState(KernelState):
    """The state for one CSR kernel: its variables have one entry for each active value."""

    @property
    def storage(self):
        return self.sparse.storage

    def start(self):
        self.storage.collect.assign(False)  # the first step is no update
        super().start()

    def trained_gradient(self, gradient):
        return tf.identity(gradient)  # a tensor of the graph of this branch

    def zero_inactive(self, strategy):
        """There is nothing to zero."""

    def moves_inactive(self):
        return tf.constant(False)

    def collect(self, is_update_next):
        """Says whether the next backward pass must store the parts of the dense gradient."""
        self.storage.collect.assign(is_update_next)

    def rows(self, strategy, gradient):
        """The stored rows of all replicas, the block of each row, and the gradient of the values.

        Args:
            gradient: The gradient of the values, summed over the replicas.
        """
        rows = strategy.extended.call_for_each_replica(self.storage.stash.read)
        # It is the same on every replica.
        gradient = strategy.experimental_local_results(gradient)[0]
        return (*(strategy.gather(each, axis=0) for each in rows), gradient)

    def clear(self, strategy):
        strategy.extended.call_for_each_replica(self.storage.stash.clear)

    def update(self, strategy, rows, step, updates):
        """Applies an update to the kernel, in the same way on every replica.

        Args:
            rows: What the method `rows` returns, or `None` if the algorithm needs no gradients.
            updates: What the function `updates` returns.
        """
        weights = tf.convert_to_tensor(self.kernel)
        penalty = None if rows is None else self._gradient_of_regularizer(weights)
        initial_std = None if self.initial_std is None else tf.convert_to_tensor(self.initial_std)
        structure = self.storage.structure()
        new = updates(self, weights, structure, rows, penalty, step, initial_std)

        def update_one(values, new, structure, slots, explored):
            values.assign(self.sparse(new.weights))
            for variable, slot in zip(slots, self.slots, strict=True):
                variable.assign(slot.moved(variable, new.before, new.was_there))
            if self.explored is not None:
                old = self.mask_of(self.storage.places_of(structure))
                self.note_exploration(old, self.mask_of(new.places), *explored)
            for variable, tensor in zip(structure, new.structure, strict=True):
                variable.assign(tensor)

        args = (
            new,
            [variable.value for variable in self.storage.structure_variables],
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
        if tiled.rows is not None:
            of_active = csr.scatter(tiled.places, tiled.gradient, shape)
            gradient = tf.where(mask, of_active, gradient)
        return kernel, mask, gradient


class Updated(NamedTuple):
    """A CSR kernel after an update: tensors of `n` entries, one for each active connection.

    Attributes:
        places: The places of the active connections.
        weights: Their weights.
        was_there: Boolean, whether each connection was active before and does not restart.
        before: The index of each connection among the active ones before, if it was active.
        structure: The `engine.Structure` of the places.
    """

    places: tf.Tensor
    weights: tf.Tensor
    was_there: tf.Tensor
    before: tf.Tensor
    structure: engine.Structure


def updates(optimizer, states):
    """Computes the updates of CSR kernels in one step.

    Args:
        optimizer: The `ScheduledUpdates`, whose method `_updated_places` is called.
        states: List of `CSRState`.

    Returns:
        Function that returns the `Updated` of a `CSRState`. Its other arguments are the weights,
        the `engine.Structure`, what the method `rows` returns, the gradient of the regularizer, the
        step and the `initial_std`.
    """

    def updated(state, weights, structure, rows, penalty, step, initial_std):
        shape, applied, gradient = state.storage.matrix_shape, None, None
        if rows is not None:
            x, dy, blocks, of_values = rows
            gradient = tf.cast(of_values, weights.dtype)
            applied = _applied(x, dy, blocks, of_values, penalty, weights, structure, shape)
        tiled = tiles.Tiles(structure, weights, shape, applied, gradient)
        new, grown, *others = optimizer._updated_places(state, tiled, step, initial_std)
        changed = (new, *others)
        if rows is not None:  # if there are none, the connections stay
            stays = tf.fill(tf.shape(weights), True)
            unchanged = (tiled.places, tf.range(tf.size(weights, tf.int64)), stays)
            has_rows = tf.shape(rows[0])[0] > 0
            changed = tf.cond(has_rows, lambda: changed, lambda: unchanged)
        new, before, was_there = (tf.ensure_shape(each, weights.shape) for each in changed)
        weights = tf.where(was_there, tf.gather(weights, before), grown)
        return Updated(new, weights, was_there, before, engine.structure(new, shape))

    def kind(state):
        return state.sparse.shape, state.storage.matrix_shape, state.sparse.num_active

    return Shared(updated, states, kind)


def all_finite(strategy, states):
    """Whether each kernel has at least one stored backward pass in which all numbers are finite.

    Kernels without a stored backward pass do not count; there is a warning for each.
    """

    def of_one_replica():
        rows = [state.storage.stash.read() for state in states]
        num_finite = [tf.math.count_nonzero(_are_finite(*each)) for each in rows]
        return tf.stack(num_finite), tf.stack([tf.shape(each[0])[0] for each in rows])

    if not states:
        return tf.constant(True)
    counts = strategy.extended.call_for_each_replica(of_one_replica)
    num_finite, num_rows = (tf.add_n(strategy.experimental_local_results(each)) for each in counts)
    messages = [
        "A mask update left the connections of the CSR kernel "
        f"{state.sparse.path!r} as they were, because no product with it was stored in this step. "
        "Perhaps the loss does not depend on it, it was used only inside of `tf.vectorized_map` or "
        "a Jacobian, or another optimizer trains the same layers, too."
        for state in states
    ]
    _warn_unless(num_rows > 0, messages)
    return tf.reduce_all((num_finite > 0) | (num_rows == 0))


def _are_finite(inputs, gradients, blocks):
    """For each block of rows, whether all of its numbers are finite."""
    is_finite = [tf.reduce_all(tf.math.is_finite(each), axis=1) for each in (inputs, gradients)]
    is_finite = tf.cast(tf.reduce_all(is_finite, axis=0), tf.int32)
    num_blocks = 1 + tf.reduce_max(tf.concat([[-1], blocks], axis=0))
    return tf.math.unsorted_segment_min(is_finite, blocks, num_blocks) == 1


def _applied(inputs, gradients, blocks, gradient, penalty, weights, structure, shape):
    """The stored inputs and output gradients, scaled to give the gradient that the optimizer got.

    Their product equals it at the active places. The gradient of a regularizer, `penalty`, and
    that of a weight decay are not included.

    Not every backward pass through a layer trains it: there may be passes for another loss, in a
    skipped step, or only for the gradient of the inputs. Gradients may also be scaled before they
    are applied. So each block of rows is multiplied by its factor in the gradient. The factors
    solve a least-squares problem at the active places; where they are not determined, they are 1.
    """
    structure = engine.Structure(*map(tf.convert_to_tensor, structure))
    is_finite = _are_finite(inputs, gradients, blocks)
    gradient = tf.cast(gradient, tf.float32)

    def at_places(block):
        rows = blocks == block
        x, dy = tf.boolean_mask(inputs, rows), tf.boolean_mask(gradients, rows)
        return engine.gradient_of_values(x, dy, structure, shape)

    parts = tf.map_fn(at_places, tf.range(tf.size(is_finite)), fn_output_signature=tf.float32)
    parts = tf.reshape(parts, [tf.size(is_finite), tf.size(gradient)])  # also if there is none
    parts = tf.where(is_finite[:, tf.newaxis], parts, 0)
    if penalty is not None:
        parts = tf.concat([parts, penalty[tf.newaxis]], axis=0)
    rest = gradient - tf.reduce_sum(parts, axis=0)
    is_sum = tf.reduce_all(is_finite) & (tf.nn.l2_loss(rest) <= 1e-10 * tf.nn.l2_loss(gradient))
    return tf.cond(
        is_sum,
        lambda: (inputs, gradients),
        lambda: _scaled(inputs, gradients, blocks, is_finite, parts, gradient, weights),
    )


def _scaled(inputs, gradients, blocks, is_finite, parts, gradient, weights):
    """`(x, dy)` as in `_applied`, with each block of rows times its factor in the gradient."""
    solution, is_solved = _factors(parts, gradient, weights)
    message = (
        "The gradient of a CSR kernel is not the sum of what its layers gave, each times a number, "
        "and of a weight decay. Perhaps it was clipped by element or by example, the loss has "
        "another term of the weights, or another optimizer trains the same layers, too. So this "
        "mask update is not the one of masked execution: use "
        "`rigl_tf.with_execution(model, 'masked')` if that matters."
    )
    _warn_unless([is_solved | (tf.size(blocks) == 0)], [message])
    factors = solution[: tf.size(is_finite)]
    factors = tf.where(tf.abs(factors - 1) < 1e-4, tf.ones_like(factors), factors)
    factors = tf.gather(tf.cast(tf.where(is_finite, factors, 0), tf.float32), blocks)
    is_finite = tf.gather(is_finite, blocks)[:, tf.newaxis]
    return (
        tf.where(is_finite, inputs, 0),
        tf.where(is_finite, gradients * factors[:, tf.newaxis], 0),
    )


def _factors(parts, gradient, weights):
    """The factor of each part in a gradient, and whether these parts explain it.

    If they do not, a loss may contain an L1 or L2 norm of all weights, written by hand: multiples
    of the weights and of their signs are parts, too, whose factors are not returned.

    Args:
        parts: Tensor of shape `[p, n]`.
        gradient: Tensor of shape `[n]`.
        weights: Tensor of shape `[n]`.

    Returns:
        A float64 tensor of shape `[p]`, and a boolean scalar.
    """
    parts, gradient, weights = (tf.cast(each, tf.float64) for each in (parts, gradient, weights))
    tiny = np.finfo("float64").tiny

    def solve(parts, prior):
        products = tf.matmul(parts, parts, transpose_b=True)
        weight = 1e-9 * tf.linalg.trace(products) + tiny
        solution = tf.linalg.solve(
            products + weight * tf.eye(tf.shape(parts)[0], dtype=tf.float64),
            tf.linalg.matvec(parts, gradient)[:, tf.newaxis] + weight * prior[:, tf.newaxis],
        )[:, 0]
        rest = gradient - tf.linalg.matvec(parts, solution, transpose_a=True)
        return solution, tf.nn.l2_loss(rest)

    def with_decay():
        norm = tf.reduce_max(tf.concat([[tiny], tf.norm(parts, axis=1)], axis=0))
        decay = tf.stack([weights, tf.sign(weights)])
        decay *= norm / tf.maximum(tf.norm(decay, axis=1, keepdims=True), tiny)
        prior = tf.concat([ones, tf.zeros([2], tf.float64)], axis=0)
        solution, rest = solve(tf.concat([parts, decay], axis=0), prior)
        return solution[: tf.size(ones)], rest

    ones = tf.ones_like(parts[:, 0])
    solution, rest = solve(parts, ones)
    is_plain = rest <= 1e-8 * tf.nn.l2_loss(gradient)
    solution, rest = tf.cond(is_plain, lambda: (solution, rest), with_decay)
    return solution, rest <= 0.01 * tf.nn.l2_loss(gradient)


def _warn_unless(conditions, messages):
    """Warns while a step runs, of each message whose condition is false.

    Args:
        conditions: Boolean tensor of shape `[n]`.
        messages: List of `n` strings.
    """

    def warn(conditions):
        for message, is_met in zip(messages, conditions, strict=True):
            if not is_met:
                warnings.warn(message, stacklevel=2)
        return False

    tf.cond(
        tf.reduce_all(conditions),
        lambda: True,
        lambda: tf.numpy_function(warn, [conditions], tf.bool),
    )


def state_of(kernel, *args, **kwargs):
    """The `KernelState` of a `masks.SparseKernel`."""
    kind = CSRState if kernel.execution == "csr" else KernelState
    return kind(kernel, *args, **kwargs)
