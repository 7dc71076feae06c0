"""The Keras programs of the benchmark: dense, and sparse with masks or in CSR. See `serving`.

    python -m scripts.benchmark.keras_programs csr

It is started by `scripts.benchmark.execution`, which asks it for times.
"""

import functools
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
# Far from each other, so that the benchmark decides which steps are updates.
_UPDATE_FREQUENCY = 1_000_000


def mlp(width):
    """784-width-width-width-10."""
    hidden = [
        keras.layers.Dense(width, activation="relu", name=f"hidden_{number}") for number in range(3)
    ]
    return keras.Sequential(
        [keras.Input((784,)), *hidden, keras.layers.Dense(10, name="logits")], name="mlp"
    )


def sparse_mlp(width, sparsity, execution, seed=0):
    """That with the same sparsity in each hidden layer; the last one is dense."""
    shares = {f"hidden_{number}": sparsity for number in range(3)}
    return rigl_tf.sparsify(
        mlp(width),
        shares,
        initializer=rigl_tf.initializers.SparseVarianceScaling(),
        execution=execution,
        seed=seed,
    )


def step_of(model, x, y):
    """A function that runs one step of `fit`, on the same batch each time."""
    batches = iter(tf.data.Dataset.from_tensors((x, y)).repeat())
    model.fit(x, y, batch_size=len(x), verbose=0)
    model.make_train_function()

    def step():
        logs = model.train_function(batches)
        tf.nest.map_structure(np.asarray, logs)

    return step


def make(program, sparsity, width, batch):
    """The `serving.Model` of a program."""
    execution, _ = PROGRAMS[program]
    keras.utils.set_random_seed(0)
    model = mlp(width) if execution is None else sparse_mlp(width, sparsity, execution)
    return training(program, model, *examples(batch))


def training(program, model, x, y):
    """The `serving.Model` that trains a Keras model as a program does, by RigL if it is sparse."""
    execution, jit_compile = PROGRAMS[program]
    optimizer = keras.optimizers.SGD(0.01, momentum=0.9)
    if execution is not None:
        optimizer = rigl_tf.RigL(
            optimizer, end_step=10**9, update_frequency=_UPDATE_FREQUENCY, drop_fraction=0.3
        )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, jit_compile=jit_compile)
    step = step_of(model, x, y)
    if execution is None:
        return serving.Model(step)
    # The step before an update is an ordinary one: it tells the layers what is next.
    return serving.Model(step, lambda: optimizer.step.assign(_UPDATE_FREQUENCY - 1))


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
