"""Two CPU devices for every test, and the same start for each of them."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ["KERAS_BACKEND"] = "tensorflow"

import keras
import numpy as np
import pytest
import tensorflow as tf

# Devices can be split only before TensorFlow starts, so it is done here, once.
_CPU = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(_CPU, [tf.config.LogicalDeviceConfiguration()] * 2)


@pytest.fixture(autouse=True)
def fresh_start():
    """Seeds, layer names and the dtype policy do not depend on the tests before."""
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy("float32")
    yield
    keras.config.set_dtype_policy("float32")


@pytest.fixture
def mnist_dir(tmp_path):
    """Data like MNIST: 2000 and 100 images, each class with another bright row."""
    generator = np.random.default_rng(0)
    arrays = {}
    for split, size in (("train", 2000), ("test", 100)):
        labels = generator.integers(0, 10, size)
        images = generator.integers(0, 50, (size, 28, 28))
        images[np.arange(size), 2 * labels + 4] += 200
        arrays |= {f"x_{split}": images.astype("uint8"), f"y_{split}": labels.astype("uint8")}
    (tmp_path / "data").mkdir()
    np.savez(tmp_path / "data" / "mnist.npz", **arrays)
    return tmp_path / "data"
