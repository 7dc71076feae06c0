"""SparseOptimizer: trains the active connections and, at update steps, moves them."""

import math
from numbers import Real

import keras
import tensorflow as tf

from rigl_tf import schedules, selection
from rigl_tf.checks import check_integers, check_keras_3
from rigl_tf.optimizers import draws, growth, limits
from rigl_tf.optimizers.changeable import Changeable
from rigl_tf.optimizers.slots import optimizers_within
from rigl_tf.optimizers.training import SparseTraining
from rigl_tf.optimizers.wrapping import serialized


class SparseOptimizer(SparseTraining):
    """Base class of the optimizers that train sparse models.

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

    trains_at_updates = False
    begin_step = Changeable()
    end_step = Changeable()
    update_frequency = Changeable()
    drop_fraction = Changeable()

    def __init__(
        self,
        inner_optimizer,
        end_step,
        begin_step=0,
        update_frequency=100,
        drop_fraction=0.3,
        seed=0,
        gradient_momentum=None,
        grow_init="zeros",
        grow_scale=1.0,
        track_exploration=False,
        name=None,
    ):
        check_keras_3(inner_optimizer=inner_optimizer)
        inner_optimizer = keras.optimizers.get(inner_optimizer)
        if any(isinstance(each, SparseOptimizer) for each in optimizers_within(inner_optimizer)):
            raise ValueError(
                "`inner_optimizer` must be a dense optimizer. "
                f"Received: inner_optimizer={inner_optimizer!r}"
            )
        check_integers(seed=seed)
        if not -(2**63) <= seed < 2**63:
            raise ValueError(f"`seed` must be in [-2**63, 2**63). Received: seed={seed}")
        average = gradient_momentum is not None
        if average and not (isinstance(gradient_momentum, Real) and 0 <= gradient_momentum < 1):
            raise ValueError(
                "`gradient_momentum` must be a number in [0, 1) or None. "
                f"Received: gradient_momentum={gradient_momentum!r}"
            )
        growth.check(grow_init)
        if not isinstance(grow_scale, Real) or not math.isfinite(grow_scale):
            raise ValueError(
                f"`grow_scale` must be a finite number. Received: grow_scale={grow_scale!r}"
            )
        super().__init__(inner_optimizer, name=name)
        self.begin_step = begin_step
        self.end_step = end_step
        self.update_frequency = update_frequency
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

    # When.

    def is_update_step(self, step):
        """Whether masks are updated at `step`, a scalar integer tensor."""
        now = self._numbers.tensor if tf.is_tensor(step) else self._numbers.values.get
        return schedules.is_update_step(
            step, now("begin_step"), now("end_step"), now("update_frequency")
        )

    def _update_steps(self):
        """The steps of the updates, as a range; `None` if a subclass has a schedule of its own."""
        if type(self).is_update_step is not SparseOptimizer.is_update_step:
            return None
        return schedules.update_steps(self.begin_step, self.end_step, self.update_frequency)

    def _check_schedule(self):
        """Raises a `ValueError` unless the numbers that say when and how much make sense."""
        schedules.check_update_steps(self.begin_step, self.end_step, self.update_frequency)
        schedules.drop_fraction_schedule(self.drop_fraction, self.begin_step, self.end_step)
        if self._update_steps() is not None:
            schedules.check_any_update(self.begin_step, self.end_step, self.update_frequency)

    def _changed(self, name, before):
        """Called when an attribute of the built optimizer was set; a `ValueError` takes it back."""
        if callable(before) or callable(getattr(self, name)):
            raise ValueError(
                f"`{name}` of an optimizer that is built can become another number, no other "
                "schedule: make a new optimizer. "
                f"Received: {name}={getattr(self, name)!r} instead of {before!r}"
            )
        self._check_schedule()
        self._has_told = False

    def _unfinished(self, step):
        steps = self._update_steps()
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

    def _drop_fraction_at(self, step):
        """The share of the active connections to drop at `step`, a scalar integer tensor."""
        if callable(self.drop_fraction):
            return self.drop_fraction(step)
        now = self._numbers.tensor
        progress = schedules.progress(step, now("begin_step"), now("end_step"))
        return schedules.cosine(now("drop_fraction"), progress)

    # What an algorithm decides.

    def drop_scores(self, kernel, mask, gradient):
        """Scores of the active connections; the lowest are dropped.

        Args:
            kernel: Tensor, the kernel.
            mask: Boolean tensor of the same shape, the active connections.
            gradient: Tensor of the same shape, the gradient of the loss with respect to all
                connections, inactive ones included, summed over the replicas.

        Returns:
            Tensor of the kernel's shape.
        """
        return tf.abs(kernel)

    def grow_scores(self, kernel, mask, gradient):
        """Scores of the connections that were not kept; the highest are grown.

        Arguments and result are those of `drop_scores`.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement `grow_scores`.")

    def random_uniform(self, kernel):
        """Random scores in `(0, 1)` of the kernel's shape, for use in a score.

        They are the same on every replica, in every run, and with XLA or without. Each call within
        an update gives others.

        Raises:
            ValueError: If it is not called by a score, or by `new_mask`.
        """
        if self._kernel_seed is None:
            raise ValueError(
                "`random_uniform` must be called inside `drop_scores`, `grow_scores` or `new_mask`."
            )
        seed = self._kernel_seed
        if self._num_draws:
            # The numbers of 1 are those of `grow_init`.
            seed = draws.fold(seed, self._num_draws + 1)
        self._num_draws += 1
        return draws.uniform(kernel.shape, seed)

    def _scores(self, method, kernel, mask, gradient):
        """What `drop_scores` or `grow_scores` gives, checked: a wrong shape would broadcast."""
        scores = tf.convert_to_tensor(getattr(self, method)(kernel, mask, gradient))
        if not scores.shape.is_compatible_with(kernel.shape):
            raise ValueError(
                f"`{type(self).__name__}.{method}` must give scores of the kernel's shape "
                f"{tuple(kernel.shape)}. Received: shape={scores.shape}"
            )
        return scores

    def new_mask(self, kernel, mask, gradient, step):
        """The mask after an update: drop and grow.

        Override it only for an algorithm that is no drop-and-grow. `step` is a scalar tensor.
        """
        num_active = tf.math.count_nonzero(mask, dtype=tf.int32)
        new_mask, _ = selection.drop_and_grow(
            mask,
            self._scores("drop_scores", kernel, mask, gradient),
            self._scores("grow_scores", kernel, mask, gradient),
            num_to_drop(num_active, self._drop_fraction_at(step)),
        )
        return new_mask

    def get_config(self):
        return {
            **super().get_config(),
            "end_step": self.end_step,
            "begin_step": self.begin_step,
            "update_frequency": self.update_frequency,
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
    if isinstance(drop_fraction, Real):  # which may be less than the float32 next to it
        units = tf.constant(int(min(max(drop_fraction, 0), 1) * 2**32), tf.int64)
    else:
        units = tf.cast(tf.clip_by_value(share, 0, 1) * 2**32, tf.int64)
    many = tf.bitwise.right_shift(tf.cast(num_active, tf.int64) * units, tf.constant(32, tf.int64))
    few = tf.cast(tf.cast(num_active, tf.float32) * share, tf.int32)
    return tf.where(num_active < 2**24, few, tf.cast(many, tf.int32))
