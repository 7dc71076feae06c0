"""Tests of `rigl_tf.analysis.hessian`: Hessians that are known by hand, and by differences."""

import contextlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import mirrored, numbers

import rigl_tf
from rigl_tf import analysis, second_derivatives

layers = keras.layers


X, Y = numbers((12, 6)), numbers((12, 1), seed=1)


def linear(num_outputs=1, sparsity=0.5, **arguments):
    dense = keras.Sequential([keras.Input((6,)), layers.Dense(num_outputs, **arguments)])
    return rigl_tf.sparsify(dense, sparsity)


def active_of(model):
    (mask,) = rigl_tf.get_masks(model).values()
    return mask


def test_linear_regression_by_hand():
    """`2 / n * X.T @ X` of the active inputs, and a column of ones for the bias."""
    model = linear(kernel_regularizer="l2")
    inputs = np.column_stack([X[:, active_of(model)[:, 0]], np.ones(12)])
    want = 2 / 12 * inputs.T @ inputs
    assert want.shape == (4, 4)
    np.testing.assert_allclose(analysis.hessian(model, (X, Y), "mse"), want, rtol=1e-5, atol=1e-6)
    values = analysis.hessian_eigenvalues(model, (X, Y), "mse")
    np.testing.assert_allclose(values, np.linalg.eigvalsh(want), rtol=1e-4, atol=1e-6)
    # Three inactive connections, each with a row of zeros.
    padded = analysis.hessian_eigenvalues(model, (X, Y), "mse", dense_spectrum=True)
    np.testing.assert_array_equal(padded, np.sort([*values, 0, 0, 0]))


def test_unequal_batches_are_the_mean_of_the_examples():
    model = linear()
    whole = analysis.hessian(model, (X, Y), "mse")
    parts = [(X[:7], Y[:7]), (X[7:], Y[7:])]
    np.testing.assert_allclose(analysis.hessian(model, parts, "mse"), whole, atol=1e-6)


def test_examples_count_with_their_weights():
    model = linear()
    parts = [(X[:7], Y[:7], np.full(7, 2.0)), (X[7:], Y[7:], np.zeros(5))]
    want = 2 * 7 / 12 * analysis.hessian(model, (X[:7], Y[:7]), "mse")
    np.testing.assert_allclose(analysis.hessian(model, parts, "mse"), want, atol=1e-6)


def test_the_indices_of_connections_are_not_in_the_graph(monkeypatch):
    """Those of 20,000 connections take 160 kB as constants; the graph of a product has 20 kB."""
    sizes, function = [], tf.function

    def traced(*arguments, **settings):
        made = function(*arguments, **settings)

        def call(*values):
            graph = made.get_concrete_function(*values).graph
            sizes.append(len(graph.as_graph_def().SerializeToString()))
            return made(*values)

        return call

    monkeypatch.setattr(tf, "function", traced)
    dense = keras.Sequential([keras.Input((200,)), layers.Dense(200)])
    model = rigl_tf.sparsify(dense, 0.5)
    analysis.hessian_density(model, (numbers((2, 200)), numbers((2, 200))), "mse", num_steps=1)
    assert max(sizes) < 100_000


def test_several_outputs_by_hand():
    """Five outputs: a block for each of them, of the inputs that are active there."""
    model = linear(5, sparsity=0.3, use_bias=False)
    active = np.argwhere(active_of(model))
    want = np.array([
        [2 / 60 * X[:, i] @ X[:, k] * (j == m) for k, m in active] for i, j in active
    ])  # fmt: skip
    assert len(want) == 21
    got = analysis.hessian(model, (X, numbers((12, 5))), "mse")
    np.testing.assert_allclose(got, want, atol=1e-6)


def two_layers():
    inputs = keras.Input((6,))
    x = layers.BatchNormalization()(layers.Dense(5, "tanh")(inputs))
    outputs = layers.Dense(3)(layers.Dropout(0.5)(x))
    return rigl_tf.sparsify(keras.Model(inputs, outputs), 0.5, "uniform", dense_layers="dense_1")


LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
LABELS = np.arange(12) % 3


def by_differences(model, step=1e-2):
    """Central differences of the gradient, in the same order of rows."""
    weights = model.trainable_variables
    flat = [rigl_tf.masks.mask_of(weight) for weight in weights]
    active = np.concatenate([
        np.ones(np.prod(w.shape), bool) if m is None else m.numpy().ravel()
        for w, m in zip(weights, flat, strict=True)
    ])  # fmt: skip

    def gradient(vector):
        start = 0
        for weight in weights:
            size = int(np.prod(weight.shape))
            weight.assign(vector[start : start + size].reshape(weight.shape))
            start += size
        with tf.GradientTape() as tape:
            value = LOSS(LABELS, model(X, training=False))
        found = tape.gradient(value, [weight.value for weight in weights])
        return np.concatenate([each.numpy().ravel() for each in found])

    here = np.concatenate([weight.numpy().ravel() for weight in weights])
    rows = []
    for index in np.flatnonzero(active):
        unit = np.zeros_like(here)
        unit[index] = step
        rows.append((gradient(here + unit) - gradient(here - unit)) / (2 * step))
    gradient(here)
    return np.array(rows)[:, active]


def test_a_network_with_hidden_units():
    model = two_layers()
    before = model.get_weights()
    got = analysis.hessian(model, (X, LABELS), LOSS)
    for weight, same in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, same)
    want = by_differences(model)
    assert want.shape == (15 + 5 + 5 + 5 + 15 + 3,) * 2
    np.testing.assert_array_equal(got, got.T)
    assert np.abs(got).max() > 0.1
    np.testing.assert_allclose(got, want, atol=1e-3)


def test_lanczos_finds_the_exact_spectrum():
    model = two_layers()
    exact = analysis.hessian_eigenvalues(model, (X, LABELS), LOSS)
    density = analysis.hessian_density(model, (X, LABELS), LOSS, num_steps=48)
    assert density.weights.sum() == pytest.approx(1)
    assert (np.diff(density.values) >= 0).all()
    np.testing.assert_allclose(density.values[[0, -1]], exact[[0, -1]], atol=1e-4)
    # Every eigenvalue of some size is there, and each that is there is one.
    distance = np.abs(exact[:, None] - density.values)
    assert distance.min(axis=1).max() < 1e-3
    assert distance.min(axis=0).max() < 1e-3


def test_extreme_eigenvalues_in_few_steps_and_the_trace():
    model = two_layers()
    exact = analysis.hessian_eigenvalues(model, (X, LABELS), LOSS)
    density = analysis.hessian_density(model, (X, LABELS), LOSS, num_steps=12, num_probes=20)
    np.testing.assert_allclose(density.values[[0, -1]], exact[[0, -1]], atol=1e-2)
    # Hutchinson's estimate of the mean eigenvalue.
    assert density.weights @ density.values == pytest.approx(exact.mean(), rel=0.25)
    again = analysis.hessian_density(model, (X, LABELS), LOSS, num_steps=12, num_probes=20)
    np.testing.assert_array_equal(again.values, density.values)
    other = analysis.hessian_density(model, (X, LABELS), LOSS, num_steps=12, seed=1)
    assert not np.isin(other.values, density.values).all()


def test_a_recurrent_network():
    """Its second derivatives go through loops in the graph."""
    dense = keras.Sequential([keras.Input((3, 2)), layers.SimpleRNN(3)])
    model, x = rigl_tf.sparsify(dense, 0.5), X.reshape(12, 3, 2)
    exact = analysis.hessian_eigenvalues(model, (x, LABELS), LOSS)
    assert len(exact) == sum(mask.sum() for mask in rigl_tf.get_masks(model).values()) + 3
    assert exact[-1] > 0.05
    density = analysis.hessian_density(model, (x, LABELS), LOSS)
    np.testing.assert_allclose(density.values[[0, -1]], exact[[0, -1]], atol=1e-4)


def test_lanczos_stops_when_the_space_is_closed():
    """Two different eigenvalues, `2 / 4 * (4, 1)`, each of them three times."""
    model = linear(3, sparsity=0.0, use_bias=False)
    x = np.zeros((4, 6), "float32")
    x[0, 0], x[1, 1] = 2 * np.sqrt(3), np.sqrt(3)
    rigl_tf.set_masks(model, {"sequential/dense/kernel": np.arange(6)[:, None] < [2, 2, 2]})
    density = analysis.hessian_density(model, (x, np.zeros((4, 3), "float32")), "mse")
    np.testing.assert_allclose(density.values, [0.5, 2.0], rtol=1e-5)


def test_a_recurrent_network_that_keeps_its_state():
    model = keras.Sequential(
        [keras.Input((3, 2), batch_size=4), layers.SimpleRNN(3, stateful=True), layers.Dense(1)]
    )
    data = (np.ones((4, 3, 2), "float32"), np.ones((4, 1), "float32"))
    first = analysis.hessian(model, data, "mse")
    np.testing.assert_array_equal(analysis.hessian(model, data, "mse"), first)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: analysis.hessian(linear(), (X, Y), "mse", max_size=3),
            "model=.* with 4",
        ),
        (lambda: analysis.hessian(linear(), [], "mse"), "none"),
        (
            lambda: analysis.hessian(keras.Sequential(), (X, Y), "mse"),
            "model=.* without",
        ),
        (lambda: analysis.hessian(linear(), (X * np.inf, Y), "mse"), "model=.* whose"),
        (lambda: analysis.hessian(linear(), (X, Y), "mse", max_size=None), "max_size=None"),
        (lambda: analysis.hessian_density(linear(), (X, Y), "mse", seed=0.5), "seed=0.5"),
        (lambda: analysis.hessian_density(linear(), (X, Y), "mse", num_steps=0), "num_steps=0"),
        (lambda: analysis.hessian_density(linear(), (X, Y), "mse", num_probes=0), "num_probes=0"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=f"Received: {message}"):
        call()


@pytest.mark.parametrize("loss", ["mse", keras.losses.MeanSquaredError()])
@pytest.mark.parametrize("within_scope", [False, True])
def test_two_replicas(within_scope, loss):
    strategy = mirrored()
    with strategy.scope():
        model = linear()
    inputs = np.column_stack([X[:, active_of(model)[:, 0]], np.ones(12)])
    with strategy.scope() if within_scope else contextlib.nullcontext():
        got = analysis.hessian(model, (X, Y), loss)
    np.testing.assert_allclose(got, 2 / 12 * inputs.T @ inputs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("keepdims", [False, True])
def test_moments_have_the_same_values(dtype, keepdims):
    x = tf.cast(300 * numbers((4, 3, 2)), dtype)
    want = tf.nn.moments(x, [0, 2], keepdims=keepdims)
    with second_derivatives.exact_moments():
        got = tf.nn.moments(x, [0, 2], keepdims=keepdims)
    for one, other in zip(got, want, strict=True):
        assert one.dtype == dtype
        np.testing.assert_allclose(one, other, rtol=1e-6)


def test_normalisations_are_differentiated_twice():
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    normalise = [layers.LayerNormalization(), layers.GroupNormalization(2)]
    model = [keras.Input((6,)), layers.Dense(8), *normalise, layers.Activation("softplus")]
    model = keras.Sequential([*model, layers.Dense(3, kernel_initializer="random_normal")])
    model.layers[-1].kernel.assign(20 * model.layers[-1].kernel)
    got, want = analysis.hessian(model, (X, LABELS), LOSS), by_differences(model, step=1e-3)
    np.testing.assert_allclose(got, want, atol=5e-4)


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        (layers.UpSampling2D(2, interpolation="bilinear"), "ResizeBilinear"),
        (layers.UpSampling2D(2, interpolation="bicubic"), "ResizeBicubic"),
        (layers.Activation("softsign"), "Softsign"),
        (layers.Activation(tf.function(tf.math.softsign)), "Softsign"),
    ],
)
def test_operations_without_second_derivative_are_refused(layer, name):
    around = [layers.Reshape((2, 1, 1)), layer, layers.Flatten(), layers.Dense(1)]
    model = keras.Sequential([keras.Input((6,)), layers.Dense(2), *around])
    with pytest.raises(ValueError, match=f"second derivatives. .*{name}'"):
        analysis.hessian(model, (X, Y), "mse")
