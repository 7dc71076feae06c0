"""The same numbers with and without a strategy, on two logical CPUs (see `conftest.py`).

`test_keras_features.py` has the features of Keras, and which of them fail inside Keras.
"""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

import rigl_tf
from scripts.train import strategies

layers, optimizers = keras.layers, keras.optimizers

ALGORITHMS = {
    "RigL": lambda inner: rigl_tf.RigL(inner, 9, update_frequency=2, drop_fraction=0.5),
    "SET": lambda inner: rigl_tf.SET(inner, 9, update_frequency=2, drop_fraction=0.5),
    "SNFS": lambda inner: rigl_tf.SNFS(inner, 9, update_frequency=2, drop_fraction=0.5),
    "StaticSparse": rigl_tf.StaticSparse,
    "DNW": lambda inner: rigl_tf.DNW(inner, 0.6),
}
INNER = {
    "momentum": lambda: optimizers.SGD(0.1, momentum=0.9),
    "adam": lambda: optimizers.Adam(0.01),
}
BATCH = 8
STEPS = 6


@pytest.fixture(scope="module")
def mirrored():
    return strategies.mirrored("CPU")


def make(algorithm, inner, policy="float32"):
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy(policy)
    dense = keras.Sequential(
        [keras.Input((6,)), layers.Dense(8, activation="tanh"), layers.Dense(3)]
    )
    model = rigl_tf.sparsify(dense, 0.5)
    model.compile(ALGORITHMS[algorithm](INNER[inner]()), "mse")
    return model


def data():
    """Each half of a batch, which is what a replica gets, has a distribution of its own."""
    rng = np.random.default_rng(0)
    shift = np.arange(BATCH * STEPS) % BATCH < BATCH // 2
    x = rng.normal(size=(BATCH * STEPS, 6)) + 2 * shift[:, np.newaxis]
    y = rng.normal(size=(BATCH * STEPS, 3)) - 3 * shift[:, np.newaxis]
    return x.astype("float32"), y.astype("float32")


class History(keras.callbacks.Callback):
    """Masks after every step; asserts that replicas are equal and the invariant holds."""

    def on_train_begin(self, logs=None):
        self.masks = []

    def on_train_batch_end(self, batch, logs=None):
        check_replicas([*self.model.weights, *self.model.optimizer.variables])
        self.masks.append(check_invariant(self.model))


def check_replicas(variables):
    for variable in variables:
        first, *others = tf.distribute.get_strategy().experimental_local_results(variable.value)
        for other in others:
            np.testing.assert_array_equal(first.numpy(), other.numpy(), err_msg=variable.path)


def check_invariant(model):
    masks = rigl_tf.get_masks(model)
    weights = {weight.path: weight.numpy() for weight in model.weights}
    for path, mask in masks.items():
        np.testing.assert_array_equal(weights[path], np.where(mask, weights[path], 0))
    return list(masks.values())


def fitted(strategy, *args):
    with strategy.scope():
        model = make(*args)
        history = History()
        x, y = data()
        model.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0, callbacks=[history])
    return model, history.masks


def assert_same_training(model, masks, want_model, want_masks, tolerance=1e-5):
    for step, (some, others) in enumerate(zip(masks, want_masks, strict=True)):
        for mask, want in zip(some, others, strict=True):
            np.testing.assert_array_equal(mask, want, err_msg=f"step {step}")
    for weight, want in zip(model.trainable_weights, want_model.trainable_weights, strict=True):
        np.testing.assert_allclose(weight.numpy(), want.numpy(), rtol=tolerance, atol=tolerance)


def num_moves(masks):
    return sum(
        any((old != new).any() for old, new in zip(before, after, strict=True))
        for before, after in itertools.pairwise(masks)
    )


@pytest.mark.parametrize(
    ("algorithm", "inner", "policy"),
    [
        ("RigL", "momentum", "float32"),
        ("RigL", "adam", "float32"),
        ("SET", "adam", "float32"),
        ("SNFS", "momentum", "float32"),
        ("DNW", "momentum", "float32"),
        ("SNFS", "adam", "float32"),
        ("StaticSparse", "momentum", "float32"),
        ("RigL", "momentum", "mixed_bfloat16"),
    ],
)
def test_two_replicas_train_as_one(mirrored, algorithm, inner, policy):
    want = fitted(tf.distribute.get_strategy(), algorithm, inner, policy)
    got = fitted(mirrored, algorithm, inner, policy)
    assert mirrored.num_replicas_in_sync == 2
    # bfloat16 sums half a batch in another order than the whole.
    assert_same_training(*got, *want, tolerance=1e-5 if policy == "float32" else 2e-2)
    # DNW moves connections at any step.
    assert num_moves(got[1]) == {"StaticSparse": 0, "DNW": num_moves(want[1])}.get(algorithm, 2)


def run(strategy, algorithm, eager):
    """A loop of one's own: the gradient of the global batch's mean, with slots watched."""
    x, y = data()
    with strategy.scope():
        model = make(algorithm, "momentum")
        optimizer = model.optimizer
        optimizer.build(model.trainable_variables)

    def step(x, y):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum((model(x, training=True) - y) ** 2) / (3 * BATCH)
        gradients = tape.gradient(loss, [w.value for w in model.trainable_weights])
        optimizer.apply(gradients, model.trainable_weights)

    def distributed(x, y):
        strategy.run(step, args=(x, y))

    distributed = distributed if eager else tf.function(distributed)
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
            masks.append(check_invariant(model))
    return model, masks


@pytest.mark.parametrize(("algorithm", "eager"), [("RigL", False), ("SNFS", False)])
def test_a_loop_of_ones_own(mirrored, algorithm, eager):
    want = run(tf.distribute.get_strategy(), algorithm, eager)
    got = run(mirrored, algorithm, eager)
    assert_same_training(*got, *want)
    assert num_moves(got[1]) == 2


def test_growth_is_by_the_gradient_of_all_replicas(mirrored):
    """Two replicas whose gradients disagree: each alone would grow something else."""
    with mirrored.scope():
        layer = rigl_tf.SparseWrapper(layers.Dense(1, use_bias=False), 0.5)
        layer.build((None, 4))
        optimizer = rigl_tf.RigL("sgd", 5, update_frequency=1, drop_fraction=lambda step: 0.5)
        optimizer.build(layer.trainable_variables)
        layer.layer.kernel.assign([[0.0], [1.0], [2.0], [0.0]])
        rigl_tf.masks.assign(layer.layer.kernel, [[False], [True], [True], [False]])
        optimizer.step.assign(1)
    gradients = [[[3.0], [0.0], [0.0], [2.0]], [[-3.0], [0.0], [0.0], [2.0]]]  # sum: 0, 0, 0, 4

    @tf.function
    def step():
        def replica(gradient):
            optimizer.apply([gradient], layer.trainable_variables)

        values = mirrored.experimental_distribute_values_from_function(
            lambda context: tf.constant(gradients[context.replica_id_in_sync_group])
        )
        mirrored.run(replica, args=(values,))

    step()
    with mirrored.scope():
        check_replicas([*layer.weights, *optimizer.variables])
    assert layer.kernel_mask.numpy().ravel().tolist() == [False, False, True, True]


@pytest.mark.parametrize("choose", [rigl_tf.pruning.snip_masks, rigl_tf.pruning.grasp_masks])
def test_masks_from_gradients(choose, mirrored):
    """The masks of a model with a copy of each weight on each replica, in and outside its scope."""
    x, y = data()
    expected = choose(make("StaticSparse", "adam"), (x, y), 0.7, "mse")
    with mirrored.scope():
        model = make("StaticSparse", "adam")
        found = [choose(model, (x, y), 0.7, "mse")]
    found.append(choose(model, (x, y), 0.7, "mse"))
    for masks in found:
        for ours, theirs in zip(masks.values(), expected.values(), strict=True):
            np.testing.assert_array_equal(ours, theirs)
