"""Models as users write them: subclassed, with a train step of their own, of several parts."""

import re
from typing import NamedTuple

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import (
    active,
    assert_same_model,
    check_invariant,
    covers_part,
    ends_early,
    executions_of,
    half,
    in_every_execution,
    mlp,
    numbers,
    rigl,
)

import rigl_tf

layers = keras.layers
pytestmark = ends_early


# Subclassed models.


class Tower(keras.Model):
    """Layers in attributes, lists and dictionaries, one of them never used."""

    def __init__(self, units=8, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self._self_first = layers.Dense(units, name="first")  # as TensorFlow's own attributes
        self.blocks = [layers.Dense(units, name=f"block{index}") for index in range(2)]
        self.heads = {"a": layers.Dense(3, name="a"), "unused": layers.Dense(2, name="unused")}
        self.norm = layers.LayerNormalization(name="norm")

    def call(self, inputs, training=None):
        x = self._self_first(inputs)
        for block in self.blocks:
            x = self.norm(block(x))
        return self.heads["a"](x)


class Pair(NamedTuple):
    one: layers.Layer
    other: layers.Layer


CONTAINERS = {
    "named tuple": Pair,
    "named tuple in a dictionary": lambda *pair: {"in": [Pair(*pair)]},
    "set": lambda *pair: {*pair},
}


@pytest.mark.parametrize("name", CONTAINERS)
@pytest.mark.parametrize("is_built", [False, True])
def test_layers_in_containers(name, is_built):
    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.pair = CONTAINERS[name](layers.Dense(6, name="one"), layers.Dense(6, name="other"))

        def call(self, x):
            pair = self.pair["in"][0] if isinstance(self.pair, dict) else self.pair
            return keras.ops.add(*(layer(x) for layer in pair))

    model, x = Model(), numbers((8, 6))
    if is_built:
        model(x)
    sparse = half(model)
    sparse(x)
    assert active(sparse) == [18, 18]
    sparse.compile(rigl(), "mse")
    sparse.fit(x, numbers((8, 6)), verbose=0)
    assert active(sparse) == [18, 18]
    want = sparse(x)
    np.testing.assert_allclose(rigl_tf.strip(sparse)(x), want, rtol=1e-5, atol=1e-6)
    rigl_tf.with_execution(sparse, "csr")
    for each in (sparse, rigl_tf.strip(sparse)):
        np.testing.assert_allclose(each(x), want, rtol=1e-5, atol=1e-6)


# 8 x 8 three times, and 8 x 3; half of each.
HALF = [32, 32, 32, 12]


@pytest.mark.filterwarnings("ignore:`build")  # Keras on the layer that is not used
@pytest.mark.parametrize("how", ["fit", "call", "tape"])
def test_a_subclassed_model_is_wrapped_in_place_before_it_is_built(how):
    model = Tower(name="tower")
    names = [layer.name for layer in model.layers]
    assert rigl_tf.sparsify(model, 0.5, dict.fromkeys) is model
    assert [layer.name for layer in model.layers] == names
    assert [type(layer).__name__ for layer in model.layers] == [
        *["SparseWrapper"] * 5,
        "LayerNormalization",
    ]
    x, y = numbers((8, 8)), numbers((8, 3))
    optimizer = rigl()
    if how != "tape":
        model.compile(optimizer, "mse", run_eagerly=how == "call")
    if how == "call":
        model(x)
    if how == "tape":
        for _ in range(3):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean((model(x) - y) ** 2)
            weights = model.trainable_weights
            optimizer.apply(tape.gradient(loss, weights), weights)
    else:
        model.fit(x, y, batch_size=2, verbose=0)
    # The sparsity is shared out when training starts, without the layer that is not there.
    assert active(model) == HALF
    check_invariant(model)


@pytest.mark.filterwarnings("ignore:`build")
@in_every_execution
def test_a_built_subclassed_model_is_wrapped_in_place(execution, tmp_path):
    dense = Tower(units=8)
    x = numbers((4, 8))
    dense(x)
    before = {weight.path: weight.numpy() for weight in dense.weights}
    names = [layer.name for layer in dense.layers]
    sparse = rigl_tf.sparsify(dense, 0.5, dict.fromkeys, execution=execution)
    assert sparse is dense
    assert active(sparse) == HALF
    check_invariant(sparse)
    masks = rigl_tf.get_masks(sparse)
    values = {weight.path: weight.numpy() for weight in sparse.weights}
    kernels = rigl_tf.masks.kernels_of(sparse)
    values |= {path: kernel.numpy() for path, kernel in kernels.items()}
    for path, old in before.items():
        np.testing.assert_array_equal(values[path], np.where(masks.get(path, True), old, 0))

    plain = rigl_tf.strip(sparse)
    assert type(plain) is Tower
    assert plain is not sparse
    assert [layer.name for layer in plain.layers] == names
    assert [type(layer) for layer in plain.blocks] == [layers.Dense, layers.Dense]
    assert not any(isinstance(layer, rigl_tf.SparseWrapper) for layer in plain.layers)
    assert isinstance(sparse._self_first, rigl_tf.SparseWrapper)
    np.testing.assert_allclose(plain(x), sparse(x), rtol=1e-5, atol=1e-6)

    # Its weights are saved and loaded as those of any subclassed model.
    sparse.save_weights(tmp_path / "it.weights.h5")
    with pytest.warns(UserWarning, match="a 'Tower' does not contain its sparse layers.* 5 sparse"):
        sparse.save(tmp_path / "it.keras")
    for name in ("it.weights.h5", "it.keras"):
        other = Tower(units=8)
        other(x)
        other = rigl_tf.sparsify(other, 0.5, dict.fromkeys, seed=1, execution=execution)
        other.load_weights(tmp_path / name)
        np.testing.assert_array_equal(other(x), sparse(x))
        assert_same_model(other, sparse, tolerance=0)
    plain.save(tmp_path / "plain.keras")  # without a warning


class OnlyMethods(keras.Model):
    """As TensorFlow's variational autoencoder: its own steps call its parts."""

    def __init__(self):
        super().__init__()
        self.encoder = mlp(6, 4)
        self.decoder = mlp(4, 6)


def test_strip_of_a_model_without_call():
    sparse = rigl_tf.sparsify(OnlyMethods(), 0.5, execution="csr")
    plain, x = rigl_tf.strip(sparse), numbers((2, 6))
    want = sparse.decoder(sparse.encoder(x))
    np.testing.assert_allclose(plain.decoder(plain.encoder(x)), want, rtol=1e-5, atol=1e-6)


class OnlyEmbeddings(keras.Model):
    """As TensorFlow's word2vec."""

    def __init__(self):
        super().__init__()
        self.target = layers.Embedding(20, 8, name="target")
        self.context = layers.Embedding(20, 8, name="context")

    def call(self, words):
        return keras.ops.sum(self.target(words) * self.context(words), -1, keepdims=True)


@pytest.mark.filterwarnings("ignore:.*looks like it has unbuilt state")
class KerasNames(keras.Model):
    """Its layers have the names of what Functional models know of themselves."""

    def __init__(self):
        super().__init__()
        self.inputs, self.outputs = layers.Dense(8), layers.Dense(3)

    def call(self, x):
        return self.outputs(self.inputs(x))


@in_every_execution
def test_layers_with_the_names_of_attributes_of_keras(execution, tmp_path):
    model, x = KerasNames(), numbers((4, 6))
    model(x)
    model = rigl_tf.sparsify(model, 0.5, execution=execution)
    model.compile(rigl("sgd"), "mse")
    model.fit(x, numbers((4, 3)), epochs=2, verbose=0)
    assert rigl_tf.flops.count(model, inputs=x).dense_flops == 2 * (6 * 8 + 8 * 3)
    rigl_tf.report(model, path=tmp_path / "report.html")
    rigl_tf.export(model, tmp_path / "export", inputs=x, measure=False)
    np.testing.assert_allclose(rigl_tf.strip(model)(x), model(x), atol=1e-6)


def test_a_model_without_kernels_that_is_not_built_is_told_of():
    model, words = rigl_tf.sparsify(OnlyEmbeddings(), 0.9), np.arange(8)
    model.compile("adam", "mse")
    for use in (lambda: model(words), lambda: model.fit(words, numbers((8, 1)), verbose=0)):
        with pytest.raises(ValueError, match=r"in `sparse_layers`: \['target \(embedding"):
            use()


@keras.saving.register_keras_serializable()
class ByUnits(keras.Model):
    """A Functional model that is made of a number, as those of KerasHub."""

    def __init__(self, units=8, **kwargs):
        inputs = keras.Input((8,))
        super().__init__(inputs, layers.Dense(3)(layers.Dense(units)(inputs)), **kwargs)
        self.units = units

    def get_config(self):
        return {"units": self.units, "name": self.name}


@keras.saving.register_keras_serializable()
class OfTensors(keras.Model):
    """A Functional model whose constructor takes its inputs and outputs."""


def test_only_a_config_without_the_sparse_layers_is_told_of(tmp_path):
    inputs = keras.Input((8,))
    nested = rigl_tf.sparsify(keras.Model(inputs, layers.Dense(2)(ByUnits()(inputs))), 0.5)
    with pytest.warns(UserWarning, match="a 'ByUnits' does not .* 2 sparse layers that are miss"):
        nested.save(tmp_path / "it.keras")
    complete = rigl_tf.sparsify(OfTensors(inputs, layers.Dense(2)(inputs)), 0.5)
    complete.save(tmp_path / "it.keras")
    assert_same_model(keras.models.load_model(tmp_path / "it.keras"), complete, tolerance=0)


@pytest.mark.filterwarnings("ignore:The config of a 'ByUnits'")
def test_a_file_without_the_sparse_layers_of_a_model_that_was_trained(tmp_path):
    model = half(ByUnits())
    model.compile(rigl(), "mse")
    model.fit(numbers((8, 8)), numbers((8, 3)), batch_size=2, verbose=0)
    model.save(tmp_path / "it.keras")
    with pytest.raises(ValueError, match=r"a `\.keras` file without its sparse .* `compile=False`"):
        keras.models.load_model(tmp_path / "it.keras")
    again = half(keras.models.load_model(tmp_path / "it.keras", compile=False))
    again.load_weights(tmp_path / "it.keras")
    assert_same_model(again, model, tolerance=0)


class Regularised(keras.Model):
    """As most people write them: no `**kwargs`, no config."""

    def __init__(self, rate=0.1, activation="relu", scale=1.0):
        super().__init__()
        self.hidden = layers.Dense(8, activation)
        self.dropout = layers.Dropout(rate)
        self.scale = scale

    def call(self, inputs, training=None):
        return self.scale * self.dropout(self.hidden(inputs), training=training)


class WithoutArguments(Regularised):
    def __init__(self):
        super().__init__(0.5, "tanh", 2.0)


@pytest.mark.parametrize("cls", [Regularised, WithoutArguments])
@pytest.mark.parametrize("inside", [False, True])
def test_a_built_model_whose_class_has_no_config(cls, inside):
    dense = keras.Sequential([keras.Input((8,)), cls()]) if inside else cls()
    x, y = numbers((8, 8)), numbers((8, 8))
    dense(x)
    sparse = rigl_tf.sparsify(dense, 0.5)
    assert active(sparse) == [32]
    sparse.compile(rigl(), "mse", run_eagerly=True)
    sparse.fit(x, y, batch_size=2, verbose=0)
    check_invariant(sparse)
    np.testing.assert_array_equal(rigl_tf.strip(sparse)(x), sparse(x))


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("arguments", [{"rate": 0.5}, {"activation": "tanh"}, {"scale": 2.0}])
def test_arguments_that_keras_forgets_are_kept(arguments, inside):
    """The config that Keras gives such a model has the defaults; it is not used."""
    model = Regularised(**arguments)
    dense = keras.Sequential([keras.Input((8,)), model]) if inside else model
    x = numbers((4, 8))
    want = dense(x)
    sparse = rigl_tf.sparsify(dense, 0.0)
    for each in (sparse, rigl_tf.strip(sparse)):
        np.testing.assert_array_equal(each(x), want)
        part = each.layers[0] if inside else each
        assert type(part) is Regularised
        assert part.dropout.rate == arguments.get("rate", 0.1)
        assert part.hidden.activation is keras.activations.get(arguments.get("activation", "relu"))
        assert part.scale == arguments.get("scale", 1.0)


@keras.saving.register_keras_serializable(package="tests")
class ByHand(keras.Model):
    """Wrapped where it is written: can be saved as a whole."""

    def __init__(self, units=8, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.first = rigl_tf.SparseWrapper(layers.Dense(units, activation="relu"), 0.5)
        self.second = rigl_tf.SparseWrapper(layers.Dense(3), 0.75)

    def call(self, inputs):
        return self.second(self.first(inputs))


def test_wrapped_by_hand_and_saved(tmp_path):
    model = ByHand()
    model.compile(rigl(), "mse", run_eagerly=True)
    x, y = numbers((8, 8)), numbers((8, 3))
    model.fit(x, y, batch_size=2, verbose=0)
    assert active(model) == [32, 6]
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(x), model(x))
    assert active(loaded) == [32, 6]
    loaded.fit(x, y, batch_size=2, verbose=0)
    check_invariant(loaded)
    plain = rigl_tf.strip(model)
    assert type(plain) is ByHand
    assert not rigl_tf.get_masks(plain)
    np.testing.assert_array_equal(plain(x), model(x))


def test_a_built_model_without_config():
    class NoConfig(keras.Model):
        def __init__(self, anything):
            super().__init__()
            self.anything = anything
            self.dense = layers.Dense(3)

        def call(self, inputs):
            return self.dense(inputs)

    it, x = object(), numbers((2, 4))
    model = NoConfig(it)
    model(x)
    sparse = rigl_tf.sparsify(model, 0.5)
    assert active(sparse) == [6]
    plain = rigl_tf.strip(sparse)
    assert type(plain) is NoConfig
    assert sparse.anything is plain.anything is it
    np.testing.assert_array_equal(plain(x), sparse(x))


class Scaled(keras.Model):
    """A Functional model with a train step of its own; Keras can make another one."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.num_steps = self.add_weight(shape=(), initializer="zeros", trainable=False)

    def train_step(self, data):
        self.num_steps.assign_add(1)
        return {**super().train_step(data), "steps": self.num_steps}


class Fixed(keras.Model):
    """Keras cannot: its constructor makes the layers."""

    def __init__(self, units):
        inputs = keras.Input((8,))
        hidden = layers.Dense(units)
        super().__init__(inputs, hidden(inputs))
        self.units, self.hidden = units, hidden

    def train_step(self, data):
        return {**super().train_step(data), "units": tf.constant(self.units)}


def test_the_class_of_a_functional_model_is_kept():
    inputs = keras.Input((8,))
    sparse = rigl_tf.sparsify(Scaled(inputs, layers.Dense(8)(inputs)), 0.5)
    assert type(sparse) is Scaled
    sparse.compile(rigl(), "mse")
    history = sparse.fit(numbers((8, 8)), numbers((8, 8)), batch_size=2, verbose=0).history
    assert history["steps"] == [4]
    assert active(sparse) == [32]

    x = numbers((8, 8))
    sparse = rigl_tf.sparsify(Fixed(4), 0.5)
    assert type(sparse) is Fixed
    assert sparse.units == 4
    assert isinstance(sparse.hidden, rigl_tf.SparseWrapper)
    assert sparse.hidden is sparse.layers[-1]
    sparse.compile(rigl(), "mse")
    assert sparse.fit(x, numbers((8, 4)), batch_size=2, verbose=0).history["units"] == [4]
    assert active(sparse) == [16]
    plain = rigl_tf.strip(sparse)
    assert type(plain) is Fixed
    assert type(plain.hidden) is layers.Dense
    np.testing.assert_array_equal(plain(x), sparse(x))


def two(name, *sizes):
    return mlp(*sizes, activation="relu", names=["hidden", "out"], name=name)


class GAN(keras.Model):
    """Two models, two optimizers, a custom `train_step`."""

    def __init__(self, generator, discriminator):
        super().__init__()
        self.generator, self.discriminator = generator, discriminator
        self.loss_of = keras.losses.BinaryCrossentropy(from_logits=True)

    def compile(self, generator_optimizer, discriminator_optimizer):
        super().compile()
        self.generator_optimizer = generator_optimizer
        self.discriminator_optimizer = discriminator_optimizer

    def _train(self, model, optimizer, loss_of):
        with tf.GradientTape() as tape:
            loss = loss_of()
        weights = model.trainable_weights
        optimizer.apply(tape.gradient(loss, weights), weights)
        return loss

    def train_step(self, real):
        num = tf.shape(real)[0]
        noise = tf.random.normal((num, 4))
        yes, no = tf.ones((num, 1)), tf.zeros((num, 1))

        def loss_of_discriminator():
            fake = self.discriminator(self.generator(noise))
            return self.loss_of(yes, self.discriminator(real)) + self.loss_of(no, fake)

        def loss_of_generator():
            return self.loss_of(yes, self.discriminator(self.generator(noise)))

        discriminator = self._train(
            self.discriminator, self.discriminator_optimizer, loss_of_discriminator
        )
        return {
            "discriminator": discriminator,
            "generator": self._train(self.generator, self.generator_optimizer, loss_of_generator),
        }


@in_every_execution
def test_a_gan_with_its_own_train_step(execution):
    gan = GAN(two("generator", 4, 16, 8), two("discriminator", 8, 16, 1))
    sparse = rigl_tf.sparsify(gan, 0.5, dict.fromkeys, execution=execution)
    assert sparse is gan
    counts = active(gan)
    assert counts == [32, 64, 64, 8]
    before = rigl_tf.get_masks(gan)
    gan.compile(rigl(), rigl())
    gan.run_eagerly = execution == "csr"
    history = gan.fit(numbers((8, 8)), batch_size=2, epochs=2, verbose=0).history
    assert np.isfinite(history["generator"]).all()
    assert active(gan) == counts
    assert all((mask != before[path]).any() for path, mask in rigl_tf.get_masks(gan).items())
    check_invariant(gan)


def test_a_built_layer_in_a_model_that_is_not_built():
    first = layers.Dense(4, name="first")
    first.build((None, 6))
    before = first.kernel.numpy()
    sparse = rigl_tf.sparsify(keras.Sequential([first, layers.Dense(4)]), 0.5, dict.fromkeys)
    assert rigl_tf.get_masks(sparse) == {}
    sparse.build((None, 6))
    assert active(sparse) == [12, 8]
    wrapper = sparse.get_layer("first")
    assert wrapper.layer is first
    want = np.where(wrapper.kernel_mask, before, 0)
    np.testing.assert_array_equal(first.kernel, want)


# Several inputs and outputs, parts used twice, parts of the same names.


def several_of_all(execution):
    keras.utils.set_random_seed(0)
    left, right = keras.Input((6,), name="left"), keras.Input((4,), name="right")
    shared = layers.Dense(5, activation="relu", name="shared")
    x = layers.Concatenate()([shared(layers.Dense(5, name="to5")(right)), shared(left[:, :5])])
    x = layers.Add()([x, layers.Dense(10, name="skip")(x)])
    outputs = {"a": layers.Dense(2, name="a")(x), "b": layers.Dense(3, name="b")(x)}
    model = keras.Model([left, right], outputs)
    sparse = rigl_tf.sparsify(model, 0.5, dict.fromkeys, execution=execution)
    inputs = [numbers((8, 6)), numbers((8, 4))]
    sparse.compile(
        rigl(), {"a": "mse", "b": "mae"}, loss_weights={"a": 1.0, "b": 0.5}, run_eagerly=True
    )
    sparse.fit(inputs, {"a": numbers((8, 2)), "b": numbers((8, 3))}, batch_size=2, verbose=0)
    sizes = {path.split("/")[-2]: mask.size for path, mask in rigl_tf.get_masks(sparse).items()}
    assert sizes == {"to5": 20, "shared": 25, "skip": 100, "a": 20, "b": 30}
    assert active(sparse) == [(size + 1) // 2 for size in sizes.values()]
    check_invariant(sparse)
    for name, want in sparse(inputs).items():
        got = rigl_tf.strip(sparse)(inputs)[name]
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    return sparse


def test_several_inputs_outputs_and_losses():
    """A layer that is used twice, too: the gradients of both uses count where it grows."""
    masked, csr = several_of_all("masked"), several_of_all("csr")
    assert executions_of(csr) == ["csr"] * 5
    assert_same_model(masked, csr)


@in_every_execution
def test_parts_with_layers_of_the_same_names(execution, tmp_path):
    inputs = keras.Input((8,))
    model = keras.Model(inputs, two("one", 8, 6, 8)(two("two", 8, 6, 8)(inputs)))
    sparse = rigl_tf.sparsify(model, 0.5, dict.fromkeys, dense_layers="two", execution=execution)
    assert list(rigl_tf.get_masks(sparse)) == ["one/hidden/kernel", "one/out/kernel"]
    sparse.compile(rigl(), "mse", run_eagerly=True)
    sparse.fit(numbers((8, 8)), numbers((8, 8)), batch_size=2, verbose=0)
    assert active(sparse) == [24, 24]
    sparse.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(numbers((8, 8))), sparse(numbers((8, 8))))


def test_a_shared_part_of_two_models_stays_shared():
    class Both(keras.Model):
        def __init__(self):
            super().__init__()
            inputs = keras.Input((8,))
            hidden = layers.Dense(8, name="hidden")
            self.encoder = keras.Model(inputs, hidden(inputs))
            self.whole = keras.Model(inputs, layers.Dense(2, name="out")(hidden(inputs)))

        def call(self, inputs):
            return self.whole(inputs)

    model = rigl_tf.sparsify(Both(), 0.5, dict.fromkeys)
    assert active(model) == [32, 8]
    assert model.encoder.get_layer("hidden") is model.whole.get_layer("hidden")


# Which layers.


def recurrent():
    return keras.Sequential(
        [
            keras.Input((5, 4)),
            layers.LSTM(4, name="first", return_sequences=True),
            layers.GRU(4, name="second"),
            layers.Dense(3, name="head"),
        ],
        name="model",
    )


FIRST = ["first/lstm_cell/kernel", "first/lstm_cell/recurrent_kernel"]
SECOND = ["second/gru_cell/kernel", "second/gru_cell/recurrent_kernel"]


@pytest.mark.parametrize(
    ("dense_layers", "sparse"),
    [
        ((), [*FIRST, *SECOND, "head/kernel"]),
        ("head", [*FIRST, *SECOND]),
        ("lstm_cell", [*SECOND, "head/kernel"]),
        (re.compile("recurrent_kernel$"), [FIRST[0], SECOND[0], "head/kernel"]),
        (re.compile("first/.*recurrent"), [FIRST[0], *SECOND, "head/kernel"]),
        (lambda layer: isinstance(layer, layers.LSTM), [*SECOND, "head/kernel"]),
        (lambda layer: layer.name != "head" and "cell" not in layer.name, ["head/kernel"]),
        (["head", re.compile("second")], FIRST),
    ],
)
@covers_part
def test_dense_layers(dense_layers, sparse):
    model = rigl_tf.sparsify(recurrent(), 0.5, dense_layers=dense_layers)
    assert list(rigl_tf.get_masks(model)) == [f"model/{path}" for path in sparse]


@pytest.mark.parametrize("argument", ["dense_layers", "sparse_layers"])
@pytest.mark.parametrize("bad", ["nope", re.compile("nope"), ["head", "nope"]])
def test_a_name_that_no_layer_has(argument, bad):
    for built in (True, False):
        model = recurrent() if built else keras.Sequential([layers.Dense(4, name="head")])
        with pytest.raises(ValueError, match=rf"`{argument}` must be .*Received: \['nope'\]"):
            rigl_tf.sparsify(model, 0.5, **{argument: bad}).build((None, 5, 4))


@pytest.mark.parametrize("bad", [3, None, [3], int])
def test_no_choice_of_layers(bad):
    with pytest.raises(
        ValueError, match="`dense_layers` must be names of layers, compiled regular"
    ):
        rigl_tf.sparsify(recurrent(), 0.5, dense_layers=bad)


# Models that are sparse already.


def test_from_zeros():
    dense = two("it", 8, 6, 3)
    sparse = rigl_tf.sparsify(dense, 0.5)
    plain = rigl_tf.strip(sparse)
    twin = keras.models.clone_model(plain)
    twin.set_weights(plain.get_weights())
    again = rigl_tf.sparsify(twin, from_zeros=True)
    for path, mask in rigl_tf.get_masks(sparse).items():
        np.testing.assert_array_equal(rigl_tf.get_masks(again)[path], mask)
    counts = active(again)
    again.compile(rigl(), "mse", run_eagerly=True)
    again.fit(numbers((8, 8)), numbers((8, 3)), batch_size=2, verbose=0)
    assert active(again) == counts
    # A copy from its config is as sparse.
    assert active(keras.models.clone_model(again)) == counts


def test_from_zeros_without_a_zero():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3)], name="full")
    with pytest.warns(UserWarning, match="no weight is: all .* are active.*'full'") as told:
        rigl_tf.sparsify(model, from_zeros=True)
    assert [each.filename for each in told] == [__file__]


def test_from_zeros_refuses():
    model = two("it", 8, 6, 3)
    with pytest.raises(ValueError, match=r"leave `sparsity` out. Received: sparsity=0.5"):
        rigl_tf.sparsify(model, 0.5, from_zeros=True)
    with pytest.raises(ValueError, match="not built"):
        rigl_tf.sparsify(keras.Sequential([layers.Dense(3)]), from_zeros=True)
    model.get_layer("hidden").kernel.assign(np.zeros((8, 6)))
    with pytest.raises(ValueError, match="it/hidden/kernel', all zeros"):
        rigl_tf.sparsify(model, from_zeros=True)


def test_a_preprocessing_layer_keeps_what_it_has_learned():
    normalization = layers.Normalization()
    x = 5 + 3 * numbers((50, 4))
    normalization.adapt(x)
    dense = keras.Sequential([keras.Input((4,)), normalization, layers.Dense(3)])
    sparse = rigl_tf.sparsify(dense, 0.0)
    np.testing.assert_array_equal(sparse(x), dense(x))
    np.testing.assert_array_equal(rigl_tf.strip(sparse)(x), dense(x))


class WithBuild(keras.Model):
    """Has a weight and a `build` of its own."""

    def __init__(self):
        super().__init__()
        self.hidden, self.last = keras.layers.Dense(16), keras.layers.Dense(3)

    def build(self, shape):
        self.scale = self.add_weight(shape=shape[-1:], initializer="ones")
        super().build(shape)

    def call(self, x):
        return self.last(self.hidden(x * self.scale))


class AroundWithBuild(keras.Model):
    """Has a model inside that has a `build` of its own."""

    def __init__(self):
        super().__init__()
        self.inner, self.last = WithBuild(), keras.layers.Dense(3)

    def call(self, x):
        return self.last(self.inner(x))


@pytest.mark.parametrize("kind", [WithBuild, AroundWithBuild])
@pytest.mark.parametrize("is_called", [False, True])
def test_a_build_of_ones_own_in_mixed_precision(kind, is_called):
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = rigl_tf.sparsify(kind(), 0.8)
        x = numbers((32, 12))
        if is_called:
            model(x)
            assert not rigl_tf.sparsity_summary(model).outside
        model.compile(rigl("sgd", end_step=6, update_frequency=2), "mse", jit_compile=False)
        model.fit(x, x[:, :3], batch_size=8, epochs=2, verbose=0)
    finally:
        keras.config.set_dtype_policy(policy)
    assert not rigl_tf.sparsity_summary(model).outside
    assert rigl_tf.sparsity_summary(model).sparsity == pytest.approx(0.8, abs=0.02)


class Teacher(keras.Model):
    """Trains one network; the other one follows its trainable variables, without masks."""

    def __init__(self):
        super().__init__()
        layers = [keras.Input((6,)), keras.layers.Dense(8)]
        self.student = keras.Sequential(layers)
        self.teacher = keras.models.clone_model(self.student)

    def call(self, x):
        return self.student(x)

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((self.student(x) - y) ** 2)
        trained = self.student.trainable_variables
        self.optimizer.apply_gradients(zip(tape.gradient(loss, trained), trained, strict=True))
        for new, average in zip(trained, self.teacher.trainable_variables, strict=True):
            average.assign(0.9 * average + 0.1 * new)
        return {"loss": loss}


def test_an_average_without_masks_is_told_of():
    model = Teacher()
    x, y = numbers((16, 6)), numbers((16, 8))
    model(x)
    model.teacher(x)
    model = half(model)
    optimizer = rigl("sgd", end_step=8, update_frequency=2)
    optimizer.build(model.student.trainable_variables)
    model.compile(optimizer, jit_compile=False)
    with pytest.warns(UserWarning, match="outside of the masks were set to zero in kernels that"):
        model.fit(x, y, batch_size=4, epochs=3, verbose=0)
    assert not rigl_tf.sparsity_summary(model).outside
