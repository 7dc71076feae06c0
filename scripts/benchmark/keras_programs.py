"""The Keras programs of the benchmark: dense, sparse with masks, and sparse in CSR.

    python -m scripts.benchmark.keras_programs csr

`scripts.benchmark.execution` starts this and sends it requests, see `scripts.benchmark.serving`.
"""

import functools
import math
import sys

import keras
import numpy as np
import tensorflow as tf

import rigl_tf
from scripts.benchmark import serving

# Program: execution of the sparse kernels (`None`: dense), and whether XLA compiles the step.
PROGRAMS = {
    "dense": (None, False),
    "dense_xla": (None, True),
    "masked": ("masked", False),
    "masked_xla": ("masked", True),
    "csr": ("csr", False),
    "auto": ("auto", False),
}
VERSIONS = f"tensorflow {tf.__version__}, keras {keras.__version__}"
# The regular updates are so far apart that none happens: the benchmark asks for updates.
_UPDATE_FREQUENCY = 1_000_000


def mlp(width):
    """A network with the layers 784, `width`, `width`, `width`, 10."""
    hidden = [
        keras.layers.Dense(width, activation="relu", name=f"hidden_{number}") for number in range(3)
    ]
    return keras.Sequential(
        [keras.Input((784,)), *hidden, keras.layers.Dense(10, name="logits")], name="mlp"
    )


def sparse_mlp(width, sparsity, execution, seed=0):
    """The same network with one sparsity in all hidden layers. The last layer is dense."""
    shares = {f"hidden_{number}": sparsity for number in range(3)}
    return rigl_tf.sparsify(
        mlp(width),
        shares,
        initializer=rigl_tf.initializers.SparseVarianceScaling(),
        execution=execution,
        seed=seed,
    )


def step_of(model, x, y):
    """Returns a function that runs one step of `fit`, always on the same batch."""
    batches = iter(tf.data.Dataset.from_tensors((x, y)).repeat())
    model.fit(x, y, batch_size=len(x), verbose=0)
    model.make_train_function()

    def step():
        logs = model.train_function(batches)
        tf.nest.map_structure(np.asarray, logs)

    return step


def make(program, sparsity, width, batch):
    """The `serving.Model` for a case."""
    execution, _ = PROGRAMS[program]
    keras.utils.set_random_seed(0)
    model = mlp(width) if execution is None else sparse_mlp(width, sparsity, execution)
    return training(program, model, *examples(batch))


def training(program, model, x, y):
    """The `serving.Model` that trains a Keras model, with RigL if it is sparse."""
    execution, jit_compile = PROGRAMS[program]
    optimizer = keras.optimizers.SGD(0.01, momentum=0.9)
    if execution is not None:
        optimizer = rigl_tf.RigL(
            optimizer, end_step=10**9, update_frequency=_UPDATE_FREQUENCY, drop_fraction=0.3
        )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, jit_compile=jit_compile)
    step = step_of(model, x, y)

    # The step before an update tells the layers that an update follows, so it must be a real one.
    def before_update():
        optimizer.step.assign(_UPDATE_FREQUENCY - 1)

    made = serving.Model(step, before_update if execution else None)
    # Each trainable variable has a gradient.
    held = [*model.variables, *optimizer.variables, *model.trainable_variables]
    made.facts["state_mb"] = sum(map(_num_bytes, held)) / 1e6
    return made


def _num_bytes(variable):
    return math.prod(variable.shape) * tf.as_dtype(variable.dtype).size


def examples(batch):
    """A batch of random inputs and labels."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(batch, 784)).astype("float32")
    return x, generator.integers(0, 10, batch)


def start(program):
    """See `serving.serve`."""
    return functools.partial(make, program), VERSIONS


if __name__ == "__main__":
    serving.serve(lambda: start(sys.argv[1]))
