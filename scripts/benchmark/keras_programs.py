"""The Keras programs of the benchmark: dense, and sparse with masks or in CSR. See `serving`.

    python -m scripts.benchmark.keras_programs csr

It is started by `scripts.benchmark.execution`, which asks it for times.
"""

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
}
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
    execution, jit_compile = PROGRAMS[program]
    keras.utils.set_random_seed(0)
    optimizer = keras.optimizers.SGD(0.01, momentum=0.9)
    if execution is None:
        model = mlp(width)
    else:
        model = sparse_mlp(width, sparsity, execution)
        optimizer = rigl_tf.RigL(
            optimizer, end_step=10**9, update_frequency=_UPDATE_FREQUENCY, drop_fraction=0.3
        )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, jit_compile=jit_compile)
    step = step_of(model, *examples(batch))
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
    versions = f"tensorflow {tf.__version__}, keras {keras.__version__}"
    return lambda *case: make(program, *case), versions


if __name__ == "__main__":
    serving.serve(lambda: start(sys.argv[1]))
