"""Dense, sparse and stripped models are made of the same layers, and share their weights."""

import contextlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import (
    active,
    check_invariant,
    ends_early,
    executions_of,
    half,
    in_every_execution,
    messages,
    mirrored,
    mlp,
    numbers,
    rigl,
)

import rigl_tf
from rigl_tf import masks

layers = keras.layers
pytestmark = ends_early


def ab(name="mlp"):
    return mlp(8, 6, 4, activation="relu", names="ab", name=name)


HALF = [24, 12]  # of 8 x 6 and 6 x 4
X, Y = numbers((8, 8)), numbers((8, 4), seed=1)


# One set of weights.


@in_every_execution
def test_the_layers_are_those_of_the_dense_model(execution):
    dense = ab()
    kept = dense.get_layer("a")
    sparse = half(dense, execution=execution)
    plain = rigl_tf.strip(sparse)
    assert sparse.get_layer("a").layer is kept
    assert (plain.get_layer("a") is kept) == (execution == "masked")  # of CSR it is a copy
    assert dense.get_layer("a") is kept
    sparse.compile(rigl(), "mse", run_eagerly=True)
    sparse.fit(X, Y, batch_size=2, epochs=2, verbose=0)
    assert active(sparse) == HALF
    check_invariant(sparse)
    want = sparse(X)
    np.testing.assert_array_equal(dense(X), want)
    np.testing.assert_allclose(rigl_tf.strip(sparse)(X), want, rtol=1e-5, atol=1e-6)
    if execution == "masked":
        np.testing.assert_array_equal(plain(X), want)
    np.testing.assert_array_equal(dense.predict(X, verbose=0), sparse.predict(X, verbose=0))


def test_only_the_sparse_model_has_masks():
    dense = ab()
    sparse = half(dense)
    plain = rigl_tf.strip(sparse)
    assert list(rigl_tf.get_masks(sparse)) == ["mlp/a/kernel", "mlp/b/kernel"]
    assert rigl_tf.get_masks(dense) == rigl_tf.get_masks(plain) == {}
    assert len(dense.weights) == len(plain.weights) == 4
    for model in (dense, plain):
        with pytest.raises(ValueError, match="must be the path of a sparse kernel"):
            rigl_tf.set_masks(model, {"mlp/b/kernel": np.ones((6, 4))})


@in_every_execution
def test_a_clone_of_the_stripped_model_can_be_sparsified(execution):
    sparse = half(ab(), execution=execution)
    clone = keras.models.clone_model(rigl_tf.strip(sparse))
    before = sparse.get_weights()
    again = half(clone, seed=1)
    assert active(again) == HALF
    for value, old in zip(sparse.get_weights(), before, strict=True):
        np.testing.assert_array_equal(value, old)


@pytest.mark.parametrize("optimizer", [lambda: "adam", rigl])
def test_a_model_whose_sparse_one_is_thrown_away_trains_sparse(optimizer):
    dense = ab()
    half(dense)
    dense.compile(optimizer(), "mse", run_eagerly=True)
    dense.fit(X, Y, batch_size=2, epochs=2, verbose=0)
    kernels = [layer.kernel for layer in dense.layers]
    assert [int(masks.mask_of(kernel).numpy().sum()) for kernel in kernels] == HALF
    for kernel in kernels:
        value, mask = kernel.numpy(), masks.mask_of(kernel).numpy()
        np.testing.assert_array_equal(value, np.where(mask, value, 0))


def test_a_model_that_was_trained_before():
    """Its compiled train step knows nothing of the masks."""
    dense = ab()
    dense.compile("adam", "mse")
    dense.fit(X, Y, verbose=0)
    half(dense)
    dense.fit(X, Y, verbose=0)
    assert [np.count_nonzero(layer.kernel) for layer in dense.layers] == HALF


@in_every_execution
def test_other_models_around_the_layers(execution):
    """A pretrained base that a script goes on holding is the one that is trained."""
    base = ab("base")
    inputs = keras.Input((8,))
    model = keras.Model(inputs, layers.Dense(2, name="head")(base(inputs)))
    sparse = half(model, execution=execution)
    sparse.compile(rigl(), "mse", run_eagerly=True)
    sparse.fit(X, numbers((8, 2)), batch_size=2, verbose=0)
    np.testing.assert_array_equal(base(X), sparse.get_layer("base")(X))
    assert [np.count_nonzero(mask) for mask in rigl_tf.get_masks(sparse).values()] == [*HALF, 4]
    # A CSR kernel has its mask in it.
    assert bool(rigl_tf.get_masks(base)) == (execution == "csr")


@pytest.mark.parametrize("make", [ab, lambda: built(InInit())])
@pytest.mark.parametrize(
    "wrong", [{"dense_layers": "typo"}, {"distribution": lambda shapes, sparsity: {}}]
)
def test_a_refused_sparsify_leaves_the_model_as_it_was(make, wrong):
    model = make()
    with pytest.raises(ValueError, match="Received"):
        rigl_tf.sparsify(model, 0.5, **wrong)
    assert all(masks.mask_of(weight) is None for weight in model.weights)
    assert not any(isinstance(layer, rigl_tf.SparseWrapper) for layer in model.layers)
    assert active(half(model)) == HALF


def built(model):
    model(X)
    return model


# In place: subclassed models, and Sequential ones that know no inputs.


class InInit(keras.Model):
    def __init__(self):
        super().__init__(name="it")
        self.a = layers.Dense(6, "relu", name="a")
        self.b = layers.Dense(4, name="b")

    def call(self, inputs):
        return self.b(self.a(inputs))


class InBuild(keras.Model):
    def __init__(self):
        super().__init__(name="it")

    def build(self, shape):
        self.a = layers.Dense(6, "relu", name="a")
        self.b = layers.Dense(4, name="b")
        self.a.build(shape)
        self.b.build((None, 6))

    def call(self, inputs):
        return self.b(self.a(inputs))


class InCall(keras.Model):
    """Keras allows it as long as some layer of the model is not built."""

    def __init__(self):
        super().__init__(name="it")
        self.a = layers.Dense(6, "relu", name="a")
        self.b = None

    def call(self, inputs):
        x = self.a(inputs)
        if self.b is None:
            self.b = layers.Dense(4, name="b")
        return self.b(x)


def unbuilt():
    return keras.Sequential([layers.Dense(6, "relu", name="a"), layers.Dense(4, name="b")])


def fit(model, eagerly=False):
    model.compile(rigl(), "mse", run_eagerly=eagerly)
    model.fit(X, Y, batch_size=2, verbose=0)


HOW = {"call": lambda model: model(X), "fit": fit, "predict": lambda m: m.predict(X, verbose=0)}


@pytest.mark.parametrize(
    ("make", "how"),
    [
        *[(make, how) for make in (InInit, InBuild, InCall, unbuilt) for how in ("call", "fit")],
        (InBuild, "predict"),
        (unbuilt, "predict"),
    ],
)
def test_layers_made_late_get_masks(make, how):
    model = make()
    sparse = half(model)
    assert sparse is model
    HOW[how](sparse)
    assert active(sparse) == HALF
    check_invariant(sparse)
    fit(sparse, eagerly=True)
    assert active(sparse) == HALF
    check_invariant(sparse)
    assert all(isinstance(layer, rigl_tf.SparseWrapper) for layer in sparse.layers)
    plain = rigl_tf.strip(sparse)
    assert type(plain) is type(sparse)
    assert rigl_tf.get_masks(plain) == {}
    np.testing.assert_array_equal(plain(X), sparse(X))


def nested():
    return keras.Sequential([InInit(), unbuilt()])


def by_tape(model):
    @tf.function
    def step(x, y):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((model(x) - y) ** 2)
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)

    optimizer = keras.optimizers.SGD()
    step(X, Y)


def fit_with_keras(model):
    model.compile("adam", "mse")
    model.fit(X, Y, verbose=0)


def raises(*_):
    raise ValueError("an error of the user's function")


WRONG = {
    "dense_layers": ({"sparsity": 0.5, "dense_layers": "typo"}, "Received: .*typo"),
    "sparsity": ({"sparsity": {"typo": 0.5}}, "Received: .*typo"),
    "distribution": ({"sparsity": 0.5, "distribution": lambda *_: {"c": 0.1}}, r"Received: \['c'"),
    "structure": (
        {"sparsity": 0.5, "structure": rigl_tf.structures.Block((5, 1))},
        "`structure` must fit each sparse kernel",
    ),
    "initializer": ({"sparsity": 0.5, "initializer": raises}, "an error of the user's"),
}


@pytest.mark.parametrize("how", [lambda model: model(X), fit, fit_with_keras, by_tape])
@pytest.mark.parametrize("make", [InInit, InBuild, InCall, unbuilt, nested])
@pytest.mark.filterwarnings("ignore:Layer .* looks like it has unbuilt state")
@pytest.mark.filterwarnings("ignore:`build")
def test_wrong_arguments_of_a_model_that_is_not_built(make, how):
    """Keras hides the first error of a call with which it tries to build a model."""
    for arguments, message in WRONG.values():
        sparse = rigl_tf.sparsify(make(), **arguments)
        for _ in range(2):
            with pytest.raises(ValueError, match=message):
                how(sparse)


class WithUnused(InInit):
    def __init__(self):
        super().__init__()
        self.never_used = layers.Dense(5, name="c")


class OwnSteps(keras.Model):
    """It has no `call`."""

    def __init__(self):
        super().__init__()
        self.parts = [WithUnused(), WithUnused()]

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = sum(tf.reduce_mean((part(x) - y) ** 2) for part in self.parts)
        weights = self.trainable_variables
        self.optimizer.apply(tape.gradient(loss, weights), weights)
        return {"loss": loss}


def fit_eagerly(model):
    model.compile("adam", "mse", run_eagerly=True)
    model.fit(X, Y, verbose=0)


@pytest.mark.parametrize(
    ("make", "execution"),
    [
        (WithUnused, "masked"),
        (WithUnused, "csr"),
        (lambda: keras.Sequential([WithUnused()]), "masked"),
        (OwnSteps, "masked"),
    ],
)
@pytest.mark.filterwarnings("ignore:Layer .* looks like it has unbuilt state")
@pytest.mark.filterwarnings("ignore:`build")
def test_a_layer_that_is_never_built_keeps_no_other_layer_dense(make, execution):
    """An optimizer of Keras does not tell that training starts."""
    calls = [fit_with_keras]
    if execution == "masked":
        calls += [fit_eagerly]
    if make is not OwnSteps:
        calls += [HOW["call"], by_tape]
    for how in calls:
        sparse = half(make(), execution=execution)
        how(sparse)
        assert active(sparse) == HALF * (2 if make is OwnSteps else 1)
        assert set(executions_of(sparse)) == {execution}
        check_invariant(sparse)


class WithHelper(InInit):
    def __init__(self):
        super().__init__()
        self.helper = layers.Dense(4, name="c")

    def call(self, inputs, training=False):
        x = self.a(inputs)
        return self.b(x) + self.helper(x) if training else self.b(x)


@pytest.mark.built_in_fit
@pytest.mark.parametrize("fit", [fit_with_keras, fit_eagerly])
@pytest.mark.parametrize(("name", "error"), [("c", None), ("typo", "Received: .*typo")])
@pytest.mark.filterwarnings("ignore:Layer .* looks like it has unbuilt state")
@pytest.mark.filterwarnings("ignore:`build")
def test_a_name_of_a_layer_that_is_built_in_training(fit, name, error):
    sparse = rigl_tf.sparsify(WithHelper(), {"a": 0.5, "b": 0.75, name: 0.25})
    sparse(X)  # without the helper
    with contextlib.nullcontext() if error is None else pytest.raises(ValueError, match=error):
        fit(sparse)
    if error is None:
        assert active(sparse) == [24, 6, 18]


class PartlyBuilt(keras.Model):
    """Its part knows its inputs, so it is built at once, and the head in the first call."""

    def __init__(self):
        super().__init__()
        self.part = keras.Sequential([keras.Input((8,)), layers.Dense(6, "relu", name="a")])
        self.head = layers.Dense(4, name="b")

    def call(self, inputs):
        return self.head(self.part(inputs))


@pytest.mark.parametrize("execution", ["masked", "csr"])
@pytest.mark.parametrize("how", HOW)
def test_a_part_that_is_built_before_the_rest(how, execution):
    sparse = half(PartlyBuilt(), execution=execution)
    HOW[how](sparse)
    assert active(sparse) == HALF
    assert executions_of(sparse) == [execution] * 2
    fit(sparse, eagerly=True)
    assert active(sparse) == HALF
    check_invariant(sparse)
    np.testing.assert_allclose(rigl_tf.strip(sparse)(X), sparse(X), atol=1e-6)


@pytest.mark.parametrize("make", [InBuild, unbuilt])
def test_build_gives_masks(make):
    sparse = half(make())
    sparse.build((None, 8))
    assert active(sparse) == HALF
    check_invariant(sparse)
    fit(sparse, eagerly=True)
    assert active(sparse) == HALF


@pytest.mark.parametrize("how", ["call", "predict"])
def test_layers_made_late_by_a_part(how):
    sparse = half(keras.Sequential([InBuild(), layers.Dense(2, name="head")]))
    HOW[how](sparse)
    assert active(sparse) == [*HALF, 4]  # half of 4 x 2
    check_invariant(sparse)


@keras.saving.register_keras_serializable(package="rigl_tf_tests")
class Own(layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = layers.Dense(4)

    def call(self, inputs):
        return self.dense(inputs)

    def twice(self, inputs):
        return 2 * self(inputs)


class OwnDense(layers.Dense):
    pass


class Several(keras.Model):
    def __init__(self):
        super().__init__()
        self.several = [Own(), OwnDense(4), Own()]

    def call(self, inputs):
        for layer in self.several:
            inputs = layer(inputs)
        return inputs


@pytest.mark.parametrize("is_built", [True, False])
def test_layers_of_a_class_of_the_user_are_found(is_built):
    model = Several()
    if is_built:
        model(X)
    sparse = half(model)
    sparse(X)
    first, second, third = sparse.layers
    assert all(isinstance(layer, rigl_tf.SparseWrapper) for layer in sparse.layers)
    assert isinstance(first, Own)
    assert isinstance(third, Own)
    np.testing.assert_array_equal(first.twice(X), 2 * first(X))
    # What Keras does with its own classes must not be done with a wrapper.
    assert not isinstance(second, layers.Dense)
    assert type(first.__class__.from_config(first.get_config())) is rigl_tf.SparseWrapper
    lines = []
    sparse.summary(print_fn=lines.append)
    assert is_built or "(8, 4)" in "".join(lines)


@pytest.mark.filterwarnings("ignore:`build")  # Keras on the layer that is not used
def test_a_built_model_with_a_layer_that_is_never_used():
    """What is built is sparse at once: it does not wait for what no call builds."""
    model = InInit()
    model.unused = layers.Dense(3, name="unused")
    model(X)
    sparse = half(model)
    assert active(sparse) == HALF
    check_invariant(sparse)
    assert rigl_tf.sparsity_summary(sparse).sparsity == 0.5


@pytest.mark.parametrize("make", [InInit, InBuild, InCall])
def test_a_built_subclassed_model_in_place(make):
    model = make()
    model(X)
    before = {weight.path: weight.numpy() for weight in model.weights}
    sparse = half(model)
    assert sparse is model
    assert active(sparse) == HALF
    for path, mask in rigl_tf.get_masks(sparse).items():
        (kernel,) = [weight for weight in sparse.weights if weight.path == path]
        np.testing.assert_array_equal(kernel, np.where(mask, before[path], 0))
    # The first call computes with the masked kernels.
    a, b = sparse.a.layer, sparse.b.layer
    want = np.maximum(X @ a.kernel.numpy() + a.bias.numpy(), 0) @ b.kernel.numpy() + b.bias.numpy()
    np.testing.assert_allclose(sparse(X), want, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="sparse already"):
        half(model)


# Weights: those of the layer first, then the masks.


def conv():
    return keras.Sequential(
        [keras.Input((5, 5, 2)), layers.Conv2D(4, 3), layers.Flatten(), layers.Dense(2)], name="m"
    )


def attention():
    inputs = keras.Input((3, 6))
    x = layers.MultiHeadAttention(2, 4)(inputs, inputs)
    return keras.Model(inputs, layers.Dense(2)(x), name="m")


def lstm():
    return keras.Sequential([keras.Input((3, 6)), layers.LSTM(4), layers.Dense(2)], name="m")


def bidirectional():
    layer = layers.Bidirectional(layers.GRU(4))
    return keras.Sequential([keras.Input((3, 6)), layer, layers.Dense(2)], name="m")


def nested():
    inputs = keras.Input((8,))
    x = ab("one")(mlp_of(8)(inputs))
    return keras.Model(inputs, layers.Dense(2)(x), name="m")


def mlp_of(units):
    return keras.Sequential(
        [keras.Input((8,)), layers.Dense(units), layers.BatchNormalization(), layers.Dense(8)]
    )


class Listed(keras.Model):
    """Layers in a list and a dictionary: Keras names their places by their classes."""

    def __init__(self):
        super().__init__(name="m")
        self.blocks = [layers.Dense(8), layers.LayerNormalization(), layers.Dense(8)]
        self.heads = {"b": layers.Dense(4), "a": layers.Dense(4)}
        self.nested = mlp_of(6)

    def call(self, inputs):
        x = inputs
        for block in self.blocks:
            x = block(x)
        x = self.nested(x)
        return self.heads["a"](x) + self.heads["b"](x)


def listed():
    model = Listed()
    model(X)
    return model


def at_each_time():
    inner = keras.Sequential([layers.Dense(5), layers.TimeDistributed(layers.Dense(4))])
    outer = layers.TimeDistributed(inner)
    return keras.Sequential([keras.Input((2, 3, 6)), outer, layers.Dense(2)], name="m")


def normalized():
    layer = layers.SpectralNormalization(layers.Conv2D(4, 3))
    return keras.Sequential([keras.Input((5, 5, 2)), layer, layers.Dense(2)], name="m")


class Residual(layers.Layer):
    """A user's layer around another one, with a layer of its own."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        self.scales = [layers.Dense(6)]

    def call(self, inputs):
        return inputs + self.scales[0](self.layer(inputs))


def around():
    residual = Residual(layers.Dense(7))
    return keras.Sequential([keras.Input((6,)), residual, layers.Dense(2)], name="m")


class Transposed(layers.Layer):
    """The transpose of another layer, a second use of its kernel."""

    def __init__(self, dense):
        super().__init__()
        self.dense = dense

    def call(self, inputs):
        return keras.ops.matmul(inputs, keras.ops.transpose(self.dense.kernel))


def tied():
    dense = layers.Dense(4, name="z")  # after its other place, in the order of Keras's files
    inputs = keras.Input((6,))
    return keras.Model(inputs, Transposed(dense)(dense(inputs)), name="m")


MODELS = [
    ab,
    conv,
    attention,
    lstm,
    bidirectional,
    nested,
    listed,
    at_each_time,
    normalized,
    around,
    tied,
]


def inputs_of(model):
    shape = (8,) if isinstance(model, Listed) else model.input_shape[1:]
    return numbers((4, *shape))


@pytest.mark.parametrize("make", [ab, lstm])
def test_weights_of_a_wrapper(make):
    dense = make()
    layer = dense.layers[0]
    names = [weight.name for weight in layer.weights]
    sparse = half(dense)
    wrapper = sparse.layers[0]
    assert [weight.name for weight in wrapper.weights][: len(names)] == names
    assert all("mask" in weight.name for weight in wrapper.weights[len(names) :])
    kernel, *_ = wrapper.get_weights()
    np.testing.assert_array_equal(kernel, layer.weights[0])
    mask = next(iter(wrapper.kernel_masks.values())).numpy()
    # Of the layer alone, without masks: they stay.
    ones = [np.ones(weight.shape) for weight in layer.weights]
    wrapper.set_weights(ones)
    np.testing.assert_array_equal(layer.weights[0], mask)
    np.testing.assert_array_equal(next(iter(wrapper.kernel_masks.values())), mask)
    # Of the layer and its masks: those are set.
    others = [~each.numpy() for each in wrapper.kernel_masks.values()]
    wrapper.set_weights([*ones, *others])
    np.testing.assert_array_equal(layer.weights[0], ~mask)


def check_same(sparse, other, want):
    """`sparse` has the weights of `other` where the masks, which are as before, are `True`."""
    got = rigl_tf.get_masks(sparse)
    kernels = {id(kernel.variable): kernel.mask for kernel in masks.kernels_of(sparse).values()}
    for path, mask in want.items():
        np.testing.assert_array_equal(got[path], mask)
    values = [
        (weight.numpy(), kernels.get(id(weight), True))
        for weight in sparse.weights
        if weight.dtype != "bool"
    ]
    for (value, mask), old in zip(values, other.get_weights(), strict=True):
        np.testing.assert_array_equal(value, np.where(mask, old, 0))


def test_weights_in_another_number_or_shape_are_refused():
    sparse = half(ab())
    before = sparse.get_weights()
    with pytest.raises(ValueError, match=r"the 6 weights of 'mlp', or the 4 without .*3 arrays"):
        sparse.set_weights(before[:3])
    with pytest.raises(ValueError, match=r"'mlp/b/kernel' must have its shape \(6, 4\)"):
        sparse.set_weights([np.ones((8, 6)), np.ones(6), np.ones((4, 6)), np.ones(4)])
    for value, old in zip(sparse.get_weights(), before, strict=True):
        np.testing.assert_array_equal(value, old)


@pytest.mark.parametrize("make", MODELS)
def test_weights_of_a_dense_model_and_a_file_of_them_keep_the_zeros(make, tmp_path):
    sparse, other = half(make()), make()
    want = rigl_tf.get_masks(sparse)
    sparse.set_weights(other.get_weights())
    assert list(rigl_tf.get_masks(sparse)) == list(want)
    check_same(sparse, other, want)
    other.set_weights([weight + 1 for weight in other.get_weights()])
    other.save_weights(tmp_path / "it.weights.h5")
    sparse.load_weights(tmp_path / "it.weights.h5")
    check_same(sparse, other, want)
    check_invariant(sparse)


@pytest.mark.parametrize("make", MODELS)
def test_a_file_of_sparse_weights_is_loaded_into_dense_and_sparse_models(make, tmp_path):
    sparse = half(make(), seed=1)
    x = inputs_of(sparse)
    sparse.save_weights(tmp_path / "it.weights.h5")
    dense = make()
    dense.load_weights(tmp_path / "it.weights.h5")
    np.testing.assert_array_equal(dense(x), sparse(x))
    other = half(make())
    other.load_weights(tmp_path / "it.weights.h5")
    np.testing.assert_array_equal(other(x), sparse(x))
    for mask, want in zip(
        rigl_tf.get_masks(other).values(), rigl_tf.get_masks(sparse).values(), strict=True
    ):
        np.testing.assert_array_equal(mask, want)


# Masks of another model.


def test_masks_are_set_by_position_where_paths_differ(tmp_path):
    one, other = half(ab("one")), half(ab("other"), seed=1)
    want = list(rigl_tf.get_masks(one).values())
    rigl_tf.set_masks(other, rigl_tf.get_masks(one))
    assert list(rigl_tf.get_masks(other)) == ["other/a/kernel", "other/b/kernel"]
    for mask, expected in zip(rigl_tf.get_masks(other).values(), want, strict=True):
        np.testing.assert_array_equal(mask, expected)
    check_invariant(other)

    masks.save_masks(one, tmp_path / "it.npz")
    third = half(ab("third"), seed=2)
    masks.load_masks(third, tmp_path / "it.npz")
    for mask, expected in zip(rigl_tf.get_masks(third).values(), want, strict=True):
        np.testing.assert_array_equal(mask, expected)
    check_invariant(third)


def test_saved_masks_are_loaded_by_path(tmp_path):
    sparse = half(ab())
    want = rigl_tf.get_masks(sparse)
    masks.save_masks(sparse, tmp_path / "it.npz")
    rigl_tf.set_masks(sparse, {path: np.ones(mask.shape) for path, mask in want.items()})
    masks.load_masks(sparse, str(tmp_path / "it.npz"))
    for path, mask in rigl_tf.get_masks(sparse).items():
        np.testing.assert_array_equal(mask, want[path])


def test_files_that_hold_no_masks(tmp_path):
    sparse = half(ab())
    with pytest.raises(ValueError, match=r"must end with '.npz'. Received: path='.*it.h5'"):
        masks.save_masks(sparse, tmp_path / "it.h5")
    with pytest.raises(ValueError, match=r"`save_masks` needs a built sparse model"):
        masks.save_masks(ab(), tmp_path / "it.npz")
    np.savez(tmp_path / "other.npz", a=np.ones(3))
    with pytest.raises(ValueError, match=r"must be a file of `rigl_tf.save_masks`"):
        masks.load_masks(sparse, tmp_path / "other.npz")
    np.savez(tmp_path / "pickles.npz", paths=np.array(["a", {}], object))
    (tmp_path / "text.npz").write_text("no arrays")
    (tmp_path / "empty.npz").write_text("")
    (tmp_path / "cut.npz").write_bytes((tmp_path / "other.npz").read_bytes()[:50])
    np.save(tmp_path / "one.npy", np.ones(3))
    (tmp_path / "one.npy").rename(tmp_path / "one.npz")
    for name in ("pickles", "text", "empty", "cut", "one"):
        with pytest.raises(ValueError, match=rf"of `rigl_tf.save_masks`.*{name}\.npz', something"):
            masks.load_masks(sparse, tmp_path / f"{name}.npz")
    with pytest.raises(FileNotFoundError):
        masks.load_masks(sparse, tmp_path / "missing.npz")
    masks.save_masks(sparse, tmp_path / "it.npz")
    small = half(keras.Sequential([keras.Input((8,)), layers.Dense(4, name="c")], name="mlp"))
    with pytest.raises(ValueError, match="must be the path of a sparse kernel"):
        masks.load_masks(small, tmp_path / "it.npz")


# Strategies, and a network next to its clone.


def test_under_a_strategy_the_model_must_be_made_in_its_scope():
    model = ab()
    with mirrored().scope(), pytest.raises(ValueError, match="must be made in its scope"):
        half(model)
    assert all(masks.mask_of(weight) is None for weight in model.weights)


@pytest.mark.parametrize("is_inside", [True, False])
def test_a_model_that_was_made_in_the_scope(is_inside):
    with mirrored().scope():
        model = ab()
        sparse = half(model) if is_inside else None
    sparse = sparse or half(model)
    assert active(sparse) == HALF
    assert all(masks.strategy_of(weight) is mirrored() for weight in sparse.weights)
    with mirrored().scope():
        sparse.compile(rigl(), "mse", jit_compile=False)
        sparse.fit(X, Y, batch_size=4, epochs=2, verbose=0)
    assert active(sparse) == HALF
    check_invariant(sparse)


class WithTarget(keras.Model):
    def __init__(self):
        super().__init__()
        self.online = ab("q")
        self.target = keras.models.clone_model(self.online)
        self.target.set_weights(self.online.get_weights())

    def call(self, inputs):
        return self.online(inputs) - tf.stop_gradient(self.target(inputs))


def test_a_network_and_its_clone_have_the_same_masks():
    model = half(WithTarget())
    assert active(model) == [*HALF, *HALF]
    for one, other in zip(model.online.layers, model.target.layers, strict=True):
        np.testing.assert_array_equal(one.kernel_mask, other.kernel_mask)
        np.testing.assert_array_equal(one.layer.kernel, other.layer.kernel)
    assert not np.any(model(X))


def test_a_clone_that_is_frozen_before_is_told():
    model = WithTarget()
    model.target.trainable = False
    model(X)
    with pytest.warns(UserWarning, match="72 of these are in a clone of sparse layers, which has"):
        half(model)
    frozen_after = WithTarget()
    frozen_after(X)
    sparse = half(frozen_after)
    sparse.target.trainable = False
    for one, other in zip(sparse.online.weights, sparse.target.weights, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_built_layer_around_another_one_in_a_model_that_is_not_built():
    around = layers.TimeDistributed(layers.Dense(4))
    around(numbers((2, 3, 6)))
    sparse = half(keras.Sequential([around, layers.Dense(2)]))
    sparse.compile(rigl(), "mse")
    sparse.fit(numbers((8, 3, 6)), numbers((8, 3, 2)), batch_size=2, verbose=0)
    assert active(sparse) == [12, 4]
    check_invariant(sparse)


@pytest.mark.filterwarnings("ignore:`build")  # Keras on a layer that it cannot build
@pytest.mark.parametrize("inputs", [[], [keras.Input((3, 6))]])
def test_a_layer_that_keras_takes_for_built(inputs):
    around = layers.TimeDistributed(Residual(layers.Dense(7)))
    sparse = half(keras.Sequential([*inputs, around, layers.Dense(2)]))
    sparse.compile(rigl(), "mse")
    sparse.fit(numbers((8, 3, 6)), numbers((8, 3, 2)), batch_size=2, verbose=0)
    assert active(sparse) == [21, 21, 6]
    check_invariant(sparse)


def test_a_layer_that_holds_a_sparse_one_has_its_wrapper():
    dense = tied()
    sparse = half(dense)
    assert sparse.layers[2].dense is sparse.layers[1]
    assert dense.layers[2].dense is dense.layers[1]
    assert len(dense.weights) == 2
    assert rigl_tf.strip(sparse).layers[2].dense is dense.layers[1]


@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method")  # of Keras
def test_quantize_of_a_sparse_layer_is_told():
    model = rigl_tf.sparsify(keras.Sequential([keras.Input((8,)), layers.Dense(4)]), 0.5)
    model.quantize("int8")
    with pytest.warns(UserWarning, match="kernels that it no longer has"):
        model(np.ones((2, 8), "float32"))


def test_quantize_of_a_csr_layer_is_told():
    dense = keras.Sequential([keras.Input((8,)), layers.Dense(4)])
    model = rigl_tf.sparsify(dense, 0.5, execution="csr")
    of_keras, ours = messages(model.quantize, "int8")
    assert "Layer InputLayer does not have a `quantize` method" in of_keras
    assert "leaves CSR kernels as they are: use `rigl_tf.strip` on the model" in ours


@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method")  # of Keras
def test_a_stripped_model_is_quantized():
    model = rigl_tf.sparsify(keras.Sequential([keras.Input((8,)), layers.Dense(4)]), 0.5)
    inputs = np.random.default_rng(0).normal(size=(4, 8)).astype("float32")
    before, mask = model(inputs), model.layers[0].kernel_mask.numpy()
    plain = rigl_tf.strip(model)
    plain.quantize("int8")
    np.testing.assert_allclose(plain(inputs), before, atol=0.05)
    assert not np.asarray(plain.layers[0]._kernel)[~mask].any()
