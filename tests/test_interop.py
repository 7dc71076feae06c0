"""Tests of `rigl_tf.interop.to_tf_keras`, in processes of their own: `tf_keras` is Keras 2."""

import importlib.util
import subprocess
import sys
import textwrap

import keras
import pytest
from helpers import ROOT

import rigl_tf
from rigl_tf import interop

layers = keras.layers
needs_tf_keras = pytest.mark.skipif(
    importlib.util.find_spec("tf_keras") is None, reason="needs tf_keras"
)

NETWORKS = """
    import keras, numpy as np, rigl_tf, warnings
    layers = keras.layers
    rng = np.random.default_rng(0)

    def many():
        inputs = keras.Input((16, 16, 3), name="image")
        x = layers.ZeroPadding2D(1, name="pad")(inputs)
        x = layers.Conv2D(8, 3, strides=2, use_bias=False, name="conv")(x)
        x = layers.BatchNormalization(epsilon=0.01, name="norm")(x)
        x = layers.ReLU(6.0, name="relu6")(x)
        y = layers.DepthwiseConv2D(3, padding="same", activation="relu", name="depthwise")(x)
        y = layers.LeakyReLU(negative_slope=0.2, name="leaky")(y)
        x = layers.Add(name="add")([x, y])
        x = layers.Concatenate(name="both")([x, layers.Activation("tanh", name="tanh")(y)])
        x = layers.Conv2DTranspose(6, 2, strides=2, name="transpose")(x)
        x = layers.MaxPooling2D(2, name="max")(layers.UpSampling2D(2, name="up")(x))
        x = layers.AveragePooling2D(2, name="mean")(layers.Cropping2D(1, name="crop")(x))
        x = layers.Conv2D(4, 3, groups=2, padding="same", dilation_rate=2, name="groups")(x)
        x = layers.Dropout(0.5, name="drop")(layers.Permute((2, 1, 3), name="turn")(x))
        one = layers.GlobalAveragePooling2D(name="global")(x)
        two = layers.Flatten(name="flat")(layers.Reshape((-1, 4), name="shape")(x))
        return keras.Model(
            inputs,
            [layers.Dense(3, name="one")(one), layers.Softmax(name="soft")(layers.Dense(5)(two))],
            name="many",
        )

    def sequential():
        return keras.Sequential(
            [keras.Input((12,)), layers.Dense(9, "relu", name="one"), layers.Dense(4, name="two")],
            name="sequential",
        )

    def several():
        one, two = keras.Input((4,), name="one"), keras.Input((3,), name="two")
        shared = layers.Dense(5, "sigmoid", name="shared")
        x = layers.Concatenate(name="both")([two, one])
        x = shared(layers.Dense(5, name="first")(shared(layers.Dense(5, name="in")(x))))
        return keras.Model([one, two], x)

    warnings.simplefilter("ignore")
    for make in (many, sequential, several):
        sparse = rigl_tf.sparsify(make(), 0.7)
        for weight in sparse.weights:
            if "moving" in weight.path or "gamma" in weight.path:
                weight.assign(rng.uniform(0.5, 2, weight.shape))
        twin = rigl_tf.interop.to_tf_keras(sparse)
        assert "tf_keras" in type(twin).__module__, type(twin)
        assert twin.name == sparse.name
        names = {layer.name for layer in sparse.layers if "input" not in layer.name}
        assert names <= {layer.name for layer in twin.layers}, names
        x = [rng.normal(size=(5, *each.shape[1:])).astype("float32") for each in sparse.inputs]
        x = x if len(x) > 1 else x[0]
        ours, theirs = keras.tree.flatten(sparse(x)), keras.tree.flatten(twin(x))
        assert len(ours) == len(theirs)
        for one, two in zip(ours, theirs):
            np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-5)
        masks = list(rigl_tf.get_masks(sparse).values())
        zeros = sum(int((w.numpy() == 0).sum()) for w in twin.weights if len(w.shape) > 1)
        assert zeros == sum(int((~mask).sum()) for mask in masks)
    print("right")
"""


@needs_tf_keras
def test_weights_and_predictions_are_the_same():
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(NETWORKS)], capture_output=True, text=True, cwd=ROOT
    )
    assert done.stdout.strip() == "right", done.stderr[-2000:]


class Own(layers.Dense):
    pass


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (layers.LayerNormalization(name="norm"), "'norm' of class LayerNormalization"),
        (Own(3, name="own"), "'own' of class Own"),
        (layers.Dense(3, "gelu", name="last"), "activations.*'last' with 'gelu'"),
        (layers.Dense(3, dtype="mixed_float16", name="half"), "float32.*'half' in mixed_float16"),
        (keras.Sequential([layers.Dense(3)], name="inner"), "'inner' of class Sequential"),
    ],
)
@needs_tf_keras
def test_what_is_refused(layer, message):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(4), layer])
    with pytest.raises(ValueError, match=message) as error:
        interop.to_tf_keras(model)
    assert "\n" not in str(error.value)


@needs_tf_keras
def test_an_operation_is_refused():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, 2 * layers.Dense(3)(inputs))
    with pytest.raises(ValueError, match=r"no other operations.*operation 'multiply"):
        interop.to_tf_keras(model)


@needs_tf_keras
def test_a_subclassed_model_is_refused():
    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__(name="other")
            self.dense = layers.Dense(3)

        def call(self, inputs):
            return self.dense(inputs)

    model = Subclassed()
    model(keras.ops.ones((1, 4)))
    with pytest.raises(ValueError, match=r"Sequential or Functional model.*'other' of class Sub"):
        rigl_tf.interop.to_tf_keras(model)


def test_without_tf_keras(monkeypatch):
    monkeypatch.setattr(interop.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="needs the package tf_keras"):
        interop.to_tf_keras(keras.Sequential([keras.Input((4,)), layers.Dense(4)]))
