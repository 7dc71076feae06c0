"""Mask updates at regular steps, by scores of each kernel's connections."""

import contextlib
import functools
from typing import Any

import keras
import tensorflow as tf

from rigl_tf import schedules
from rigl_tf.execution import engine
from rigl_tf.optimizers import csr_state, draws, kernels
from rigl_tf.optimizers.changeable import Changeable
from rigl_tf.optimizers.shared import Shared
from rigl_tf.optimizers.training import SparseTraining


class ScheduledUpdates(SparseTraining):
    """Base class of the optimizers that update masks from `begin_step` to `end_step`.

    A subclass implements `new_mask`, and calls `_check_schedule` after setting its arguments.

    Args:
        inner_optimizer: The `keras.optimizers.Optimizer` that trains the weights, or its name.
        end_step: Integer, in steps. No connection changes at or after this step.
        begin_step: Integer, in steps. No connection changes before this step.
        update_frequency: Integer, the number of steps between mask updates.
        name: String, or `None`.
    """

    begin_step = Changeable()
    end_step = Changeable()
    update_frequency = Changeable()
    seed = 0
    _kernel_index = None
    _kernel_seed = None
    _units: Any = None
    _num_draws = 0
    _tile = None

    def __init__(
        self,
        inner_optimizer: keras.optimizers.Optimizer | str,
        end_step: int,
        begin_step: int,
        update_frequency: int,
        name: str | None,
    ) -> None:
        super().__init__(inner_optimizer, name)
        self.begin_step = begin_step
        self.end_step = end_step
        self.update_frequency = update_frequency

    def _create_state(self, variables, shares):
        super()._create_state(variables, shares)
        self._numbers.build()

    # The schedule.

    def is_update_step(self, step: tf.Tensor | int) -> tf.Tensor | bool:
        """Whether masks are updated in a step.

        Args:
            step: Integer or scalar integer tensor.

        Returns:
            Boolean or scalar boolean tensor.
        """
        now = self._numbers.tensor if tf.is_tensor(step) else self._numbers.values.get
        return schedules.is_update_step(
            step, now("begin_step"), now("end_step"), now("update_frequency")
        )

    def update_steps(self) -> range | None:
        """The steps in which masks are updated; `None` if a subclass has its own schedule."""
        if type(self).is_update_step is not ScheduledUpdates.is_update_step:
            return None
        return schedules.update_steps(self.begin_step, self.end_step, self.update_frequency)

    def _check_schedule(self):
        """Raises a `ValueError` unless the arguments of the schedule are right together."""
        schedules.check_update_steps(self.begin_step, self.end_step, self.update_frequency)
        if self.update_steps() is not None:
            schedules.check_any_update(self.begin_step, self.end_step, self.update_frequency)

    def _changed(self, name, before):
        """Called after an attribute of the built optimizer was set; a `ValueError` undoes this."""
        if callable(before) or callable(getattr(self, name)):
            raise ValueError(
                f"`{name}` of a built optimizer can be changed only from a number to another "
                "number: make a new optimizer. "
                f"Received: {name}={getattr(self, name)!r} instead of {before!r}"
            )
        self._check_schedule()
        self._has_told = False

    def _unfinished(self, step):
        steps = self.update_steps()
        if steps is None or step == 0:
            return None
        name, when = type(self).__name__, f"training ended after {step} steps"
        if step <= steps[0]:
            return f"{name} has not updated a mask: {when}, and the first update is at {steps[0]}."
        if step < 0.9 * self.end_step:
            return (
                f"{name} has not reached `end_step`, until which connections change: {when}. "
                f"Received: end_step={self.end_step}"
            )
        return None

    # The decisions of an algorithm.

    def new_mask(
        self, kernel: tf.Tensor, mask: tf.Tensor, gradient: tf.Tensor, step: tf.Tensor
    ) -> tf.Tensor:
        """The mask of a kernel after an update.

        Args:
            kernel: Tensor, the kernel.
            mask: Boolean tensor of the same shape, the active connections.
            gradient: Tensor of the same shape, as in `drop_scores`.
            step: Scalar integer tensor, the current step.

        Returns:
            Boolean tensor of the same shape.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement `new_mask`.")

    def drop_scores(self, kernel: tf.Tensor, mask: tf.Tensor, gradient: tf.Tensor) -> tf.Tensor:
        """Scores of the active connections. The connections with the lowest scores are dropped.

        Args:
            kernel: Tensor, the kernel.
            mask: Boolean tensor of the same shape, the active connections.
            gradient: Tensor of the same shape, the gradient of the loss with respect to all
                connections, including the inactive ones, summed over the replicas.

        Returns:
            Tensor of the kernel's shape.
        """
        return tf.abs(kernel)

    def random_uniform(self, kernel: tf.Tensor) -> tf.Tensor:
        """Random numbers in `(0, 1)` of the kernel's shape, for use in scores.

        They are the same on every replica, in every run, and with or without XLA. Each call within
        an update returns different numbers.

        Args:
            kernel: Tensor, the kernel that the score has got.

        Returns:
            Float32 tensor of the kernel's shape.

        Raises:
            ValueError: If it is not called inside a score or `new_mask`.
        """
        if self._kernel_seed is None:
            raise ValueError(
                "`random_uniform` must be called inside `drop_scores`, `grow_scores` or `new_mask`."
            )
        seed = self._kernel_seed()
        if self._num_draws:
            # The number 1 is used for `grow_init`.
            seed = draws.fold(seed, self._num_draws + 1)
        self._num_draws += 1
        if self._tile is None:
            return draws.uniform(kernel.shape, seed)
        shape = self._tile.shape
        numbers = draws.uniform_part(self._tile.start, tf.reduce_prod(shape), seed)
        return tf.ensure_shape(tf.reshape(numbers, shape), kernel.shape)

    def _scores(self, method, kernel, mask, gradient):
        """Calls `drop_scores` or `grow_scores`, and checks the shape, which could broadcast."""
        scores = tf.convert_to_tensor(getattr(self, method)(kernel, mask, gradient))
        if not scores.shape.is_compatible_with(kernel.shape):
            raise ValueError(
                f"`{type(self).__name__}.{method}` must return scores of the kernel's shape "
                f"{tuple(kernel.shape)}. Received: shape={scores.shape}"
            )
        return scores

    # The update.

    def _update_masks(self, strategy, pairs, loss_scale):
        """An update step, in the same way on every replica."""
        gradients = kernels.sum_over_replicas(strategy, pairs, loss_scale)
        self._update_if_finite(strategy, pairs, gradients)

    def _update_if_finite(self, strategy, pairs, gradients):
        """Calls `_update_kernels`, if these gradients and kernels are finite."""
        is_ready = kernels.all_finite(strategy, gradients, pairs)
        with_gradient = [sparse for sparse, _ in pairs]
        collecting = [sparse for sparse in self._plan.csr if self._needs_gradients]
        stored = [sparse for sparse in collecting if sparse in with_gradient]
        tf.cond(
            is_ready & csr_state.all_finite(strategy, stored),
            lambda: self._update_kernels(strategy, pairs, gradients),
            lambda: self._skip_update(),
        )
        for sparse in collecting:
            sparse.clear(strategy)

    def _update_kernels(self, strategy, pairs, gradients):
        """Updates the mask of each kernel."""
        step = tf.convert_to_tensor(self.step)
        masked = [sparse for sparse, _ in pairs if sparse not in self._plan.csr]
        updated = Shared(self._updated, masked, self._kind_of)
        updates, previous = csr_state.updates(self, self._plan.csr), ()
        for (sparse, _), gradient in zip(pairs, gradients, strict=True):
            if sparse in self._plan.csr:
                rows = sparse.rows(strategy, gradient) if self._needs_gradients else None
                sparse.update(strategy, rows, step, updates)
            else:
                previous = sparse.update(strategy, gradient, self.step, updated, previous)

    def _kind_of(self, state):
        """What masked kernels that share the graph of an update have in common, see `Shared`."""

    def _skip_update(self):
        """Keeps the masks, because NaN or infinite gradients say nothing about connections."""
        self.num_skipped_updates.assign_add(1)

    def _updated(self, sparse, kernel, mask, gradient, step, initial_std):
        """How a masked kernel changes.

        Returns:
            The new mask; the first values of grown connections; and the connections that stay
            active, but restart with such a value, or `None`.
        """
        with self._drawing(sparse, step) as seed:
            new_mask = self.new_mask(kernel, mask, gradient, step)
        return new_mask, self._grown_values(kernel, mask, gradient, initial_std, seed), None

    def _updated_places(self, sparse, tiled, step, initial_std):
        """How a CSR kernel changes.

        Returns:
            The new places; the first values of grown connections; for each place an index: of this
            place among the old ones, if it was active, otherwise any; and whether the connections
            at these places were active and do not restart.

        Here the kernel is made dense for a moment. This works for every algorithm.
        """
        kernel, mask, gradient = sparse.made_dense(tiled)
        new_mask, values, restarted = self._updated(
            sparse, kernel, mask, gradient, step, initial_std
        )
        places = tf.where(tf.reshape(new_mask, [-1]))[:, 0]
        values = tf.reshape(tf.broadcast_to(values, new_mask.shape), [-1])
        none_kept = tf.zeros_like(tiled.places, tf.bool)
        _, before, was_there = engine.replaced(tiled.places, none_kept, places)
        if restarted is not None:
            was_there &= ~tf.gather(tf.reshape(restarted, [-1]), places)
        return places, tf.gather(values, places), before, was_there

    @contextlib.contextmanager
    def _drawing(self, sparse, step):
        """A context in which scores can draw random numbers.

        It yields a function that returns the seed for grown values. Seeds are made only where they
        are needed, because a fifth of the time to trace an update would be spent on them.
        """
        first = tf.constant([self.seed, 0], tf.int64)
        self._kernel_seed = functools.partial(draws.fold, first, sparse.index, step)
        self._kernel_index, self._num_draws = sparse.index, 0
        self._units = sparse.sparse.units
        try:
            # Different numbers from those of the scores.
            yield functools.partial(draws.fold, first, sparse.index, step, 1)
        finally:
            self._kernel_index = self._kernel_seed = self._units = None

    def _grown_values(self, kernel, mask, gradient, initial_std, seed):
        """The first values of connections that an update makes active."""
        return tf.zeros([], kernel.dtype)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "end_step": self.end_step,
            "begin_step": self.begin_step,
            "update_frequency": self.update_frequency,
        }
