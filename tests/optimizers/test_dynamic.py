"""Tests of `rigl_tf.optimizers`: one list of algorithms, and what each of them must satisfy."""

import copy
import warnings

import keras
import numpy as np
import pytest
import reference
import tensorflow as tf
from helpers import (
    ALGORITHMS,
    DYNAMIC,
    INNER,
    ON_ONE_DEVICE,
    WORLDS,
    all_alike,
    assert_equal,
    differ,
    drop_half,
    ends_early,
    masks_of,
    mirrored,
    mlp,
    numbers,
    random_gradients,
    rigl,
    updates_only,
    values,
)

import rigl_tf

layers, optimizers = keras.layers, keras.optimizers
pytestmark = [ends_early, updates_only]


# In Keras 3.12, the last for Python 3.10, Muon fails with any model on TensorFlow.
if not keras.__version__.startswith("3.12."):
    INNER["muon"] = lambda: optimizers.Muon(0.01)


def sparse_model(sizes=(6, 8, 3), sparsity=0.5, **kwargs):
    return rigl_tf.sparsify(mlp(*sizes, **kwargs), sparsity, all_alike)


def data(num=32):
    return numbers((num, 6)), numbers((num, 3), seed=1)


def train(model, optimizer, steps, seed=0):
    """Steps with gradients that are given, not computed; the masks after each step."""
    history = []
    for step in range(steps):
        optimizer.apply(
            random_gradients(model.trainable_weights, seed + step), model.trainable_variables
        )
        history.append(masks_of(model))
    return history


class Watch(keras.callbacks.Callback):
    """Asserts the invariant after every step, and notes at which steps the masks moved."""

    def on_train_begin(self, logs=None):
        self.masks = masks_of(self.model)
        self.moved = []
        self.step = 0
        self.check()

    def on_train_batch_end(self, batch, logs=None):
        self.check()

    def check(self):
        masks = masks_of(self.model)
        kernels = rigl_tf.masks.sparse_kernels(self.model).values()
        for old, mask, kernel in zip(self.masks, masks, kernels, strict=True):
            kernel = kernel.numpy()
            assert mask.sum() == old.sum()
            np.testing.assert_array_equal(kernel, np.where(mask, kernel, 0))
        if differ(self.masks, masks):
            self.moved.append(self.step - 1)
        self.masks = masks
        self.step += 1


def watched_fit(model, optimizer, epochs=1, **kwargs):
    watch = Watch()
    model.compile(optimizer, "mse", **kwargs)
    x, y = data()
    model.fit(x, y, batch_size=4, epochs=epochs, shuffle=False, verbose=0, callbacks=[watch])
    watch.check()  # `fit` ends with the write-back of averages
    return watch


# Counts, and the invariant after every step. `test_keras_features.py` has all inner optimizers.

# Eagerly and in float32, every algorithm is in `test_properties.py`.
COVER = [
    ("RigL", "nesterov", "float32", "eager"),
    ("SET", "nesterov", "mixed_float16", "graph"),
    ("SET", "adamw", "mixed_bfloat16", "eager"),
    ("SET", "adam", "float32", "XLA"),
    ("SNFS", "sgd", "mixed_float16", "eager"),
    ("SNFS", "clipnorm", "mixed_bfloat16", "eager"),
    ("StaticSparse", "adam", "mixed_float16", "eager"),
    ("StaticSparse", "ema_overwrite", "float32", "XLA"),
    *[("StaticSparse", inner, "mixed_bfloat16", "eager") for inner in INNER if inner == "muon"],
    ("RigL", "clipvalue", "mixed_bfloat16", "eager"),
    ("RigL", "ema", "float32", "graph"),
]


@pytest.mark.built_in_fit
@pytest.mark.parametrize(("algorithm", "inner", "policy", "world"), COVER)
def test_counts_and_invariant_after_every_step(algorithm, inner, policy, world):
    keras.config.set_dtype_policy(policy)
    model = sparse_model()
    optimizer = ALGORITHMS[algorithm](
        INNER[inner](), end_step=8, update_frequency=3, drop_fraction=drop_half
    )
    before = values(model.trainable_weights)
    watch = watched_fit(model, optimizer, **WORLDS[world])
    assert set(watch.moved) <= {3, 6}
    if algorithm != "StaticSparse":
        assert watch.moved
    after = values(model.trainable_weights)
    assert differ(before, after)
    assert np.isfinite(np.concatenate([weight.ravel() for weight in after])).all()


# When.


@pytest.mark.parametrize(
    ("algorithm", "begin", "end", "frequency", "want"),
    [
        ("RigL", 0, 7, 3, [3, 6]),
        ("RigL", 2, 9, 2, [2, 4, 6, 8]),
        ("RigL", 4, 6, 1, [4, 5]),
        ("RigL", 5, 50, 100, [5]),
        ("RigLInverted", 2, 9, 2, [2, 4, 6, 8]),
        ("SET", 0, 7, 3, [3, 6]),
        ("SNFS", 4, 6, 1, [4, 5]),
        ("StaticSparse", 0, 7, 3, []),
    ],
)
def test_masks_move_at_update_steps_only(algorithm, begin, end, frequency, want):
    model = sparse_model()
    optimizer = ALGORITHMS[algorithm](
        "sgd", end_step=end, begin_step=begin, update_frequency=frequency, drop_fraction=drop_half
    )
    history = [masks_of(model), *train(model, optimizer, 10)]
    moved = [t for t in range(10) if differ(history[t], history[t + 1])]
    assert moved == want
    assert int(optimizer.iterations) == 10 - len(want)
    assert int(optimizer.step) == 10


def test_nothing_moves_after_the_cosine_has_come_to_zero():
    model = sparse_model()
    optimizer = rigl_tf.SET("sgd", end_step=100, update_frequency=99, drop_fraction=0.9)
    optimizer.build(model.trainable_variables)
    optimizer.step.assign(99)  # cos(0.99 pi): 0.02 % of 24 connections are none
    before = masks_of(model)
    train(model, optimizer, 1)
    assert_equal(masks_of(model), before)


# One update.


@pytest.mark.parametrize(
    ("algorithm", "inner"),
    [
        *[("RigL", inner) for inner in ("sgd", "nesterov", "adam", "adamw", "ema", "clipnorm")],
        *[(algorithm, "ema") for algorithm in DYNAMIC if algorithm != "RigL"],
    ],
)
def test_an_update_step(algorithm, inner):
    """Moved connections and their slots become 0, and nothing else changes at all."""
    model = sparse_model()
    optimizer = ALGORITHMS[algorithm](
        INNER[inner](), end_step=9, update_frequency=3, drop_fraction=drop_half
    )
    train(model, optimizer, 3)
    kernel = model.layers[0].layer.kernel
    old_mask = masks_of(model)[0]
    # The weakest active connection is dropped and, with the largest gradient, comes back at once;
    # with RigLInverted it has the smallest.
    weakest = np.where(old_mask, np.abs(kernel), np.inf).argmin()
    gradients = random_gradients(model.trainable_weights, 3)
    first = gradients[0].numpy()
    first.flat[weakest] = 0.0 if algorithm == "RigLInverted" else 1e4
    gradients[0] = tf.constant(first)

    weights = model.trainable_weights
    inner_variables = optimizer.inner_optimizer.variables
    old_weights, old_inner = values(weights), values(inner_variables)
    optimizer.apply(gradients, weights)
    masks = masks_of(model)
    changed = {}
    for sparse_layer, before in zip(model.layers, [old_weights[0], old_weights[2]], strict=True):
        new = sparse_layer.kernel_mask.numpy()
        changed[new.shape] = new != (before != 0)
        assert changed[new.shape].any()
    for variable, before in [
        *zip(weights, old_weights, strict=True),
        *zip(inner_variables, old_inner, strict=True),
    ]:
        moved = changed.get(before.shape, False)
        np.testing.assert_array_equal(variable, np.where(moved, 0, before), variable.path)
    if algorithm != "SET":
        assert masks[0].flat[weakest]
        assert old_weights[0].flat[weakest] == kernel.numpy().flat[weakest] != 0
    num_slots = sum(before.shape == (6, 8) for before in old_inner)
    assert num_slots == {"sgd": 0, "nesterov": 1, "ema": 3}.get(inner, 2)


def test_the_slots_of_what_was_active_before_masks_were_set_restart_at_growth():
    model = sparse_model()
    optimizer = rigl(INNER["momentum"](), 9, 3, drop_half)
    train(model, optimizer, 3)
    (path, mask), *_ = rigl_tf.get_masks(model).items()
    rigl_tf.set_masks(model, {path: ~mask})
    (slot,) = [v for v in optimizer.inner_optimizer.variables if v.shape == mask.shape]
    assert np.asarray(slot)[mask].all()
    train(model, optimizer, 1, seed=3)
    grown = masks_of(model)[0] & mask
    assert grown.any()
    assert not np.asarray(slot)[grown].any()


def test_slots_restart_where_the_inner_optimizer_starts_them():
    model = sparse_model()
    optimizer = rigl_tf.SET(
        INNER["adagrad"](), end_step=9, update_frequency=3, drop_fraction=drop_half
    )
    train(model, optimizer, 3)
    before = masks_of(model)[0]
    train(model, optimizer, 1)
    changed = before != masks_of(model)[0]
    (slot,) = [v.numpy() for v in optimizer.inner_optimizer.variables if v.shape == (6, 8)]
    assert (slot[changed] == np.float32(0.1)).all()
    assert (slot[before & ~changed] > 0.1).all()


@pytest.mark.parametrize("world", ON_ONE_DEVICE)
def test_rigl_grows_where_the_dense_gradient_is_largest(world):
    """The gradient of `sum((x @ w) * c)` is `x.T @ c`: growth is known by arithmetic."""
    rng = np.random.default_rng(5)
    x = rng.normal(size=(4, 6)).astype("float32")
    c = rng.normal(size=(4, 5)).astype("float32")
    model = sparse_model((6, 5), 0.6, use_bias=False)
    optimizer = rigl_tf.RigL(optimizers.SGD(0.01), end_step=9, update_frequency=2)
    model.compile(optimizer, lambda y, outputs: tf.reduce_sum(outputs * y), **WORLDS[world])
    kernel = model.layers[0].layer.kernel
    for step in range(5):
        mask, old = masks_of(model)[0], kernel.numpy()
        gradient = x.T @ c
        model.train_on_batch(x, c)
        if step in (2, 4):
            fraction = reference.cosine_drop_fraction(step, 0, 9, 0.3)
            num_drop = int(np.float32(mask.sum()) * np.float32(fraction))
            assert num_drop > 0
            want, _ = reference.drop_and_grow(mask, np.abs(old), np.abs(gradient), num_drop)
            np.testing.assert_array_equal(masks_of(model)[0], want)
            np.testing.assert_array_equal(kernel, np.where(mask & want, old, 0))
        else:
            want = np.where(mask, old - 0.01 * gradient, 0)
            np.testing.assert_allclose(kernel, want, rtol=1e-4, atol=1e-6)


def test_snfs_grows_by_the_moving_average_of_the_gradient():
    model = sparse_model()
    kernel = model.layers[0].layer.kernel
    optimizer = rigl_tf.SNFS(
        optimizers.SGD(0.01),
        end_step=20,
        update_frequency=4,
        drop_fraction=drop_half,
        gradient_momentum=0.8,
    )
    average = np.zeros((6, 8), "float32")
    by_gradient = 0
    for step in range(13):
        gradients = random_gradients(model.trainable_weights, step)
        mask, old = masks_of(model)[0], kernel.numpy()
        average = 0.8 * average + 0.2 * gradients[0].numpy()  # update steps count too
        optimizer.apply(gradients, model.trainable_variables)
        if step in (4, 8, 12):
            want, _ = reference.drop_and_grow(mask, np.abs(old), np.abs(average), 12)
            np.testing.assert_array_equal(masks_of(model)[0], want)
            last, _ = reference.drop_and_grow(mask, np.abs(old), np.abs(gradients[0]), 12)
            by_gradient += (last == want).all()
        else:
            np.testing.assert_array_equal(masks_of(model)[0], mask)
    assert by_gradient < 3  # the average is not the last gradient


# Randomness.


def set_masks_after(step, seed=0):
    """The masks of two kernels of one shape, equal before, after one update at `step`."""
    keras.utils.set_random_seed(step + seed)  # which must not matter
    model = sparse_model((8, 8, 8))
    half_of_it = np.arange(64).reshape(8, 8) % 2 == 0
    for kernel in rigl_tf.masks.kernels_of(model).values():
        kernel.set_mask(half_of_it)
        kernel.assign(np.arange(1, 65).reshape(8, 8))
    optimizer = rigl_tf.SET("sgd", end_step=99, begin_step=step, drop_fraction=drop_half, seed=seed)
    optimizer.build(model.trainable_variables)
    optimizer.step.assign(step)
    train(model, optimizer, 1, seed=step)
    return masks_of(model)


def test_set_depends_on_seed_kernel_and_step_only():
    masks = set_masks_after(7)
    assert_equal(set_masks_after(7), masks)
    assert (masks[0] != masks[1]).any()
    for other in (set_masks_after(8), set_masks_after(7, seed=1)):
        assert (other[0] != masks[0]).any()
        assert (other[1] != masks[1]).any()


class ThreeDraws(rigl_tf.SparseOptimizer):
    def new_mask(self, kernel, mask, gradient, step):
        self.draws.append([self.random_uniform(kernel).numpy() for _ in range(3)])
        return mask


def test_each_call_draws_other_numbers():
    draws = []
    for _ in range(2):
        optimizer = ThreeDraws("sgd", end_step=9, update_frequency=1)
        optimizer.draws = []
        train(sparse_model((6, 6, 6)), optimizer, 3)  # two updates of two kernels
        draws.append(np.reshape(optimizer.draws, (12, 36)))
    assert_equal(*draws)
    assert len(np.unique(draws[0])) > 0.99 * draws[0].size
    with pytest.raises(ValueError, match="`random_uniform` must be called inside `drop_scores`"):
        rigl_tf.SET("sgd", end_step=999).random_uniform(tf.zeros([3]))


# How many.


@keras.saving.register_keras_serializable(package="rigl_tf_tests")
class GrowElsewhere(rigl_tf.SparseOptimizer):
    def grow_scores(self, kernel, mask, gradient):
        return tf.where(mask, 0.0, 1.0)


# In float32 100 * 0.29 is 29, in float64 it is 28.999999999999996.
@pytest.mark.parametrize(
    ("fraction", "want"), [(0.0, 0), (0.004, 0), (0.29, 29), (0.555, 55), (0.999, 99), (1.0, 100)]
)
def test_number_of_dropped_connections(fraction, want):
    model = sparse_model((10, 20))
    optimizer = GrowElsewhere(
        "sgd", end_step=9, update_frequency=1, drop_fraction=lambda _: fraction
    )
    before, after = (masks[0] for masks in train(model, optimizer, 2))
    assert before.sum() == after.sum() == 100
    assert (before & ~after).sum() == want == int(np.float32(100) * np.float32(fraction))


@pytest.mark.parametrize(
    ("drop_fraction", "want"),
    [
        (0.4, [30, 10]),  # cosine from 1 to 13: 0.3 at step 5, 0.1 at step 9
        (optimizers.schedules.PiecewiseConstantDecay([6], [0.25, 0.5]), [25, 50]),
        (lambda step: tf.cast(step, tf.float32) / 100, [5, 9]),
    ],
)
def test_drop_fraction_is_a_number_a_schedule_or_a_callable(drop_fraction, want):
    model = sparse_model((10, 20))
    optimizer = GrowElsewhere(
        "sgd", end_step=13, begin_step=1, update_frequency=4, drop_fraction=drop_fraction
    )
    history = train(model, optimizer, 10)
    dropped = [(history[t - 1][0] & ~history[t][0]).sum() for t in (5, 9)]
    # By float32, a cosine of 0.3 may be 0.29999998.
    np.testing.assert_allclose(dropped, want, atol=1)


def test_an_algorithm_is_a_pair_of_scores():
    class DropLargest(rigl_tf.SparseOptimizer):
        def drop_scores(self, kernel, mask, gradient):
            return -tf.abs(kernel)

        def grow_scores(self, kernel, mask, gradient):
            return -tf.abs(gradient)

    model = sparse_model()
    optimizer = DropLargest("sgd", end_step=9, update_frequency=2, drop_fraction=drop_half)
    train(model, optimizer, 2)
    mask, kernel = masks_of(model)[0], model.layers[0].layer.kernel.numpy()
    gradient = random_gradients(model.trainable_weights, 2)[0].numpy()
    train(model, optimizer, 1, seed=2)
    want, _ = reference.drop_and_grow(mask, -np.abs(kernel), -np.abs(gradient), 12)
    np.testing.assert_array_equal(masks_of(model)[0], want)


@pytest.mark.parametrize("world", ["graph", "XLA", "two replicas"])
@pytest.mark.parametrize("grow_init", ["zeros", "initial_distribution"])
def test_kernels_of_one_shape_share_the_graph_of_their_update(grow_init, world):
    """Their random numbers differ, as in eager mode."""
    shapes = []

    class AtRandom(rigl_tf.SET):
        def grow_scores(self, kernel, mask, gradient):
            shapes.append(tuple(kernel.shape))
            return super().grow_scores(kernel, mask, gradient)

    def trained(world):
        shapes.clear()
        keras.utils.set_random_seed(1)
        strategy = mirrored() if world == "two replicas" else tf.distribute.get_strategy()
        with strategy.scope():
            model = sparse_model((6, 6, 6, 3))
            optimizer = AtRandom("sgd", 9, 0, 1, drop_half, grow_init=grow_init)
            model.compile(optimizer, "mse", **WORLDS[world])
        model.fit(*data(8), batch_size=4, shuffle=False, verbose=0)
        return model, sorted(shapes)

    model, of_graph = trained(world)
    same, of_eager = trained("eager")
    assert of_graph == sorted([(6, 3), (6, 6)] * (2 if world == "two replicas" else 1))
    assert of_eager == [(6, 3), (6, 6), (6, 6)]
    assert_equal(masks_of(model), masks_of(same))
    assert differ(masks_of(model)[:1], masks_of(model)[1:2])
    for one, other in zip(values(model.weights), values(same.weights), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("method", ["drop_scores", "grow_scores"])
def test_scores_of_another_shape(method):
    class Wrong(rigl_tf.RigL):
        pass

    setattr(Wrong, method, lambda self, kernel, mask, gradient: tf.reduce_sum(kernel, axis=0))
    with pytest.raises(ValueError, match=rf"`Wrong.{method}` must .*\(6, 8\).*shape=\(8,\)"):
        train(sparse_model(), Wrong("sgd", end_step=9, update_frequency=1), 2)


def test_arguments_that_are_changed_before_training():
    """The cosine of a longer time is flatter: 30 % are 0.3 / 2 * (1 + cos(pi / 3)) at step 4."""
    model = sparse_model((10, 20))
    optimizer = GrowElsewhere("sgd", end_step=5, update_frequency=4, drop_fraction=0.9)
    optimizer.end_step, optimizer.drop_fraction = 12, 0.3
    history = train(model, optimizer, 5)
    dropped = (history[3][0] & ~history[4][0]).sum()
    assert dropped == pytest.approx(22.5, abs=1)


def test_an_update_in_every_step_by_a_python_boolean():
    class Always(rigl_tf.SET):
        def is_update_step(self, step):
            return True

    model = sparse_model()
    before = masks_of(model)
    model.compile(Always("sgd", end_step=9), "mse", jit_compile=False)
    model.fit(*data(8), verbose=0)
    assert differ(before, masks_of(model))


# Variables that are created while a step is traced.


@pytest.mark.built_in_fit
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_first_step_is_traced_once(algorithm, monkeypatch):
    """Else the time to the first step is twice as long."""
    model, traced = sparse_model(), []
    train_step = model.train_step
    monkeypatch.setattr(model, "train_step", lambda data: traced.append(0) or train_step(data))
    model.compile(ALGORITHMS[algorithm]("adam"), "mse", jit_compile=False)
    model.fit(*data(8), verbose=0)
    assert len(traced) == 1


def test_an_optimizer_that_is_built_in_a_later_trace():
    model = sparse_model()
    optimizer, gradients = rigl("adam"), random_gradients(model.trainable_weights, 0)

    @tf.function
    def step(trains):
        if trains:
            optimizer.apply(gradients, model.trainable_variables)

    step(False)
    before = values(model.weights)
    step(True)
    assert differ(before, values(model.weights))


# Config.


@keras.saving.register_keras_serializable(package="rigl_tf_tests")
def falling(step):
    return 1 / (1 + tf.cast(step, tf.float32))


@pytest.mark.parametrize(
    "make",
    [
        lambda: rigl_tf.RigL(INNER["nesterov"](), 11, 1, 2, 0.7, 5, name="mine"),
        lambda: rigl_tf.SET(INNER["adamw"](), 11, begin_step=1, update_frequency=2, seed=3),
        lambda: rigl_tf.SET("sgd", 11, update_frequency=2, drop_fraction=falling),
        lambda: rigl_tf.RigL(
            INNER["ema"](),
            11,
            update_frequency=2,
            drop_fraction=optimizers.schedules.ExponentialDecay(0.9, 5, 0.5),
        ),
        lambda: rigl_tf.SNFS("adam", 11, 0, 2, 0.5, gradient_momentum=0.3),
        lambda: rigl_tf.StaticSparse(INNER["adam"](), name="mine"),
        lambda: GrowElsewhere("sgd", 11, update_frequency=2, gradient_momentum=0.5),
    ],
)
def test_config_round_trip_compares_behaviour(make):
    original = make()
    serialized = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(original)
    )
    results = []
    for optimizer in (original, serialized):
        keras.utils.set_random_seed(0)
        model = sparse_model()
        history = train(model, optimizer, 5)
        results.append(
            [
                optimizer.name,
                *[m for masks in history for m in masks],
                *values(model.weights),
                *values(optimizer.variables),
            ]
        )
    (name, *want), (name_of_copy, *got) = results
    assert name_of_copy == name
    assert_equal(got, want)


# Numbers that are not finite.


@pytest.mark.parametrize(
    ("algorithm", "bad"), [*[(name, np.nan) for name in DYNAMIC], ("RigL", np.inf)]
)
def test_an_update_step_without_finite_gradients_is_skipped(algorithm, bad):
    model = sparse_model()
    optimizer = ALGORITHMS[algorithm](
        INNER["adam"](), end_step=9, update_frequency=3, drop_fraction=drop_half
    )
    train(model, optimizer, 3)
    before = values(model.weights) + values(optimizer.inner_optimizer.variables)
    gradients = random_gradients(model.trainable_weights, 3)
    gradients[2] = tf.fill(gradients[2].shape, bad)  # one kernel's
    optimizer.apply(gradients, model.trainable_variables)
    assert_equal(before, values(model.weights) + values(optimizer.inner_optimizer.variables))
    assert int(optimizer.num_skipped_updates) == 1
    masks = masks_of(model)
    train(model, optimizer, 3)  # and then the next update
    assert differ(masks, masks_of(model))
    assert int(optimizer.num_skipped_updates) == 1
    assert all(np.isfinite(value).all() for value in values(model.weights))


@pytest.mark.parametrize("algorithm", [*DYNAMIC, "StaticSparse"])
def test_nan_in_an_ordinary_step_never_changes_masks(algorithm):
    model = sparse_model()
    optimizer = ALGORITHMS[algorithm](
        "sgd", end_step=9, update_frequency=3, drop_fraction=drop_half
    )
    train(model, optimizer, 1)
    masks = masks_of(model)
    gradients = [tf.fill(g.shape, np.nan) for g in random_gradients(model.trainable_weights, 1)]
    optimizer.apply(gradients, model.trainable_variables)
    history = train(model, optimizer, 8, seed=2)
    for later in history:
        assert_equal(later, masks)
    for layer, mask in zip(model.layers, masks, strict=True):
        assert not layer.layer.kernel.numpy()[~mask].any()


@pytest.mark.parametrize("eager", [True, False])
@pytest.mark.parametrize("algorithm", ["RigL", "RigLInverted", "SET", "SNFS"])
def test_it_warns_if_no_connection_is_inactive(algorithm, eager):
    """In the first step, as masks may be set until then. Those who prune begin this way."""
    optimizer = getattr(rigl_tf, algorithm)("sgd", end_step=8, update_frequency=2)
    model = rigl_tf.sparsify(keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)]), 0.0)
    optimizer.build(model.trainable_variables)
    model.compile(optimizer, "mse", run_eagerly=eager)
    x, y = numbers((8, 8)), numbers((8, 4), seed=1)
    with pytest.warns(UserWarning, match=f"{algorithm} cannot move connections.* 1 sparse kern"):
        model.train_on_batch(x, y)
    model.train_on_batch(x, y)


@pytest.mark.parametrize("algorithm", ["RigL", "StaticReinit", "GradualPruning", "DNW"])
def test_it_does_not_warn_if_some_are_or_need_not_be(algorithm):
    model = rigl_tf.sparsify(keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)]), 0.0)
    pruning = {"GradualPruning": {"sparsity": 0.5}, "DNW": {"sparsity": 0.5}}
    schedule = {} if algorithm == "DNW" else {"end_step": 8, "update_frequency": 2}
    optimizer = getattr(rigl_tf, algorithm)("sgd", **schedule, **pruning.get(algorithm, {}))
    optimizer.build(model.trainable_variables)
    model.compile(optimizer, "mse")
    if algorithm == "RigL":
        rigl_tf.set_masks(model, rigl_tf.pruning.magnitude_masks(model, 0.5))
    model.train_on_batch(numbers((8, 8)), numbers((8, 4), seed=1))


def test_fit_warns_of_skipped_updates(tmp_path):
    model = sparse_model()
    x, y = data()
    x[8:12] = np.nan  # the batch of step 2, an update step
    optimizer = rigl_tf.RigL("sgd", end_step=9, update_frequency=2, drop_fraction=0.5)
    model.compile(optimizer, "mse", run_eagerly=True)
    masks = masks_of(model)
    with pytest.warns(UserWarning, match="RigL skipped 1 mask updates"):
        model.fit(x[:16], y[:16], batch_size=4, shuffle=False, verbose=0)
    assert_equal(masks_of(model), masks)

    def messages_of(model, x):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            model.fit(x, y[:8], batch_size=4, shuffle=False, verbose=0)
        return [str(each.message) for each in caught if "skipped" in str(each.message)]

    assert messages_of(model, x[:8]) == []  # steps 4 and 5 have told nothing new
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for each in (model, loaded):
        (message,) = messages_of(each, x[8:16])  # step 6
        assert "skipped 1 mask updates" in message


def test_a_copy_before_training():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        copied = copy.deepcopy(rigl_tf.RigL("adam", end_step=999))
    assert not copied.built
    train(sparse_model(), copied, 1)


def test_fit_does_not_warn_otherwise():
    model = sparse_model()
    optimizer = rigl_tf.RigL("sgd", end_step=8, update_frequency=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        watched_fit(model, optimizer, run_eagerly=True)
    assert int(optimizer.num_skipped_updates) == 0


# Errors.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"end_step": 5, "begin_step": 6}, "`end_step` must be greater"),
        ({"end_step": 5, "update_frequency": 0}, "update_frequency=0"),
        ({"end_step": 5, "drop_fraction": 1.1}, "drop_fraction=1.1"),
        ({"end_step": 5, "drop_fraction": -0.1}, "drop_fraction=-0.1"),
        ({"end_step": 5, "drop_fraction": "x"}, "drop_fraction='x'"),
        ({"end_step": 5.5}, "end_step=5.5"),
        ({"end_step": 5, "gradient_momentum": 1.0}, "gradient_momentum=1.0"),
        ({"end_step": 5, "gradient_momentum": "x"}, "gradient_momentum='x'"),
        ({"end_step": 5, "seed": "x"}, "seed='x'"),
    ],
)
@pytest.mark.parametrize("algorithm", DYNAMIC)
def test_bad_arguments(algorithm, arguments, message):
    with pytest.raises(ValueError, match=message):
        ALGORITHMS[algorithm]("sgd", **arguments)


def test_an_inner_optimizer_that_was_in_use():
    model, inner = sparse_model(), keras.optimizers.Adam()
    inner.build(model.trainable_variables)
    with pytest.raises(ValueError, match=r"must be new.*Received: inner_optimizer='adam'"):
        rigl_tf.RigL(inner, end_step=999).build(model.trainable_variables)


def test_a_sparse_inner_optimizer():
    with pytest.raises(ValueError, match="must be a dense optimizer"):
        rigl_tf.RigL(rigl_tf.SET("sgd", end_step=999), end_step=999)


@pytest.mark.parametrize("algorithm", [*DYNAMIC, "StaticSparse"])
def test_a_model_that_was_never_sparsified(algorithm):
    model = keras.Sequential([keras.Input((6,)), layers.Dense(3)])
    model.compile(ALGORITHMS[algorithm]("sgd", end_step=999), "mse")
    with pytest.raises(ValueError, match=r"needs a sparse model.*rigl_tf\.sparsify"):
        model.fit(*data(), verbose=0)


def test_no_grow_scores():
    model = sparse_model()
    optimizer = rigl_tf.SparseOptimizer("sgd", end_step=5, update_frequency=1)
    with pytest.raises(NotImplementedError, match="SparseOptimizer must implement `grow_scores`"):
        train(model, optimizer, 2)


@pytest.mark.parametrize("num", [0, 3, 5])
def test_another_number_of_gradients(num):
    model, optimizer = sparse_model(), rigl_tf.RigL("sgd", end_step=999)
    gradients = [*random_gradients(model.trainable_weights, 0), tf.zeros([])][:num]
    with pytest.raises(ValueError, match=rf"each of the 4 variables\. Received: {num} gradients"):
        optimizer.apply(gradients, model.trainable_variables)


@pytest.mark.parametrize("seed", [2**63, -(2**63) - 1, 2**70])
def test_a_seed_beyond_64_bits(seed):
    with pytest.raises(ValueError, match=f"`seed` must be in .* seed={seed}"):
        rigl_tf.SET("sgd", end_step=5, seed=seed)


def test_first_apply_without_variables():
    with pytest.raises(ValueError, match="needs `trainable_variables`"):
        rigl_tf.RigL("sgd", end_step=999).apply([tf.zeros([2])])


# What is the inner optimizer's.


@pytest.mark.parametrize("algorithm", [*DYNAMIC, "StaticSparse"])
def test_learning_rate_and_iterations(algorithm):
    inner = optimizers.SGD(0.5)
    optimizer = ALGORITHMS[algorithm](inner, end_step=9, update_frequency=2)
    assert float(optimizer.learning_rate) == 0.5
    optimizer.learning_rate = 0.25
    assert float(inner.learning_rate) == 0.25
    model = sparse_model()
    train(model, optimizer, 2)
    assert int(optimizer.iterations) == int(inner.iterations) == 2
    paths = [id(variable) for variable in optimizer.variables]
    assert len(paths) == len(set(paths))
    assert {id(variable) for variable in inner.variables} < set(paths)


def test_learning_rate_schedule_and_callback():
    schedule = optimizers.schedules.PiecewiseConstantDecay([3], [0.5, 0.25])
    optimizer = rigl_tf.RigL(optimizers.SGD(schedule), end_step=9, update_frequency=2)
    train(sparse_model(), optimizer, 6)
    assert int(optimizer.iterations) == 4
    assert float(optimizer.learning_rate) == 0.25

    model = sparse_model()
    model.compile(rigl_tf.StaticSparse(optimizers.SGD(0.5)), "mse", run_eagerly=True)
    halve = keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate / 2)
    model.fit(*data(8), epochs=2, verbose=0, callbacks=[halve])
    assert float(model.optimizer.inner_optimizer.learning_rate) == 0.125


def test_static_sparse_trains_as_a_constraint_alone_would():
    results = []
    for wrap in (rigl_tf.StaticSparse, lambda inner: inner):
        keras.utils.set_random_seed(0)
        model = sparse_model()
        train(model, wrap(INNER["nesterov"]()), 5)
        results.append(values(model.weights))
    assert_equal(*results)


# Other optimizers keep a sparse model sparse.


# Averages that an optimizer of Keras keeps are written back unmasked when `fit` ends: only
# `StaticSparse` masks them.
@pytest.mark.parametrize("inner", sorted(INNER.keys() - {"ema", "ema_overwrite"}))
def test_fine_tuning_with_an_optimizer_of_keras(inner):
    watch = watched_fit(sparse_model(), INNER[inner](), run_eagerly=True)
    assert watch.moved == []


def test_the_users_constraint_stays():
    model = sparse_model((6, 3), kernel_constraint=keras.constraints.MaxNorm(0.5, axis=0))
    watched_fit(model, rigl_tf.RigL(optimizers.SGD(1.0), end_step=8, update_frequency=4))
    norms = np.linalg.norm(model.layers[0].layer.kernel, axis=0)
    assert (norms < 0.5 + 1e-5).all()


@pytest.mark.parametrize("grow_init", ["zeros", "random_uniform"])
@pytest.mark.parametrize("constraint", ["unit_norm", "non_neg"])
def test_the_users_constraint_holds_after_an_update(constraint, grow_init):
    model = sparse_model((6, 8, 3), kernel_constraint=constraint)
    optimizer = rigl_tf.RigL(
        "sgd", end_step=9, update_frequency=3, drop_fraction=drop_half, grow_init=grow_init
    )
    before = train(model, optimizer, 3)[-1]
    train(model, optimizer, 1)
    kernel, mask = model.layers[1].layer.kernel.numpy(), masks_of(model)[1]
    assert (mask != before[1]).any()
    assert not kernel[~mask].any()
    if constraint == "non_neg":
        assert (kernel >= 0).all()
    else:
        norms = np.linalg.norm(kernel, axis=0)
        np.testing.assert_allclose(norms[norms > 0], 1, rtol=1e-5)
