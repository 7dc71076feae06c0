"""The networks of `scripts.benchmark.deployment`, their data, and the variants of each."""

import dataclasses
from collections.abc import Callable

import keras
import numpy as np

import models
from rigl_tf.structures import Block
from scripts.benchmark import browser
from scripts.common import datasets, experiments

layers = keras.layers
SPARSITY, KEEP = 0.9, 0.5
NUM_REPRESENTATIVE = 200  # examples from which int8 computes its ranges
VARIANTS = {
    "dense": "dense",
    "unstructured": f"unstructured {SPARSITY:.0%}",
    "block": f"block {SPARSITY:.0%}",
    "channels": f"channels {KEEP:.0%}",
    "int8": "int8",
}
STRUCTURES = {"unstructured": None, "block": Block((4, 1))}


@dataclasses.dataclass(frozen=True)
class Network:
    """A network, its data, and how it is trained.

    Attributes:
        heading: Name of the network on the page.
        data_heading: Name of the data on the page.
        build: Function that takes a `Dataset` and returns the dense network.
        load: Function that returns the `Dataset`, according to the flags of `experiments`.
        sparse: Tuple; layers whose names begin with one of these become sparse.
        batch_size, epochs, learning_rate, update_frequency: Numbers.
        seconds: The approximate time of a run on two cores.
    """

    heading: str
    data_heading: str
    build: Callable
    load: Callable
    sparse: tuple
    batch_size: int
    epochs: int
    learning_rate: float
    update_frequency: int
    seconds: float


def ds_cnn(data):
    """DS-CNN for keywords: a 10x4 convolution, then four depthwise and 1x1 ones with 64 channels.

    Reference:

    - [Zhang et al., 2017](https://arxiv.org/abs/1711.07128), the small network, with a stride of 2
      in both directions as in MLPerf Tiny
    """
    inputs = keras.Input(data.x_train.shape[1:], name="features")
    x = layers.Conv2D(64, (10, 4), strides=2, padding="same", use_bias=False, name="first")(inputs)
    x = _normalised(x)
    for number in range(4):
        x = layers.DepthwiseConv2D(3, padding="same", use_bias=False)(x)
        x = _normalised(x)
        x = layers.Conv2D(64, 1, use_bias=False, name=f"pointwise_{number}")(x)
        x = _normalised(x)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(data.num_classes, name="head")(x), name="ds_cnn")


def _normalised(x):
    return layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))


def half_mobilenet(data):
    """MobileNet-v1 of half width."""
    halved = (32, 64, 64, 128, 128, *[256] * 6, 512, 512)
    strides = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)
    return browser.mobilenet(
        data.x_train.shape[1], data.num_classes, 16, list(zip(halved, strides, strict=True))
    )


def mlp(data):
    """Two hidden layers of 128 units."""
    inputs = keras.Input(data.x_train.shape[1:], name="table")
    x = layers.Dense(128, activation="relu", name="first")(inputs)
    x = layers.Dense(128, activation="relu", name="hidden")(x)
    return keras.Model(inputs, layers.Dense(data.num_classes, name="head")(x), name="mlp")


def keywords(num_train=4000, num_test=1000):
    """Synthetic keywords: each of 12 words is a series of 17 sounds, each sound has 10 features.

    An example has 49 frames. It starts at a random place in its word, has a random loudness, and
    contains noise.
    """
    generator = np.random.default_rng(0)
    words = generator.normal(size=(12, 17, 5)).repeat(4, axis=1).repeat(2, axis=2)

    def examples(number):
        labels = generator.integers(0, len(words), number)
        starts = generator.integers(0, words.shape[1] - 49 + 1, number)
        x = np.stack(
            [words[y, start : start + 49] for y, start in zip(labels, starts, strict=True)]
        )
        x = generator.uniform(0.5, 1.5, (number, 1, 1)) * x + generator.normal(0, 2.0, x.shape)
        return x[..., np.newaxis].astype("float32"), labels.astype("int32")

    return datasets.Dataset(*examples(num_train), *examples(num_test), len(words), "keywords")


def table():
    """The breast cancer data of scikit-learn, standardised: 30 columns, two classes."""
    from sklearn.datasets import load_breast_cancer
    from sklearn.model_selection import train_test_split

    x, y = load_breast_cancer(return_X_y=True)
    x_train, x_test, y_train, y_test = train_test_split(
        x, y, test_size=169, stratify=y, random_state=0
    )
    mean, deviation = x_train.mean(axis=0), x_train.std(axis=0)
    x_train, x_test = (((each - mean) / deviation).astype("float32") for each in (x_train, x_test))
    y_train, y_test = y_train.astype("int32"), y_test.astype("int32")
    return datasets.Dataset(x_train, y_train, x_test, y_test, 2, "breast cancer")


def images(data, size):
    """A `Dataset` whose images are resized to this size, with three channels."""
    x_train, x_test = (browser.images(x, size) for x in (data.x_train, data.x_test))
    return data._replace(x_train=x_train, x_test=x_test)


NETWORKS = {
    "lenet_300_100": Network(
        "LeNet-300-100",
        "MNIST",
        lambda data: models.lenet_300_100(data.x_train.shape[1:], data.num_classes),
        lambda: experiments.load("mnist"),
        ("dense_",),
        *(128, 5, 0.002, 100, 20),
    ),
    "ds_cnn": Network(
        "DS-CNN",
        "synthetic keywords",
        ds_cnn,
        lambda: experiments.shortened(keywords()),
        ("pointwise_",),
        *(64, 12, 0.003, 20, 30),
    ),
    "mobilenet": Network(
        "MobileNet-v1 0.5",
        "scikit-learn's digits as images of 96 x 96",
        half_mobilenet,
        lambda: images(experiments.load("digits"), 96),
        ("pointwise_",),
        *(64, 12, 0.003, 10, 90),
    ),
    "mlp": Network(
        "MLP 128-128",
        "scikit-learn's breast cancer table",
        mlp,
        lambda: experiments.shortened(table()),
        ("hidden",),
        *(32, 20, 0.003, 10, 12),
    ),
}
