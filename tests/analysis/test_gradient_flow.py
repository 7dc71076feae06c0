"""Tests of `rigl_tf.analysis.gradient_flow`: gradients by hand, and updates that are known."""

import contextlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import mirrored, numbers

import rigl_tf
from rigl_tf import analysis

layers, optimizers = keras.layers, keras.optimizers


X, Y = numbers((8, 6)), numbers((8, 3), seed=1)


def linear(sparsity=0.5, **arguments):
    dense = keras.Sequential([keras.Input((6,)), layers.Dense(3, use_bias=False, **arguments)])
    return rigl_tf.sparsify(dense, sparsity)


def gradient_of(kernel, x=X, y=Y):
    """Of the mean of squares over examples and outputs."""
    return 2 * x.T @ (x @ kernel - y) / y.size


def test_norms_by_hand():
    model = linear(kernel_regularizer="l2")
    (kernel,), (mask,) = model.trainable_weights, rigl_tf.get_masks(model).values()
    gradient = gradient_of(kernel.numpy())
    want = np.linalg.norm(gradient * mask)
    assert want < 0.95 * np.linalg.norm(gradient)
    got = analysis.gradient_norms(model, (X, Y), "mse")
    assert got.by_weight == {"sequential/dense/kernel": pytest.approx(want, rel=1e-5)}
    assert got.total == pytest.approx(want, rel=1e-5)


def test_csr_kernels_have_the_norms_and_paths_of_masked_ones():
    model = linear()
    masked = analysis.gradient_norms(model, (X, Y), "mse")
    csr = analysis.gradient_norms(rigl_tf.with_execution(model, "csr"), (X, Y), "mse")
    assert csr.by_weight == {path: pytest.approx(norm) for path, norm in masked.by_weight.items()}


def test_unequal_batches_are_the_mean_of_the_examples():
    model = linear()
    whole = analysis.gradient_norms(model, (X, Y), "mse").total
    parts = [(X[:5], Y[:5]), (X[5:], Y[5:])]
    assert analysis.gradient_norms(model, parts, "mse").total == pytest.approx(whole, rel=1e-5)


def test_examples_count_with_their_weights():
    """The first of eight counts 8 times, the others not at all: the mean is that of the first."""
    weights = np.array([8, 0, 0, 0, 0, 0, 0, 0], "float32")
    for sparsity in (0.0, 0.5):
        model = linear(sparsity)
        first = analysis.gradient_norms(model, (X[:1], Y[:1]), "mse").total
        weighted = analysis.gradient_norms(model, (X, Y, weights), "mse").total
        assert weighted == pytest.approx(first, rel=1e-5)


def test_batches_of_unknown_number_are_read_once_or_refused():
    model = linear()
    whole = analysis.gradient_norms(model, (X, Y), "mse").total
    data = tf.data.Dataset.from_tensor_slices((X, Y)).filter(lambda x, y: True).batch(3)
    assert analysis.gradient_norms(model, data, "mse").total == pytest.approx(whole, rel=1e-5)
    with pytest.raises(ValueError, match="of unknown length"):
        analysis.GradientFlow(data)


def test_total_over_weights_and_state_is_left_alone():
    inputs = keras.Input((6,))
    x = layers.Dropout(0.5)(layers.BatchNormalization()(layers.Dense(4)(inputs)))
    model = rigl_tf.sparsify(keras.Model(inputs, layers.Dense(3)(x)), 0.5)
    before = model.get_weights()
    first = analysis.gradient_norms(model, (X, Y), "mse")
    assert len(first.by_weight) == 6  # two kernels, two biases, scale and offset
    assert first.total == pytest.approx(np.linalg.norm(list(first.by_weight.values())), rel=1e-5)
    for weight, same in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, same)
    assert analysis.gradient_norms(model, (X, Y), "mse") == first
    # In training, the batch's own statistics: the scale of the kernel before has no gradient.
    assert not np.allclose(first.by_weight["dense_1/kernel"], 0)
    assert first.by_weight["dense/bias"] == pytest.approx(0, abs=1e-5)


class Kernels(keras.callbacks.Callback):
    """The kernel before each step and after the last one."""

    def on_train_begin(self, logs=None):
        self.history = [self.now()]

    def on_train_batch_end(self, batch, logs=None):
        self.history.append(self.now())

    def now(self):
        (mask,) = rigl_tf.get_masks(self.model).values()
        return self.model.trainable_weights[0].numpy(), mask


def fit(model, optimizer, callbacks, epochs=2, **arguments):
    model.compile(optimizer, "mse", **arguments)
    fit_arguments = {"batch_size": 2, "epochs": epochs, "shuffle": False, "verbose": 0}
    return model.fit(X, Y, callbacks=callbacks, **fit_arguments)


@pytest.mark.parametrize("around", [lambda inner: inner, optimizers.LossScaleOptimizer])
def test_norms_before_and_after_updates(around):
    held_out = numbers((5, 6), seed=2), numbers((5, 3), seed=3)
    kernels, flow = Kernels(), analysis.GradientFlow(held_out, every=4)
    optimizer = rigl_tf.RigL(optimizers.SGD(0.1), 7, update_frequency=3)
    history = fit(linear(), around(optimizer), [kernels, flow]).history

    def norm(step):
        kernel, mask = kernels.history[step]
        return pytest.approx(np.linalg.norm(gradient_of(kernel, *held_out) * mask), rel=1e-4)

    assert [(step, norms.total) for step, norms in flow.history] == [(0, norm(0)), (4, norm(4))]
    got = [(step, before.total, after.total) for step, before, after in flow.updates]
    assert got == [(3, norm(3), norm(4)), (6, norm(6), norm(7))]
    assert (kernels.history[3][1] != kernels.history[4][1]).any()
    assert history["gradient_norm"] == [norm(0), norm(4)]


@pytest.mark.parametrize(
    ("loss", "fit_within_scope"),
    [("mse", False), *[(keras.losses.MeanSquaredError(), within) for within in (False, True)]],
)
def test_two_replicas(loss, fit_within_scope):
    def norms(strategy, **arguments):
        keras.utils.set_random_seed(0)
        flow = analysis.GradientFlow((X, Y), loss, every=4)
        with strategy.scope():
            model = linear()
            optimizer = rigl_tf.RigL(optimizers.SGD(0.1), 7, update_frequency=3)
        with strategy.scope() if fit_within_scope else contextlib.nullcontext():
            fit(model, optimizer, [flow], **arguments)
        return [(step, norms.total) for step, norms in flow.history], [
            (step, before.total, after.total) for step, before, after in flow.updates
        ]

    one = norms(tf.distribute.get_strategy(), run_eagerly=True)
    two = norms(mirrored())
    for got, want in zip(two, one, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5)


def test_a_static_mask_a_dense_optimizer_and_no_updates():
    for optimizer in (rigl_tf.StaticSparse("sgd"), optimizers.SGD()):
        flow = analysis.GradientFlow((X, Y), every=3)
        fit(linear(), optimizer, [flow])
        assert [step for step, _ in flow.history] == [0, 3, 6]
        assert flow.updates == []
    flow = analysis.GradientFlow((X, Y), loss="mae", every=3, around_updates=False)
    model = linear()
    want = analysis.gradient_norms(model, (X, Y), "mae")
    fit(model, rigl_tf.RigL("sgd", 7, update_frequency=2), [flow])
    assert [step for step, _ in flow.history] == [0, 3, 6]  # of all steps, updates too
    assert flow.updates == []
    assert flow.history[0][1] == want


def test_training_is_not_disturbed():
    def weights(callbacks):
        keras.utils.set_random_seed(0)
        dense = keras.Sequential(
            [
                keras.Input((6,)),
                layers.Dense(8),
                layers.BatchNormalization(),
                layers.Dropout(0.5, seed=0),
                layers.Dense(3),
            ]
        )
        model = rigl_tf.sparsify(dense, 0.5)
        fit(model, rigl_tf.RigL(optimizers.SGD(0.1), 7, update_frequency=2), callbacks)
        return model.get_weights()

    for one, other in zip(
        weights([]), weights([analysis.GradientFlow((X, Y), every=1)]), strict=True
    ):
        np.testing.assert_array_equal(one, other)


def test_updates_of_steps_that_overflow_come_later():
    steps = optimizers.LossScaleOptimizer(
        rigl_tf.RigL(optimizers.SGD(0.1), 7, update_frequency=2), 2.0**14, dynamic_growth_steps=1
    )
    model = linear(dtype="mixed_float16")
    flow = analysis.GradientFlow((X, Y))
    fit(model, steps, [flow], epochs=3)
    assert int(steps.inner_optimizer.step) < 12  # some did overflow
    assert [step for step, *_ in flow.updates] == [2, 4, 6]


def test_a_step_of_several_batches_is_measured_once():
    flow = analysis.GradientFlow((X, Y), every=1)
    fit(linear(), optimizers.SGD(0.1, gradient_accumulation_steps=4), [flow], epochs=2)
    assert [step for step, _ in flow.history] == [0, 1]


def test_several_outputs():
    inputs = keras.Input((6,))
    outputs = {name: layers.Dense(3, name=name)(inputs) for name in "ab"}
    model = rigl_tf.sparsify(keras.Model(inputs, outputs), 0.5)

    def loss(targets, outputs):
        return sum(tf.reduce_mean((targets[k] - outputs[k]) ** 2) for k in "ab")

    targets = {"a": Y, "b": Y[::-1]}
    got = analysis.gradient_norms(model, (X, targets), loss).by_weight
    masks = rigl_tf.get_masks(model)
    for path, kernel in zip(masks, model.trainable_weights[::2], strict=True):
        y = targets[path.split("/")[-2]]
        want = np.linalg.norm(gradient_of(kernel.numpy(), y=y) * masks[path])
        assert got[path] == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: analysis.gradient_norms(linear(), [], "mse"), "none"),
        (lambda: analysis.gradient_norms(linear(), (X, Y), None), "loss=None"),
        (lambda: analysis.gradient_norms(linear(), [X], "mse"), "a batch of type ndarray"),
        (lambda: analysis.gradient_norms(keras.Sequential(), (X, Y), "mse"), "model='seq"),
        (lambda: analysis.GradientFlow((X, Y), every=0), "every=0"),
        (
            lambda: fit(linear(), "sgd", [analysis.GradientFlow((X, Y))], steps_per_execution=2),
            "steps_per_execution=2",
        ),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=f"Received: {message}"):
        call()


@pytest.mark.skipif(
    not hasattr(optimizers, "MultiOptimizer"), reason="this Keras has no MultiOptimizer"
)
def test_the_updates_of_every_sparse_optimizer():
    dense = keras.Sequential([keras.Input((6,)), layers.Dense(8), layers.Dense(3)])
    model = rigl_tf.sparsify(dense, 0.5)
    first, second = (layer.layer.kernel.path for layer in model.layers)
    each_second, each_third = (rigl_tf.RigL("sgd", 8, update_frequency=f) for f in (2, 3))
    several = optimizers.MultiOptimizer(
        optimizers.OptimizerMap(optimizers.SGD(), {first: each_second, second: each_third})
    )
    flow = analysis.GradientFlow((X, Y))
    model.compile(several, "mse", run_eagerly=True)
    model.fit(X, Y, batch_size=1, verbose=0, callbacks=[flow])
    assert [step for step, *_ in flow.updates] == [2, 3, 4, 6]
