"""Tests of `rigl_tf.sparsity_summary`."""

import keras
import numpy as np
import pytest
from helpers import covers_part

import models
import rigl_tf
from rigl_tf.layers import summary

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


@covers_part
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
        "frozen/kernel": "frozen",
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


def test_weights_of_a_model_itself_and_layers_that_were_added_later():
    class WithOwnWeights(keras.Model):
        def __init__(self):
            super().__init__()
            self.mix = self.add_weight(shape=(8, 8), name="mix")
            self.head = layers.Dense(4)

        def call(self, inputs):
            return self.head(inputs @ self.mix)

    model = WithOwnWeights()
    model(np.ones((1, 8)))
    with pytest.warns(UserWarning, match="64 are weights that the model has added itself"):
        sparse = rigl_tf.sparsify(model, 0.5)
    told = rigl_tf.sparsity_summary(sparse)
    assert [weights.reason for weights in told.dense] == ["of the model itself"]
    assert (told.coverage.num_of_model, told.coverage.num_not_wrapped) == (64, 0)

    later = rigl_tf.sparsify(keras.Sequential([keras.Input((8,)), layers.Dense(7)]), 0.5)
    later.add(layers.Dense(6))
    text = str(rigl_tf.sparsity_summary(later))
    assert "42 are in kernels that are not wrapped: " in text
    assert text.endswith("or their layers were added later.")


def test_a_layer():
    layer = rigl_tf.SparseWrapper(layers.Dense(4), 0.75)
    layer.build((None, 8))
    assert rigl_tf.sparsity_summary(layer).kernels[0].num_active == 8


def test_an_unbuilt_model():
    model = keras.Sequential([layers.Dense(3)], name="early")
    with pytest.raises(ValueError, match="model='early', without weights"):
        rigl_tf.sparsity_summary(model)


# Of what the sparsity is a share.


def text_model():
    """Embeddings 20 x 4 = 80, frozen kernel 4 x 6 = 24 and bias 6, kernel 6 x 3 = 18 and bias 3."""
    frozen = layers.Dense(6, name="frozen")
    frozen.trainable = False
    return keras.Sequential(
        [
            keras.Input((5,)),
            layers.Embedding(20, 4, name="words"),
            frozen,
            layers.Dense(3, name="head"),
        ]
    )


@covers_part
def test_the_coverage():
    sparse = rigl_tf.sparsify(text_model(), 0.5)
    told = summary.coverage(sparse)
    assert told == summary.Coverage(131, 18, 104, 24, 80)
    assert told == rigl_tf.sparsity_summary(sparse).coverage
    assert told.is_surprising
    sentence = (
        "18 of 131 weights (13.7%) are in sparse kernels, and the sparsity is a share of these; "
        "24 are frozen and stay dense; 80 are embeddings and stay dense, unless `sparse_layers` "
        "names their layers."
    )
    assert str(told) == sentence
    assert sentence in str(rigl_tf.sparsity_summary(sparse))


@covers_part
def test_what_is_no_surprise():
    sparse = rigl_tf.sparsify(models.lenet_300_100(), 0.9)
    told = summary.coverage(sparse)
    assert not told.is_surprising
    assert str(told) == (
        "266,200 of 266,610 weights (99.8%) are in sparse kernels, and the sparsity is a share of "
        "these."
    )
    # What the user left out is none either: two of three kernels, most of the weights.
    names = [layer.name for layer in models.lenet_300_100().layers if layer.weights]
    sparse = rigl_tf.sparsify(models.lenet_300_100(), 0.9, dense_layers=names[:2])
    told = summary.coverage(sparse)
    assert (told.num_in_kernels, told.num_dense) == (1000, 0)
    assert not told.is_surprising
    # Nor are biases, 1 + 9, beside 3 + 9 weights in kernels, and embeddings that are not more.
    small = [layers.Embedding(4, 3), layers.Dense(1), layers.Dense(9)]
    told = summary.coverage(rigl_tf.sparsify(keras.Sequential([keras.Input((2,)), *small]), 0.5))
    assert told == summary.Coverage(34, 12, 12, 0, 12)
    assert not told.is_surprising
    # Embeddings that are sparse are kernels.
    told = summary.coverage(rigl_tf.sparsify(text_model(), 0.5, sparse_layers="words"))
    assert (told.num_in_kernels, told.num_embeddings) == (98, 0)
    assert told.is_surprising  # a kernel is frozen


class MakesLayersLate(layers.Layer):
    """Keras does not freeze the layers that a frozen layer makes when it is built."""

    def build(self, shape):
        self.dense = layers.Dense(4, name="inside")
        self.dense.build(shape)
        self.built = True

    def call(self, inputs):
        return self.dense(inputs)


@pytest.mark.parametrize("frozen", ["layer", "model", "late", "unbuilt", "weight"])
@covers_part
def test_frozen_weights_are_told(frozen):
    base = keras.Sequential([layers.Dense(4, name="a"), layers.Dense(4, name="b")], name="base")
    if frozen == "late":
        base = MakesLayersLate(trainable=False)
    elif frozen == "unbuilt":
        base.trainable = False
    dense = keras.Sequential([keras.Input((4,)), base, layers.Dense(3, name="head")])
    if frozen == "layer":
        for layer in base.layers:
            layer.trainable = False
    elif frozen == "model":
        base.trainable = False
    elif frozen == "weight":
        for layer in base.layers:
            layer.kernel.trainable = False
    sparse = rigl_tf.sparsify(dense, 0.5)
    reasons = [each.reason for each in rigl_tf.sparsity_summary(sparse).dense]
    num_kernels = 1 if frozen == "late" else 2
    assert reasons == ["not trainable" if frozen == "weight" else "frozen"] * num_kernels
    told = summary.coverage(sparse)
    assert told.num_frozen == 16 * num_kernels
    assert told.is_surprising
    assert f"; {16 * num_kernels} are frozen and stay dense." in str(told)
    if frozen == "model":
        base.trainable = True  # the weights, too
        told = summary.coverage(sparse)
        assert (told.num_frozen, told.num_not_wrapped) == (0, 32)
        assert "; 32 are in kernels that are not wrapped: " in str(told)


@covers_part
def test_what_is_trained_in_a_frozen_model_is_sparse():
    """As in fine-tuning: all of a base is frozen, then its last layer is not."""
    base = keras.Sequential([layers.Dense(4, name="a"), layers.Dense(4, name="b")], name="base")
    dense = keras.Sequential([keras.Input((4,)), base, layers.Dense(3, name="head")])
    base.trainable = False
    base.get_layer("b").trainable = True
    trained = [weight.path for weight in dense.trainable_weights if len(weight.shape) > 1]
    assert [path.split("/")[-2] for path in trained] == ["b", "head"]
    sparse = rigl_tf.sparsify(dense, 0.5)
    assert [path.split("/")[-2] for path in rigl_tf.get_masks(sparse)] == ["b", "head"]
    assert [each.reason for each in rigl_tf.sparsity_summary(sparse).dense] == ["frozen"]


def test_weights_outside_of_the_masks_are_told():
    sparse = rigl_tf.sparsify(models.lenet_300_100(), 0.9, "uniform")
    assert rigl_tf.sparsity_summary(sparse).outside == {}
    assert "outside" not in str(rigl_tf.sparsity_summary(sparse))
    masks = list(rigl_tf.get_masks(sparse).items())
    kernels = {weight.path: weight for weight in sparse.weights}
    # Ones in two places of a kernel, and something that is no number in one of another.
    for (path, mask), value, number in zip(masks[1:], [1.0, np.nan], [2, 1], strict=True):
        values = kernels[path].numpy()
        values[tuple(np.argwhere(~mask)[:number].T)] = value
        kernels[path].assign(values)
    told = rigl_tf.sparsity_summary(sparse)
    (first, _), (second, _) = masks[1:]
    assert told.outside == {first: 2, second: 1}
    assert f"Not zero outside of the masks: 2 in {first}, 1 in {second}." in str(told)
    assert told.num_active == rigl_tf.sparsity_summary(sparse).num_active
    rigl_tf.set_masks(sparse, rigl_tf.get_masks(sparse))
    assert rigl_tf.sparsity_summary(sparse).outside == {}


def test_a_kernel_whose_mask_is_in_another_model():
    encoder = keras.Sequential([keras.Input((6,)), keras.layers.Dense(8, name="code")])
    inputs = keras.Input((6,))
    rigl_tf.sparsify(keras.Model(inputs, keras.layers.Dense(3)(encoder(inputs))), 0.5)
    other = keras.Model(inputs, keras.layers.Dense(2, name="head")(encoder(inputs)))
    reasons = [each.reason for each in rigl_tf.sparsity_summary(other).dense]
    assert reasons == ["its mask is in another model", "not wrapped"]
