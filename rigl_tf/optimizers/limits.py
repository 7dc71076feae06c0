"""Checks for combinations of settings that cannot work, or that are probably mistakes."""

import inspect
import warnings
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from rigl_tf.optimizers.slots import optimizers_within

# Replicas of these strategies run as threads, which cannot be synchronised in a branch of a graph.
_THREADED_STRATEGIES = (tf.distribute.MirroredStrategy, tf.distribute.MultiWorkerMirroredStrategy)
_OF_MATRICES = (keras.optimizers.Muon, keras.optimizers.Adafactor)
_BRANCHING_ARGUMENTS = ("gradient_accumulation_steps", "ema_overwrite_frequency")


def warn(message):
    """Warns, with the line of the user's code that led to the warning."""
    frame: Any = inspect.currentframe()
    level = 1
    while frame.f_back is not None and frame.f_globals["__name__"].startswith("rigl_tf."):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)


def is_known_to_run_without_xla():
    """Whether the caller runs in the `train_step` of a model that was compiled without XLA.

    TensorFlow does not tell an optimizer whether XLA compiles its graph.
    """
    model = _model_in_train_step()
    return model is not None and model.compiled and not model.jit_compile


def _model_in_train_step():
    """The model in whose `train_step` the caller runs, or `None`."""
    frame = inspect.currentframe()
    while frame is not None:
        model: Any = frame.f_locals.get("self")
        if frame.f_code.co_name == "train_step" and isinstance(model, keras.Model):
            return model
        frame = frame.f_back
    return None


def check_unused(inner_optimizer):
    """Raises a `ValueError` if the inner optimizer, or one inside it, was built before."""
    for optimizer in optimizers_within(inner_optimizer):
        if optimizer.built:
            raise ValueError(
                "`inner_optimizer` must be new: its slots are reset where connections change, but "
                "the slots of an optimizer that is built already are not known. "
                f"Received: inner_optimizer={optimizer.name!r}, built"
            )


def check_takes_values(inner_optimizer, paths):
    """Raises a `ValueError` for optimizers that treat a kernel as a matrix."""
    for optimizer in optimizers_within(inner_optimizer):
        if isinstance(optimizer, _OF_MATRICES):
            raise ValueError(
                f"{type(optimizer).__name__} computes with whole kernels, but a CSR kernel is a "
                "vector of its active values: use `rigl_tf.with_execution(model, 'masked')` "
                "first, or `execution='masked'` in `rigl_tf.sparsify`. "
                f"Received: CSR kernels {paths}"
            )


def check_converts(optimizer):
    """Raises a `ValueError` for optimizers whose slots are others for another execution."""
    for each in optimizers_within(optimizer):
        if isinstance(each, _OF_MATRICES):
            raise ValueError(
                f"The state of {type(each).__name__} cannot be converted, because it is another "
                "one for a CSR kernel: compile the model with a new optimizer first. "
                f"Received: optimizer={each.name!r}, built"
            )


def check_strategy(inner_optimizer):
    """Raises a `ValueError` for arguments that fail in a graph under a mirrored strategy.

    With these arguments, Keras calls `merge_call` in a branch of the graph of each replica. Several
    steps in an execution fail on two or more CPUs, and have not been tried elsewhere.
    """
    strategy = tf.distribute.get_strategy()
    if tf.executing_eagerly() or not isinstance(strategy, _THREADED_STRATEGIES):
        return
    model = _model_in_train_step()
    steps = model.steps_per_execution if model is not None and model.compiled else 1
    devices = strategy.extended.worker_devices
    on_cpus = len(devices) > 1 and all("CPU" in device for device in devices)
    if steps > 1 and on_cpus and isinstance(strategy, tf.distribute.MirroredStrategy):
        raise ValueError(
            "Keras cannot use `steps_per_execution` under MirroredStrategy on CPUs (with any "
            f"model): leave it out. Received: steps_per_execution={steps}"
        )
    for optimizer in optimizers_within(inner_optimizer):
        for name in _BRANCHING_ARGUMENTS:
            value = getattr(optimizer, name)
            if value and (optimizer.use_ema or name != "ema_overwrite_frequency"):
                raise ValueError(
                    f"Keras cannot use `{name}` under {type(strategy).__name__} (a `merge_call` "
                    "inside a `cond`, with any model): leave it out, or train with "
                    f"`run_eagerly=True`. Received: {name}={value}"
                )


def warn_of_vanishing_squares(inner_optimizer):
    """Warns if Adafactor would turn a kernel with an empty row and an empty column into NaN.

    Keras multiplies the mean squares of row and column, which are `epsilon_1` where there is no
    gradient. With the default value the product is 1e-60, which is 0 in float32; and 0 / 0 is NaN.
    """
    for optimizer in optimizers_within(inner_optimizer):
        if not isinstance(optimizer, keras.optimizers.Adafactor):
            continue
        if optimizer.epsilon_1**2 < np.finfo("float32").tiny:
            warnings.warn(
                "Adafactor turns a kernel into NaN if an input and a unit of it have no active "
                "connection, because Keras squares `epsilon_1`: pass `epsilon_1=1e-15`. "
                f"Received: epsilon_1={optimizer.epsilon_1}",
                stacklevel=2,
            )
