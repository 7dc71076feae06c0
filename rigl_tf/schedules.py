"""Schedules: when masks are updated, and how many connections an update drops."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import keras
import tensorflow as tf

from rigl_tf.checks import check_integers, check_numbers, is_number

if TYPE_CHECKING:
    from typing_extensions import Self


def is_update_step(
    step: int | tf.Tensor,
    begin_step: int | tf.Tensor,
    end_step: int | tf.Tensor,
    update_frequency: int | tf.Tensor,
) -> bool | tf.Tensor:
    """Whether masks are updated in a step.

    Updates happen in steps `t > 0` with `begin_step <= t < end_step` for which `t - begin_step` is
    a multiple of `update_frequency`.

    Args:
        step: Integer or integer tensor.
        begin_step: Integer or integer tensor, in steps.
        end_step: Integer or integer tensor, in steps.
        update_frequency: Integer or integer tensor, in steps.

    Returns:
        Boolean or boolean tensor.

    Example:

    >>> [t for t in range(12) if is_update_step(t, begin_step=2, end_step=11, update_frequency=3)]
    [2, 5, 8]
    """
    in_time = (step > 0) & (step >= begin_step) & (step < end_step)
    return in_time & ((step - begin_step) % update_frequency == 0)


def update_steps(begin_step: int, end_step: int, update_frequency: int) -> range:
    """The steps in which masks are updated, as a range; see `is_update_step`.

    Args:
        begin_step: Integer, in steps.
        end_step: Integer, in steps.
        update_frequency: Integer, in steps.

    Example:

    >>> list(update_steps(begin_step=0, end_step=10, update_frequency=3))
    [3, 6, 9]
    """
    return range(begin_step or update_frequency, end_step, update_frequency)


def drop_fraction_schedule(
    drop_fraction: float | Callable[..., Any], begin_step: int, end_step: int
) -> Callable[..., Any]:
    """Makes a schedule, a callable of the step, out of an argument `drop_fraction`.

    Args:
        drop_fraction: Float in `[0, 1]`, which becomes a `CosineDropFraction`; or a callable, which
            is returned itself.
        begin_step: Integer, in steps.
        end_step: Integer, in steps, greater than `begin_step`.
    """
    if callable(drop_fraction) and not isinstance(drop_fraction, type):
        return drop_fraction
    return CosineDropFraction(cast(float, drop_fraction), begin_step, end_step)


def check_update_steps(begin_step: int, end_step: int, update_frequency: int) -> None:
    """Raises a `ValueError` unless the three are integers that fit together."""
    check_integers(0, begin_step=begin_step, end_step=end_step)
    check_integers(1, update_frequency=update_frequency)
    if end_step <= begin_step:
        raise ValueError(
            "`end_step` must be greater than `begin_step`. "
            f"Received: begin_step={begin_step}, end_step={end_step}"
        )


def check_any_update(begin_step: int, end_step: int, update_frequency: int) -> None:
    """Raises a `ValueError` unless there is a step in which masks are updated."""
    if not update_steps(begin_step, end_step, update_frequency):
        raise ValueError(
            "There must be a mask update before `end_step`; the first would be at step "
            f"{begin_step or update_frequency}. Received: begin_step={begin_step}, "
            f"end_step={end_step}, update_frequency={update_frequency}"
        )


def progress(
    step: int | tf.Tensor, begin_step: int | tf.Tensor, end_step: int | tf.Tensor
) -> tf.Tensor:
    """How far a step is on the way from `begin_step` to `end_step`.

    Args:
        step: Integer or integer tensor.
        begin_step: Integer or integer tensor, in steps.
        end_step: Integer or integer tensor, in steps.

    Returns:
        Float32 tensor in `[0, 1]`; a float if all arguments are integers.
    """
    if not any(map(tf.is_tensor, (step, begin_step, end_step))):
        return min(1.0, max(0.0, (step - begin_step) / (end_step - begin_step)))
    steps = end_step - begin_step
    steps = tf.cast(steps, tf.float32) if tf.is_tensor(steps) else float(steps)
    return tf.clip_by_value(tf.cast(step - begin_step, tf.float32) / steps, 0, 1)


def cosine(drop_fraction: float | tf.Tensor, progress: float | tf.Tensor) -> tf.Tensor:
    """The value `drop_fraction`, annealed to zero along half of a cosine.

    Args:
        drop_fraction: Number or tensor, the value at the beginning.
        progress: Number or tensor in `[0, 1]`.
    """
    cos = tf.cos if tf.is_tensor(progress) else math.cos
    return drop_fraction / 2 * (1 + cos(math.pi * progress))


class _DropFraction:
    """A share of the active connections to drop: a callable of the step, with a config."""

    def __init__(self, drop_fraction: float, **config: Any) -> None:
        if not is_number(drop_fraction) or not 0 <= drop_fraction <= 1:
            raise ValueError(
                "`drop_fraction` must be a number in [0, 1], a schedule or a callable of the step. "
                f"Received: drop_fraction={drop_fraction!r}"
            )
        self.drop_fraction = float(drop_fraction)
        self._config = config

    def get_config(self) -> dict[str, Any]:
        return {"drop_fraction": self.drop_fraction, **self._config}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Self":
        return cls(**config)


class _AnnealedDropFraction(_DropFraction):
    """A share that falls from `begin_step` to `end_step`, and is constant before and after."""

    def __init__(
        self,
        drop_fraction: float,
        begin_step: int,
        end_step: int,
        minimum: float = 0.0,
        **config: Any,
    ) -> None:
        check_update_steps(begin_step, end_step, update_frequency=1)
        steps = {"begin_step": begin_step, "end_step": end_step}
        super().__init__(drop_fraction, **steps, minimum=minimum, **config)
        check_numbers(f"[0, {self.drop_fraction:g}]", minimum=minimum)
        self.begin_step = begin_step
        self.end_step = end_step
        self.minimum = float(minimum)

    def __call__(self, step: int | tf.Tensor) -> tf.Tensor:
        above = self.drop_fraction - self.minimum
        return self.minimum + self._annealed(above, self._progress(tf.convert_to_tensor(step)))

    def _annealed(self, share, progress):
        """How much of `share` is left, with `progress` from 0 to 1."""
        raise NotImplementedError

    def _progress(self, step):
        """How far `step` is on the way from `begin_step` to `end_step`, in `[0, 1]`."""
        return progress(step, self.begin_step, self.end_step)


@keras.saving.register_keras_serializable(package="rigl_tf")
class CosineDropFraction(_AnnealedDropFraction):
    """The share of active connections to drop, annealed to zero along a cosine.

    `drop_fraction / 2 * (1 + cos(pi * (step - begin_step) / (end_step - begin_step)))`; with a
    `minimum` the share above it is annealed.

    Reference:

    - [Evci et al., 2020](https://arxiv.org/abs/1911.11134), section 3, equation 1

    Args:
        drop_fraction: Float in `[0, 1]`, the share at `begin_step`.
        begin_step: Integer, in steps.
        end_step: Integer, in steps, greater than `begin_step`.
        minimum: Float in `[0, drop_fraction]`, the share at `end_step`. Defaults to 0.0.

    Example:

    >>> schedule = CosineDropFraction(0.3, begin_step=0, end_step=100)
    >>> [round(float(schedule(step)), 3) for step in (0, 50, 100)]
    [0.3, 0.15, 0.0]
    """

    def _annealed(self, share, progress):
        return cosine(share, progress)


@keras.saving.register_keras_serializable(package="rigl_tf")
class PowerDropFraction(_AnnealedDropFraction):
    """The share of active connections to drop, annealed to zero by an inverse power.

    `drop_fraction * (1 - (step - begin_step) / (end_step - begin_step)) ** power`; with a `minimum`
    the share above it is annealed.

    Reference:

    - [Evci et al., 2020](https://arxiv.org/abs/1911.11134), appendix G, with powers 1 and 3

    Args:
        drop_fraction: Float in `[0, 1]`, the share at `begin_step`.
        begin_step: Integer, in steps.
        end_step: Integer, in steps, greater than `begin_step`.
        power: Number > 0.
        minimum: Float in `[0, drop_fraction]`, the share at `end_step`. Defaults to 0.0.

    Example:

    >>> schedule = PowerDropFraction(0.4, begin_step=0, end_step=100, power=3)
    >>> [round(float(schedule(step)), 3) for step in (0, 50, 100)]
    [0.4, 0.05, 0.0]
    """

    def __init__(
        self,
        drop_fraction: float,
        begin_step: int,
        end_step: int,
        power: float = 1,
        minimum: float = 0.0,
    ) -> None:
        check_numbers("(0, inf)", power=power)
        super().__init__(drop_fraction, begin_step, end_step, minimum, power=power)
        self.power = power

    def _annealed(self, share, progress):
        return share * (1 - progress) ** self.power


@keras.saving.register_keras_serializable(package="rigl_tf")
class ConstantDropFraction(_DropFraction):
    """The same share of active connections to drop at every update.

    Reference:

    - [Evci et al., 2020](https://arxiv.org/abs/1911.11134), appendix G

    Args:
        drop_fraction: Float in `[0, 1]`.

    Example:

    >>> float(ConstantDropFraction(0.25)(1000))
    0.25
    """

    def __call__(self, step: int | tf.Tensor) -> tf.Tensor:
        return tf.constant(self.drop_fraction)


@keras.saving.register_keras_serializable(package="rigl_tf")
class LearningRateDropFraction(_DropFraction):
    """The share of active connections to drop, in proportion to the learning rate.

    `drop_fraction * learning_rate(step) / learning_rate(0)`, at most 1.

    Args:
        drop_fraction: Float in `[0, 1]`, the share at step 0.
        learning_rate: The `keras.optimizers.schedules.LearningRateSchedule` of the inner optimizer.
            It must be positive at step 0.

    Example:

    >>> halved = keras.optimizers.schedules.PiecewiseConstantDecay([100], [0.1, 0.05])
    >>> round(float(LearningRateDropFraction(0.3, halved)(101)), 3)
    0.15
    """

    def __init__(
        self, drop_fraction: float, learning_rate: keras.optimizers.schedules.LearningRateSchedule
    ) -> None:
        if not isinstance(learning_rate, keras.optimizers.schedules.LearningRateSchedule):
            raise ValueError(
                "`learning_rate` must be a `keras.optimizers.schedules.LearningRateSchedule`. "
                f"Received: learning_rate={learning_rate!r}"
            )
        self._first = float(learning_rate(0))
        if not self._first > 0:
            raise ValueError(
                "`learning_rate` must be positive at step 0, without a warm-up from zero. "
                f"Received: learning_rate(0)={self._first}"
            )
        super().__init__(drop_fraction)
        self.learning_rate = learning_rate

    def __call__(self, step: int | tf.Tensor) -> tf.Tensor:
        share = tf.cast(self.learning_rate(step), tf.float32) / self._first
        return tf.minimum(self.drop_fraction * share, 1.0)

    def get_config(self) -> dict[str, Any]:
        learning_rate = keras.saving.serialize_keras_object(self.learning_rate)
        return {**super().get_config(), "learning_rate": learning_rate}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Self":
        learning_rate = keras.saving.deserialize_keras_object(config["learning_rate"])
        return cls(config["drop_fraction"], learning_rate)


@keras.saving.register_keras_serializable(package="rigl_tf")
class WarmUp(keras.optimizers.schedules.LearningRateSchedule):
    """Adds a warm-up from 0 to a learning rate schedule.

    `learning_rate(step) * min(1, step / warmup_steps)`: the schedule is not shifted; the warm-up
    takes place in its first steps.

    Reference:

    - [Frankle et al., 2020](https://arxiv.org/abs/1912.05671): with a warm-up, networks are stable
      from an earlier step on, see `rigl_tf.analysis.instability`.

    Args:
        learning_rate: A `keras.optimizers.schedules.LearningRateSchedule`, or a number.
        warmup_steps: Integer >= 1, in steps.

    Example:

    >>> decay = keras.optimizers.schedules.PiecewiseConstantDecay([100], [0.5, 0.25])
    >>> schedule = WarmUp(decay, warmup_steps=10)
    >>> [float(schedule(step)) for step in (0, 5, 10, 101)]
    [0.0, 0.25, 0.5, 0.25]
    """

    def __init__(
        self,
        learning_rate: float | keras.optimizers.schedules.LearningRateSchedule,
        warmup_steps: int,
    ) -> None:
        is_schedule = isinstance(learning_rate, keras.optimizers.schedules.LearningRateSchedule)
        if not is_schedule and not is_number(learning_rate):
            raise ValueError(
                "`learning_rate` must be a `keras.optimizers.schedules.LearningRateSchedule` or a "
                f"number. Received: learning_rate={learning_rate!r}"
            )
        check_integers(1, warmup_steps=warmup_steps)
        self.learning_rate = learning_rate
        self.warmup_steps = warmup_steps

    def __call__(self, step: int | tf.Tensor) -> tf.Tensor:
        rate = self.learning_rate(step) if callable(self.learning_rate) else self.learning_rate
        share = tf.cast(step, tf.float32) / self.warmup_steps
        return tf.cast(rate, tf.float32) * tf.minimum(share, 1.0)

    def get_config(self) -> dict[str, Any]:
        learning_rate = keras.saving.serialize_keras_object(self.learning_rate)
        return {"learning_rate": learning_rate, "warmup_steps": self.warmup_steps}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Self":
        learning_rate = keras.saving.deserialize_keras_object(config["learning_rate"])
        return cls(learning_rate, config["warmup_steps"])
