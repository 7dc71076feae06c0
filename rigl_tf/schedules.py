"""When masks are updated, and how much of them."""

import math
from numbers import Integral, Real

import keras
import tensorflow as tf


def is_update_step(step, begin_step, end_step, update_frequency):
    """Whether masks are updated at `step`: Python integers or integer tensors.

    Updates happen at steps `t > 0` with `begin_step <= t < end_step` that are a multiple of
    `update_frequency` after `begin_step`.

    Example:

    >>> [t for t in range(12) if is_update_step(t, begin_step=2, end_step=11, update_frequency=3)]
    [2, 5, 8]
    """
    in_time = (step > 0) & (step >= begin_step) & (step < end_step)
    return in_time & ((step - begin_step) % update_frequency == 0)


def drop_fraction_schedule(drop_fraction, begin_step, end_step):
    """A callable of the step: a number becomes a `CosineDropFraction`, a callable stays."""
    if callable(drop_fraction):
        return drop_fraction
    return CosineDropFraction(drop_fraction, begin_step, end_step)


def check_update_steps(begin_step, end_step, update_frequency):
    """Raises a `ValueError` unless the three are integers that make sense together."""
    steps = {"begin_step": begin_step, "end_step": end_step, "update_frequency": update_frequency}
    for name, value in steps.items():
        least = 1 if name == "update_frequency" else 0
        if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
            raise ValueError(f"`{name}` must be an integer >= {least}. Received: {name}={value!r}")
    if end_step <= begin_step:
        raise ValueError(
            "`end_step` must be greater than `begin_step`. "
            f"Received: begin_step={begin_step}, end_step={end_step}"
        )


@keras.saving.register_keras_serializable(package="rigl_tf")
class CosineDropFraction:
    """The share of active connections to drop, annealed to zero along a cosine.

    `drop_fraction / 2 * (1 + cos(pi * (step - begin_step) / (end_step - begin_step)))`.

    Reference:

    - [Evci et al., 2020](https://arxiv.org/abs/1911.11134), section 3, equation 1

    Args:
        drop_fraction: Float in `[0, 1]`, the share at `begin_step`.
        begin_step: Integer, in steps.
        end_step: Integer, in steps, greater than `begin_step`.

    Example:

    >>> schedule = CosineDropFraction(0.3, begin_step=0, end_step=100)
    >>> [round(float(schedule(step)), 3) for step in (0, 50, 100)]
    [0.3, 0.15, 0.0]
    """

    def __init__(self, drop_fraction, begin_step, end_step):
        if not isinstance(drop_fraction, Real) or not 0 <= drop_fraction <= 1:
            raise ValueError(
                "`drop_fraction` must be a number in [0, 1], a schedule or a callable of the step. "
                f"Received: drop_fraction={drop_fraction!r}"
            )
        self.drop_fraction = float(drop_fraction)
        self.begin_step = begin_step
        self.end_step = end_step

    def __call__(self, step):
        progress = tf.cast(step - self.begin_step, tf.float32) / (self.end_step - self.begin_step)
        return self.drop_fraction / 2 * (1 + tf.cos(math.pi * tf.clip_by_value(progress, 0, 1)))

    def get_config(self):
        return {
            "drop_fraction": self.drop_fraction,
            "begin_step": self.begin_step,
            "end_step": self.end_step,
        }

    @classmethod
    def from_config(cls, config):
        return cls(**config)
