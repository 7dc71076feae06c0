"""Tests of `rigl_tf.sparsify` and `rigl_tf.strip`."""

import json
import re
import warnings

import keras
import numpy as np
import pytest
from helpers import active, check_invariant, covers_part, ends_early, numbers, python

import rigl_tf
from rigl_tf import distributions

layers = keras.layers


def mlp(**kwargs):
    return keras.Sequential(
        [
            keras.Input((16,)),
            layers.Dense(12, activation="relu", name="first"),
            layers.Dense(8, activation="relu", name="second"),
            layers.Dense(3, name="third"),
        ],
        name="mlp",
        **kwargs,
    )


def convnet():
    inputs = keras.Input((6, 6, 2), name="image")
    x = layers.Conv2D(4, 3, use_bias=False, name="conv")(inputs)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.ReLU(name="relu")(x)
    x = layers.DepthwiseConv2D(2, name="depthwise")(x)
    shortcut = layers.Conv2D(6, 1, name="shortcut")(x)
    x = layers.Conv2D(6, 3, padding="same", name="conv2")(x)
    x = layers.Add(name="add")([x, shortcut])
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, layers.Dense(3, name="head")(x), name="convnet")


def kernels_of(model):
    """The kernels that can be sparse, in the order of the model's weights."""
    return {
        weight.path: weight.numpy()
        for weight in model.trainable_weights
        if weight.path.endswith("/kernel") and "depthwise" not in weight.path
    }


# How many, and where.


def per_layer(shapes, sparsity):
    return {path: sparsity / (index + 1) for index, path in enumerate(shapes)}


@pytest.mark.parametrize("sparsity", [0.0, 0.29, 0.5, 0.9])
@pytest.mark.parametrize("distribution", ["uniform", "erdos_renyi", "erk", per_layer])
@pytest.mark.parametrize("make", [mlp, convnet])
def test_counts_are_those_of_the_distribution(make, distribution, sparsity):
    dense = make()
    sparse = rigl_tf.sparsify(dense, sparsity, distribution)
    shapes = {path: kernel.shape for path, kernel in kernels_of(dense).items()}
    want = distributions.allocate(distribution, shapes, sparsity)
    got = rigl_tf.get_masks(sparse)
    assert list(got) == list(shapes)
    for path, mask in got.items():
        assert mask.shape == shapes[path]
        assert (~mask).sum() == int(np.floor(want[path] * mask.size))
    check_invariant(sparse)


def test_counts_by_hand():
    # The first stays dense; floor(0.9 * 96) = 86 and floor(0.9 * 24) = 21 zeros.
    masks = rigl_tf.get_masks(rigl_tf.sparsify(mlp(), 0.9, "uniform"))
    assert [int((~mask).sum()) for mask in masks.values()] == [0, 86, 21]


def test_erk_is_the_default():
    one, other = rigl_tf.sparsify(mlp(), 0.8), rigl_tf.sparsify(mlp(), 0.8, "erk", seed=0)
    for mask, same in zip(
        rigl_tf.get_masks(one).values(), rigl_tf.get_masks(other).values(), strict=True
    ):
        np.testing.assert_array_equal(mask, same)


def test_kernels_of_one_shape_have_different_masks_and_seeds_count():
    def dense():
        return keras.Sequential([keras.Input((9,)), layers.Dense(9), layers.Dense(9)])

    first, second = rigl_tf.get_masks(rigl_tf.sparsify(dense(), 0.5, "erk")).values()
    assert (first != second).any()
    other, _ = rigl_tf.get_masks(rigl_tf.sparsify(dense(), 0.5, "erk", seed=1)).values()
    assert (first != other).any()


# What becomes of the model.


def test_weights_are_kept_where_active_and_shared():
    dense = convnet()
    for weight in dense.weights:
        weight.assign(numbers(weight.shape, seed=len(weight.path)))
    dense.compile("adam", "mse")
    optimizer = dense.optimizer
    before = dense.get_weights()
    sparse = rigl_tf.sparsify(dense, 0.7)
    masks = rigl_tf.get_masks(sparse)
    shared = {weight.path: weight for weight in sparse.weights}
    for weight, old in zip(dense.weights, before, strict=True):
        assert shared[weight.path] is weight
        want = np.where(masks.get(weight.path, True), old, 0)
        np.testing.assert_array_equal(weight, want, err_msg=weight.path)
    assert dense.compiled
    assert dense.optimizer is optimizer
    assert not any(isinstance(layer, rigl_tf.SparseWrapper) for layer in dense.layers)
    assert not sparse.compiled
    assert getattr(sparse, "optimizer", None) is None
    assert [layer.name for layer in sparse.layers] == [layer.name for layer in dense.layers]


def test_at_sparsity_zero_the_predictions_are_the_dense_ones():
    dense = convnet()
    inputs = numbers((2, 6, 6, 2))
    want = dense(inputs)
    np.testing.assert_array_equal(rigl_tf.sparsify(dense, 0.0)(inputs), want)


def test_an_unbuilt_model_gets_its_masks_when_it_is_built():
    def unbuilt():
        return keras.Sequential(
            [layers.Dense(12, name="a"), layers.Dense(8, name="b"), layers.Dense(3, name="c")]
        )

    sparse = rigl_tf.sparsify(unbuilt(), 0.8)
    assert rigl_tf.get_masks(sparse) == {}
    sparse.build((None, 16))
    built = unbuilt()
    built.build((None, 16))
    shapes = {path: kernel.shape for path, kernel in kernels_of(built).items()}
    want = distributions.allocate("erk", shapes, 0.8)
    zeros = [int((~mask).sum()) for mask in rigl_tf.get_masks(sparse).values()]
    assert zeros == [int(np.floor(want[path] * np.prod(shape))) for path, shape in shapes.items()]
    check_invariant(sparse)


def test_a_nested_model():
    inner = keras.Sequential(
        [keras.Input((8,)), layers.Dense(8, name="a"), layers.Dense(6, name="b")], name="inner"
    )
    inputs = keras.Input((8,))
    dense = keras.Model(inputs, layers.Dense(3, name="head")(inner(inputs)))
    sparse = rigl_tf.sparsify(dense, 0.5, per_layer)
    zeros = [int((~mask).sum()) for mask in rigl_tf.get_masks(sparse).values()]
    assert zeros == [32, 12, 3]  # 64 / 2, 48 / 4, 18 / 6
    assert isinstance(sparse.get_layer("inner").layers[0], rigl_tf.SparseWrapper)
    check_invariant(sparse)
    x = numbers((4, 8))
    np.testing.assert_array_equal(rigl_tf.strip(sparse)(x), sparse(x))
    assert kernels_of(sparse).keys() == kernels_of(dense).keys()


def test_a_shared_layer_has_one_mask():
    shared = layers.Dense(8, name="shared")
    inputs = keras.Input((8,))
    dense = keras.Model(inputs, layers.Dense(3, name="head")(shared(shared(inputs))))
    sparse = rigl_tf.sparsify(dense, 0.5, per_layer)
    assert [mask.size for mask in rigl_tf.get_masks(sparse).values()] == [64, 24]
    check_invariant(sparse)
    x = numbers((4, 8))
    kernel, bias, _ = sparse.get_layer("shared").get_weights()
    hidden = (x @ kernel + bias) @ kernel + bias
    head = sparse.get_layer("head").get_weights()
    np.testing.assert_allclose(sparse(x), hidden @ head[0] + head[1], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(rigl_tf.strip(sparse)(x), sparse(x))


def test_dense_layers():
    sparse = rigl_tf.sparsify(mlp(), 0.5, per_layer, dense_layers=["first"])
    assert list(rigl_tf.get_masks(sparse)) == ["mlp/second/kernel", "mlp/third/kernel"]
    # They are no part of the sparsity: the others have it among themselves.
    zeros = [int((~mask).sum()) for mask in rigl_tf.get_masks(sparse).values()]
    assert zeros == [48, 6]
    one = rigl_tf.sparsify(mlp(), 0.5, dense_layers="first")
    assert list(rigl_tf.get_masks(one)) == ["mlp/second/kernel", "mlp/third/kernel"]


def test_a_sparsity_for_each_layer():
    sparse = rigl_tf.sparsify(mlp(), {"first": 0.5, re.compile("^mlp/third"): 0.25})
    masks = rigl_tf.get_masks(sparse)
    # Half of 16 x 12, a quarter of 8 x 3; what is not named stays dense.
    assert {path: int((~mask).sum()) for path, mask in masks.items()} == {
        "mlp/first/kernel": 96,
        "mlp/third/kernel": 6,
    }
    check_invariant(sparse)
    assert not isinstance(sparse.get_layer("second"), rigl_tf.SparseWrapper)


def test_a_sparsity_for_each_layer_of_a_model_that_is_not_built():
    dense = keras.Sequential([layers.LSTM(4, name="lstm"), layers.Dense(5), layers.Dense(2)])
    sparse = rigl_tf.sparsify(dense, {layers.LSTM: 0.5, dense.layers[2]: 0.0})
    sparse.build((None, 5, 3))
    # Half of 3 x 16 and 4 x 16; the last is to become sparse later.
    assert [int((~mask).sum()) for mask in rigl_tf.get_masks(sparse).values()] == [24, 32, 0]
    wrong = rigl_tf.sparsify(keras.Sequential([layers.Dense(5, name="a")]), {"b": 0.5})
    with pytest.raises(ValueError, match=r"Each key of `sparsity` must .*Received: \['b'\]"):
        wrong.build((None, 3))


def test_of_what_the_sparsity_is_a_share_is_told():
    base = keras.Sequential([keras.Input((16,)), layers.Dense(30), layers.Dense(30)])
    base.trainable = False
    with pytest.warns(UserWarning, match=r"^90 of 1,533 weights .*; 1,380 are frozen and stay"):
        rigl_tf.sparsify(keras.Sequential([base, layers.Dense(3)]), 0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rigl_tf.sparsify(mlp(), 0.5)


class WithFrozen(keras.Model):
    """A frozen base that is built after the last sparse kernel."""

    def __init__(self):
        super().__init__()
        self.head = layers.Dense(3)
        self.base = layers.Dense(30, trainable=False)

    def call(self, inputs):
        return self.base(self.head(inputs))


@pytest.mark.parametrize(
    "make",
    [
        WithFrozen,
        lambda: keras.Sequential([layers.Dense(3), layers.Dense(30, trainable=False)]),
        lambda: keras.Sequential([WithFrozen()]),
    ],
)
def test_of_what_it_is_a_share_is_told_once_the_model_is_built(make):
    sparse = rigl_tf.sparsify(make(), 0.5)
    with pytest.warns(UserWarning, match=r"^48 of 171 weights .*; 90 are frozen and stay") as told:
        sparse(np.ones((2, 16)))
    assert len(told) == 1
    sparse(np.ones((2, 16)))


def test_only_embeddings():
    model = keras.Sequential([keras.Input((5,)), layers.Embedding(9, 4, name="words")], name="m")
    with pytest.raises(
        ValueError, match=r"`sparse_layers`: \['m/words/embeddings \(embedding\)'\]"
    ):
        rigl_tf.sparsify(model, 0.5)


def test_a_model_of_keras_2():
    model = type("Model", (), {"__module__": "tf_keras.src.engine.training"})()
    for caller in (lambda: rigl_tf.sparsify(model, 0.5), lambda: rigl_tf.strip(model)):
        with pytest.raises(ValueError, match="`model` must be made with Keras 3"):
            caller()


@covers_part
def test_a_frozen_layer_stays_dense():
    dense = mlp()
    dense.get_layer("second").trainable = False
    sparse = rigl_tf.sparsify(dense, 0.5)
    assert list(rigl_tf.get_masks(sparse)) == ["mlp/first/kernel", "mlp/third/kernel"]
    assert not sparse.get_layer("second").trainable


# Errors.


@pytest.mark.parametrize("sparsity", [1.0, -0.1, "x", float("nan"), None])
def test_bad_sparsity(sparsity):
    with pytest.raises(ValueError, match="Received: sparsity="):
        rigl_tf.sparsify(mlp(), sparsity)


@pytest.mark.parametrize("distribution", ["erdos", None, 3])
def test_unknown_distribution(distribution):
    with pytest.raises(ValueError, match="A distribution must be one of"):
        rigl_tf.sparsify(mlp(), 0.5, distribution)


@pytest.mark.parametrize(
    "distribution", [lambda s, _: {}, lambda s, _: dict.fromkeys(s, 1.0), lambda s, _: 0.5]
)
def test_a_callable_with_a_bad_result(distribution):
    with pytest.raises(ValueError, match="Received"):
        rigl_tf.sparsify(mlp(), 0.5, distribution)


def test_a_model_without_eligible_kernel():
    model = keras.Sequential([keras.Input((4,)), layers.ReLU(), layers.BatchNormalization()])
    with pytest.raises(ValueError, match=r"a layer whose kernel can be sparse: .*BatchNorm"):
        rigl_tf.sparsify(model, 0.5)


def test_every_layer_kept_dense():
    with pytest.raises(ValueError, match="a layer whose kernel can be sparse"):
        rigl_tf.sparsify(mlp(), 0.5, dense_layers=["first", "second", "third"])


@pytest.mark.parametrize("which", ["sparse", "dense", "stripped"])
def test_sparsified_twice(which):
    dense = mlp()
    sparse = rigl_tf.sparsify(dense, 0.5)
    models = {"sparse": sparse, "dense": dense, "stripped": rigl_tf.strip(sparse)}
    with pytest.raises(ValueError, match=r"sparse already: .*anew.*clone_model.*set_masks"):
        rigl_tf.sparsify(models[which], 0.5)


@pytest.mark.parametrize("caller", [lambda m: rigl_tf.sparsify(m, 0.5), rigl_tf.strip])
def test_no_model(caller):
    with pytest.raises(ValueError, match=r"takes a `keras.Model`"):
        caller(layers.Dense(3))


def test_unknown_dense_layers():
    with pytest.raises(ValueError, match=r"Received: \['fourth'\]"):
        rigl_tf.sparsify(mlp(), 0.5, dense_layers=["first", "fourth"])


def test_strip_of_an_unbuilt_model():
    with pytest.raises(ValueError, match="needs a built model"):
        rigl_tf.strip(keras.Sequential([layers.Dense(3)]))


# Back.


@pytest.mark.parametrize("make", [mlp, convnet])
def test_strip(make):
    dense = make()
    sparse = rigl_tf.sparsify(dense, 0.7)
    plain = rigl_tf.strip(sparse)
    x = numbers((3, *dense.input_shape[1:]))
    np.testing.assert_array_equal(plain(x), sparse(x))
    assert [layer.name for layer in plain.layers] == [layer.name for layer in dense.layers]
    assert [type(layer) for layer in plain.layers] == [type(layer) for layer in dense.layers]
    assert [w.path for w in plain.weights] == [w.path for w in dense.weights]
    assert "rigl_tf" not in json.dumps(plain.get_config())
    for path, mask in rigl_tf.get_masks(sparse).items():
        assert not kernels_of(plain)[path][~mask].any()
    assert rigl_tf.get_masks(plain) == rigl_tf.get_masks(dense) == {}
    shared = {weight.path: weight for weight in sparse.weights}
    assert all(shared[weight.path] is weight for weight in plain.weights)


def test_strip_touches_no_value():
    """What other code wrote outside of the masks stays, and is predicted with."""
    sparse = rigl_tf.sparsify(mlp(), 0.7, "uniform")
    kernel = sparse.get_layer("second").layer.kernel
    kernel.assign(np.ones((12, 8)))
    before, want = sparse.get_weights(), sparse(numbers((3, 16)))
    plain = rigl_tf.strip(sparse)
    assert plain.get_layer("second").kernel is kernel
    for value, old in zip(sparse.get_weights(), before, strict=True):
        np.testing.assert_array_equal(value, old)
    np.testing.assert_array_equal(plain(numbers((3, 16))), want)


@ends_early
def test_strip_of_a_trained_model():
    sparse = rigl_tf.sparsify(mlp(), 0.5)
    sparse.compile(
        rigl_tf.RigL("adam", end_step=4, update_frequency=2, drop_fraction=0.5),
        "mse",
        run_eagerly=True,
    )
    x = numbers((12, 16))
    sparse.fit(x, numbers((12, 3)), batch_size=4, verbose=0)
    plain = rigl_tf.strip(sparse)
    np.testing.assert_array_equal(plain(x), sparse(x))
    assert not plain.compiled
    assert sparse.compiled


def test_strip_of_a_dense_model_is_the_model():
    dense = mlp()
    assert rigl_tf.strip(dense) is dense


def test_a_stripped_model_is_loaded_without_rigl_tf(tmp_path):
    sparse = rigl_tf.sparsify(convnet(), 0.7)
    path, x_path, y_path = (str(tmp_path / name) for name in ("m.keras", "x.npy", "y.npy"))
    x = numbers((3, 6, 6, 2))
    np.save(x_path, x)
    np.save(y_path, sparse(x).numpy())
    rigl_tf.strip(sparse).save(path)
    program = (
        "import sys, keras, numpy as np\n"
        "model, x, y = keras.models.load_model(sys.argv[1]), *map(np.load, sys.argv[2:])\n"
        "np.testing.assert_allclose(model(x), y, rtol=1e-5, atol=1e-6)\n"
        "assert 'rigl_tf' not in sys.modules\n"
    )
    done = python("-c", program, path, x_path, y_path, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.filterwarnings("ignore:When providing `inputs` as a dict")  # of Keras, on the names
def test_names_of_inputs_are_kept():
    inputs = {"a": keras.Input((4,)), "b": keras.Input((3,), name="second")}
    outputs = keras.layers.Dense(2)(keras.layers.Concatenate()(list(inputs.values())))
    model = keras.Model(inputs, outputs)
    sparse = rigl_tf.sparsify(model, 0.5)
    for each in (sparse, rigl_tf.strip(sparse)):
        assert [layer.name for layer in each.layers] == [layer.name for layer in model.layers]


@pytest.mark.parametrize("built", [True, False])
def test_a_clone_of_a_sparse_model_is_as_sparse(built):
    """Also made from configs alone, without the weights that hold the masks."""
    dense = keras.Sequential([keras.layers.Dense(30), keras.layers.Dense(5)])
    if built:
        dense.build((None, 20))
    sparse = rigl_tf.sparsify(dense, 0.8)
    if not built:
        sparse.build((None, 20))
    clone = keras.models.clone_model(sparse)
    clone.build((None, 20))
    assert active(clone) == active(sparse)
    assert sum(active(sparse)) < 0.21 * (600 + 150)


@pytest.mark.parametrize("execution", ["masked", "csr"])
def test_models_inside_forget_what_they_have_traced_with_other_kernels(execution):
    inside = keras.Sequential([keras.Input((6,)), layers.Dense(5), layers.Dense(4)])
    dense = keras.Sequential([keras.Input((6,)), inside, layers.Dense(2)])
    sparse = rigl_tf.sparsify(dense, 0.5, execution="masked" if execution == "csr" else "csr")
    x, inside = numbers((3, 6)), sparse.layers[0]
    inside.predict(x, verbose=0)
    rigl_tf.with_execution(sparse, execution)
    for kernel in rigl_tf.masks.kernels_of(sparse).values():
        kernel.assign(2 * kernel.numpy())
    np.testing.assert_allclose(inside.predict(x, verbose=0), inside(x), rtol=1e-5)


def test_the_dense_model_and_models_inside_forget_what_they_have_traced():
    inside = keras.Sequential([keras.Input((6,)), layers.Dense(5)])
    dense = keras.Sequential([keras.Input((6,)), inside, layers.Dense(2)])
    x = numbers((3, 6))
    for model in (dense, inside):
        model.predict(x, verbose=0)
    rigl_tf.sparsify(dense, 0.5, execution="csr")
    for model in (dense, inside):
        np.testing.assert_allclose(model.predict(x, verbose=0), model(x), rtol=1e-5)


def test_xla_is_turned_off_for_csr_kernels_and_that_is_told():
    sparse = rigl_tf.sparsify(mlp(), 0.5)
    sparse.compile("sgd", "mse", jit_compile=True)
    with pytest.warns(UserWarning, match="doesn't support `jit_compile=True`"):
        rigl_tf.with_execution(sparse, "csr")
    sparse.fit(numbers((4, 16)), numbers((4, 3)), verbose=0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rigl_tf.sparsify(mlp(), from_zeros="no"), "from_zeros='no'"),
        (lambda: rigl_tf.sparsify(mlp(), 0.5, seed=2**70), "seed=1180591620717411303424"),
        (lambda: rigl_tf.SparseWrapper(layers.Dense(2), 0.5, seed=-(2**64)), "seed=-184467440737"),
        (
            lambda: rigl_tf.pruning.random_masks(rigl_tf.sparsify(mlp(), 0.5), 0.5, seed=2**64),
            "seed=184467440737",
        ),
        (lambda: rigl_tf.RigL("sgd", 1000, track_exploration="no"), "track_exploration='no'"),
        (lambda: rigl_tf.SNFS("sgd", 1000, redistribute=1), "redistribute=1"),
        (lambda: rigl_tf.DNW("sgd", 0.5, track_exploration=None), "track_exploration=None"),
        (lambda: rigl_tf.callbacks.SparsityLogger(masks="no"), "masks='no'"),
        (
            lambda: rigl_tf.compact(rigl_tf.sparsify(mlp(), 0.5), drop_inputs="no"),
            "drop_inputs='no'",
        ),
        (lambda: rigl_tf.export(rigl_tf.sparsify(mlp(), 0.5), "it", check=0), "check=0"),
    ],
)
def test_what_is_no_boolean_or_no_seed_is_refused(call, message):
    with pytest.raises(ValueError, match=f"must be .*Received: {message}"):
        call()
