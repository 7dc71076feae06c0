"""Tests of `rigl_tf.pruning`: masks from scores that are known by arithmetic."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import all_alike, kernels_of, numbers

import rigl_tf
from rigl_tf import pruning

layers = keras.layers


def linear(sizes=(6, 5), sparsity=0.0):
    """A chain of Dense layers without bias or activation."""
    keras.utils.set_random_seed(0)
    dense = keras.Sequential(
        [keras.Input(sizes[:1]), *[layers.Dense(size, use_bias=False) for size in sizes[1:]]]
    )
    return rigl_tf.sparsify(dense, sparsity, dict.fromkeys)


def largest(scores, num):
    mask = np.zeros(scores.size, bool)
    mask[np.argsort(-scores.ravel(), kind="stable")[:num]] = True
    return mask.reshape(scores.shape)


def squares(targets, outputs):
    return tf.reduce_sum((outputs - targets) ** 2) / 2


X, Y = numbers((7, 6)), numbers((7, 5), seed=1)


def test_magnitude_in_each_kernel_and_in_all_together():
    model = linear((6, 5, 4))
    one, two = kernels_of(model)
    got = pruning.magnitude_masks(model, 0.7, all_alike)
    np.testing.assert_array_equal(got["sequential/dense/kernel"], largest(np.abs(one), 30 - 21))
    np.testing.assert_array_equal(got["sequential/dense_1/kernel"], largest(np.abs(two), 20 - 14))
    got = pruning.magnitude_masks(model, 0.7)
    both = largest(np.abs(np.concatenate([one.ravel(), two.ravel()])), 50 - 35)
    np.testing.assert_array_equal(got["sequential/dense/kernel"], both[:30].reshape(6, 5))
    np.testing.assert_array_equal(got["sequential/dense_1/kernel"], both[30:].reshape(5, 4))
    assert all(mask.all() for mask in rigl_tf.get_masks(model).values())


def test_snip_by_hand():
    model = linear()
    (kernel,) = kernels_of(model)
    gradient = X.T @ (X @ kernel - Y)
    (mask,) = pruning.snip_masks(model, (X, Y), 0.8, squares).values()
    np.testing.assert_array_equal(mask, largest(np.abs(gradient * kernel), 6))
    # Not by the gradient alone.
    assert (mask != largest(np.abs(gradient), 6)).any()


def test_grasp_by_hand():
    model = linear()
    (kernel,) = kernels_of(model)
    gradient = X.T @ (X @ kernel - Y)
    flow = X.T @ X @ gradient  # The Hessian of each column is X.T X.
    (mask,) = pruning.grasp_masks(model, (X, Y), 0.8, squares, temperature=1).values()
    np.testing.assert_array_equal(mask, largest(kernel * flow, 6))


def test_batches_are_averaged():
    model = linear()
    halves = [(X[:3], Y[:3]), (X[3:6], Y[3:6])]
    (whole,) = pruning.snip_masks(model, (X[:6], Y[:6]), 0.8, "mse").values()
    (mask,) = pruning.snip_masks(model, halves, 0.8, "mse").values()
    np.testing.assert_array_equal(mask, whole)
    (mask,) = pruning.snip_masks(model, (half for half in halves), 0.8, "mse").values()
    np.testing.assert_array_equal(mask, whole)
    dataset = tf.data.Dataset.from_tensor_slices((X[:6], Y[:6])).batch(3)
    (mask,) = pruning.snip_masks(model, dataset, 0.8, "mse").values()
    np.testing.assert_array_equal(mask, whole)


@pytest.mark.parametrize("name", ["snip", "grasp"])
def test_batches_of_unequal_sizes_are_the_mean_of_the_examples(name):
    model, function = linear(), getattr(pruning, f"{name}_masks")
    x = X * np.array([10, 1, 1, 1, 1, 1, 1], "float32")[:, None]
    (whole,) = function(model, (x, Y), 0.8, "mse").values()
    (mask,) = function(model, [(x[:1], Y[:1]), (x[1:], Y[1:])], 0.8, "mse").values()
    np.testing.assert_array_equal(mask, whole)


@pytest.mark.parametrize("loss", ["mse", keras.losses.MeanSquaredError()])
@pytest.mark.parametrize("name", ["snip", "grasp"])
def test_weights_of_examples(name, loss):
    """A weight of 4 is that of an example that is there four times, 0 takes it away."""
    model, function = linear(), getattr(pruning, f"{name}_masks")
    repeated = np.repeat(np.arange(7), [0, 0, 4, 0, 1, 0, 1])
    weights = np.array([0, 0, 4, 0, 1, 0, 1], "float32")
    (wanted,) = function(model, (X[repeated], Y[repeated]), 0.8, loss).values()
    (mask,) = function(model, (X, Y, weights), 0.8, loss).values()
    np.testing.assert_array_equal(mask, wanted)
    dataset = tf.data.Dataset.from_tensor_slices((X, Y, weights)).batch(3)
    (mask,) = function(model, dataset, 0.8, loss).values()
    np.testing.assert_array_equal(mask, wanted)
    (unweighted,) = function(model, (X, Y), 0.8, loss).values()
    assert (unweighted != wanted).any()


@pytest.mark.parametrize(
    "loss",
    [
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        lambda y, z: keras.losses.sparse_categorical_crossentropy(y, z, from_logits=True),
    ],
)
@pytest.mark.parametrize("name", ["snip", "grasp"])
def test_targets_of_masked_timesteps_do_not_matter(name, loss):
    dense = keras.Sequential(
        [
            keras.Input((5,), dtype="int32"),
            layers.Embedding(7, 4, mask_zero=True),
            layers.Dense(6, use_bias=False),
            layers.Dense(3, use_bias=False),
        ]
    )
    model = rigl_tf.sparsify(dense, 0.0)
    x, y = np.array([[1, 2, 3, 0, 0], [4, 5, 0, 0, 0]]), np.zeros((2, 5), int)
    others = np.where(x == 0, 2, y)
    function = getattr(pruning, f"{name}_masks")
    wanted, got = (function(model, (x, targets), 0.5, loss) for targets in (y, others))
    for path, mask in wanted.items():
        np.testing.assert_array_equal(got[path], mask)


@pytest.mark.parametrize("kind", [list, dict])
@pytest.mark.parametrize("name", ["snip", "grasp"])
def test_a_loss_of_several_outputs(name, kind):
    inputs = keras.Input((6,))
    heads = [layers.Dense(size, use_bias=False)(inputs) for size in (5, 4)]
    targets = [Y, numbers((7, 4), seed=2)]
    first, second = (0, 1) if kind is list else ("a", "b")
    if kind is dict:
        heads, targets = (dict(zip("ab", each, strict=True)) for each in (heads, targets))
    model = rigl_tf.sparsify(keras.Model(inputs, heads), 0.0)

    def loss(targets, outputs):
        one, two = (squares(targets[each], outputs[each]) for each in (first, second))
        return one + 3 * two

    def scores(kernel, targets, factor):
        gradient = factor * X.T @ (X @ kernel - targets)
        by_weight = gradient if name == "snip" else factor * X.T @ X @ gradient
        return (kernel * by_weight).ravel()

    one, two = kernels_of(model)
    both = np.concatenate([scores(one, targets[first], 1), scores(two, targets[second], 3)])
    temperature = {} if name == "snip" else {"temperature": 1}
    function = getattr(pruning, f"{name}_masks")
    masks = function(model, (X, targets), 0.8, loss, **temperature)
    got = np.concatenate([mask.ravel() for mask in masks.values()])
    wanted = largest(np.abs(both) if name == "snip" else both, 54 - 43)
    np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("name", ["snip", "grasp"])
def test_a_kernel_that_the_loss_does_not_reach_scores_nothing(name):
    inputs = keras.Input((6,))
    heads = [layers.Dense(size, use_bias=False)(inputs) for size in (5, 4)]
    model = rigl_tf.sparsify(keras.Model(inputs, heads), 0.0)
    function = getattr(pruning, f"{name}_masks")
    with pytest.warns(UserWarning, match=r"none in \['dense_1/kernel'\]"):
        masks = function(model, (X, Y), 0.8, lambda targets, outputs: squares(targets, outputs[0]))
    assert [int(mask.sum()) for mask in masks.values()] == [54 - 43, 0]


@pytest.mark.parametrize("name", ["magnitude", "grasp"])
def test_a_kernel_that_loses_all_connections_is_named(name, recwarn):
    """The weights of the second kernel and their scores are tiny, and 0.8 of 50 leaves 10."""
    model, function = linear((6, 5, 4)), getattr(pruning, f"{name}_masks")
    small = model.layers[1].layer.kernel
    small.assign(1e-3 * small)
    arguments = {} if name == "magnitude" else {"data": (X, numbers((7, 4))), "loss": "mse"}
    masks = list(function(model, sparsity=0.8, distribution=all_alike, **arguments).values())
    assert [int(mask.sum()) for mask in masks] == [6, 4]
    assert not recwarn
    with pytest.warns(
        UserWarning, match=r"Received: none in \['sequential/dense_1/kernel'\]"
    ) as told:
        masks = function(model, sparsity=0.8, **arguments)
    assert [(len(told), told[0].filename)] == [(1, __file__)]
    assert [int(mask.sum()) for mask in masks.values()] == [10, 0]


def test_a_kernel_that_was_empty_before_is_not_told_of_again(recwarn):
    model = linear((6, 5, 4))
    rigl_tf.set_masks(model, {"sequential/dense_1/kernel": np.zeros((5, 4), bool)})
    assert pruning.magnitude_masks(model, 0.8)["sequential/dense/kernel"].sum() == 10
    assert not recwarn


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("snip", [[1, 0], [1, 1], [0, 0], [1, 0]]),
        ("grasp", [[1, 0], [1, 0], [0, 0], [1, 1]]),
    ],
)
def test_an_embedding(name, wanted):
    dense = keras.Sequential(
        [keras.Input((1,), dtype="int32"), layers.Embedding(4, 2, name="table"), layers.Flatten()]
    )
    model = rigl_tf.sparsify(dense, 0.0, sparse_layers="table")
    (kernel,) = rigl_tf.masks.sparse_kernels(model).values()
    kernel.assign([[5, 1], [3, 2], [9, 9], [5, 1.5]])
    # Rows 0, 1 and 3 are looked up n = 1, 2 and 3 times. Targets are 0: the gradient is n w, the
    # Hessian n. Of n w^2, 75, 25, 18 and 8 are the largest; of (n w)^2, 225, 36, 25 and 20.25.
    x, targets = np.array([[0], [1], [1], [3], [3], [3]]), np.zeros((6, 2), "float32")
    (mask,) = getattr(pruning, f"{name}_masks")(model, (x, targets), 0.5, squares).values()
    np.testing.assert_array_equal(mask, np.array(wanted, bool))


@pytest.mark.parametrize("name", ["magnitude", "random", "snip", "grasp"])
def test_kernels_of_different_types(name):
    dense = keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(5, use_bias=False, dtype="float64"),
            layers.Dense(4, use_bias=False, dtype="float32"),
        ]
    )
    model = rigl_tf.sparsify(dense, 0.0)
    function = getattr(pruning, f"{name}_masks")
    if name in ("magnitude", "random"):
        masks = function(model, 0.7, distribution=None)
    else:
        masks = function(model, (X, numbers((7, 4))), 0.7, "mse")
    both = np.concatenate([mask.ravel() for mask in masks.values()])
    assert both.sum() == 50 - 35
    if name == "magnitude":
        weights = np.concatenate([kernel.ravel() for kernel in kernels_of(model)])
        np.testing.assert_array_equal(both, largest(np.abs(weights), 15))


@pytest.mark.parametrize("name", ["snip", "grasp"])
def test_half_precision_ranks_as_single_precision(name):
    """Logits divided by a temperature of 200 have gradients that float16 cannot hold."""

    def masks_of(policy):
        keras.utils.set_random_seed(0)
        keras.config.set_dtype_policy(policy)
        hidden = [layers.Dense(32, "relu"), layers.Dense(32, "relu")]
        dense = keras.Sequential([keras.Input((6,)), *hidden, layers.Dense(10)])
        model = rigl_tf.sparsify(dense, 0.0)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        data = numbers((100, 6)), np.arange(100) % 10
        masks = getattr(pruning, f"{name}_masks")(model, data, 0.9, loss)
        return np.concatenate([mask.ravel() for mask in masks.values()])

    single, half = masks_of("float32"), masks_of("mixed_float16")
    assert (single & half).sum() > 0.95 * single.sum()


def test_weights_that_are_not_finite():
    model = linear((6, 5, 4))
    rigl_tf.set_masks(model, pruning.magnitude_masks(model, 0.5))
    wanted = pruning.magnitude_masks(model, 0.6)
    mask = rigl_tf.get_masks(model)["sequential/dense/kernel"]
    kernel = rigl_tf.masks.sparse_kernels(model)["sequential/dense/kernel"]
    kernel.assign(np.where(mask, kernel, np.nan))
    # Of inactive connections they do not count.
    for path, mask in pruning.magnitude_masks(model, 0.6).items():
        np.testing.assert_array_equal(mask, wanted[path])
    kernel.assign(kernel * np.inf)
    for distribution in (None, all_alike):
        with pytest.raises(ValueError, match=r"NaN or inf in \['sequential/dense/kernel'\]"):
            pruning.magnitude_masks(model, 0.6, distribution)


def test_the_temperature():
    model = linear()
    labels = np.arange(7) % 5
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    (kernel,) = kernels_of(model)

    def scores(temperature):
        """By differences of the gradient `g` along itself: `H g`."""

        def gradient(weights):
            logits = X.astype("float64") @ weights / temperature
            p = np.exp(logits - logits.max(axis=1, keepdims=True))
            p /= p.sum(axis=1, keepdims=True)
            return X.T.astype("float64") @ (p - np.eye(5)[labels]) / temperature / 7

        g = gradient(kernel.astype("float64"))
        small = 1e-5 / np.abs(g).max()
        ahead, behind = gradient(kernel + small * g), gradient(kernel - small * g)
        return kernel * (ahead - behind) / (2 * small)

    for temperature in (1.0, 200.0):
        (mask,) = pruning.grasp_masks(
            model, (X, labels), 0.5, loss, temperature=temperature
        ).values()
        np.testing.assert_array_equal(mask, largest(scores(temperature), 15))


def test_random_masks():
    model = linear((6, 5, 4))
    got = pruning.random_masks(model, 0.7, all_alike, seed=3)
    assert [int(mask.sum()) for mask in got.values()] == [9, 6]
    again = pruning.random_masks(model, 0.7, all_alike, seed=3)
    other = pruning.random_masks(model, 0.7, all_alike, seed=4)
    for path, mask in got.items():
        np.testing.assert_array_equal(mask, again[path])
    assert any((mask != other[path]).any() for path, mask in got.items())


@pytest.mark.parametrize("distribution", [None, "erk", "uniform", all_alike])
@pytest.mark.parametrize("name", ["magnitude", "snip", "grasp", "random"])
def test_exact_counts_and_nothing_comes_back(name, distribution):
    model = linear((6, 5, 4), sparsity=0.2)
    before = rigl_tf.get_masks(model)
    weights = model.get_weights()
    data = () if name in ("magnitude", "random") else ((X, numbers((7, 4))),)
    loss = {"loss": "mse"} if data else {}
    function = getattr(pruning, f"{name}_masks")
    got = function(model, *data, sparsity=0.6, distribution=distribution, **loss)
    if distribution != "uniform":  # which keeps the first kernel dense
        assert sum(mask.sum() for mask in got.values()) in (50 - 30, 50 - 29)
        assert all((mask <= before[path]).all() for path, mask in got.items())
    for weight, same in zip(model.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(weight, same)
    rigl_tf.set_masks(model, got)


def test_batch_statistics_and_dropout_are_left_alone():
    inputs = keras.Input((6,))
    x = layers.BatchNormalization()(layers.Dense(8)(inputs))
    model = rigl_tf.sparsify(keras.Model(inputs, layers.Dense(5)(layers.Dropout(0.5)(x))), 0.0)
    weights = model.get_weights()
    pruning.grasp_masks(model, (X, Y), 0.5, "mse")
    # Neither after an error on the way.
    with pytest.raises(ValueError, match="shape"):
        pruning.snip_masks(model, [(X, Y), (X[:, :3], Y)], 0.5, "mse")
    for weight, same in zip(model.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(weight, same)


def test_grasp_with_batch_normalisation():
    """`H g` is the change of the gradient along `g`, of statistics that change with the weights."""
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")  # it does not follow the other one
    model = [keras.Input((6,))]
    for _ in range(2):
        model += [layers.Dense(12), layers.BatchNormalization(), layers.Activation("softplus")]
    model = rigl_tf.sparsify(keras.Sequential([*model, layers.Dense(5)]), 0.0)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    x, labels = numbers((40, 6)), np.arange(40) % 5
    kernels = list(rigl_tf.masks.sparse_kernels(model).values())
    start = [kernel.numpy() for kernel in kernels]

    def gradients(along, by):
        for kernel, value, change in zip(kernels, start, along, strict=True):
            kernel.assign(value + by * change)
        with tf.GradientTape() as tape:
            value = loss(labels, model(x, training=True))
        return [each.numpy() for each in tape.gradient(value, [each.value for each in kernels])]

    first = gradients(start, 0.0)
    changes = zip(gradients(first, 1e-4), gradients(first, -1e-4), strict=True)
    want = [value * (a - b) for value, (a, b) in zip(start, changes, strict=True)]
    gradients(first, 0.0)
    got = pruning.grasp_masks(model, (x, labels), 0.5, loss, all_alike, temperature=1.0)
    for mask, scores in zip(got.values(), want, strict=True):
        np.testing.assert_array_equal(mask, largest(scores, mask.sum()))


def test_outputs_of_classes_have_no_gradient():
    inputs = keras.Input((6,))
    logits = layers.Dense(5)(inputs)
    model = keras.Model(inputs, {"logits": logits, "class": keras.ops.argmax(logits, axis=-1)})
    model = rigl_tf.sparsify(model, 0.0)
    found = pruning.snip_masks(
        model, (X, Y), 0.5, lambda targets, outputs: squares(targets, outputs["logits"])
    )
    assert sum(mask.sum() for mask in found.values()) == 15


def stored(execution):
    keras.backend.clear_session(free_memory=False)
    return rigl_tf.with_execution(linear((6, 5, 4), sparsity=0.5), execution)


@pytest.mark.parametrize("distribution", [None, all_alike])
@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.8])
def test_masks_of_csr_kernels_are_those_of_masked_ones(sparsity, distribution):
    for find in (
        lambda model: pruning.magnitude_masks(model, sparsity, distribution),
        lambda model: pruning.random_masks(model, sparsity, distribution),
        lambda model: pruning.snip_masks(model, (X, Y[:, :4]), sparsity, squares, distribution),
    ):
        csr, masked = find(stored("csr")), find(stored("masked"))
        assert csr.keys() == masked.keys()
        for path, mask in csr.items():
            np.testing.assert_array_equal(mask, masked[path])


def test_as_many_connections_of_csr_kernels_can_be_set_and_no_other_number():
    model = stored("csr")
    rigl_tf.set_masks(model, pruning.magnitude_masks(model, 0.5, all_alike))
    with pytest.raises(ValueError, match="number of active connections of a CSR kernel cannot"):
        rigl_tf.set_masks(model, pruning.magnitude_masks(model, 0.8, all_alike))
    with pytest.raises(ValueError, match=r"`grasp_masks` needs masked .*with_execution\(model, 'm"):
        pruning.grasp_masks(model, (X, Y[:, :4]), 0.8, squares)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pruning.magnitude_masks(linear(), 1.0), "sparsity=1.0"),
        (lambda: pruning.magnitude_masks(linear(), 0.5, "erdos"), "identifier='erdos'"),
        (lambda: pruning.magnitude_masks("m", 0.5), "model='m', without sparse kernels"),
        (lambda: pruning.random_masks(linear(), 0.5, seed=0.5), "seed=0.5"),
        (lambda: pruning.random_masks(linear(), 0.5, seed=None), "seed=None"),
        (lambda: pruning.random_masks(linear(), 0.5, seed="a"), "seed='a'"),
        (lambda: pruning.random_masks(linear(), 0.5, seed=True), "seed=True"),
        (lambda: pruning.snip_masks(linear(), [], 0.5, "mse"), "none"),
        (lambda: pruning.snip_masks(linear(), [X, Y], 0.5, "mse"), "a batch of type ndarray"),
        (lambda: pruning.grasp_masks(linear(), [(X, Y, Y, Y)], 0.5, "mse"), ".* length 4"),
        (
            lambda: pruning.grasp_masks(linear(), [(X, Y, Y)], 0.5, "mse"),
            r"loss='mse' with values of shape \(7,\), and weights of shape \(7, 5\)",
        ),
        (lambda: pruning.snip_masks(linear(), (X[:0], Y[:0]), 0.5, "mse"), "shapes="),
        (lambda: pruning.snip_masks(linear(), (X, Y), 0.5, None), "loss=None"),
        (lambda: pruning.grasp_masks(linear(), (X, Y), 0.5, "mae"), "0 for every connection"),
        (lambda: pruning.snip_masks(linear(), (0 * X, Y), 0.5, "mse"), "0 for every connection"),
        (lambda: pruning.snip_masks(linear(), (X, Y * np.nan), 0.5, "mse"), "NaN or inf in"),
        (
            lambda: pruning.grasp_masks(linear(), (X, Y), 0.5, "mse", temperature=0),
            "temperature=0",
        ),
        (
            lambda: pruning.grasp_masks(linear(), (X, Y), 0.5, "mse", temperature=np.inf),
            "temperature=inf",
        ),
        (
            lambda: pruning.random_masks(keras.Sequential([keras.Input((3,))]), 0.5),
            "model='sequential', without sparse kernels",
        ),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=f"Received: {message}"):
        call()
