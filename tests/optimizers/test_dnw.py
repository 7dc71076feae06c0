"""Tests of Discovering Neural Wirings."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import all_alike

import rigl_tf

layers, optimizers = keras.layers, keras.optimizers


def one_layer(sparsity=0.0, **kwargs):
    keras.utils.set_random_seed(0)
    dense = keras.Sequential([keras.Input((6,)), layers.Dense(5, use_bias=False, **kwargs)])
    return rigl_tf.sparsify(dense, sparsity, all_alike)


def kernel_and_mask(model):
    kernel = model.layers[0].layer.kernel
    return kernel.numpy(), rigl_tf.masks.mask_of(kernel).numpy()


def latent_of(optimizer):
    (latent,) = [v for v in optimizer.variables if v.name.endswith("kernel_latent")]
    return latent


def gradient_at(step):
    return np.random.default_rng(step).normal(size=(6, 5)).astype("float32")


def train(model, optimizer, steps):
    for step in steps:
        optimizer.apply([tf.constant(gradient_at(step))], model.trainable_weights)


def largest(values, num):
    """The mask of the `num` largest magnitudes."""
    order = np.argsort(-np.abs(values).ravel(), kind="stable")
    mask = np.zeros(values.size, bool)
    mask[order[:num]] = True
    return mask.reshape(values.shape)


def check_kernel_is_the_largest_of(latent, model, num=12):
    kernel, mask = kernel_and_mask(model)
    np.testing.assert_array_equal(mask, largest(latent, num))
    np.testing.assert_array_equal(kernel, np.where(mask, latent, 0))


@pytest.mark.parametrize("sparsity", [0.0, 0.6])
def test_a_reference(sparsity):
    """Of 30 connections, 30 - floor(0.6 * 30) = 12 are active after each step."""
    model = one_layer(sparsity)
    optimizer = rigl_tf.DNW(optimizers.SGD(0.25), 0.6, all_alike)
    latent, mask = kernel_and_mask(model)
    assert mask.sum() == (30 if sparsity == 0 else 12)
    assert not latent[~mask].any()
    for step in range(6):
        train(model, optimizer, [step])
        latent = latent - np.float32(0.25) * gradient_at(step)
        np.testing.assert_allclose(latent_of(optimizer), latent, rtol=1e-5, atol=1e-6)
        check_kernel_is_the_largest_of(latent_of(optimizer).numpy(), model)
        np.testing.assert_array_equal(kernel_and_mask(model)[1], largest(latent, 12))
    assert int(optimizer.iterations) == int(optimizer.step) == 6


def test_the_gradient_is_that_of_the_sparse_kernel_for_all_latent_weights():
    """Of `sum((x @ w) ** 2) / 2` it is `x.T @ x @ w`, `w` being sparse."""
    x = np.random.default_rng(5).normal(size=(4, 6)).astype("float32")
    model = one_layer()
    optimizer = rigl_tf.DNW(optimizers.SGD(0.125), 0.6, all_alike)
    model.compile(optimizer, lambda y, out: tf.reduce_sum(out**2) / 2, run_eagerly=True)
    optimizer.build(model.trainable_weights)
    for step in range(4):
        sparse, _ = kernel_and_mask(model)
        assert np.count_nonzero(sparse) == (30 if step == 0 else 12)
        want = latent_of(optimizer).numpy() - 0.125 * x.T @ x @ sparse
        model.train_on_batch(x, np.zeros((4, 5)))
        np.testing.assert_allclose(latent_of(optimizer), want, rtol=1e-4, atol=1e-5)
        check_kernel_is_the_largest_of(latent_of(optimizer).numpy(), model)


def test_how_kernels_share_the_sparsity():
    dense = keras.Sequential([keras.Input((40,)), layers.Dense(30), layers.Dense(4)])
    model = rigl_tf.sparsify(dense, 0.0)
    optimizer = rigl_tf.DNW("sgd", 0.8)
    optimizer.apply([tf.zeros(w.shape) for w in model.trainable_weights], model.trainable_weights)
    masks = rigl_tf.get_masks(model)
    shares = rigl_tf.distributions.erk({path: m.shape for path, m in masks.items()}, 0.8)
    for path, mask in masks.items():
        assert (~mask).sum() == int(shares[path] * mask.size)


def test_averages_are_written_back():
    model = one_layer()
    optimizer = rigl_tf.DNW(optimizers.SGD(0.25, use_ema=True, ema_momentum=0.5), 0.6, all_alike)
    average = latent = kernel_and_mask(model)[0]
    for step in range(4):
        train(model, optimizer, [step])
        latent = latent - np.float32(0.25) * gradient_at(step)
        average = latent if step == 0 else 0.5 * average + 0.5 * latent
    optimizer.finalize_variable_values(model.trainable_weights)
    np.testing.assert_allclose(latent_of(optimizer), average, rtol=1e-5, atol=1e-5)
    check_kernel_is_the_largest_of(latent_of(optimizer).numpy(), model)


@pytest.mark.built_in_fit
def test_swapping_averages_is_refused():
    model = one_layer()
    model.compile(rigl_tf.DNW(optimizers.SGD(0.1, use_ema=True), 0.6, all_alike), "mse")
    with pytest.raises(ValueError, match="SwapEMAWeights must be used when"):
        model.evaluate(
            np.zeros((4, 6)),
            np.zeros((4, 5)),
            verbose=0,
            callbacks=[keras.callbacks.SwapEMAWeights()],
        )


def test_the_users_constraint_is_one_of_the_latent_weights():
    model = one_layer(kernel_constraint=keras.constraints.NonNeg())
    optimizer = rigl_tf.DNW(optimizers.SGD(0.25), 0.6, all_alike)
    train(model, optimizer, range(3))
    assert (latent_of(optimizer).numpy() >= 0).all()
    check_kernel_is_the_largest_of(latent_of(optimizer).numpy(), model)


@pytest.mark.parametrize("by", ["variable", "name", None])
def test_kernels_without_weight_decay(by):
    model = one_layer()
    optimizer = rigl_tf.DNW(optimizers.SGD(0.5, weight_decay=0.5), 0.6, all_alike)
    if by is not None:
        variables = [model.layers[0].layer.kernel] if by == "variable" else None
        optimizer.exclude_from_weight_decay(variables, ["kernel"] if by == "name" else None)
    before = kernel_and_mask(model)[0]
    optimizer.apply([tf.zeros((6, 5))], model.trainable_weights)
    # SGD's decay: w - 0.5 * 0.5 * w
    want = before * (0.75 if by is None else 1.0)
    np.testing.assert_allclose(latent_of(optimizer), want, rtol=1e-6)


def test_what_else_is_written_counts_until_the_next_step():
    model = one_layer()
    optimizer = rigl_tf.DNW(optimizers.SGD(0.25), 0.6, all_alike)
    train(model, optimizer, range(2))
    latent = latent_of(optimizer).numpy()
    (path,) = rigl_tf.get_masks(model)
    rigl_tf.set_masks(model, {path: np.zeros((6, 5))})
    assert not kernel_and_mask(model)[0].any()
    optimizer.apply([tf.zeros((6, 5))], model.trainable_weights)
    check_kernel_is_the_largest_of(latent, model)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_masks_stay_where_weights_are_no_numbers(bad):
    model = one_layer()
    optimizer = rigl_tf.DNW(optimizers.SGD(0.25), 0.6, all_alike)
    train(model, optimizer, range(2))
    mask = kernel_and_mask(model)[1]
    gradient = gradient_at(2)
    gradient[~mask] = bad
    optimizer.apply([tf.constant(gradient)], model.trainable_weights)
    kernel, after = kernel_and_mask(model)
    np.testing.assert_array_equal(after, mask)
    assert np.isfinite(kernel).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sparsity": 1.0}, "sparsity=1.0"),
        ({"sparsity": 0.5, "distribution": "erdos"}, "identifier='erdos'"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=f"Received: {message}"):
        rigl_tf.DNW("sgd", **arguments)


@pytest.mark.skipif(not hasattr(optimizers, "MultiOptimizer"), reason="this Keras has none")
def test_a_multi_optimizer_is_refused():
    inner = optimizers.MultiOptimizer(optimizers.OptimizerMap(optimizers.SGD(0.1)))
    with pytest.raises(ValueError, match=r"a `MultiOptimizer` .* Received: inner_optimizer="):
        rigl_tf.DNW(inner, 0.5)
