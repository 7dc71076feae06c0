"""Drop and grow: at update steps, each kernel replaces its weakest connections by new ones."""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from rigl_tf import masks, schedules, selection
from rigl_tf.checks import check_booleans, check_numbers, check_seed, is_number
from rigl_tf.execution import engine
from rigl_tf.optimizers import growth, kernels, limits
from rigl_tf.optimizers.changeable import Changeable
from rigl_tf.optimizers.scheduled import ScheduledUpdates
from rigl_tf.optimizers.wrapping import serialized


class SparseOptimizer(ScheduledUpdates):
    """Base class of the optimizers that drop and grow connections.

    It wraps another optimizer, as `keras.optimizers.LossScaleOptimizer` does. In ordinary steps,
    the inner optimizer trains the active connections. In an update step there is no gradient step:
    each kernel drops the active connections with the lowest `drop_scores`, and grows as many with
    the highest `grow_scores` (Evci et al., 2020, Algorithm 1). A kernel without a gradient in this
    step keeps its connections. A subclass defines one or both of these scores:

    >>> @keras.saving.register_keras_serializable(package="my_package")
    ... class GrowLargeGradients(SparseOptimizer):
    ...     def grow_scores(self, kernel, mask, gradient):
    ...         return tf.abs(gradient)

    In a graph, a score is called once for all kernels of the same shape.

    Grown connections start at zero, unless `grow_init` says otherwise. Where connections are
    dropped or grown, every slot of the inner optimizer, such as a momentum, is reset to the value
    with which the inner optimizer creates it. (A copy of the weights, as
    `keras.optimizers.ScheduleFreeAdamW` keeps it, is reset to 0.) A connection that is dropped and
    grown again in the same update keeps its value and its slots. The user's own constraint of a
    kernel is applied after an update, too.

    Args:
        inner_optimizer: The `keras.optimizers.Optimizer` that trains the weights, or its name.
        end_step: Integer, in steps. No connection changes at or after this step. A common choice is
            75 % of training:
            `end_step = int(0.75 * epochs * steps_per_epoch)`, with
            `steps_per_epoch = math.ceil(len(x_train) / batch_size)`.
        begin_step: Integer, in steps. No connection changes before this step or at step 0.
            Defaults to 0.
        update_frequency: Integer, the number of steps between mask updates. An update replaces a
            gradient step: with 1, no step from `begin_step` to `end_step` trains the weights.
            Defaults to 100.
        drop_fraction: Share of the active connections that an update drops. A float in `[0, 1]` is
            the share at `begin_step`; it falls to 0 at `end_step` along a cosine. Or a
            `keras.optimizers.schedules.LearningRateSchedule`, or another callable of the step (a
            scalar integer tensor), which returns the share. Defaults to 0.3.
        seed: Integer of at most 64 bits. Random scores and values depend on it, on the index of the
            kernel and on the step. Defaults to 0.
        gradient_momentum: Float in `[0, 1)`, or `None`. If it is given, the scores get the moving
            average `m * average + (1 - m) * gradient` over all steps instead of the gradient.
            Defaults to `None`.
        grow_init: String, the first value of grown connections. Defaults to `"zeros"` (in the paper
            no other choice was better):

            - `"zeros"`: zero.
            - `"initial_distribution"`: normally distributed with mean 0 and the standard deviation
              of the active weights at the beginning of training.
            - `"random_normal"`: normally distributed with mean 0 and the standard deviation of the
              active weights before the update.
            - `"random_uniform"`: uniform between minus and plus the mean magnitude of the active
              weights.
            - `"gradient"`: the `gradient` that the scores get.
            - `"gradient_sign"`: the sign of this gradient.
        grow_scale: Number by which these values are multiplied. With a negative number and
            `"gradient"`, a connection starts in the direction of descent. Defaults to 1.0.
        track_exploration: Boolean, whether `exploration_rate` and `turnover` are computed. It needs
            a boolean array of each kernel's size. Defaults to `False`.
        name: String. Defaults to the name of the class in snake case, with a number.

    Attributes:
        trains_at_updates: Boolean, whether an update step is also a gradient step; then the masks
            are updated after it. False unless a subclass sets it.

    The attributes `begin_step`, `end_step`, `update_frequency`, and `drop_fraction` if it is a
    number, may be set at any time and have an effect from then on. When `fit` ends, there is one
    warning if no mask was updated, or if training stopped long before `end_step`.

    Raises:
        TypeError: If an argument is unknown.
        ValueError: If an argument is out of its range, or there is no update before `end_step`.
            When the optimizer is built: if the model has no sparse kernel that is trained.
    """

    dense_gradients = "at updates"
    elementwise = True
    drop_fraction = Changeable()

    def __init__(
        self,
        inner_optimizer: keras.optimizers.Optimizer | str,
        end_step: int,
        begin_step: int = 0,
        update_frequency: int = 100,
        drop_fraction: float | Callable[[tf.Tensor], Any] = 0.3,
        seed: int = 0,
        gradient_momentum: float | None = None,
        grow_init: str = "zeros",
        grow_scale: float = 1.0,
        track_exploration: bool = False,
        name: str | None = None,
    ) -> None:
        check_seed(seed)
        check_booleans(track_exploration=track_exploration)
        if gradient_momentum is not None:
            check_numbers("[0, 1)", gradient_momentum=gradient_momentum)
        growth.check(grow_init)
        check_numbers("(-inf, inf)", grow_scale=grow_scale)
        super().__init__(inner_optimizer, end_step, begin_step, update_frequency, name)
        self.drop_fraction = drop_fraction
        self.seed = seed
        self.gradient_momentum = gradient_momentum
        self.grow_init = grow_init
        self.grow_scale = grow_scale
        self.track_exploration = bool(track_exploration)
        self._check_schedule()
        steps = self.update_steps()
        if update_frequency == 1 and steps and len(steps) > 1 and not self.trains_at_updates:
            limits.warn(
                f"With `update_frequency=1` {type(self).__name__} trains no weight from step "
                f"{steps[0]} to step {steps[-1]}: each of these steps is a mask update instead of "
                "a gradient step."
            )

    @property
    def supports_csr(self) -> bool:
        return self.gradient_momentum is None

    @property
    def supports_structures(self) -> bool:
        return type(self).new_mask is SparseOptimizer.new_mask

    @property
    def _needs_gradients(self):
        return super()._needs_gradients or self.grow_init in growth.OF_GRADIENTS

    def _check_schedule(self):
        super()._check_schedule()
        schedules.drop_fraction_schedule(self.drop_fraction, self.begin_step, self.end_step)

    def _begin(self):
        """Warns if no connection is inactive. The masks may be set after `build`, so not there."""
        sparse = [each.sparse for each in self._plan.by_id.values()]
        if sparse and self._only_moves and all(x.num_active == x.size for x in sparse):
            limits.warn(
                f"{type(self).__name__} cannot move connections, because all of them are active: "
                "give a sparsity above 0 to `rigl_tf.sparsify`, or use `rigl_tf.set_masks` before "
                f"training. Received: {len(sparse)} sparse kernels without an inactive connection"
            )

    @property
    def _only_moves(self):
        """Whether an update grows as many connections as it drops, so needs inactive ones."""
        return type(self).new_mask is SparseOptimizer.new_mask

    def drop_fraction_at(self, step: tf.Tensor | int) -> tf.Tensor | float:
        """The share of the active connections that an update in a step drops.

        Args:
            step: Integer or scalar integer tensor.

        Returns:
            Number or scalar tensor in `[0, 1]`.
        """
        if callable(self.drop_fraction):
            return self.drop_fraction(tf.convert_to_tensor(step))
        now = self._numbers.tensor if tf.is_tensor(step) else self._numbers.values.get
        progress = schedules.progress(step, now("begin_step"), now("end_step"))
        return schedules.cosine(now("drop_fraction"), progress)

    def grow_scores(self, kernel: tf.Tensor, mask: tf.Tensor, gradient: tf.Tensor) -> tf.Tensor:
        """Scores of the connections that were not kept. The connections with the highest are grown.

        Args:
            kernel: Tensor, the kernel.
            mask: Boolean tensor of the same shape, the active connections.
            gradient: Tensor of the same shape, the gradient of the loss with respect to all
                connections, including the inactive ones, summed over the replicas.

        Returns:
            Tensor of the kernel's shape.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement `grow_scores`.")

    def new_mask(
        self, kernel: tf.Tensor, mask: tf.Tensor, gradient: tf.Tensor, step: tf.Tensor
    ) -> tf.Tensor:
        num_active = self._units.num_active(mask)
        return self._units.drop_and_grow(
            mask,
            self._scores("drop_scores", kernel, mask, gradient),
            self._scores("grow_scores", kernel, mask, gradient),
            num_to_drop(num_active, self.drop_fraction_at(step)),
        )

    def _kind_of(self, state):
        if type(self).new_mask is not SparseOptimizer.new_mask or state.sparse.units.structure:
            return None
        return state.sparse.shape, state.kernel.dtype

    # The same for a CSR kernel, which exists only in tiles.

    def _updated_places(self, sparse, tiled, step, initial_std):
        is_by_scores = type(self).new_mask is SparseOptimizer.new_mask and self.grow_init == "zeros"
        if not (is_by_scores and self.elementwise):
            return super()._updated_places(sparse, tiled, step, initial_std)
        with self._drawing(sparse, step):
            is_kept, num_drop = self._kept(tiled, step)
            grown = self._places_to_grow(tiled, is_kept, num_drop)
        places, before, was_there = engine.replaced(tiled.places, is_kept, grown)
        return places, tf.zeros([], tiled.values.dtype), before, was_there

    def _kept(self, tiled, step):
        """Whether each active connection is kept, and how many are dropped."""
        num_active = tiled.places.shape[0]
        num_drop = num_to_drop(tf.constant(num_active), self.drop_fraction_at(step))
        num_drop = tf.clip_by_value(num_drop, 0, num_active)
        if type(self).drop_scores is SparseOptimizer.drop_scores:
            scores = tf.abs(tiled.values)
        else:
            scores = tiled.scores_of_active(self._score("drop_scores"))
        is_kept = selection.keep(tf.fill([num_active], True), scores, num_active - num_drop)
        return is_kept, num_drop

    def _places_to_grow(self, tiled, is_kept, num_grow):
        """The places where connections are grown, among all except those that are kept."""
        kept = tf.boolean_mask(tiled.places, is_kept)
        return tiled.largest(self._score("grow_scores"), kept, num_grow)

    def _score(self, method):
        """A score as a function of a tile. Each call of it draws the same random numbers."""
        num_draws = self._num_draws

        def score(tile):
            self._tile, self._num_draws = tile, num_draws
            try:
                return self._scores(method, tile.kernel, tile.mask, tile.gradient)
            finally:
                self._tile = None

        return score

    # The state of a kernel, and the first values of grown connections.

    def _state_of(self, kernel, index):
        state = {}
        if self.gradient_momentum is not None:
            state["average"] = self.add_variable_from_reference(kernel, name="gradient_average")
        if self.grow_init == "initial_distribution":
            state["initial_std"] = self._add_scalar(
                f"initial_std_{index}",
                "float32",
                kernels.first_value(lambda: kernels.std_of_active(masks.kernel_of(kernel))),
            )
        return state

    def _before_step(self, strategy, pairs, loss_scale):
        if self.gradient_momentum is not None:
            kernels.average_gradients(strategy, pairs, self.gradient_momentum, loss_scale)

    def _grown_values(self, kernel, mask, gradient, initial_std, seed):
        values = growth.initial_values(self.grow_init, kernel, mask, gradient, initial_std, seed)
        return values * tf.cast(self.grow_scale, values.dtype)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "drop_fraction": serialized("drop_fraction", self.drop_fraction),
            "seed": self.seed,
            "gradient_momentum": self.gradient_momentum,
            "grow_init": self.grow_init,
            "grow_scale": self.grow_scale,
            "track_exploration": self.track_exploration,
        }


def num_to_drop(num_active, drop_fraction):
    """The number of active connections to drop: `num_active * drop_fraction`, rounded down.

    It is computed in float32, which holds `num_active` exactly up to 2**24. For larger numbers it
    is computed in integers, with the fraction in units of `2**-32`; in float32 the product could be
    rounded up.
    """
    share = tf.cast(drop_fraction, tf.float32)
    if is_number(drop_fraction):  # it may be less than the nearest float32
        units = tf.constant(int(min(max(drop_fraction, 0), 1) * 2**32), tf.int64)
    else:
        units = tf.cast(tf.clip_by_value(share, 0, 1) * 2**32, tf.int64)
    many = tf.bitwise.right_shift(tf.cast(num_active, tf.int64) * units, tf.constant(32, tf.int64))
    few = tf.cast(tf.cast(num_active, tf.float32) * share, tf.int32)
    return tf.where(num_active < 2**24, few, tf.cast(many, tf.int32))
