"""Sparse training for Keras 3 and TensorFlow: sparse from the first step to the last.

Two lines change in a training script: `sparsify` around the model, and `RigL`, or another optimizer
of this package, around the optimizer.

>>> x, y = np.random.default_rng(0).random((64, 16)), np.arange(64) % 3
>>> model = keras.Sequential([keras.Input((16,)), keras.layers.Dense(30, "relu"),
...                           keras.layers.Dense(3, "softmax")])
>>> model = rigl_tf.sparsify(model, sparsity=0.9)
>>> optimizer = rigl_tf.RigL(keras.optimizers.Adam(), end_step=30, update_frequency=10)
>>> model.compile(optimizer, "sparse_categorical_crossentropy")
>>> history = model.fit(x, y, batch_size=16, epochs=10, verbose=0)
>>> round(rigl_tf.sparsity_summary(model).sparsity, 2)
0.9

`export` writes the trained model to a file, runs that file, and compares its outputs with those of
the model. `strip` turns the model into a plain Keras model. README and `docs` say more.
"""

import keras

if keras.backend.backend() != "tensorflow":
    raise ImportError(
        "`rigl_tf` works with the TensorFlow backend of Keras: set the environment variable "
        "KERAS_BACKEND=tensorflow before keras is imported. "
        f"Received: keras.backend.backend()={keras.backend.backend()!r}"
    )

from rigl_tf import (
    analysis,
    callbacks,
    distributions,
    flops,
    initializers,
    interop,
    lottery,
    multi_worker,
    online,
    pruning,
    schedules,
    selection,
    structures,
    xnnpack,
)
from rigl_tf.artifacts import export
from rigl_tf.layers import SparseWrapper
from rigl_tf.layers.summary import sparsity_summary
from rigl_tf.masks import get_masks, load_masks, save_masks, set_masks
from rigl_tf.moved import install as _find_moved_modules
from rigl_tf.optimizers import (
    DNW,
    SET,
    SNFS,
    GradualPruning,
    RigL,
    RigLInverted,
    SparseOptimizer,
    StaticReinit,
    StaticSparse,
)
from rigl_tf.reports import report
from rigl_tf.transforms import compact, live_units, sparsify, strip, with_execution

__version__ = "0.1.0"

__all__ = [
    "DNW",
    "SET",
    "SNFS",
    "GradualPruning",
    "RigL",
    "RigLInverted",
    "SparseOptimizer",
    "SparseWrapper",
    "StaticReinit",
    "StaticSparse",
    "analysis",
    "callbacks",
    "compact",
    "distributions",
    "export",
    "flops",
    "get_masks",
    "initializers",
    "interop",
    "live_units",
    "load_masks",
    "lottery",
    "multi_worker",
    "online",
    "pruning",
    "report",
    "save_masks",
    "schedules",
    "selection",
    "set_masks",
    "sparsify",
    "sparsity_summary",
    "strip",
    "structures",
    "with_execution",
    "xnnpack",
]

_find_moved_modules()


def __dir__():
    return ["__doc__", "__file__", "__name__", "__path__", "__version__", *__all__]
