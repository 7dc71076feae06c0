"""The definition of a feature of Keras, and the small problem to try it on."""

import dataclasses
from collections.abc import Callable

import keras
import numpy as np

import rigl_tf

layers, optimizers = keras.layers, keras.optimizers

BATCH = 8
STEPS_PER_EPOCH = 4
EPOCHS = 2
NUM = BATCH * STEPS_PER_EPOCH


def momentum():
    return optimizers.SGD(0.1, momentum=0.9)


def rigl(inner):
    """Updates at steps 3 and 6 of 8."""
    return rigl_tf.RigL(inner, end_step=100, update_frequency=3, drop_fraction=0.5)


def mlp(**kwargs):
    hidden = layers.Dense(8, activation="tanh", **kwargs)
    return keras.Sequential([keras.Input((6,)), hidden, layers.Dense(3)])


def data():
    """Each half of a batch, which is what a replica gets, has a distribution of its own."""
    rng = np.random.default_rng(0)
    shift = (np.arange(NUM) % BATCH < BATCH // 2)[:, np.newaxis]
    x, y = rng.normal(size=(NUM, 6)) + 2 * shift, rng.normal(size=(NUM, 3)) - 3 * shift
    return x.astype("float32"), y.astype("float32")


def fit(model, watch, directory, **kwargs):
    """`model.fit` on `data()`, watched after every step."""
    x, y = kwargs.pop("data", None) or data()
    kwargs = {"epochs": EPOCHS, "batch_size": BATCH, "shuffle": False, "verbose": 0, **kwargs}
    model.fit(x, y, callbacks=[*kwargs.pop("callbacks", []), watch], **kwargs)


@dataclasses.dataclass(frozen=True)
class Feature:
    """One feature of Keras.

    Args:
        name: String, its row in the table.
        optimizer: Makes the optimizer of Keras that trains the weights.
        wrap: Makes the optimizer of the sparse model from that one.
        model: Makes the dense model.
        prepare: Called with the sparse model before it is compiled.
        compile: Arguments of `compile`.
        fit: Makes the arguments of `fit` from a temporary directory.
        train: Trains the compiled model, given a `Watch` and a temporary directory.
        check: Asserts what else must hold, given the trained model and the `Watch`; it is the last
            to use the model.
        policy: Name of the dtype policy.
        limit: Two replicas fail, with any model; part of the message.
        differs: Why two replicas train otherwise than one device, with any model.
        remark: Anything else that a user should know.
    """

    name: str
    optimizer: Callable = momentum
    wrap: Callable = rigl
    model: Callable = mlp
    prepare: Callable = lambda model: None
    compile: dict = dataclasses.field(default_factory=dict)
    fit: Callable = lambda directory: {}
    train: Callable = None
    check: Callable = lambda model, watch: None
    policy: str = "float32"
    limit: str = ""
    differs: str = ""
    remark: str = ""

    def run(self, model, watch, directory):
        """Trains a compiled model with this feature."""
        (self.train or fit)(model, watch, directory, **self.fit(directory))
