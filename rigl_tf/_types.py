"""Names for the type hints that several modules share."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

# Kernel shapes in Keras layout, by path.
Shapes = Mapping[str, Sequence[int]]

# The name of a distribution, or `fn(shapes, sparsity) -> {path: sparsity}`.
Distribution = str | Callable[[dict[str, tuple[int, ...]], float], Mapping[str, float]]

# `{kernel path: boolean array}`.
Masks = dict[str, np.ndarray]

# One way to name layers, see `rigl_tf.layers.named`.
Layer = str | re.Pattern[str] | keras.layers.Layer | type | Callable[[keras.layers.Layer], Any]
Layers = Layer | Iterable[Layer]

# A Keras loss, its name, or a function of targets and outputs.
Loss = str | keras.losses.Loss | Callable[..., Any]

# A batch `(inputs, targets)` or `(inputs, targets, sample_weight)`, or an iterable of batches.
Data = tuple[Any, ...] | Iterable[tuple[Any, ...]]
