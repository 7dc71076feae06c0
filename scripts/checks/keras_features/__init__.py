"""The training features of Keras that `run` and the tests try, one by one."""

from scripts.checks.keras_features.base import Feature, data, fit, mlp, rigl
from scripts.checks.keras_features.callbacks import CALLBACKS
from scripts.checks.keras_features.models import MODELS, SEEDED
from scripts.checks.keras_features.optimizers import (
    ARGUMENTS,
    INNER,
    LEARNING_RATES,
    WRAPPERS,
    inner_optimizers,
)
from scripts.checks.keras_features.training import COMPILE, TRAINING

FEATURES = [
    *INNER,
    *ARGUMENTS,
    *WRAPPERS,
    *LEARNING_RATES,
    *COMPILE,
    *TRAINING,
    *CALLBACKS,
    *MODELS,
]

__all__ = [
    "ARGUMENTS",
    "FEATURES",
    "INNER",
    "SEEDED",
    "Feature",
    "data",
    "fit",
    "inner_optimizers",
    "mlp",
    "rigl",
]
