"""Drop and grow: at update steps each kernel loses its worst connections, and gets others."""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from rigl_tf import schedules, selection
from rigl_tf.checks import check_integers, check_numbers, is_number
from rigl_tf.execution import tiles
from rigl_tf.optimizers import growth, kernels, limits
from rigl_tf.optimizers.changeable import Changeable
from rigl_tf.optimizers.scheduled import ScheduledUpdates
from rigl_tf.optimizers.wrapping import serialized


class SparseOptimizer(ScheduledUpdates):
    """Base class of the optimizers that drop and grow connections.

    It wraps another optimizer, as `keras.optimizers.LossScaleOptimizer` does. On ordinary steps
    the inner optimizer trains the active connections. On update steps, instead of a gradient step,
    each kernel drops the active connections with the lowest `drop_scores` and grows as many with
    the highest `grow_scores` (Evci et al., 2020, Algorithm 1); a kernel without a gradient in this
    step keeps its connections. A subclass is a pair of scores:

    >>> @keras.saving.register_keras_serializable(package="my_package")
    ... class GrowLargeGradients(SparseOptimizer):
    ...     def grow_scores(self, kernel, mask, gradient):
    ...         return tf.abs(gradient)

    Grown connections start at zero, unless `grow_init` says otherwise. Every slot of the inner
    optimizer, such as a momentum, starts again where connections are dropped or grown, at the
    value with which the inner optimizer creates it: what the optimizer itself writes there later,
    as `keras.optimizers.ScheduleFreeAdamW` a copy of the weights, restarts at 0. A connection that
    is dropped and grown again in the same update keeps its value and its slots. The kernel's own
    constraint is applied after an update, too.

    Args:
        inner_optimizer: The `keras.optimizers.Optimizer` that trains the weights, or its name.
        end_step: Integer, in steps. No connection changes at or after it; often 75 % of training:
            `end_step = int(0.75 * epochs * steps_per_epoch)`, with
            `steps_per_epoch = math.ceil(len(x_train) / batch_size)`.
        begin_step: Integer, in steps. No connection changes before it or at step 0. Defaults to 0.
        update_frequency: Integer, the number of steps from one mask update to the next. Defaults to
            100. An update replaces a gradient step: with 1, no step from `begin_step` to `end_step`
            trains the weights.
        drop_fraction: Share of the active connections that an update drops. A float in `[0, 1]` is
            its value at `begin_step`, from where it falls to 0 at `end_step` along a cosine; a
            `keras.optimizers.schedules.LearningRateSchedule` or another callable of the step (a
            scalar integer tensor) is taken as it is. Defaults to 0.3.
        seed: Integer of at most 64 bits. Random scores and values are a function of it, of the
            kernel's index and of the step. Defaults to 0.
        gradient_momentum: Float in `[0, 1)` or `None`. If given, `gradient` in the scores is the
            moving average `m * average + (1 - m) * gradient` over all steps. Defaults to `None`.
        grow_init: Where grown connections start, a string. Defaults to `"zeros"` (the paper found
            none better):

            - `"zeros"`;
            - `"initial_distribution"`: normally distributed about 0, with the standard deviation
              that the active weights of the kernel had when training began;
            - `"random_normal"`: the same, with that of the active weights before the update;
            - `"random_uniform"`: between plus and minus the mean magnitude of the active weights;
            - `"gradient"`: the `gradient` of the scores;
            - `"gradient_sign"`: its sign.
        grow_scale: Number, the factor of these values; below 0 a connection starts in the
            direction in which the gradient descends. Defaults to 1.0.
        track_exploration: Boolean, whether `exploration_rate` and `turnover` are counted. It costs
            a boolean array of each kernel's size. Defaults to `False`.
        name: String. Defaults to the class's name in snake case, with a number.

    Attributes:
        trains_at_updates: Boolean, whether an update step is a gradient step, too; the masks are
            updated after it. False unless a subclass says so.

    `begin_step`, `end_step`, `update_frequency` and `drop_fraction`, if it is a number, are
    attributes that may be set at any time, and count from then on. When `fit` ends, a warning tells
    once if masks were never updated, or if `end_step` is far off.

    Raises:
        TypeError: If there is no such argument.
        ValueError: If an argument is out of its range, or no update is before `end_step`; when it
            is built, if the model has no sparse kernel that is trained.
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
        check_integers(seed=seed)
        if not -(2**63) <= seed < 2**63:
            raise ValueError(f"`seed` must be in [-2**63, 2**63). Received: seed={seed}")
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
        steps = self._update_steps()
        if update_frequency == 1 and steps and len(steps) > 1 and not self.trains_at_updates:
            limits.warn(
                f"With `update_frequency=1` {type(self).__name__} trains no weight from step "
                f"{steps[0]} to step {steps[-1]}: each of them is a mask update instead of a "
                "gradient step."
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
        schedules.check_update_steps(self.begin_step, self.end_step, self.update_frequency)
        schedules.drop_fraction_schedule(self.drop_fraction, self.begin_step, self.end_step)
        super()._check_schedule()

    def _drop_fraction_at(self, step):
        """The share of the active connections to drop at `step`, a scalar integer tensor."""
        if callable(self.drop_fraction):
            return self.drop_fraction(step)
        now = self._numbers.tensor
        progress = schedules.progress(step, now("begin_step"), now("end_step"))
        return schedules.cosine(now("drop_fraction"), progress)

    def grow_scores(self, kernel: tf.Tensor, mask: tf.Tensor, gradient: tf.Tensor) -> tf.Tensor:
        """Scores of the connections that were not kept; the highest are grown.

        Arguments and result are those of `drop_scores`.
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
            num_to_drop(num_active, self._drop_fraction_at(step)),
        )

    # The same for a CSR kernel, of which there are only tiles.

    def _updated_places(self, sparse, tiled, step, initial_std):
        is_by_scores = type(self).new_mask is SparseOptimizer.new_mask and self.grow_init == "zeros"
        if not (is_by_scores and self.elementwise):
            return super()._updated_places(sparse, tiled, step, initial_std)
        with self._drawing(sparse, step):
            num_active = tiled.places.shape[0]
            num_drop = num_to_drop(tf.constant(num_active), self._drop_fraction_at(step))
            num_drop = tf.clip_by_value(num_drop, 0, num_active)
            if type(self).drop_scores is SparseOptimizer.drop_scores:
                scores = tf.abs(tiled.values)
            else:
                scores = tiled.scores_of_active(self._score("drop_scores"))
            is_kept = selection.keep(tf.fill([num_active], True), scores, num_active - num_drop)
            kept = tf.boolean_mask(tiled.places, is_kept)
            grown = self._places_to_grow(tiled, kept, num_drop)
        return tiles.merged(kept, grown), tf.zeros([], tiled.values.dtype)

    def _places_to_grow(self, tiled, kept, num_grow):
        """Where connections are grown, of all places but those that are kept."""
        return tiled.largest(self._score("grow_scores"), kept, num_grow)

    def _score(self, method):
        """A score as a function of a tile, which draws the same numbers each time it is called."""
        num_draws = self._num_draws

        def score(tile):
            self._tile, self._num_draws = tile, num_draws
            try:
                return self._scores(method, tile.kernel, tile.mask, tile.gradient)
            finally:
                self._tile = None

        return score

    # What is kept of a kernel, and where its grown connections start.

    def _state_of(self, kernel, index):
        state = {}
        if self.gradient_momentum is not None:
            state["average"] = self.add_variable_from_reference(kernel, name="gradient_average")
        if self.grow_init == "initial_distribution":
            state["initial_std"] = self._add_scalar(f"initial_std_{index}", "float32")
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
    """How many of so many active connections are dropped: rounded down.

    In float32, which holds `num_active` up to 2**24. Beyond that in integers, by the fraction in
    units of `2**-32`, or more than that share could be dropped.
    """
    share = tf.cast(drop_fraction, tf.float32)
    if is_number(drop_fraction):  # which may be less than the float32 next to it
        units = tf.constant(int(min(max(drop_fraction, 0), 1) * 2**32), tf.int64)
    else:
        units = tf.cast(tf.clip_by_value(share, 0, 1) * 2**32, tf.int64)
    many = tf.bitwise.right_shift(tf.cast(num_active, tf.int64) * units, tf.constant(32, tf.int64))
    few = tf.cast(tf.cast(num_active, tf.float32) * share, tf.int32)
    return tf.where(num_active < 2**24, few, tf.cast(many, tf.int32))
