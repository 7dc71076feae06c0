"""Runs the programs of `keras_programs` on single layers.

    python -m scripts.benchmark.layer_programs csr

`scripts.benchmark.crossover` starts this and sends it requests, see `scripts.benchmark.serving`.
"""

import functools
import sys
from typing import NamedTuple

import keras
import numpy as np

import rigl_tf
from scripts.benchmark import keras_programs, serving

_NUM_CLASSES = 4


class Convolution(NamedTuple):
    """A two-dimensional convolution, and the size of the images that it sees."""

    pixels: int
    size: int
    inputs: int
    outputs: int
    strides: int = 1


# Layer: a `Convolution`, or the inputs and outputs of a `Dense`.
LAYERS = {
    "Dense 256 x 256": (256, 256),
    "Dense 128 x 512": (128, 512),
    "Dense 512 x 128": (512, 128),
    "Dense 512 x 256": (512, 256),
    "Dense 784 x 300": (784, 300),
    "Dense 1024 x 128": (1024, 128),
    "Dense 128 x 1024": (128, 1024),
    "Dense 1024 x 1024": (1024, 1024),
    "Dense 128 x 4096": (128, 4096),
    "Dense 2048 x 64": (2048, 64),
    "Dense 8192 x 16": (8192, 16),
    "Dense 16 x 8192": (16, 8192),
    "Conv 3x3, 16 to 16, 32 pixels": Convolution(32, 3, 16, 16),
    "Conv 3x3, 64 to 16, 28 pixels": Convolution(28, 3, 64, 16),
    "Conv 3x3, 32 to 32, 32 pixels": Convolution(32, 3, 32, 32),
    "Conv 3x3, 256 to 256, 7 pixels": Convolution(7, 3, 256, 256),
    "Conv 1x1, 96 to 96, 28 pixels": Convolution(28, 1, 96, 96),
    "Conv 1x1, 128 to 128, 28 pixels": Convolution(28, 1, 128, 128),
    "Conv 1x1, 512 to 512, 7 pixels": Convolution(7, 1, 512, 512),
    "Conv 7x7 / 2, 3 to 64, 112 pixels": Convolution(112, 7, 3, 64, 2),
    "Conv 16x16 / 16, 3 to 384, 112 pixels": Convolution(112, 16, 3, 384, 16),
}


def is_convolution(layer):
    """Whether the layer with this name is a convolution."""
    return isinstance(LAYERS[layer], Convolution)


def network(layer):
    """A model of the layer, called `sparse`, with normalisation before it and classes after it."""
    kind = LAYERS[layer]
    if isinstance(kind, Convolution):
        shape = (kind.pixels, kind.pixels, kind.inputs)
        options = {"strides": kind.strides, "padding": "same"}
        sparse = keras.layers.Conv2D(
            kind.outputs, kind.size, activation="relu", name="sparse", **options
        )
        after = [keras.layers.GlobalAveragePooling2D()]
    else:
        shape = kind[:1]
        sparse = keras.layers.Dense(kind[1], activation="relu", name="sparse")
        after = []
    # Something to train before the layer, so that it must compute the gradient of its inputs.
    before = [keras.Input(shape), keras.layers.BatchNormalization()]
    return keras.Sequential([*before, sparse, *after, keras.layers.Dense(_NUM_CLASSES)])


def make(program, layer, sparsity, batch):
    """The `serving.Model` for a case."""
    execution, _ = keras_programs.PROGRAMS[program]
    chosen = rigl_tf.sparsify(network(layer), {"sparse": sparsity}, execution="auto")
    keras.utils.set_random_seed(0)
    model = rigl_tf.sparsify(network(layer), {"sparse": sparsity}, execution=execution)
    generator = np.random.default_rng(0)
    x = generator.normal(size=(batch, *model.input_shape[1:])).astype("float32")
    made = keras_programs.training(program, model, x, generator.integers(0, _NUM_CLASSES, batch))
    made.facts["auto"] = rigl_tf.sparsity_summary(chosen).kernels[0].execution
    return made


def start(program):
    """See `serving.serve`."""
    return functools.partial(make, program), keras_programs.VERSIONS


if __name__ == "__main__":
    serving.serve(lambda: start(sys.argv[1]))
