"""Features of optimizers: Keras's own, their arguments, wrappers and learning rates."""

import keras
import numpy as np

from scripts.checks.keras_features.base import Feature, momentum, rigl

optimizers, callbacks = keras.optimizers, keras.callbacks

IN_BRANCH = "Keras cannot use `{}` under MirroredStrategy"
PER_REPLICA = "Keras clips the gradient of each replica, not their sum"

# All optimizers that Keras exports.


def inner_optimizers():
    """`{name: function that makes it}` of the optimizers of Keras that train weights."""
    wrappers = {"Optimizer", "LossScaleOptimizer", "MultiOptimizer"}
    names = [
        name
        for name, value in sorted(vars(optimizers).items())
        if isinstance(value, type)
        and issubclass(value, optimizers.Optimizer)
        and name not in wrappers
        # In Keras 3.12, the last for Python 3.10, Muon fails with any model on TensorFlow.
        and not (name == "Muon" and keras.__version__.startswith("3.12."))
    ]
    arguments = {"Adafactor": {"epsilon_1": 1e-15}}
    return {
        name: lambda name=name: getattr(optimizers, name)(0.02, **arguments.get(name, {}))
        for name in names
    }


_OPTIMIZER_REMARKS = {
    "Adafactor": "row and column means are no slots and are not reset; with Keras's own "
    "`epsilon_1` a kernel with an empty row and column becomes NaN: a warning says so",
    "Ftrl": "Keras computes the weights anew from its slots, whatever they were initialised to",
}
_OPTIMIZER_DIFFERENCES = {
    "ScheduleFreeAdamW": "in a graph Keras's own trains otherwise under MirroredStrategy: on one "
    "device it takes the new momentum for the old",
}
INNER = [
    Feature(
        f"`{name}`",
        make,
        remark=_OPTIMIZER_REMARKS.get(name, ""),
        differs=_OPTIMIZER_DIFFERENCES.get(name, ""),
    )
    for name, make in inner_optimizers().items()
]

# Arguments of an optimizer.


def no_decay_of_biases():
    optimizer = optimizers.AdamW(0.02, weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    return optimizer


def rigl_without_decay_of_biases(inner):
    optimizer = rigl(inner)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    return optimizer


ARGUMENTS = [
    Feature("`clipnorm`", lambda: optimizers.SGD(0.1, clipnorm=0.3), differs=PER_REPLICA),
    Feature(
        "`global_clipnorm`", lambda: optimizers.SGD(0.1, global_clipnorm=0.3), differs=PER_REPLICA
    ),
    Feature("`clipvalue`", lambda: optimizers.SGD(0.1, clipvalue=0.05), differs=PER_REPLICA),
    Feature("`weight_decay`", lambda: optimizers.Adam(0.02, weight_decay=0.5)),
    Feature("`exclude_from_weight_decay` of the inner optimizer", no_decay_of_biases),
    Feature(
        "`exclude_from_weight_decay` of the sparse optimizer",
        lambda: optimizers.AdamW(0.02, weight_decay=0.5),
        wrap=rigl_without_decay_of_biases,
        remark="passed on to the inner optimizer",
    ),
    Feature(
        "`use_ema=True`",
        lambda: optimizers.Adam(0.02, use_ema=True, ema_momentum=0.8),
        remark="averages are masked in every step; those of moved connections start at 0",
    ),
    Feature(
        "`use_ema=True`, `ema_overwrite_frequency=2`",
        lambda: optimizers.Adam(0.02, use_ema=True, ema_overwrite_frequency=2),
        limit=IN_BRANCH.format("ema_overwrite_frequency"),
    ),
    Feature(
        "`gradient_accumulation_steps=2`",
        lambda: optimizers.SGD(0.1, gradient_accumulation_steps=2),
        limit=IN_BRANCH.format("gradient_accumulation_steps"),
        remark="`end_step`, `update_frequency` count calls of `apply`, that is, small batches; an "
        "update looks at the gradient of one of them",
    ),
    Feature(
        "`gradient_accumulation_steps=2`, `run_eagerly=True`",
        lambda: optimizers.SGD(0.1, gradient_accumulation_steps=2),
        compile={"run_eagerly": True},
    ),
    Feature("`loss_scale_factor`", lambda: optimizers.SGD(0.1, loss_scale_factor=64.0)),
]

# Optimizers around an optimizer.


def multi_optimizer(kernels):
    others = {".*bias": optimizers.SGD(0.05)}
    return optimizers.MultiOptimizer(optimizers.OptimizerMap(kernels, others))


WRAPPERS = [
    Feature(
        "`LossScaleOptimizer` around, as `compile` does under `mixed_float16`",
        policy="mixed_float16",
    ),
    Feature(
        "`LossScaleOptimizer` inside, `auto_scale_loss=False`",
        lambda: optimizers.LossScaleOptimizer(momentum(), initial_scale=1024.0),
        compile={"auto_scale_loss": False},
        policy="mixed_float16",
        remark="one inside and one around is refused",
    ),
]
if hasattr(optimizers, "MultiOptimizer"):
    WRAPPERS += [
        Feature(
            "`MultiOptimizer` inside",
            lambda: multi_optimizer(optimizers.Adam(0.02)),
            remark="with an `OptimizerMap`; one with a function is refused",
        ),
        Feature("inside a `MultiOptimizer`", wrap=lambda inner: multi_optimizer(rigl(inner))),
    ]

# Learning rates.


def learning_rate_is(want):
    def check(model, watch):
        np.testing.assert_allclose(model.optimizer.inner_optimizer.learning_rate, want)

    return check


LEARNING_RATES = [
    Feature(
        "`LearningRateSchedule`",
        lambda: optimizers.SGD(
            optimizers.schedules.PiecewiseConstantDecay([2, 5], [0.1, 0.05, 0.2])
        ),
        check=learning_rate_is(0.2),
        remark="counts gradient steps: it stands still at an update",
    ),
    Feature(
        "`LearningRateScheduler`",
        fit=lambda directory: {
            "callbacks": [callbacks.LearningRateScheduler(lambda epoch, rate: rate / 2)]
        },
        check=learning_rate_is(0.025),
    ),
    Feature(
        "`ReduceLROnPlateau`",
        fit=lambda directory: {
            "callbacks": [
                callbacks.ReduceLROnPlateau("loss", factor=0.5, patience=1, mode="max", min_lr=0)
            ]
        },
        check=learning_rate_is(0.05),
    ),
]
