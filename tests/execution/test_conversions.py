"""CSR kernels that become masked ones and come back, are frozen, or get other places."""

import copy
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import (
    all_alike,
    assert_equal,
    assert_same_model,
    ends_early,
    executions_of,
    half,
    in_every_execution,
    mlp,
    numbers,
    rigl,
    sequential,
)

import rigl_tf
from rigl_tf import masks
from rigl_tf.execution import products

layers, optimizers = keras.layers, keras.optimizers
pytestmark = ends_early
X, Y = numbers((8, 6)), numbers((8, 3), seed=1)


def attention(value_dim):
    inputs = keras.Input((5, 8))
    outputs = layers.MultiHeadAttention(2, 4, value_dim, name="attend")(inputs, inputs)
    shares = {re.compile(name): 0.5 for name in ("query", "value", "output")}
    model = keras.Model(inputs, outputs)
    return rigl_tf.sparsify(model, {**shares, re.compile("key"): 0.0}, execution="csr", seed=1)


@pytest.mark.parametrize("value_dim", [4, 5])
def test_masks_that_come_back_are_in_the_order_of_the_weights(value_dim, tmp_path):
    model, x = attention(value_dim), numbers((3, 5, 8))
    want, names = model(x), list(rigl_tf.get_masks(model))
    assert executions_of(model) == ["csr", "masked", "csr", "csr"]
    rigl_tf.with_execution(model, "masked")
    assert list(rigl_tf.get_masks(model)) == names
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded(x), want, rtol=1e-5, atol=1e-6)
    for before, after in zip(
        rigl_tf.get_masks(model).values(), rigl_tf.get_masks(loaded).values(), strict=True
    ):
        np.testing.assert_array_equal(before, after)


def saved(model, folder):
    model.save(folder / "model.keras")
    return keras.models.load_model(folder / "model.keras")


COPIES = {
    "masked": lambda model, _: rigl_tf.with_execution(model, "masked"),
    "csr": lambda model, _: rigl_tf.with_execution(model, "csr"),
    "there and back": lambda model, _: rigl_tf.with_execution(
        rigl_tf.with_execution(model, "masked"), "csr"
    ),
    "file": saved,
    "clone": lambda model, _: keras.models.clone_model(model),
    "deepcopy": lambda model, _: copy.deepcopy(model),
}


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("execution", ["masked", "csr"])
def test_a_frozen_layer_can_be_trained_again(execution, how, tmp_path):
    model = half(mlp(), execution=execution)
    model.layers[0].trainable = False
    changed = COPIES[how](model, tmp_path)
    assert len(changed.trainable_variables) == 2
    changed.layers[0].trainable = True
    assert len(changed.trainable_variables) == 4


def test_paths_stay():
    alone = rigl_tf.SparseWrapper(layers.Dense(4), 0.5, execution="csr")
    alone(X)
    model = half(mlp(), execution="csr")
    for layer in (alone, keras.models.clone_model(model)):
        paths = list(rigl_tf.get_masks(layer))
        for execution in ("masked", "csr", "masked"):
            for each in [layer, *getattr(layer, "layers", [])]:
                if isinstance(each, rigl_tf.SparseWrapper):
                    each.use_execution(execution)
            assert list(rigl_tf.get_masks(layer)) == paths


def trained_and_moved(execution, optimizer, weights_come_back):
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)
    model = half(mlp(), execution=execution)
    model.compile(optimizer(), "mse", run_eagerly=True)
    weights = model.get_weights()
    model.fit(X, Y, batch_size=4, epochs=3, verbose=0)
    if weights_come_back:  # as `EarlyStopping(restore_best_weights=True)` does it
        model.set_weights(weights)
    else:
        moved = {path: np.roll(mask, 1, 1) for path, mask in rigl_tf.get_masks(model).items()}
        rigl_tf.set_masks(model, moved)
    model.fit(X, Y, batch_size=4, epochs=2, verbose=0)
    return model


@pytest.mark.parametrize(
    "optimizer",
    [
        rigl,
        lambda: rigl_tf.StaticSparse(optimizers.Adam(0.01)),
        lambda: rigl_tf.StaticSparse(optimizers.SGD(0.1, momentum=0.9)),
        lambda: rigl_tf.StaticSparse(optimizers.Adagrad(0.1)),
        lambda: optimizers.LossScaleOptimizer(rigl_tf.SET(optimizers.Adam(0.01), 100, 3)),
    ],
)
@pytest.mark.parametrize("weights_come_back", [False, True])
def test_slots_follow_their_connections(optimizer, weights_come_back):
    models = [
        trained_and_moved(execution, optimizer, weights_come_back)
        for execution in ("masked", "csr")
    ]
    assert_same_model(*models)


def test_slots_of_an_optimizer_of_keras_cannot_follow():
    model = half(mlp(), execution="csr")
    model.compile(optimizers.Adam(0.01), "mse")
    masks = rigl_tf.get_masks(model)
    moved = {path: np.roll(mask, 1, 1) for path, mask in masks.items()}
    rigl_tf.set_masks(model, moved)  # nothing has slots yet
    model.fit(X, Y, verbose=0)
    model.set_weights(model.get_weights())  # nothing moves
    with pytest.warns(UserWarning, match="compile the model again before it is trained") as told:
        rigl_tf.set_masks(model, masks)
    assert len(told) == 2


def test_weights_of_another_shape_are_refused(tmp_path):
    model = half(sequential((12,), layers.Dense(10, use_bias=False)), execution="csr")
    before = model.get_weights()
    for shape in ((10, 12), (20, 20), (120,), (2, 3)):
        with pytest.raises(ValueError, match=r"must have its shape \(12, 10\)"):
            model.layers[0].kernel.assign(np.ones(shape))
    other = sequential((10,), layers.Dense(12, use_bias=False))
    other.save_weights(tmp_path / "model.weights.h5")
    with pytest.raises(ValueError, match=r"must have its shape \(12, 10\). Received: shape=\(10"):
        model.load_weights(tmp_path / "model.weights.h5")
    for weight, same in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, same)


def test_a_file_of_another_sparsity_says_what_is_there(tmp_path):
    half(mlp(), execution="csr").save_weights(tmp_path / "model.weights.h5")
    model = rigl_tf.sparsify(mlp(), 0.75, all_alike, execution="csr")
    with pytest.raises(ValueError, match=r"12 active .* an array of shape \(24,\)"):
        model.load_weights(tmp_path / "model.weights.h5")


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.first, self.last = layers.Dense(8), layers.Dense(3)

    def call(self, inputs):
        return self.last(self.first(inputs))


def test_a_masked_file_into_a_subclassed_model_is_refused_in_a_sentence(tmp_path):
    models = [Subclassed(), Subclassed()]
    for model in models:
        model(X)
    half(models[0]).save_weights(tmp_path / "model.weights.h5")
    with pytest.raises(ValueError, match=r"the same CSR kernels|has masks,"):
        half(models[1], execution="csr").load_weights(tmp_path / "model.weights.h5")


@pytest.mark.parametrize("optimizer", [optimizers.Muon, optimizers.Adafactor])
@pytest.mark.parametrize(("first", "second"), [("masked", "csr"), ("csr", "masked")])
@pytest.mark.filterwarnings("ignore:Adafactor turns")
def test_a_state_that_cannot_be_converted(optimizer, first, second):
    model = half(mlp(), execution=first)
    model.compile(optimizer(0.01), "mse", run_eagerly=True)
    model.fit(X, Y, verbose=0)
    with pytest.raises(ValueError, match=r"converted, .* with a new optimizer first"):
        rigl_tf.with_execution(model, second)
    assert executions_of(model) == [first, first]
    model.fit(X, Y, verbose=0)


# Layers of users, who often write no `get_config`.


class Hidden(layers.Dense):
    def __init__(self):
        super().__init__(8, activation="tanh")


class Block(layers.Layer):
    def __init__(self, dim):
        super().__init__()
        self.attend = layers.MultiHeadAttention(2, dim // 2, use_bias=False)
        self.parts = {"mlp": keras.Sequential([layers.Dense(12, "gelu"), layers.Dense(dim)])}
        self.many = [layers.Dense(dim), layers.LayerNormalization()]

    def call(self, x):
        x = x + self.attend(x, x)
        return self.many[1](self.many[0](x) + self.parts["mlp"](x))


class Scaled(layers.Layer):
    """It uses the kernel of the layer inside, and has one of its own."""

    def __init__(self):
        super().__init__()
        self.inner = layers.Dense(8)
        self.inner.build((None, 8))
        self.scale = self.add_weight(shape=(8, 8), initializer="glorot_uniform", name="scale")

    def call(self, x):
        return x @ (self.inner.kernel * self.scale) + self.inner.bias + self.inner(x)


OWN = {
    "no arguments": lambda: sequential((5, 8), Hidden(), layers.Dense(3)),
    "inside": lambda: sequential((5, 8), Block(8), layers.Dense(3)),
    "its kernel": lambda: sequential((5, 8), Scaled(), layers.Dense(3)),
}


@pytest.mark.parametrize("name", OWN)
def test_layers_without_a_config(name, tmp_path):
    keras.utils.set_random_seed(0)
    model, x = half(OWN[name](), execution="csr"), numbers((4, 5, 8))
    assert "csr" in executions_of(model)
    model.compile(rigl(), "mse", run_eagerly=True)
    y = numbers((4, 5, 3))
    model.fit(x, y, batch_size=2, epochs=2, verbose=0)
    want, masks = model(x), rigl_tf.get_masks(model)
    weights, names = [id(each) for each in model.weights], [each.path for each in model.weights]
    values = model.get_weights()

    plain = rigl_tf.strip(model)
    np.testing.assert_allclose(plain(x), want, rtol=1e-5, atol=1e-6)
    assert not executions_of(plain)
    zeros = sum(int((~mask).sum()) for mask in masks.values())
    num_active = plain.count_params() - zeros
    report = rigl_tf.export(model, tmp_path / "model", inputs=x, measure=False)
    assert report.num_active == rigl_tf.flops.count(model).num_active == num_active
    # The model has not changed, and all but the CSR kernels is shared.
    assert [id(each) for each in model.weights] == weights
    assert [each.path for each in model.weights] == names
    for before, now in zip(values, model.get_weights(), strict=True):
        np.testing.assert_array_equal(now, before)
    assert rigl_tf.get_masks(model).keys() == masks.keys()
    for path, mask in rigl_tf.get_masks(model).items():
        np.testing.assert_array_equal(mask, masks[path])
    shared = {id(each) for each in model.weights} & {id(each) for each in plain.weights}
    assert len(shared) == len(plain.weights) - executions_of(model).count("csr")
    model.fit(x, y, batch_size=2, epochs=2, verbose=0)
    assert all(mask.sum() == masks[path].sum() for path, mask in rigl_tf.get_masks(model).items())


@in_every_execution
def test_files_of_the_parts_that_a_script_has_made(execution, tmp_path):
    """They share the weights of the sparse model, and are dense models."""
    attention = layers.MultiHeadAttention(2, 4)
    inputs = keras.Input((5, 6))
    x = layers.Dense(8, use_bias=False)(attention(inputs, inputs))
    encoder = keras.Model(inputs, layers.Conv1D(4, 3)(x))
    sparse = keras.Sequential([keras.Input((5, 6)), encoder, layers.Dense(3)])
    sparse = half(sparse, execution=execution)
    assert set(executions_of(sparse)) == {execution}
    sparse.save_weights(tmp_path / "sparse.weights.h5")  # before, and in between
    encoder.save(tmp_path / "it.keras")
    sparse.save_weights(tmp_path / "sparse.weights.h5")
    encoder.save_weights(tmp_path / "it.weights.h5")
    x = numbers((2, 5, 6))
    want = encoder(x)
    loaded = keras.models.load_model(tmp_path / "it.keras")
    clone = keras.models.clone_model(loaded)
    clone.load_weights(tmp_path / "it.weights.h5")
    for dense in (loaded, clone):
        assert not rigl_tf.get_masks(dense)
        np.testing.assert_allclose(dense(x), want, rtol=1e-5, atol=1e-6)
    before = sparse.get_weights()
    for kernel in masks.kernels_of(sparse).values():
        kernel.assign(np.zeros(kernel.shape))
    sparse.load_weights(tmp_path / "sparse.weights.h5")
    assert_equal(sparse.get_weights(), before)
    encoder.load_weights(tmp_path / "it.weights.h5")
    assert_equal(sparse.get_weights(), before)


def test_a_part_that_is_too_large_for_a_file_of_its_own(tmp_path, monkeypatch):
    part = mlp()
    sparse = half(keras.Sequential([keras.Input((6,)), part]), execution="csr")
    monkeypatch.setattr(products, "LARGEST_DENSE", 40)
    with pytest.raises(ValueError, match=r"Only the sparse model .* of shape \(6, 8\)"):
        part.save(tmp_path / "part.keras")
    sparse.save(tmp_path / "sparse.keras")
    assert_same_model(sparse, keras.models.load_model(tmp_path / "sparse.keras"))


# Averages of weights.


def pair_of_csr():
    keras.utils.set_random_seed(0)
    network, average = (half(mlp(), execution="csr") for _ in range(2))
    average.set_weights(network.get_weights())
    network.compile(rigl(), "mse")
    return network, average


def by_arrays(network, average):
    pairs = zip(network.get_weights(), average.get_weights(), strict=True)
    average.set_weights([0.1 * new + 0.9 * old for new, old in pairs])


def by_variables(network, average):
    for new, old in zip(network.weights, average.weights, strict=True):
        old.assign(0.1 * new + 0.9 * old)


@pytest.mark.parametrize("way", [by_arrays, by_variables, tf.function(by_variables)])
def test_weights_are_averaged_while_the_places_are_the_same(way):
    network, average = pair_of_csr()
    before = [kernel.numpy() for kernel in masks.kernels_of(average).values()]
    for kernel in masks.kernels_of(network).values():
        kernel.assign(kernel.numpy() + 1.0)
    way(network, average)
    for kernel, old in zip(masks.kernels_of(average).values(), before, strict=True):
        np.testing.assert_allclose(kernel.numpy(), np.where(kernel.mask, old + 0.1, 0), atol=1e-6)
    moved = {path: np.roll(mask, 1, axis=0) for path, mask in rigl_tf.get_masks(network).items()}
    rigl_tf.set_masks(network, moved)
    with pytest.raises((ValueError, tf.errors.InvalidArgumentError), match="cannot be averaged"):
        way(network, average)
    x = numbers((3, 6))
    if way is by_arrays:  # nothing is changed
        np.testing.assert_allclose(average(x), rigl_tf.strip(average)(x), atol=1e-6)


@pytest.mark.parametrize(
    ("execution", "change", "message"),
    [
        ("masked", lambda weight: weight + 1.5, "must be booleans, an average"),
        ("masked", lambda weight: weight * np.nan, "must be booleans, an average"),
        ("csr", np.zeros_like, "integers that are not the places of 24"),
        ("csr", lambda weight: weight[::-1] if weight.ndim else weight, "integers that are not"),
        ("csr", lambda weight: weight + 0.5, "cannot be averaged"),
    ],
)
def test_weights_whose_masks_make_no_sense_are_refused(execution, change, message):
    """As of noise on all arrays, or of an empty accumulator."""
    model = half(mlp(), execution=execution)
    before = model.get_weights()
    with pytest.raises(ValueError, match=message):
        model.set_weights([change(each) for each in before])
    assert_equal(model.get_weights(), before)


class OfParts(keras.Model):
    """Trains its parts in another order than its own, or only one of them."""

    def __init__(self, trains):
        super().__init__()
        self.first, self.second, self.copy = (layers.Dense(6, use_bias=False) for _ in range(3))
        self.trains = trains

    def call(self, x):
        self.copy(x)
        return self.second(self.first(x))

    def trained(self):
        return [each for name in self.trains for each in getattr(self, name).trainable_weights]

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((self(x) - y) ** 2)
        trained = self.trained()
        self.optimizer.apply_gradients(zip(tape.gradient(loss, trained), trained, strict=True))
        return {"loss": loss}


def trained_parts(trains, optimizer):
    model = OfParts(trains)
    model(X)
    model = half(model)
    optimizer.build(model.trained())
    model.compile(optimizer)
    model.fit(X, X, epochs=6, verbose=0)
    return model


@pytest.mark.parametrize("trains", [("second", "first"), ("first", "second"), ("second",)])
@pytest.mark.parametrize("execution", ["masked", "csr"])
def test_an_optimizer_of_some_variables_in_another_order(trains, execution):
    model = trained_parts(trains, rigl("adam", end_step=100, update_frequency=3))

    def moments():
        """`{layer: sum of its momentum}`"""
        found = model.optimizer.slots_of_kernels()
        return {
            found[id(slot)].path: float(np.abs(slot.numpy()).sum())
            for slot in model.optimizer.variables
            if id(slot) in found and "momentum" in slot.path
        }

    before = moments()
    assert len(before) == len(trains)
    rigl_tf.with_execution(model, execution)
    assert moments() == pytest.approx(before)
    old = [kernel.numpy() for kernel in masks.kernels_of(model).values()]
    model.fit(X, X, epochs=6, verbose=0)
    new = [kernel.numpy() for kernel in masks.kernels_of(model).values()]
    moved = [not np.array_equal(a, b) for a, b in zip(old, new, strict=True)]
    assert moved == ["first" in trains, "second" in trains, False]


def test_an_optimizer_of_keras_in_another_order_is_refused():
    model = trained_parts(("second", "first"), optimizers.Adam())
    with pytest.raises(ValueError, match="was not built with `model"):
        rigl_tf.with_execution(model, "csr")
    assert executions_of(model) == ["masked"] * 3


@pytest.mark.parametrize("is_active", [False, True])
def test_a_file_of_a_csr_model_with_a_kernel_that_stays_masked(is_active, tmp_path):
    """A kernel without active, or without inactive, connections is not stored as CSR."""
    model = rigl_tf.sparsify(mlp(6, 5, 3), 0.5)
    first = next(iter(rigl_tf.get_masks(model)))
    rigl_tf.set_masks(model, {**rigl_tf.get_masks(model), first: np.full((6, 5), is_active)})
    rigl_tf.with_execution(model, "csr").save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    kernels = rigl_tf.sparsity_summary(loaded).kernels
    assert [each.execution for each in kernels] == ["masked", "csr"]
    x = np.eye(6, dtype="float32")
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), model.predict(x, verbose=0))


class Recovers(layers.Layer):
    """Its attribute is the kernel of the layer inside, too."""

    def __init__(self, hold=lambda kernel: kernel, **kwargs):
        super().__init__(**kwargs)
        self.inner, self.hold = layers.Dense(4), hold

    def build(self, shape):
        self.inner.build(shape)
        self.kernels = self.hold(self.inner.kernel)

    def call(self, x):
        kernel = keras.tree.flatten(self.kernels)[0]
        return keras.ops.matmul(self.inner(x), keras.ops.transpose(kernel))


HOLDERS = {
    "spectral normalisation": lambda: layers.SpectralNormalization(layers.Dense(4)),
    "attribute": Recovers,
    "list": lambda: Recovers(lambda kernel: [kernel]),
    "dictionary": lambda: Recovers(lambda kernel: {"one": (kernel,)}),
}


@pytest.mark.parametrize("name", HOLDERS)
def test_a_kernel_in_two_attributes_of_a_wrapped_layer_stays_masked(name):
    model = sequential((6,), rigl_tf.SparseWrapper(HOLDERS[name](), 0.5, execution="csr"))
    assert executions_of(model) == ["masked"]
    assert [each.name for each in model.trainable_weights] == ["kernel", "bias"]
    (kernel,) = rigl_tf.sparsity_summary(model).kernels
    assert kernel.reason == "other layers use it, too"


@keras.saving.register_keras_serializable(package="tests")
class Around(layers.Layer):
    def __init__(self, inner, **kwargs):
        super().__init__(**kwargs)
        self.inner = inner

    def call(self, x):
        return keras.ops.tanh(self.inner(x))

    def get_config(self):
        return {**super().get_config(), "inner": keras.saving.serialize_keras_object(self.inner)}

    @classmethod
    def from_config(cls, config):
        return cls(**{**config, "inner": keras.saving.deserialize_keras_object(config["inner"])})


class SharedInside(keras.Model):
    """Two layers hold the same one; the model itself, too."""

    def __init__(self, inner):
        super().__init__()
        self.one, self.other, self.inner = Around(inner), Around(inner), inner

    def call(self, x):
        return self.inner(self.one(x)) + self.other(x)


def in_a_graph(inner):
    x = inputs = keras.Input((6,))
    return keras.Model(inputs, Around(inner)(Around(inner)(x)))


def beside_itself(inner):
    x = inputs = keras.Input((6,))
    return keras.Model(inputs, inner(Around(inner)(x)))


@pytest.mark.parametrize("make", [SharedInside, in_a_graph, beside_itself])
def test_a_layer_that_several_layers_share_stays_one(make, tmp_path):
    model, x = make(layers.Dense(6)), numbers((4, 6))
    want = model(x)
    assert model.count_params() == 42
    model = half(model)
    masked = rigl_tf.flops.count(model, x)
    want = model(x)
    rigl_tf.with_execution(model, "csr")
    assert executions_of(model) == ["csr"]
    plain = rigl_tf.strip(model)
    np.testing.assert_allclose(plain(x), want, rtol=1e-5, atol=1e-6)
    assert plain.count_params() == 42
    assert rigl_tf.flops.count(model, x) == masked
    report = rigl_tf.export(model, tmp_path / "model", inputs=x, measure=False)
    assert (report.num_weights, report.num_active) == (42, 24)
    assert executions_of(model) == ["csr"]


@pytest.mark.parametrize("execution", ["masked", "csr"])
@pytest.mark.filterwarnings("ignore:`build")
def test_compact_tells_of_weights_that_its_copies_do_not_share(execution):
    model = half(beside_itself(layers.Dense(6, name="both")), execution=execution)
    with pytest.warns(UserWarning, match="Several layers of the model share .*both/kernel"):
        small = rigl_tf.compact(model)
    x = numbers((4, 6))
    np.testing.assert_allclose(small(x), model(x), rtol=1e-5, atol=1e-6)
