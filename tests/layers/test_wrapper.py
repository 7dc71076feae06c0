"""Tests of `rigl_tf.SparseWrapper`."""

import random
import time

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import (
    active,
    check_invariant,
    ends_early,
    half,
    numbers,
)

import rigl_tf
from rigl_tf.layers.eligibility import Choice
from rigl_tf.walk import all_layers

layers = keras.layers
pytestmark = ends_early

# Each with an input of a batch of two.
KERNEL_LAYERS = {
    "Dense": (lambda: layers.Dense(4, name="layer"), (2, 6)),
    "Conv1D": (lambda: layers.Conv1D(4, 3, name="layer"), (2, 5, 3)),
    "Conv2D": (lambda: layers.Conv2D(4, 3, name="layer"), (2, 5, 5, 3)),
    "Conv3D": (lambda: layers.Conv3D(4, 2, name="layer"), (2, 3, 3, 3, 2)),
    "Conv1DTranspose": (lambda: layers.Conv1DTranspose(4, 3, name="layer"), (2, 5, 3)),
    "Conv2DTranspose": (lambda: layers.Conv2DTranspose(4, 3, name="layer"), (2, 5, 5, 3)),
    "Conv3DTranspose": (lambda: layers.Conv3DTranspose(4, 2, name="layer"), (2, 3, 3, 3, 2)),
}


# One layer.


@pytest.mark.parametrize("name", KERNEL_LAYERS)
def test_a_layer_with_one_kernel(name):
    make, shape = KERNEL_LAYERS[name]
    layer = rigl_tf.SparseWrapper(make(), sparsity=0.75)
    outputs = layer(numbers(shape))
    kernel = layer.layer.kernel
    size = int(np.prod(kernel.shape))
    assert layer.kernel_mask.shape == kernel.shape
    assert not layer.kernel_mask.trainable
    assert layer.kernel_mask.numpy().sum() == size - int(0.75 * size)
    check_invariant(layer)

    # The wrapped layer computes as ever, with the kernel it holds.
    plain = make()
    plain.build(shape)
    plain.set_weights([kernel.numpy(), layer.layer.bias.numpy()])
    np.testing.assert_array_equal(outputs, plain(numbers(shape)))
    assert layer.compute_output_shape(shape) == plain.compute_output_shape(shape)
    assert kernel.path == plain.kernel.path == "layer/kernel"
    assert layer.name == "layer"


def test_no_op_is_added_to_the_forward_pass():
    # With a mask in the forward pass the gradient of inactive connections would be 0.
    layer = rigl_tf.SparseWrapper(layers.Dense(4), sparsity=0.75)
    inputs, factors = numbers((2, 6)), numbers((2, 4), seed=1)
    layer.build((2, 6))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(inputs) * factors)
    gradient = tape.gradient(loss, layer.layer.kernel.value)
    np.testing.assert_allclose(gradient, inputs.T @ factors, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (layers.DepthwiseConv2D(3), (2, 5, 5, 3)),
        (layers.DepthwiseConv1D(3), (2, 5, 3)),
        (layers.BatchNormalization(), (2, 5)),
        (layers.LayerNormalization(axis=(1, 2)), (2, 5, 3)),
        (layers.RMSNormalization(axis=(1, 2)), (2, 5, 3)),
        (layers.PReLU(), (2, 5, 3)),
        (layers.Embedding(10, 4), (2, 5)),
        (layers.ReLU(), (2, 5)),
        (layers.Dropout(0.5), (2, 5)),
    ],
)
def test_a_layer_without_kernel_is_refused(layer, shape):
    with pytest.raises(ValueError, match="needs a layer with a trainable kernel"):
        rigl_tf.SparseWrapper(layer, 0.5).build(shape)


def test_a_frozen_kernel_is_not_eligible():
    layer = layers.Dense(3)
    layer.build((None, 4))
    assert Choice().select(layer) == [True, False]
    layer.trainable = False
    assert Choice().select(layer) == [False, False]


@pytest.mark.parametrize(
    ("layer", "shape", "names"),
    [
        (lambda: layers.SeparableConv2D(4, 3), (2, 5, 5, 3), ["pointwise_kernel"]),
        (
            lambda: layers.GRU(4, use_bias=True),
            (2, 5, 3),
            ["gru_cell/kernel", "gru_cell/recurrent_kernel"],
        ),
        (lambda: layers.LSTM(4), (2, 5, 3), ["lstm_cell/kernel", "lstm_cell/recurrent_kernel"]),
        (lambda: layers.EinsumDense("ab,bcd->acd", (3, 4), bias_axes="cd"), (2, 6), ["kernel"]),
    ],
)
def test_every_kernel_of_a_layer_gets_a_mask(layer, shape, names):
    layer = rigl_tf.SparseWrapper(layer(), 0.5)
    layer(numbers(shape))
    assert list(layer.kernel_masks) == names
    for mask in layer.kernel_masks.values():
        size = int(np.prod(mask.shape))
        assert mask.numpy().sum() == size - size // 2
    check_invariant(layer)


def test_kernel_mask_of_a_layer_with_two_kernels():
    layer = rigl_tf.SparseWrapper(layers.SimpleRNN(4), 0.5)
    layer.build((2, 5, 3))
    with pytest.raises(AttributeError, match="see `kernel_masks`"):
        _ = layer.kernel_mask


def test_a_layer_that_is_built_already_keeps_its_weights():
    dense = layers.Dense(4)
    dense.build((None, 6))
    before = dense.kernel.numpy()
    layer = rigl_tf.SparseWrapper(dense, 0.5)
    layer.build((None, 6))
    mask = layer.kernel_mask.numpy()
    np.testing.assert_array_equal(dense.kernel, np.where(mask, before, 0))


def test_seeds():
    def mask(seed):
        layer = rigl_tf.SparseWrapper(layers.Dense(8), 0.5, seed=seed)
        layer.build((None, 8))
        return layer.kernel_mask.numpy()

    np.testing.assert_array_equal(mask(3), mask(3))
    assert (mask(3) != mask(4)).any()


def test_wrappers_without_a_seed_differ_and_repeat_with_keras_seed():
    def layer_and_masks():
        keras.utils.set_random_seed(7)
        pair = [rigl_tf.SparseWrapper(layers.Dense(8), 0.5) for _ in range(2)]
        for layer in pair:
            layer.build((None, 8))
        return pair[0], *(layer.kernel_mask.numpy() for layer in pair)

    layer, first, second = layer_and_masks()
    assert (first != second).any()
    _, again_first, again_second = layer_and_masks()
    np.testing.assert_array_equal(first, again_first)
    np.testing.assert_array_equal(second, again_second)
    # A copy from the config draws the same masks, whatever the global seed is.
    keras.utils.set_random_seed(8)
    copy = rigl_tf.SparseWrapper.from_config(layer.get_config())
    copy.build((None, 8))
    np.testing.assert_array_equal(copy.kernel_mask, first)


def test_sparsify_takes_nothing_from_the_global_random_numbers():
    dense = keras.Sequential([keras.Input((8,)), layers.Dense(8)])
    keras.utils.set_random_seed(7)
    want = random.random()
    keras.utils.set_random_seed(7)
    rigl_tf.sparsify(dense, 0.5)
    assert random.random() == want


@pytest.mark.parametrize("sparsity", [1.0, 1, -0.1, float("nan"), "x", None, True])
def test_bad_sparsity(sparsity):
    with pytest.raises(ValueError, match="Received: sparsity="):
        rigl_tf.SparseWrapper(layers.Dense(3), sparsity)


@pytest.mark.parametrize("seed", [True, 1.5, "x"])
def test_bad_seed(seed):
    with pytest.raises(ValueError, match=f"`seed` must be an integer. Received: seed={seed!r}"):
        rigl_tf.SparseWrapper(layers.Dense(3), 0.5, seed)


def test_wrapped_twice():
    with pytest.raises(ValueError, match="wrapped only once"):
        rigl_tf.SparseWrapper(rigl_tf.SparseWrapper(layers.Dense(3), 0.5), 0.5)


@pytest.mark.parametrize("built", [False, True])
def test_config_round_trip(built):
    layer = rigl_tf.SparseWrapper(layers.Dense(8, activation="relu"), 0.75, seed=5, name="mine")
    if built:
        layer.build((None, 8))
    config = keras.saving.serialize_keras_object(layer)
    copy = keras.saving.deserialize_keras_object(config)
    for each in (layer, copy):
        if not each.built:
            each.build((None, 8))
    assert copy.name == "mine"
    assert copy.layer.activation is keras.activations.relu
    np.testing.assert_array_equal(copy.kernel_mask, layer.kernel_mask)
    copy.set_weights(layer.get_weights())
    inputs = numbers((2, 8))
    np.testing.assert_array_equal(copy(inputs), layer(inputs))


@keras.saving.register_keras_serializable()
class BuiltWithMore(layers.Layer):
    """Its `build` takes more than shapes, so only its own methods can build it."""

    def build(self, input_shape, scale):
        self.scale = scale
        self.kernel = self.add_weight(shape=(input_shape[-1], 3), name="kernel")

    def call(self, inputs):
        return self.scale * keras.ops.matmul(inputs, self.kernel)

    def get_build_config(self):
        return {"scale": self.scale}

    def build_from_config(self, config):
        self.build((None, 6), config["scale"])


def test_a_layer_that_only_its_own_methods_build(tmp_path):
    layer = BuiltWithMore()
    layer.build((None, 6), scale=7.0)
    sparse = half(keras.Sequential([keras.Input((6,)), layer]))
    sparse.save(tmp_path / "it.keras")
    loaded = keras.models.load_model(tmp_path / "it.keras")
    assert active(loaded) == active(sparse) == [9]
    inputs = numbers((2, 6))
    np.testing.assert_array_equal(loaded(inputs), sparse(inputs))


def test_dtype_policy_is_the_layers():
    layer = rigl_tf.SparseWrapper(layers.Dense(3, dtype="mixed_bfloat16"), 0.5)
    assert layer.dtype_policy.name == "mixed_bfloat16"
    assert layer(numbers((2, 4))).dtype == "bfloat16"
    assert layer.layer.kernel.dtype == "float32"
    assert layer.kernel_mask.dtype == "bool"


@pytest.mark.parametrize("source", ["float32", "mixed_bfloat16"])
def test_a_quantized_layer_quantizes_itself(source):
    dense = layers.Dense(3, dtype=f"float8_from_{source}")
    inputs = numbers((2, 4))
    want = dense(inputs)
    layer = rigl_tf.SparseWrapper(dense, 0.0)
    assert layer.dtype_policy.name == source
    np.testing.assert_array_equal(layer(inputs), want)


def test_timestep_masks_pass_through():
    inputs = np.array([[1, 2, 0, 0], [3, 0, 0, 0]])
    embedding = layers.Embedding(10, 6, mask_zero=True)

    def through(rnn):
        return keras.Sequential([embedding, rnn])(inputs)

    plain = layers.SimpleRNN(3)
    want = through(plain)
    np.testing.assert_array_equal(through(rigl_tf.SparseWrapper(plain, 0.0)), want)
    assert rigl_tf.SparseWrapper(layers.Dense(3), 0.5).supports_masking


def test_what_is_set_on_a_wrapper_is_set_on_the_layer():
    layer = rigl_tf.SparseWrapper(layers.Dense(3, activation="softmax"), 0.5)
    inputs = numbers((2, 4))
    layer(inputs)
    layer.activation = keras.activations.linear
    assert layer.layer.activation is keras.activations.linear
    np.testing.assert_allclose(layer(inputs), inputs @ layer.layer.kernel.numpy(), rtol=1e-5)
    # What the wrapper has, and what the layer has not, stays with the wrapper.
    layer.seed, layer.remark = 7, "mine"
    assert (layer.get_config()["seed"], layer.remark) == (7, "mine")
    assert not hasattr(layer.layer, "seed")
    assert not hasattr(layer.layer, "remark")


def test_the_wrappers_seed_is_not_that_of_a_layer_with_one():
    layer = rigl_tf.SparseWrapper(layers.MultiHeadAttention(2, 3, seed=3), 0.5, seed=5)
    assert (layer.seed, layer.layer.seed) == (5, 3)


def test_inputs_of_a_layer_that_does_not_cast_are_not_cast():
    class Uncast(layers.Dense):
        def __init__(self, units):
            super().__init__(units, autocast=False, dtype="mixed_float16")

        def call(self, inputs):
            return keras.ops.matmul(inputs, keras.ops.cast(self.kernel, inputs.dtype))

    layer = rigl_tf.SparseWrapper(Uncast(3), 0.5)
    outputs = layer(np.full((2, 4), 1e5, "float32"))  # more than float16 holds
    assert outputs.dtype == "float32"
    assert np.isfinite(outputs).all()


class Late(layers.Layer):
    """A user's layer whose sublayers are not all built by its `build`."""

    def __init__(self, makes_it_in_build, **kwargs):
        super().__init__(**kwargs)
        self.makes_it_in_build = makes_it_in_build
        self.first = layers.Dense(4, name="first")
        if not makes_it_in_build:
            self.second = layers.Dense(4, name="second")

    def build(self, shape):
        self.first.build(shape)
        if self.makes_it_in_build:
            self.second = layers.Dense(4, name="second")

    def call(self, inputs, is_gated=True):
        return self.first(inputs) * self.second(inputs) if is_gated else self.first(inputs)

    def get_config(self):
        return {**super().get_config(), "makes_it_in_build": self.makes_it_in_build}


@pytest.mark.parametrize("makes_it_in_build", [False, True])
def test_a_sublayer_that_is_built_by_the_first_call(makes_it_in_build):
    layer = rigl_tf.SparseWrapper(Late(makes_it_in_build), 0.5)
    x = numbers((2, 3))
    outputs = layer(x)
    assert {name: int(mask.numpy().sum()) for name, mask in layer.kernel_masks.items()} == {
        "first/kernel": 6,  # half of 3 x 4
        "second/kernel": 6,
    }
    check_invariant(layer)
    # The first call computes with the masked kernels already.
    np.testing.assert_array_equal(layer(x), outputs)

    unbuilt = keras.Sequential([Late(makes_it_in_build), layers.Dense(3)])
    sparse = rigl_tf.sparsify(unbuilt, 0.5, dict.fromkeys)
    sparse.build((None, 3))
    assert [int(mask.sum()) for mask in rigl_tf.get_masks(sparse).values()] == [6, 6, 6]
    check_invariant(sparse)

    unbuilt = keras.Sequential([Late(makes_it_in_build), layers.Dense(3)])
    sparse = rigl_tf.sparsify(unbuilt, 0.5, dict.fromkeys, dense_layers="second")
    sparse.build((None, 3))
    assert [mask.shape for mask in rigl_tf.get_masks(sparse).values()] == [(3, 4), (4, 3)]


@pytest.mark.parametrize("makes_it_in_build", [False, True])
def test_a_sublayer_that_is_built_by_a_later_call_is_refused(makes_it_in_build):
    # Its kernel comes after the masks, and would be dense.
    match = "all of its kernels in its `build` or its first call.*second"
    layer = rigl_tf.SparseWrapper(Late(makes_it_in_build), 0.5)
    layer(numbers((2, 3)), is_gated=False)
    assert list(layer.kernel_masks) == ["first/kernel"]
    for _ in range(2):
        with pytest.raises(ValueError, match=match):
            layer(numbers((2, 3)))


def test_a_sublayer_that_was_built_by_a_call_before():
    model = keras.Sequential([keras.Input((3,)), Late(False), layers.Dense(3)])
    sparse = rigl_tf.sparsify(model, 0.5, dict.fromkeys)
    assert [mask.shape for mask in rigl_tf.get_masks(sparse).values()] == [(3, 4), (3, 4), (4, 3)]
    check_invariant(sparse)


def test_a_normalisation_may_be_built_by_a_call():
    class Normed(Late):
        def __init__(self):
            super().__init__(makes_it_in_build=False)
            self.second = layers.LayerNormalization()

    layer = rigl_tf.SparseWrapper(Normed(), 0.5)
    layer(numbers((2, 4)))
    assert list(layer.kernel_masks) == ["first/kernel"]


@pytest.mark.filterwarnings("ignore:Layer .sum. looks like it has unbuilt state")  # Keras tries it
@pytest.mark.filterwarnings("ignore:`build")
def test_a_layer_that_cannot_be_built_by_shapes():
    class Sum(layers.Layer):
        def __init__(self, inner=None):
            super().__init__()
            self.inner = inner

        def call(self, *several):
            total = sum(several)
            return self.inner(total) if self.inner else total

    class Mode(Sum):
        def call(self, inputs, mode):
            return self.inner(inputs)

    inputs = numbers((2, 3))
    for wrapper, args, kwargs in (
        (rigl_tf.SparseWrapper(Sum(layers.Dense(3)), 0.5), (inputs, inputs), {}),
        (rigl_tf.SparseWrapper(Mode(layers.Dense(3)), 0.5), (inputs,), {"mode": "fast"}),
    ):
        outputs = wrapper(*args, **kwargs)
        # Half of 3 x 3, rounded up; `build_by_call` knows all arguments.
        assert wrapper.kernel_mask.numpy().sum() == 5
        check_invariant(wrapper)
        want = sum(args) @ wrapper.layer.inner.kernel.numpy()
        np.testing.assert_allclose(outputs, want, rtol=1e-5, atol=1e-6)

    # A `build` by shapes alone does not.
    with pytest.raises(ValueError, match=r"builds \['dense'\].*with \['mode'\] in `call`"):
        rigl_tf.SparseWrapper(Mode(layers.Dense(3, name="dense")), 0.5).build((2, 3))

    # What is built, or has nothing to build, is called as ever.
    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.sum, self.dense = Sum(), layers.Dense(2)

        def call(self, inputs):
            return self.dense(self.sum(inputs, inputs))

    model = rigl_tf.sparsify(Model(), 0.5)
    model(inputs)
    assert [mask.sum() for mask in rigl_tf.get_masks(model).values()] == [3]
    dense = layers.Dense(3)
    dense.build((None, 3))
    wrapper = rigl_tf.SparseWrapper(Mode(dense), 0.5)
    wrapper(inputs, mode="fast")
    assert wrapper.kernel_mask.numpy().sum() == 5


def test_lora_on_a_sparse_layer_is_refused():
    layer = rigl_tf.SparseWrapper(layers.Dense(3), 0.5)
    layer.build((None, 4))
    with pytest.raises(ValueError, match=r"use `rigl_tf.strip` .* first"):
        layer.enable_lora(2)
    with_lora = layers.Dense(3)
    with_lora.build((None, 4))
    with_lora.enable_lora(2)
    with pytest.raises(ValueError, match="needs a layer without LoRA adapters"):
        rigl_tf.SparseWrapper(with_lora, 0.5)
    assert Choice().select(with_lora) == [False] * 4
    embedding = layers.Embedding(5, 4)
    embedding.build()
    embedding.enable_lora(2)
    assert Choice(sparse_layers=embedding.name).select(embedding) == [False] * 3


def test_bidirectional_around_a_wrapper_is_refused():
    with pytest.raises(ValueError, match="`Bidirectional` must be inside"):
        layers.Bidirectional(rigl_tf.SparseWrapper(layers.LSTM(3), 0.5))


def test_long_vocabularies_are_walked_in_linear_time():
    layer = layers.Dense(3)
    layer.words = [f"word{index}" for index in range(200_000)]
    layer.nested = [{"inner": (layers.ReLU(name="a"), [layers.ReLU(name="b")])}]
    start = time.process_time()
    assert [each.name for each in all_layers(layer)[1:]] == ["a", "b"]
    assert time.process_time() - start < 1  # 6 s in quadratic time


# In a model.


def test_by_hand_in_a_functional_model_the_paths_are_those_of_the_dense_model():
    def make(wrap):
        keras.utils.clear_session(free_memory=False)
        inputs = keras.Input((8, 8, 3))
        x = wrap(layers.Conv2D(4, 3))(inputs)
        x = layers.BatchNormalization()(x)
        x = layers.DepthwiseConv2D(3)(x)
        x = layers.Flatten()(x)
        outputs = wrap(layers.Dense(3))(x)
        return keras.Model(inputs, outputs)

    dense = make(lambda layer: layer)
    sparse = make(lambda layer: rigl_tf.SparseWrapper(layer, 0.5))
    paths = [weight.path for weight in dense.trainable_weights]
    assert [weight.path for weight in sparse.trainable_weights] == paths
    assert [layer.name for layer in sparse.layers] == [layer.name for layer in dense.layers]
    assert list(rigl_tf.get_masks(sparse)) == [
        path for path in paths if path.endswith("/kernel") and "depthwise" not in path
    ]


class Subclassed(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.first = rigl_tf.SparseWrapper(layers.Dense(8, activation="relu"), 0.5)
        self.second = rigl_tf.SparseWrapper(layers.Dense(3), 0.75, seed=1)

    def call(self, inputs):
        return self.second(self.first(inputs))


def sequential():
    return keras.Sequential(
        [
            rigl_tf.SparseWrapper(layers.Dense(8, activation="relu"), 0.5),
            rigl_tf.SparseWrapper(layers.Dense(3), 0.75, seed=1),
        ]
    )


def sparsified():
    dense = keras.Sequential([layers.Dense(8, activation="relu"), layers.Dense(3)])
    return rigl_tf.sparsify(
        dense, 0.5, lambda shapes, _: dict(zip(shapes, (0.5, 0.75), strict=True))
    )


def optimizer():
    return rigl_tf.RigL(
        keras.optimizers.SGD(0.1), end_step=5, update_frequency=2, drop_fraction=0.5
    )


# All compiled before they are built.
BUILD = {
    "fit": lambda model, x, y: model.fit(x, y, batch_size=4, verbose=0),
    "evaluate": lambda model, x, y: model.evaluate(x, y, verbose=0),
    "predict": lambda model, x, y: model.predict(x, verbose=0),
    "call": lambda model, x, y: model(x),
    "train_on_batch": lambda model, x, y: model.train_on_batch(x, y),
    "build": lambda model, x, y: model.build((None, 6)),
}


@pytest.mark.parametrize(
    ("make", "how"),
    [
        (make, how)
        for make in (sequential, Subclassed, sparsified)
        for how in BUILD
        if (make, how) != (Subclassed, "build")  # Keras builds no subclassed model so
    ],
)
def test_models_that_are_built_late(make, how):
    model = make()
    model.compile(optimizer(), "mse", run_eagerly=how != "fit")
    x, y = numbers((12, 6)), numbers((12, 3))
    BUILD[how](model, x, y)
    assert active(model) == [24, 6]
    check_invariant(model)
    # Training goes on, whoever built the model.
    model.fit(x, y, batch_size=4, verbose=0)
    assert active(model) == [24, 6]
    check_invariant(model)


def test_late_and_early_built_models_have_the_same_masks():
    keras.utils.set_random_seed(0)
    early = sequential()
    keras.utils.set_random_seed(0)
    late = sequential()
    early.build((None, 6))
    late.compile("sgd", "mse")
    late.fit(numbers((4, 6)), numbers((4, 3)), verbose=0)
    for one, other in zip(
        rigl_tf.get_masks(early).values(), rigl_tf.get_masks(late).values(), strict=True
    ):
        np.testing.assert_array_equal(one, other)
