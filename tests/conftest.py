"""Two CPU devices for every test, and the same start for each of them."""

import functools
import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ["KERAS_BACKEND"] = "tensorflow"

import keras
import pytest
import tensorflow as tf

# Devices can be split only before TensorFlow starts, so it is done here, once.
_CPU = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(_CPU, [tf.config.LogicalDeviceConfiguration()] * 2)


_HERE = pathlib.Path(__file__).parent
_ALSO_OF_SCRIPTS = {"test_architectures", "test_language_model"}


def pytest_collection_modifyitems(items):
    """The tests of scripts, which train as a user would, are not held to it yet: no warnings."""
    for item in items:
        is_of_scripts = item.path.stem in _ALSO_OF_SCRIPTS or "scripts" in _text_of(item.path)
        if is_of_scripts and item.path.parent == _HERE:
            item.add_marker(pytest.mark.filterwarnings("default"))


@functools.cache
def _text_of(path):
    return path.read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def fresh_start():
    """Seeds, layer names and the dtype policy do not depend on the tests before."""
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy("float32")
    yield
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")
