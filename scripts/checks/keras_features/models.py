"""Features of a model: losses, constraints, embeddings, quantization, random layers."""

import keras
import numpy as np

import rigl_tf
from scripts.checks.keras_features.base import Feature, data, mlp, rigl

layers = keras.layers


@keras.saving.register_keras_serializable(package="rigl_tf_features")
class AddsLoss(layers.Layer):
    def call(self, inputs):
        self.add_loss(0.01 * keras.ops.mean(keras.ops.square(inputs)))
        return inputs


def with_add_loss():
    return keras.Sequential([keras.Input((6,)), layers.Dense(8), AddsLoss(), layers.Dense(3)])


def with_embedding():
    return keras.Sequential(
        [keras.Input((6,)), layers.Embedding(12, 4), layers.Flatten(), layers.Dense(3)]
    )


def make_embedding_sparse(model):
    """Half of the embedding's connections, chosen by hand."""
    (kernel,) = [weight for weight in model.weights if weight.name == "embeddings"]
    mask = keras.Variable(np.arange(48).reshape(12, 4) % 2 == 0, dtype="bool", trainable=False)
    rigl_tf.masks.link(kernel, mask)
    rigl_tf.masks.kernel_of(kernel).zero_inactive()


def words(directory):
    x, y = data()
    return {"data": (np.abs(x * 5).astype("int32") % 12, y)}


def int8_keeps_zeros(model, watch):
    masks = watch.masks
    plain = rigl_tf.strip(model)
    plain.quantize("int8")
    for layer, mask in zip(plain.layers, masks, strict=True):
        quantized = np.asarray(layer.kernel)
        assert quantized.dtype == np.int8
        assert quantized[mask].any()
        assert not quantized[~mask].any()


def norms_are_small(model, watch):
    norms = np.linalg.norm(np.asarray(model.layers[0].layer.kernel), axis=0)
    assert (norms < 0.5 + 1e-5).all()


MODELS = [
    Feature("`add_loss`", model=with_add_loss),
    Feature(
        "regularizers",
        model=lambda: mlp(
            kernel_regularizer=keras.regularizers.L1L2(0.01, 0.01),
            bias_regularizer="l2",
            activity_regularizer="l1",
        ),
    ),
    Feature(
        "kernel constraint `MaxNorm`",
        model=lambda: mlp(kernel_constraint=keras.constraints.MaxNorm(0.5)),
        check=norms_are_small,
        remark="applied before the mask",
    ),
    Feature("a dense `Embedding` (`tf.IndexedSlices`)", model=with_embedding, fit=words),
    Feature(
        "a sparse `Embedding` (`tf.IndexedSlices`)",
        model=with_embedding,
        prepare=make_embedding_sparse,
        fit=words,
        remark="its gradient becomes a tensor",
    ),
    Feature(
        "a sparse `Embedding`, `jit_compile=True`",
        model=with_embedding,
        prepare=make_embedding_sparse,
        fit=words,
        compile={"jit_compile": True},
        limit="InvalidArgumentError",
    ),
    Feature('`quantize("int8")` after `strip`', check=int8_keeps_zeros),
]

# Runs that must be equal when they are repeated.


def with_dropout():
    return keras.Sequential(
        [keras.Input((6,)), layers.Dense(8), layers.Dropout(0.5), layers.Dense(3)]
    )


SEEDED = [
    Feature("`set_random_seed`", wrap=rigl),
    Feature(
        "`set_random_seed`, dropout",
        wrap=lambda inner: rigl_tf.SET(inner, 100, update_frequency=3, drop_fraction=0.5),
        model=with_dropout,
    ),
]
