"""Tests of `rigl_tf.flops`: the numbers are computed by hand."""

import dataclasses
import math

import keras
import numpy as np
import pytest
import reference
import tensorflow as tf
from helpers import sequential

import models
import rigl_tf
from rigl_tf import flops

layers = keras.layers


def first_active(*counts):
    """A function that gives a model's kernels, in their order, masks with these counts."""

    def apply(model):
        masks = rigl_tf.get_masks(model)
        for count, mask in zip(counts, masks.values(), strict=True):
            mask[...] = (np.arange(mask.size) < count).reshape(mask.shape)
        rigl_tf.set_masks(model, masks)
        return model

    return apply


# Input shape, layer, size of the kernel, how often each connection is used for one sample.
LAYERS = {
    "dense": ((7,), layers.Dense(5), 7 * 5, 1),
    "dense, 3-D": ((6, 7), layers.Dense(5), 7 * 5, 6),
    "dense, 4-D": ((2, 6, 7), layers.Dense(5, use_bias=False), 7 * 5, 2 * 6),
    "dense at each time": ((6, 7), layers.TimeDistributed(layers.Dense(5)), 7 * 5, 6),
    "1-D": ((10, 2), layers.Conv1D(5, 3), 3 * 2 * 5, 8),
    "1-D same": ((10, 2), layers.Conv1D(5, 3, padding="same"), 3 * 2 * 5, 10),
    "1-D causal": ((10, 2), layers.Conv1D(5, 3, padding="causal"), 3 * 2 * 5, 10),
    "1-D stride": ((10, 2), layers.Conv1D(5, 3, strides=2), 3 * 2 * 5, 4),
    "1-D same stride": ((10, 2), layers.Conv1D(5, 3, strides=3, padding="same"), 3 * 2 * 5, 4),
    "1-D dilation": ((10, 2), layers.Conv1D(5, 3, dilation_rate=2), 3 * 2 * 5, 6),
    "1-D groups": ((10, 2), layers.Conv1D(4, 3, groups=2), 3 * 1 * 4, 8),
    "2-D": ((8, 6, 2), layers.Conv2D(5, 3), 3 * 3 * 2 * 5, 6 * 4),
    "2-D same": ((8, 6, 2), layers.Conv2D(5, 3, padding="same"), 3 * 3 * 2 * 5, 8 * 6),
    "2-D oblong": ((8, 6, 2), layers.Conv2D(5, (3, 1)), 3 * 1 * 2 * 5, 6 * 6),
    "2-D stride": ((8, 6, 2), layers.Conv2D(5, 3, strides=(2, 1)), 3 * 3 * 2 * 5, 3 * 4),
    "2-D same stride": (
        (8, 5, 2),
        layers.Conv2D(5, 3, strides=2, padding="same"),
        3 * 3 * 2 * 5,
        4 * 3,
    ),
    "2-D dilation": ((8, 6, 2), layers.Conv2D(5, 3, dilation_rate=2), 3 * 3 * 2 * 5, 4 * 2),
    "2-D groups": ((8, 6, 2), layers.Conv2D(4, 3, groups=2), 3 * 3 * 1 * 4, 6 * 4),
    "2-D channels first": (
        (2, 8, 6),
        layers.Conv2D(5, 3, data_format="channels_first"),
        3 * 3 * 2 * 5,
        6 * 4,
    ),
    "3-D": ((4, 5, 6, 2), layers.Conv3D(3, 2), 2 * 2 * 2 * 2 * 3, 3 * 4 * 5),
    "3-D same stride": (
        (4, 5, 6, 2),
        layers.Conv3D(3, 2, strides=2, padding="same"),
        2 * 2 * 2 * 2 * 3,
        2 * 3 * 3,
    ),
    "1-D transposed": ((10, 2), layers.Conv1DTranspose(5, 3, strides=2), 3 * 2 * 5, 10),
    "2-D transposed": (
        (8, 6, 2),
        layers.Conv2DTranspose(5, 3, strides=2, padding="same"),
        3 * 3 * 2 * 5,
        8 * 6,
    ),
    "2-D transposed, channels first": (
        (2, 8, 6),
        layers.Conv2DTranspose(5, 3, data_format="channels_first"),
        3 * 3 * 2 * 5,
        8 * 6,
    ),
    "3-D transposed": ((4, 5, 6, 2), layers.Conv3DTranspose(3, 2), 2 * 2 * 2 * 2 * 3, 4 * 5 * 6),
    "1-D depthwise": ((10, 4), layers.DepthwiseConv1D(3, depth_multiplier=2), 3 * 4 * 2, 8),
    "2-D depthwise": ((8, 6, 2), layers.DepthwiseConv2D(3), 3 * 3 * 2, 6 * 4),
    "2-D depthwise stride": (
        (8, 6, 2),
        layers.DepthwiseConv2D(3, strides=2, padding="same"),
        3 * 3 * 2,
        4 * 3,
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_one_layer(name):
    shape, layer, size, num_uses = LAYERS[name]
    layer = type(layer).from_config(layer.get_config())  # The tests share no weights.
    model = sequential(shape, layer)
    cost = flops.count(model)
    (kernel,) = cost.kernels
    assert (kernel.size, kernel.num_active, kernel.num_uses) == (size, size, num_uses)
    assert kernel.sparsity == 0
    assert cost.flops == cost.dense_flops == 2 * size * num_uses
    assert cost.multiply_adds == cost.dense_multiply_adds == size * num_uses
    assert cost.flops_ratio == 1
    assert cost.num_weights == cost.num_active == model.count_params()
    num_bytes = {cost.num_bytes, cost.num_bytes_indexed, cost.dense_bytes}
    assert num_bytes == {4 * model.count_params()}


@pytest.mark.parametrize("name", [name for name in LAYERS if "depthwise" not in name])
def test_one_sparse_layer(name):
    shape, layer, size, num_uses = LAYERS[name]
    layer = type(layer).from_config(layer.get_config())
    model = first_active(11)(rigl_tf.sparsify(sequential(shape, layer), 0.5))
    layer = getattr(layer, "layer", layer)
    num_biases = layer.use_bias * layer.get_config().get("units", layer.get_config().get("filters"))
    cost = flops.count(model)
    assert cost.flops == 2 * 11 * num_uses
    assert cost.dense_flops == 2 * size * num_uses
    assert (cost.multiply_adds, cost.dense_multiply_adds) == (11 * num_uses, size * num_uses)
    assert cost.flops_ratio == 11 / size
    assert cost.kernels[0].sparsity == 1 - 11 / size
    assert cost.num_other_weights == num_biases
    assert (cost.num_weights, cost.num_active) == (size + num_biases, 11 + num_biases)
    assert cost.num_bytes == 4 * 11 + math.ceil(size / 8) + 4 * num_biases
    assert size <= 256  # so that a position is a byte
    assert cost.num_bytes_indexed == (4 + 1) * 11 + 4 * num_biases
    assert cost.dense_bytes == 4 * size + 4 * num_biases


def test_lenet_300_100_uniform():
    # The first layer stays dense; the others keep a tenth of 300 * 100 and of 100 * 10.
    cost = flops.count(rigl_tf.sparsify(models.lenet_300_100(), 0.9, "uniform"))
    assert [kernel.num_active for kernel in cost.kernels] == [235_200, 3000, 100]
    assert cost.flops == 2 * (235_200 + 3000 + 100)
    assert cost.dense_flops == 2 * (235_200 + 30_000 + 1000)
    assert cost.num_other_weights == 300 + 100 + 10
    assert cost.num_bytes == 4 * (235_200 + 3000 + 100 + 410) + (30_000 + 1000) // 8
    # 30,000 positions need 16 bits, 1000 too.
    assert cost.num_bytes_indexed == 4 * (235_200 + 410) + (4 + 2) * (3000 + 100)
    assert cost.dense_bytes == 4 * 266_610
    assert (cost.num_active, cost.num_weights) == (238_300 + 410, 266_610)


def test_lenet_300_100_erk():
    shapes = {"1": (784, 300), "2": (300, 100), "3": (100, 10)}
    want = [
        math.prod(shape) - math.floor(sparsity * math.prod(shape))
        for shape, sparsity in zip(
            shapes.values(), reference.erk(shapes, 0.9).values(), strict=True
        )
    ]
    cost = flops.count(rigl_tf.sparsify(models.lenet_300_100(), 0.9, "erk"))
    assert [kernel.num_active for kernel in cost.kernels] == want
    assert cost.flops == 2 * sum(want)


def test_lenet5():
    # 24 x 24 and 8 x 8 positions, then 256-120-84-10.
    sparse = first_active(50, 400, 1000, 500, 840)(rigl_tf.sparsify(models.lenet5(), 0.5))
    cost = flops.count(sparse)
    assert cost.dense_flops == 2 * (150 * 576 + 2400 * 64 + 256 * 120 + 120 * 84 + 840)
    assert cost.flops == 2 * (50 * 576 + 400 * 64 + 1000 + 500 + 840)


@pytest.mark.parametrize(
    ("size", "index_bytes"),
    [(256, 1), (257, 2), (65_536, 2), (65_537, 4), (2**32, 4), (2**32 + 1, 8)],
)
def test_the_width_of_an_index(size, index_bytes):
    kernel = flops.KernelCost("kernel", (size,), num_active=10, num_uses=1)
    assert kernel.num_bytes_indexed == 10 * (4 + index_bytes)
    assert kernel.num_bytes == 40 + math.ceil(size / 8)
    assert kernel.dense_bytes == 4 * size
    dense = dataclasses.replace(kernel, num_active=size)
    assert dense.num_bytes_indexed == dense.num_bytes == dense.dense_bytes


def test_the_table():
    text = str(flops.count(rigl_tf.sparsify(models.lenet_300_100(), 0.9, "uniform")))
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines()]
    assert [row for row in rows if row] == [
        ["dense_1/kernel", "784x300", "0.00%", *["470.4 k"] * 2, *["940.8 k"] * 3],
        # 30,000 / 10 connections: 12,000 bytes, a mask of 3750 or indices of 6000.
        ["dense_2/kernel", "300x100", "90.00%", "6 k", "60 k", "15.75 k", "18 k", "120 k"],
        ["classifier/kernel", "100x10", "90.00%", "200", "2 k", "525", "600", "4 k"],
        ["other weights", "", "", "", "", "1.64 k", "1.64 k", "1.64 k"],
        # 1 - 238,710 / 266,610
        ["model", "", "10.46%", "476.6 k", "532.4 k", "958.7 k", "961 k", "1.066 M"],
    ]
    assert max(map(len, text.splitlines())) <= 100


def test_the_table_of_what_is_not_known():
    kernels = (
        flops.KernelCost("known", (4, 5), 7, num_uses=1),
        flops.KernelCost("looped", (4, 5), 7, num_uses=None, unknown="a loop"),
    )
    cost = flops.Cost(kernels, num_other_weights=0)
    assert (cost.flops, cost.multiply_adds, cost.dense_multiply_adds) == (None, None, None)
    known, looped, model = [line for line in str(cost).splitlines() if "%" in line]
    assert "?" not in known
    assert looped.count("?") == model.count("?") == 2


def test_normalisation_is_among_the_other_weights():
    model = sequential((8, 6, 2), layers.Conv2D(5, 3, use_bias=False), layers.BatchNormalization())
    cost = flops.count(model)
    assert cost.num_other_weights == 4 * 5
    assert cost.dense_bytes == 4 * (90 + 20)
    assert cost.flops == 2 * 90 * 24


def test_a_nested_model():
    inputs = keras.Input((4,))
    inner = keras.Model(inputs, layers.Dense(6, name="in")(inputs), name="inner")
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers.Dense(2, name="out")(inner(inputs)))
    assert flops.count(model).flops == 2 * (4 * 6 + 6 * 2)
    sparse = first_active(5, 3)(rigl_tf.sparsify(model, 0.5))
    assert flops.count(sparse).flops == 2 * (5 + 3)


def test_a_shared_layer_is_used_twice_and_stored_once():
    inputs = keras.Input((8, 6, 2))
    shared = layers.Conv2D(2, 3, use_bias=False)
    model = keras.Model(inputs, shared(shared(inputs)))
    cost = flops.count(model)
    (kernel,) = cost.kernels
    assert kernel.num_uses == 6 * 4 + 4 * 2
    assert cost.flops == 2 * 36 * 32
    assert cost.dense_bytes == 4 * 36
    assert flops.count(first_active(7)(rigl_tf.sparsify(model, 0.5))).flops == 2 * 7 * 32


def test_a_shared_model():
    inputs = keras.Input((4,))
    inner = keras.Model(inputs, layers.Dense(4)(inputs))
    inputs = keras.Input((4,))
    assert flops.count(keras.Model(inputs, inner(inner(inputs)))).flops == 2 * 16 * 2


@pytest.mark.parametrize("structure", ["list", "dict"])
def test_several_inputs(structure):
    one, other = keras.Input((4,), name="one"), keras.Input((3,), name="the other")
    inputs = [one, other] if structure == "list" else {"one": one, "the other": other}
    model = keras.Model(inputs, [layers.Dense(2)(one), layers.Dense(5)(other)])
    assert flops.count(model).flops == 2 * (4 * 2 + 3 * 5)


def test_integer_inputs():
    model = sequential((4,), layers.Embedding(9, 3), layers.Flatten(), layers.Dense(2))
    cost = flops.count(model)
    assert cost.flops == 2 * 12 * 2
    assert cost.num_other_weights == 9 * 3 + 2


def test_a_model_built_by_calling_it():
    model = keras.Sequential([layers.Dense(3), layers.Dense(2)])
    model(np.ones((5, 4)))
    assert flops.count(model).flops == 2 * (4 * 3 + 3 * 2)


def test_a_model_without_kernels():
    cost = flops.count(sequential((4,), layers.ReLU()))
    assert (cost.flops, cost.dense_flops, cost.flops_ratio, cost.num_bytes) == (0, 0, 1, 0)


def test_the_model_is_as_before():
    model = rigl_tf.sparsify(models.lenet5(), 0.5)
    model.compile("sgd", "mse")
    attributes = {layer.name: set(vars(layer)) for layer in model.layers}
    inputs = np.random.default_rng(0).normal(size=(2, 28, 28, 1))
    before = model.predict(inputs, verbose=0)
    flops.count(model)
    assert {layer.name: set(vars(layer)) for layer in model.layers} == attributes
    np.testing.assert_array_equal(model.predict(inputs, verbose=0), before)


# What cannot be counted.


def test_an_unknown_input_dimension():
    model = keras.Sequential([keras.Input((None, 4), name="sound"), layers.Conv1D(2, 3)])
    with pytest.raises(ValueError, match=r"'sound' of shape \(None, None, 4\)"):
        flops.count(model)
    assert flops.count(model, np.ones((8, 10, 4))).flops == 2 * 3 * 4 * 2 * 8
    assert flops.count(model, [np.ones((1, 12, 4))]).flops == 2 * 3 * 4 * 2 * 10
    assert flops.count(model, tf.TensorSpec((None, 12, 4), "float16")).flops == 2 * 24 * 10
    with pytest.raises(ValueError, match=r"'sound' of shape \(None, None, 4\)"):
        flops.count(model, tf.TensorSpec((None, None, 4)))


def test_an_unbuilt_model():
    model = keras.Sequential([layers.Dense(3)], name="early")
    with pytest.raises(ValueError, match="model='early', not built"):
        flops.count(model)


def test_a_subclassed_model():
    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(3)

        def call(self, inputs):
            return self.dense(inputs)

    model = Subclassed()
    model(np.ones((1, 4)))
    with pytest.raises(ValueError, match="of class Subclassed"):
        flops.count(model)
    assert flops.count(model, np.ones((5, 4))).flops == 2 * 4 * 3
    assert flops.count(model, tf.TensorSpec((None, 6, 4))).flops == 6 * 2 * 4 * 3


def test_inputs_of_another_structure():
    one, other = keras.Input((4,), name="one"), keras.Input((3,), name="other")
    model = keras.Model({"one": one, "other": other}, layers.Add()([one[:, :3], other]))
    with pytest.raises(ValueError, match=r"`inputs` must have the structure.*'other'"):
        flops.count(model, {"one": np.ones((1, 4))})


# Training.


@pytest.mark.parametrize(
    ("method", "want"),
    [
        ("dense", 3000),
        ("small_dense", 300),
        ("static", 300),
        ("snip", 300),
        ("grasp", 300),
        ("set", 300),
        ("pruning", 300),
        ("snfs", 1200),
        ("dnw", 1200),
        # 9 steps of 300, and one of 200 + 1000
        ("rigl", 390),
        ("rigl_inverted", 390),
    ],
)
def test_training_flops(method, want):
    assert rigl_tf.flops.training_flops(1000, 100, method, update_frequency=9) == want


@pytest.mark.parametrize("method", ["dense", "static", "snfs", "rigl"])
def test_training_flops_without_the_gradient_of_the_inputs(method):
    whole = rigl_tf.flops.training_flops(1000, 100, method)
    assert rigl_tf.flops.training_flops(1000, 100, method, input_gradient=40) == whole - 40


def test_training_flops_of_the_paper():
    # Figure 2: ResNet-50 at 80 %, the share of the dense model's 3.2e18; updates end at 25,000
    # of 32,000 steps, which changes no digit that is given.
    def share(sparse, method):
        return rigl_tf.flops.training_flops(1.0, sparse, method) / 3

    assert round(share(0.23, "set"), 2) == round(share(0.23, "rigl"), 2) == 0.23
    assert round(share(0.42, "rigl"), 2) == 0.42
    assert round(share(0.42, "snfs"), 2) == 0.61


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1000, 100, "rigle"), r"`method` must be one of .*Received: method='rigle'"),
        ((-1, 100, "rigl"), "Received: dense=-1"),
        ((1000, None, "rigl"), "Received: sparse=None"),
        ((1000, float("nan"), "rigl"), "Received: sparse=nan"),
        ((1000, 100, "rigl", 0), "Received: update_frequency=0"),
        ((1000, 100, "rigl", 100, -1), "Received: input_gradient=-1"),
    ],
)
def test_bad_arguments_of_training_flops(arguments, message):
    with pytest.raises(ValueError, match=message):
        rigl_tf.flops.training_flops(*arguments)
