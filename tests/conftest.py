"""Two CPU devices for every test, and the same start for each of them."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ["KERAS_BACKEND"] = "tensorflow"

import keras
import pytest
import tensorflow as tf
from tensorflow.python.eager import context

# Devices can be split only before TensorFlow starts, so it is done here, once.
_CPU = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(_CPU, [tf.config.LogicalDeviceConfiguration()] * 2)


@pytest.fixture(autouse=True)
def fresh_start():
    """Seeds, layer names and the dtype policy do not depend on the tests before."""
    with pytest.MonkeyPatch.context() as patch:
        # Both of these make TensorFlow forget its kernels: to make them anew for each test takes a
        # fifth of the time. Only random ops with a state of their own need it, which nothing here
        # has; those of graphs begin where the seed below tells them.
        patch.setattr(context.Context, "clear_kernel_cache", lambda self: None)
        patch.setattr(tf.random, "set_seed", lambda seed: None)
        keras.utils.clear_session(free_memory=False)
        keras.utils.set_random_seed(0)
    if context.global_seed() != 0:
        tf.random.set_seed(0)
    keras.config.set_dtype_policy("float32")
    yield
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")
