"""Tests of `rigl_tf.sparsity_summary`."""

import keras
import numpy as np
import pytest

import models
import rigl_tf

layers = keras.layers


def network():
    """A model with every kind of weight."""
    image = keras.Input((6, 6, 2), name="image")
    x = layers.Conv2D(4, 3, use_bias=False, name="conv")(image)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.DepthwiseConv2D(3, use_bias=False, name="depthwise")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    x = layers.Dense(6, name="hidden")(x)
    word = keras.Input((), dtype="int32", name="word")
    y = layers.Embedding(7, 3, name="words")(word)
    outputs = layers.Dense(5, name="head")(layers.Concatenate(name="both")([x, y]))
    return keras.Model([image, word], outputs, name="network")


def test_the_numbers():
    sparse = rigl_tf.sparsify(network(), 0.5, "erk", dense_layers=["head"])
    masks = {path: mask.copy() for path, mask in rigl_tf.get_masks(sparse).items()}
    masks["conv/kernel"][...] = np.arange(72).reshape(3, 3, 2, 4) < 18
    masks["hidden/kernel"][...] = np.arange(24).reshape(4, 6) < 18
    rigl_tf.set_masks(sparse, masks)
    summary = rigl_tf.sparsity_summary(sparse)
    assert [(kernel.path, kernel.shape, kernel.num_active) for kernel in summary.kernels] == [
        ("conv/kernel", (3, 3, 2, 4), 18),
        ("hidden/kernel", (4, 6), 18),
    ]
    assert [kernel.size for kernel in summary.kernels] == [72, 24]
    assert [kernel.sparsity for kernel in summary.kernels] == [0.75, 0.25]
    assert summary.sparsity == 1 - 36 / 96
    assert {(weights.path, weights.shape, weights.reason) for weights in summary.dense} == {
        ("depthwise/kernel", (3, 3, 4, 1), "depthwise"),
        ("words/embeddings", (7, 3), "embedding"),
        ("head/kernel", (9, 5), "not wrapped"),
    }
    # Kernels, normalisation, depthwise, embeddings, head, two biases.
    assert summary.num_weights == 96 + 16 + 36 + 21 + 45 + 6 + 5
    assert summary.num_active == summary.num_weights - 60


def test_the_text():
    sparse = rigl_tf.sparsify(network(), 0.5, "uniform", dense_layers=["head"])
    text = str(rigl_tf.sparsity_summary(sparse))
    rows = {line.split("│")[1].strip(): line for line in text.splitlines() if line.count("│") > 2}
    assert set(rows) == {
        "conv/kernel",
        "hidden/kernel",
        "depthwise/kernel (depthwise)",
        "words/embeddings (embedding)",
        "head/kernel (not wrapped)",
        "biases, normalisation",
        "all weights",
    }

    def cells(row):
        return [cell.strip() for cell in rows[row].split("│")[2:-1]]

    # Uniform keeps the first layer dense.
    assert cells("conv/kernel") == ["3x3x2x4", "72", "72", "0.00%"]
    assert cells("hidden/kernel") == ["4x6", "12", "24", "50.00%"]
    assert cells("depthwise/kernel (depthwise)") == ["3x3x4x1", "36", "36", "dense"]
    assert cells("biases, normalisation") == ["", "27", "27", "dense"]
    assert cells("all weights") == ["", "213", "225", "5.33%"]


@pytest.mark.parametrize("builder", models.BUILDERS)
def test_every_kernel_is_in_the_text(builder):
    sparse = rigl_tf.sparsify(models.build(builder, input_shape=(32, 32, 3)), 0.9)
    text = str(rigl_tf.sparsity_summary(sparse))
    for path in rigl_tf.get_masks(sparse):
        assert f" {path} " in text


def test_brackets_in_names_are_shown():
    dense = keras.Sequential([keras.Input((4,)), layers.Dense(3, name="left[a]:smile:")])
    text = str(rigl_tf.sparsity_summary(rigl_tf.sparsify(dense, 0.5, "erk")))
    assert "left[a]:smile:/kernel" in text


def test_several_kernels_in_a_layer():
    gru = rigl_tf.SparseWrapper(layers.GRU(4, name="gru"), 0.5)
    summary = rigl_tf.sparsity_summary(keras.Sequential([keras.Input((5, 3)), gru]))
    assert [kernel.shape for kernel in summary.kernels] == [(3, 12), (4, 12)]
    assert [kernel.num_active for kernel in summary.kernels] == [18, 24]
    ((reason, shape),) = [(weights.reason, weights.shape) for weights in summary.dense]
    assert (reason, shape) == ("bias", (2, 12))


def test_reasons_of_other_weights():
    frozen = layers.Dense(6, name="frozen")
    frozen.trainable = False
    dense = keras.Sequential(
        [
            keras.Input((4, 6)),
            frozen,
            layers.LayerNormalization(axis=[1, 2], name="norm"),
            layers.SeparableConv1D(5, 2, name="separable"),
            layers.Dense(3, name="head"),
        ]
    )
    summary = rigl_tf.sparsity_summary(rigl_tf.sparsify(dense, 0.5, "erk"))
    reasons = {w.path.removeprefix("sequential/"): w.reason for w in summary.dense}
    assert reasons == {
        "frozen/kernel": "not trainable",
        "norm/gamma": "normalisation",
        "norm/beta": "normalisation",
        "separable/depthwise_kernel": "depthwise",
    }


def test_a_dense_model():
    summary = rigl_tf.sparsity_summary(models.lenet_300_100())
    assert summary.kernels == ()
    assert summary.sparsity == 0
    assert summary.num_active == summary.num_weights == 266_610
    assert [weights.reason for weights in summary.dense] == ["not wrapped"] * 3
    assert "dense_1/kernel (not wrapped)" in str(summary)


def test_a_subclassed_model():
    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__()
            self.blocks = [
                rigl_tf.SparseWrapper(layers.Dense(4, name=f"d{i}"), 0.5) for i in (1, 2)
            ]
            self.parts = {"head": layers.Dense(2, name="head")}

        def call(self, inputs):
            for block in self.blocks:
                inputs = block(inputs)
            return self.parts["head"](inputs)

    model = Subclassed()
    model(np.ones((1, 6)))
    summary = rigl_tf.sparsity_summary(model)
    assert [kernel.num_active for kernel in summary.kernels] == [12, 8]
    assert [weights.reason for weights in summary.dense] == ["not wrapped"]


def test_a_layer():
    layer = rigl_tf.SparseWrapper(layers.Dense(4), 0.75)
    layer.build((None, 8))
    assert rigl_tf.sparsity_summary(layer).kernels[0].num_active == 8


def test_an_unbuilt_model():
    model = keras.Sequential([layers.Dense(3)], name="early")
    with pytest.raises(ValueError, match="model='early', without weights"):
        rigl_tf.sparsity_summary(model)
