"""What several tests need: numbers, small models, optimizers, worlds, and what to check.

One list each of algorithms (`ALGORITHMS`), of optimizers of Keras (`INNER`) and of the ways to run
a step (`WORLDS`). Nothing here knows of `scripts`.
"""

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import socket
import subprocess
import sys
import warnings
from collections.abc import Callable

import keras
import numpy as np
import pytest
import tensorflow as tf

import rigl_tf

layers, optimizers = keras.layers, keras.optimizers

ROOT = pathlib.Path(__file__).parents[1]

# Most tests train a few steps: that `end_step` is not reached is told, and is not their point.
ends_early = pytest.mark.filterwarnings("ignore:.*training ended after:UserWarning")
# A part of the model is sparse, or what is sparse is small: that is told, too.
covers_part = pytest.mark.filterwarnings("ignore:.*the sparsity is a share of these:UserWarning")
# And some take the shortest way to several updates.
updates_only = pytest.mark.filterwarnings("ignore:.*trains no weight from step:UserWarning")


# Numbers.


def numbers(shape, seed=0, mean=0.0, scale=1.0):
    return np.random.default_rng(seed).normal(mean, scale, size=shape).astype("float32")


def halves(num=48, batch=8, num_in=6, num_out=3):
    """Inputs and targets; each half of a batch, which is what a replica gets, is another kind."""
    rng = np.random.default_rng(0)
    shift = (np.arange(num) % batch < batch // 2)[:, np.newaxis]
    x = rng.normal(size=(num, num_in)) + 2 * shift
    y = rng.normal(size=(num, num_out)) - 3 * shift
    return x.astype("float32"), y.astype("float32")


def random_gradients(variables, seed=0):
    rng = np.random.default_rng(seed)
    return [tf.constant(rng.normal(size=v.shape), "float32") for v in variables]


# Models.


def sequential(shape, *of_layers, **arguments):
    return keras.Sequential([keras.Input(shape), *of_layers], **arguments)


def mlp(*sizes, activation="tanh", names=None, name=None, **of_the_last):
    """Dense layers, from the number of inputs to that of outputs."""
    sizes = sizes or (6, 8, 3)
    names = names or [None] * (len(sizes) - 1)
    hidden = [
        layers.Dense(size, activation, name=each)
        for size, each in zip(sizes[1:-1], names, strict=False)
    ]
    last = layers.Dense(sizes[-1], name=names[-1], **of_the_last)
    return sequential(sizes[:1], *hidden, last, name=name)


@keras.saving.register_keras_serializable(package="rigl_tf_tests")
def all_alike(shapes, sparsity):
    return dict.fromkeys(shapes, sparsity)


# How kernels are stored and multiplied.
EXECUTIONS = ["masked", "csr"]
in_every_execution = pytest.mark.parametrize("execution", EXECUTIONS)


def half(model, **arguments):
    """A sparse model, half of each kernel of which is zero."""
    return rigl_tf.sparsify(model, 0.5, all_alike, **arguments)


# Optimizers of Keras that train the weights.

INNER = {
    "sgd": lambda: optimizers.SGD(0.1),
    "momentum": lambda: optimizers.SGD(0.1, momentum=0.9),
    "nesterov": lambda: optimizers.SGD(0.1, momentum=0.9, nesterov=True),
    "adam": lambda: optimizers.Adam(0.01),
    "adamw": lambda: optimizers.AdamW(0.01, weight_decay=0.1),
    "clipnorm": lambda: optimizers.Adam(0.01, global_clipnorm=0.5),
    "clipvalue": lambda: optimizers.SGD(0.1, clipvalue=0.1),
    "ema": lambda: optimizers.Adam(0.01, use_ema=True),
    "ema_overwrite": lambda: optimizers.Adam(0.01, use_ema=True, ema_overwrite_frequency=2),
    "adagrad": lambda: optimizers.Adagrad(0.1, initial_accumulator_value=0.1),
}
# In Keras 3.12, the last for Python 3.10, Muon fails with any model on TensorFlow.
if not keras.__version__.startswith("3.12."):
    INNER["muon"] = lambda: optimizers.Muon(0.01)


# Algorithms.


def drop_half(step):
    """A drop fraction that does not fall."""
    return 0.5


@dataclasses.dataclass
class Algorithm:
    """How to make it, and what it does to the number of connections, and when.

    `counts`: constant per `"kernel"`, in `"total"`, or `"falling"`. `moves`: at `"updates"`,
    in each `"step"`, or `"never"`.
    """

    cls: type
    arguments: dict = dataclasses.field(default_factory=dict)
    with_times: Callable = lambda **times: times
    counts: str = "kernel"
    moves: str = "updates"
    grows: bool = True
    sparsity: float = 0.5  # of the model that it starts with

    def __call__(self, inner="sgd", end_step=11, update_frequency=2, **arguments):
        """The optimizer; what the algorithm has no use for, of when and how many, is left out."""
        times = {"end_step": end_step, "update_frequency": update_frequency, **arguments}
        return self.cls(inner, **self.with_times(**times), **self.arguments)


def _not_any(**times):
    return {}


def _without_share(drop_fraction=None, **times):
    return times


ALGORITHMS = {
    "RigL": Algorithm(rigl_tf.RigL),
    "RigL explored": Algorithm(
        rigl_tf.RigL, {"grow_init": "initial_distribution", "track_exploration": True}
    ),
    "RigLInverted": Algorithm(rigl_tf.RigLInverted),
    "SET": Algorithm(rigl_tf.SET),
    "SNFS": Algorithm(rigl_tf.SNFS),
    "SNFS redistributed": Algorithm(rigl_tf.SNFS, {"redistribute": True}, counts="total"),
    "StaticSparse": Algorithm(
        rigl_tf.StaticSparse, with_times=_not_any, moves="never", grows=False
    ),
    "StaticReinit": Algorithm(rigl_tf.StaticReinit, moves="never", grows=False),
    "GradualPruning": Algorithm(
        rigl_tf.GradualPruning,
        {"sparsity": 0.75, "distribution": all_alike},
        _without_share,
        counts="falling",
        grows=False,
        sparsity=0.0,
    ),
    "DNW": Algorithm(
        rigl_tf.DNW,
        {"sparsity": 0.5, "distribution": all_alike, "track_exploration": True},
        _not_any,
        moves="step",
        grows=False,
    ),
}
DYNAMIC = ["RigL", "RigLInverted", "SET", "SNFS"]
every_algorithm = pytest.mark.parametrize("name", ALGORITHMS)


def rigl(inner="adam", end_step=100, update_frequency=2, drop_fraction=0.5, **arguments):
    return rigl_tf.RigL(
        inner,
        end_step,
        update_frequency=update_frequency,
        drop_fraction=drop_fraction,
        **arguments,
    )


# Worlds.

WORLDS = {
    "eager": {"run_eagerly": True},
    "graph": {"jit_compile": False},
    "XLA": {"jit_compile": True},
    "two replicas": {"jit_compile": False},
}
ON_ONE_DEVICE = ["eager", "graph", "XLA"]


class MirroredStrategy(tf.distribute.MirroredStrategy):
    # The keys by which the replicas find each other's sums. TensorFlow confuses those of two
    # strategies in one process, and the scripts, whose tests may run in this one, have theirs.
    _collective_key_base = 1000


@functools.cache
def mirrored():
    """The `MirroredStrategy` of both logical CPUs (see `conftest.py`), always the same object."""
    return MirroredStrategy([device.name for device in tf.config.list_logical_devices("CPU")])


def strategy_of(world):
    return mirrored() if world == "two replicas" else tf.distribute.get_strategy()


def in_world(world, function):
    """A function of tensors in eager mode, as a graph, or compiled by XLA."""
    if world == "eager":
        return function
    return tf.function(function, jit_compile=WORLDS[world]["jit_compile"])


# What a model is like.


def values(variables):
    return [np.asarray(variable) for variable in variables]


def masks_of(model):
    return list(rigl_tf.get_masks(model).values())


def kernels_of(model):
    """The sparse kernels; of CSR kernels the active values."""
    return [kernel.numpy() for kernel in rigl_tf.masks.sparse_kernels(model).values()]


def active(model):
    """How many connections each kernel has."""
    return [int(mask.sum()) for mask in masks_of(model)]


def state_of(model, optimizer=None):
    """All that a model and its optimizer have, by place and path."""
    variables = [*model.weights, *(optimizer or model.optimizer).variables]
    return {f"{index}:{v.path}": np.asarray(v) for index, v in enumerate(variables)}


def assert_same_model(model, other, tolerance=1e-4):
    """Equal masks, and weights that are equal up to rounding, however the kernels are stored."""
    assert_equal(masks_of(model), masks_of(other))
    for one, two in zip(dense_weights(model), dense_weights(other), strict=True):
        np.testing.assert_allclose(one, two, rtol=tolerance, atol=tolerance / 10)


def dense_weights(model):
    """The weights without masks, sparse kernels with their zeros."""
    kernels = {id(each.variable): each for each in rigl_tf.masks.kernels_of(model).values()}
    weights = rigl_tf.masks.without_masks(model, model.weights)
    return [kernels.get(id(weight), weight).numpy() for weight in weights]


def executions_of(model):
    return [kernel.execution for kernel in rigl_tf.masks.kernels_of(model).values()]


def differ(ones, others):
    return any((one != other).any() for one, other in zip(ones, others, strict=True))


# Checks.


def assert_equal(ones, others):
    for one, other in zip(ones, others, strict=True):
        np.testing.assert_array_equal(one, other)


def assert_same_state(state, want):
    """Paths, of layers that are named on, may differ; nothing else does."""
    for (path, value), other in zip(state.items(), want.values(), strict=True):
        assert value.dtype == other.dtype
        np.testing.assert_array_equal(value, other, err_msg=path)


def check_invariant(model):
    """The sparse kernels are weights of the model, zero outside of their masks, not only zeros."""
    weights = {id(weight) for weight in model.weights}
    kernels = rigl_tf.masks.kernels_of(model).values()
    for kernel, mask in zip(kernels, masks_of(model), strict=True):
        value = kernel.numpy()
        assert id(kernel.variable) in weights
        assert value.any()
        np.testing.assert_array_equal(value, np.where(mask, value, 0), err_msg=kernel.path)


def messages(function, *arguments, **keywords):
    """The `UserWarning`s of a call."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        function(*arguments, **keywords)
    return [str(each.message) for each in caught]


# Other processes.


def python(*arguments, cwd=ROOT, **variables):
    """Runs Python in a folder, as a user's shell would: without what the tests have set."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**environment, **variables},
        capture_output=True,
        text=True,
        timeout=300,
    )


def free_ports():
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(2)]
        for each in sockets:
            each.bind(("localhost", 0))
        return [each.getsockname()[1] for each in sockets]


@contextlib.contextmanager
def two_workers(log_directory, *command):
    """Starts the command as worker 0, the chief, and as worker 1; ends both in any case."""
    workers = [f"localhost:{port}" for port in free_ports()]
    with contextlib.ExitStack() as stack:
        processes = []
        for index in range(2):
            task = {"type": "worker", "index": index}
            environment = {
                **os.environ,
                "TF_CONFIG": json.dumps({"cluster": {"worker": workers}, "task": task}),
                "PYTHONPATH": str(ROOT),
            }
            log = stack.enter_context((log_directory / f"worker-{index}.log").open("w"))
            process = subprocess.Popen(
                [sys.executable, *command], cwd=ROOT, env=environment, stdout=log, stderr=log
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            processes.append(process)
        yield processes


def logs_of(directory):
    return [(directory / f"worker-{index}.log").read_text() for index in range(2)]


def wait_for(processes, log_directory):
    """Waits until all have ended. Returns their exit codes, the last lines of their output too."""
    codes = [process.wait(600) for process in processes]
    return codes, [log[-2000:] for log in logs_of(log_directory)]
