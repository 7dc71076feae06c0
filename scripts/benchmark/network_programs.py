"""Runs the programs of `keras_programs` on whole networks.

    python -m scripts.benchmark.network_programs auto

`scripts.benchmark.networks` starts this and sends it requests, see `scripts.benchmark.serving`.
"""

import functools
import sys

import keras
import numpy as np

import models
import rigl_tf
from scripts.benchmark import keras_programs, serving

NETWORKS = {
    "resnet50": models.resnet50,
    "mobilenet_v1": models.mobilenet_v1,
    "vision_transformer": models.vision_transformer,
}
_NUM_CLASSES = 1000


def make(program, network, distribution, sparsity, pixels, batch):
    """The `serving.Model` for a case."""
    execution, _ = keras_programs.PROGRAMS[program]
    keras.utils.set_random_seed(0)
    model = NETWORKS[network]((pixels, pixels, 3), _NUM_CLASSES)
    num_weights = model.count_params()
    if execution is not None:
        # Uniform sparsity leaves the first layer dense, as in the RigL paper.
        model = rigl_tf.sparsify(model, sparsity, distribution, execution=execution)
    generator = np.random.default_rng(0)
    x = generator.normal(size=(batch, pixels, pixels, 3)).astype("float32")
    made = keras_programs.training(program, model, x, generator.integers(0, _NUM_CLASSES, batch))
    kernels = rigl_tf.sparsity_summary(model).kernels
    stored = {kind: [k.size for k in kernels if k.execution == kind] for kind in ("csr", "masked")}
    made.facts = {
        "num_csr": len(stored["csr"]),
        "num_masked": len(stored["masked"]),
        "share_csr": round(sum(stored["csr"]) / num_weights, 3),
    }
    return made


def start(program):
    """See `serving.serve`."""
    return functools.partial(make, program), keras_programs.VERSIONS


if __name__ == "__main__":
    serving.serve(lambda: start(sys.argv[1]))
