"""The training features of Keras that `scripts.keras_features` and its tests try, one by one."""

from scripts.features.base import Feature, data, fit, mlp, rigl
from scripts.features.callbacks import CALLBACKS
from scripts.features.models import MODELS, SEEDED
from scripts.features.optimizers import ARGUMENTS, INNER, LEARNING_RATES, WRAPPERS, inner_optimizers
from scripts.features.training import COMPILE, TRAINING

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
