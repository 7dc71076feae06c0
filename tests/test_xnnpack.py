"""Tests of `rigl_tf.xnnpack.check`: XNNPACK's conditions, one broken at a time."""

import keras
import numpy as np
import pytest

import rigl_tf

layers = keras.layers


def network(
    stem=lambda x: layers.Conv2D(8, 3, strides=2, name="stem")(layers.ZeroPadding2D(1)(x)),
    block=lambda x: x,
    pointwise=None,
    end=None,
    channels=3,
    sparsity=0.9,
):
    """A network that fulfils all conditions, but for what is given."""
    inputs = keras.Input((16, 16, channels), name="image")
    x = block(stem(inputs))
    x = (pointwise or layers.Conv2D(16, 1, activation="relu", name="pointwise"))(x)
    x = (end or layers.GlobalAveragePooling2D(name="mean"))(x)
    model = keras.Model(inputs, layers.Dense(3, name="head")(x), name="network")
    return rigl_tf.sparsify(model, {"pointwise": sparsity})


def depthwise(size, **settings):
    return layers.DepthwiseConv2D(size, name="depthwise", **settings)


def padded(size, **settings):
    return lambda x: depthwise(size, **settings)(layers.ZeroPadding2D(size // 2)(x))


def test_a_network_that_fulfils_them():
    check = rigl_tf.xnnpack.check(network(block=depthwise(3, padding="same")))
    assert (check.num_sparse, check.num_pointwise) == (1, 1)
    assert [step.layer for step in check.steps] == [
        "stem",
        "depthwise",
        "pointwise",
        "mean",
        "head",
    ]
    assert [step.part for step in check.steps] == [0, 0, 0, 0, None]
    assert check.steps[2].sparsity == pytest.approx(0.9, abs=0.01)
    assert list(check.changes) == ["head"]
    assert "1 of 1 1x1 convolutions skip their zeros" in str(check)


def test_layers_of_a_sequential_have_their_names():
    stem = layers.Conv2D(8, 3, strides=2, name="stem")
    model = [keras.Input((16, 16, 3)), stem, layers.Conv2D(4, 1, name="pointwise"), layers.ReLU()]
    model = keras.Sequential(model, name="other")
    assert [step.layer for step in rigl_tf.xnnpack.check(model).steps[:2]] == ["stem", "pointwise"]


@pytest.mark.parametrize(
    "block",
    [
        padded(3, strides=2),
        padded(5),
        padded(5, strides=2),
        depthwise(5, padding="same"),
        layers.ReLU(6.0),
        layers.Activation("swish"),
        lambda x: layers.Add()([x, depthwise(3, padding="same")(x)]),
        lambda x: layers.Multiply()(
            [x, layers.Conv2D(8, 1, name="pointwise_too", activation="sigmoid")(
                layers.GlobalAveragePooling2D(keepdims=True)(x))]
        ),
        layers.UpSampling2D(2, interpolation="bilinear"),
    ],
    ids=["3x3/2", "5x5", "5x5/2", "5x5 same", "relu6", "swish", "add", "squeeze", "resize"],
)  # fmt: skip
def test_what_may_be_in_between(block):
    model = network(block=block)
    for layer in model.layers:
        if layer.name == "pointwise_too":
            layer.kernel.assign(layer.kernel.numpy() * (np.arange(8) == 0))
    check = rigl_tf.xnnpack.check(model)
    assert check.num_sparse == check.num_pointwise


@pytest.mark.parametrize(
    ("settings", "layer", "change"),
    [
        (
            {"stem": layers.Conv2D(8, 3, strides=2, padding="same", name="stem")},
            "stem",
            "ZeroPadding2D(1) before it, and padding='valid'",
        ),
        ({"stem": layers.Conv2D(8, 3, padding="same", name="stem")}, "stem", "stride 2"),
        ({"stem": layers.Conv2D(8, 5, strides=2, name="stem")}, "stem", "a depthwise convolution"),
        ({"channels": 4}, "stem", "images with 3 channels"),
        ({"stem": lambda x: x}, "pointwise", "start the network with ZeroPadding2D(1)"),
        (
            {"block": depthwise(3, strides=2, padding="same")},
            "depthwise",
            "ZeroPadding2D(1) before it, and padding='valid'",
        ),
        ({"block": depthwise(3)}, "depthwise", "ZeroPadding2D(1) before it"),
        ({"block": depthwise(7, padding="same")}, "depthwise", "a kernel of 3x3 or 5x5"),
        ({"block": padded(3, strides=3)}, "depthwise", "stride 1 or 2"),
        (
            {"block": depthwise(3, padding="same", dilation_rate=2)},
            "depthwise",
            "no dilation",
        ),
        (
            {"block": depthwise(3, padding="same", depth_multiplier=2)},
            "depthwise",
            "a depth multiplier of 1",
        ),
        (
            {"pointwise": layers.Conv2D(16, 1, strides=2, name="pointwise")},
            "pointwise",
            "stride 1: let the depthwise",
        ),
        ({"pointwise": layers.Conv2D(16, 3, name="pointwise")}, "pointwise", "a depthwise"),
        ({"block": layers.AveragePooling2D(2, name="pool")}, "pool", "leave out AVERAGE_POOL_2D"),
        ({"end": layers.Flatten(name="flat")}, "pointwise", "which comes after: leave out RESHAPE"),
        ({"end": layers.GlobalMaxPooling2D(name="max")}, "max", "leave out REDUCE_MAX"),
        ({"sparsity": 0.6}, "pointwise", "more than two thirds of the weights"),
    ],
)
def test_the_one_thing_to_change(settings, layer, change):
    check = rigl_tf.xnnpack.check(network(**settings))
    assert check.num_sparse == 0
    assert change in check.changes[layer]
    # Others are told of what breaks their part.
    if layer != "pointwise":
        for other in {"stem", "pointwise"} & set(check.changes) - {layer}:
            assert f"change {layer}, which comes" in check.changes[other]


def test_an_output_in_between():
    model = network()
    inner = keras.Model(model.inputs, [model.outputs[0], model.layers[3].output])
    check = rigl_tf.xnnpack.check(inner)
    assert check.num_sparse == 0
    assert check.changes["pointwise"] == "do not give out pointwise, an output in between"


@pytest.mark.parametrize(("sparsity", "is_sparse"), [(0.65, 0), (0.68, 1)])
def test_two_thirds(sparsity, is_sparse):
    assert rigl_tf.xnnpack.check(network(sparsity=sparsity)).num_sparse == is_sparse


def test_a_subclassed_model():
    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__()
            self.inner = network()

        def call(self, inputs):
            return self.inner(inputs)

    model = Subclassed()
    batch = np.ones((2, 16, 16, 3), "float32")
    model(batch)
    assert rigl_tf.xnnpack.check(model, batch).num_sparse == 1
    unbuilt = keras.Sequential([layers.Dense(3)])
    with pytest.raises(ValueError, match=r"`xnnpack\.check` needs a built model"):
        rigl_tf.xnnpack.check(unbuilt)
    with pytest.raises(ValueError, match="pass a batch"):
        rigl_tf.xnnpack.check(model)


def test_no_model():
    with pytest.raises(ValueError, match="Received: 'model'"):
        rigl_tf.xnnpack.check("model")
