"""The same numbers with and without a strategy, on two logical CPUs (see `conftest.py`).

`test_keras_features.py` has the features of Keras, and which of them fail inside Keras.
"""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import (
    ALGORITHMS,
    INNER,
    assert_equal,
    check_invariant,
    dense_weights,
    differ,
    ends_early,
    half,
    halves,
    masks_of,
    mirrored,
    mlp,
    numbers,
    rigl,
    updates_only,
)

import rigl_tf

layers = keras.layers
pytestmark = [ends_early, updates_only, pytest.mark.optimized_graphs]

BATCH = 8
STEPS = 6


def make(algorithm, inner, policy="float32", execution="masked"):
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy(policy)
    model = rigl_tf.sparsify(mlp(), 0.5, execution=execution)
    model.compile(ALGORITHMS[algorithm](INNER[inner](), 9, drop_fraction=0.5), "mse")
    return model


class History(keras.callbacks.Callback):
    """Masks after every step; asserts that replicas are equal and the invariant holds."""

    def on_train_begin(self, logs=None):
        self.masks = []

    def on_train_batch_end(self, batch, logs=None):
        check_replicas([*self.model.weights, *self.model.optimizer.variables])
        check_invariant(self.model)
        self.masks.append(masks_of(self.model))


def check_replicas(variables):
    for variable in variables:
        first, *others = tf.distribute.get_strategy().experimental_local_results(variable.value)
        for other in others:
            np.testing.assert_array_equal(first.numpy(), other.numpy(), err_msg=variable.path)


def fitted(strategy, *args):
    with strategy.scope():
        model = make(*args)
        history = History()
        x, y = halves(BATCH * STEPS, BATCH)
        model.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0, callbacks=[history])
    return model, history.masks


def assert_same_training(model, masks, want_model, want_masks, tolerance=1e-5):
    for some, others in zip(masks, want_masks, strict=True):
        assert_equal(some, others)
    for weight, want in zip(dense_weights(model), dense_weights(want_model), strict=True):
        np.testing.assert_allclose(weight, want, rtol=tolerance, atol=tolerance)


def num_moves(masks):
    return sum(differ(*pair) for pair in itertools.pairwise(masks))


@pytest.mark.parametrize(
    ("algorithm", "inner", "policy", "execution"),
    [
        ("RigL", "momentum", "float32", "masked"),
        ("SET", "adam", "float32", "masked"),
        ("SNFS redistributed", "momentum", "float32", "masked"),
        ("DNW", "momentum", "float32", "masked"),
        ("StaticSparse", "momentum", "float32", "masked"),
        ("RigL", "momentum", "mixed_bfloat16", "masked"),
        ("RigL", "momentum", "float32", "csr"),
    ],
)
def test_two_replicas_train_as_one(algorithm, inner, policy, execution):
    """One replica has masked kernels, the two have those of `execution`."""
    want = fitted(tf.distribute.get_strategy(), algorithm, inner, policy)
    got = fitted(mirrored(), algorithm, inner, policy, execution)
    assert mirrored().num_replicas_in_sync == 2
    # bfloat16 sums half a batch in another order than the whole.
    assert_same_training(*got, *want, tolerance=1e-5 if policy == "float32" else 2e-2)
    # DNW moves connections at any step.
    assert num_moves(got[1]) == {"StaticSparse": 0, "DNW": num_moves(want[1])}.get(algorithm, 2)


def run(strategy, algorithm, execution="masked"):
    """A loop of one's own: the gradient of the global batch's mean, with slots watched."""
    x, y = halves(BATCH * STEPS, BATCH)
    with strategy.scope():
        model = make(algorithm, "momentum", execution=execution)
        optimizer = model.optimizer
        optimizer.build(model.trainable_variables)

    def step(x, y):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum((model(x, training=True) - y) ** 2) / (3 * BATCH)
        gradients = tape.gradient(loss, [w.value for w in model.trainable_weights])
        optimizer.apply(gradients, model.trainable_weights)

    @tf.function
    def distributed(x, y):
        strategy.run(step, args=(x, y))

    masks = []
    num = strategy.num_replicas_in_sync
    for start in range(0, BATCH * STEPS, BATCH):

        def share(values, start=start):
            parts = np.split(values[start : start + BATCH], num)
            return strategy.experimental_distribute_values_from_function(
                lambda context: tf.constant(parts[context.replica_id_in_sync_group])
            )

        distributed(share(x), share(y))
        with strategy.scope():
            check_replicas([*model.weights, *optimizer.variables])
            check_invariant(model)
            masks.append(masks_of(model))
    return model, masks


@pytest.mark.parametrize(
    ("algorithm", "execution"), [("RigL", "masked"), ("SNFS", "masked"), ("RigL", "csr")]
)
def test_a_loop_of_ones_own(algorithm, execution):
    want = run(tf.distribute.get_strategy(), algorithm)
    got = run(mirrored(), algorithm, execution)
    assert_same_training(*got, *want)
    assert num_moves(got[1]) == 2


def test_growth_is_by_the_gradient_of_all_replicas():
    """Two replicas whose gradients disagree: each alone would grow something else."""
    with mirrored().scope():
        layer = rigl_tf.SparseWrapper(layers.Dense(1, use_bias=False), 0.5)
        layer.build((None, 4))
        optimizer = rigl_tf.RigL("sgd", 5, update_frequency=1, drop_fraction=lambda step: 0.5)
        optimizer.build(layer.trainable_variables)
        layer.layer.kernel.assign([[0.0], [1.0], [2.0], [0.0]])
        rigl_tf.masks.kernel_of(layer.layer.kernel).set_mask([[False], [True], [True], [False]])
        optimizer.step.assign(1)
    gradients = [[[3.0], [0.0], [0.0], [2.0]], [[-3.0], [0.0], [0.0], [2.0]]]  # sum: 0, 0, 0, 4

    @tf.function
    def step():
        def replica(gradient):
            optimizer.apply([gradient], layer.trainable_variables)

        values = mirrored().experimental_distribute_values_from_function(
            lambda context: tf.constant(gradients[context.replica_id_in_sync_group])
        )
        mirrored().run(replica, args=(values,))

    step()
    with mirrored().scope():
        check_replicas([*layer.weights, *optimizer.variables])
    assert layer.kernel_mask.numpy().ravel().tolist() == [False, False, True, True]


@pytest.mark.parametrize("choose", [rigl_tf.pruning.snip_masks, rigl_tf.pruning.grasp_masks])
def test_masks_from_gradients(choose):
    """The masks of a model with a copy of each weight on each replica, in and outside its scope."""
    x, y = halves(BATCH * STEPS, BATCH)
    expected = choose(make("StaticSparse", "adam"), (x, y), 0.7, "mse")
    with mirrored().scope():
        model = make("StaticSparse", "adam")
        found = [choose(model, (x, y), 0.7, "mse")]
    found.append(choose(model, (x, y), 0.7, "mse"))
    for masks in found:
        for ours, theirs in zip(masks.values(), expected.values(), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_an_optimizer_must_be_built_in_the_scope():
    strategy = mirrored()
    with strategy.scope():
        model = half(mlp())
        optimizer = rigl("sgd", update_frequency=2)

    @tf.function
    def step(x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(model(x) ** 2)
        variables = model.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))

    x = numbers((4, 6))
    with pytest.raises(ValueError, match="RigL must be built in the scope of the strategy"):
        strategy.run(step, args=(x,))
    with strategy.scope():
        optimizer.build(model.trainable_variables)
    strategy.run(step, args=(x,))
    assert optimizer.step.numpy() == 1
