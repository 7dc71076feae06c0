"""Two CPU devices for every test, and the same start for each of them."""

import contextlib
import functools
import gc
import json
import os
import resource
import types

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ["KERAS_BACKEND"] = "tensorflow"

import keras
import pytest
import tensorflow as tf
from tensorflow.lite.python import lite
from tensorflow.python.eager import context
from tensorflow.python.util import tf_stack

from rigl_tf.artifacts import runtime
from rigl_tf.artifacts.programs import run_artifact

# Devices can be split only before TensorFlow starts, so it is done here, once.
_CPU = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(_CPU, [tf.config.LogicalDeviceConfiguration()] * 2)

# TensorFlow forgets its kernels whenever a session is cleared or a seed is set, which is before
# every test; to make them anew takes a fifth of the time of all tests. It does so for random ops
# with a state of their own, run eagerly; nothing here has those.
context.Context.clear_kernel_cache = lambda self: None
_set_seed = tf.random.set_seed


def _set_another_seed(seed):
    if context.global_seed() != seed:
        _set_seed(seed)


tf.random.set_seed = _set_another_seed


# Each operation of a graph keeps the stack of its creation, which is a hundred frames deep here.
_STACK = tf_stack.extract_stack()
tf_stack.extract_stack = lambda stacklevel=1: _STACK


# A collection of all garbage looks at a million objects here: it is made a tenth as often, not of
# what was imported, and not for each file that the converter of LiteRT writes.
gc.set_threshold(*gc.get_threshold()[:2], 100)
lite.gc = types.SimpleNamespace(collect=lambda: None)


def pytest_collection_finish():
    gc.freeze()


# To optimize the graph of a step takes longer than the few steps that most tests take with it.
def _optimize_graphs(is_wanted):
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": not is_wanted})


_optimize_graphs(False)


# To start TensorFlow takes seconds: SavedModels and `.keras` files are run in this process.
_execute_afresh = runtime._execute


def _execute_here(directory):
    if json.loads((directory / "request.json").read_text())["runtime"] in ("litert", "onnx"):
        return _execute_afresh(directory)
    try:
        return run_artifact.main(directory)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


runtime._execute = _execute_here


@pytest.fixture(autouse=True)
def fresh_start():
    """Seeds, layer names and the dtype policy do not depend on the tests before."""
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy("float32")
    yield
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")


@pytest.fixture(autouse=True)
def as_users_run_artifacts(request, monkeypatch):
    """Tests that are marked `fresh_interpreter` run SavedModels and `.keras` files in one."""
    if request.node.get_closest_marker("fresh_interpreter"):
        monkeypatch.setattr(runtime, "_execute", _execute_afresh)


@pytest.fixture(autouse=True)
def graphs_as_users_run_them(request):
    """Tests that are marked `optimized_graphs` run what TensorFlow makes of a graph."""
    is_wanted = request.node.get_closest_marker("optimized_graphs") is not None
    if is_wanted:
        _optimize_graphs(True)
    yield
    if is_wanted:
        _optimize_graphs(False)


@pytest.fixture(autouse=True)
def traced_once(request, monkeypatch):
    """Models that are built when they are compiled get their optimizer built, too.

    Keras traces the first step of `fit` a second time if it has created variables, as optimizers of
    Keras do (ours do not); most of a short training is spent there. Tests that are marked
    `built_in_fit` are of optimizers that are built in this step.
    """
    if request.node.get_closest_marker("built_in_fit"):
        return
    # Of the base class: a model with another `compile` than that is loaded without being compiled.
    (trainer,) = [each for each in keras.Model.__mro__ if "compile" in vars(each)]
    compile_model = trainer.compile

    @functools.wraps(compile_model)
    def compile_and_build(model, *arguments, **settings):
        compile_model(model, *arguments, **settings)
        if model.built and not tf.distribute.has_strategy() and model.optimizer is not None:
            # What cannot be built says so in `fit`.
            with contextlib.suppress(ValueError):
                model.optimizer.build(model.trainable_variables)

    monkeypatch.setattr(trainer, "compile", compile_and_build)


@pytest.fixture
def no_space():
    """`no_space(n)`: no file can grow past n bytes, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def eagerly():
    """Functions run eagerly: many small trainings take less time than their graphs."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)
