"""One list of all algorithms, and what each of them must satisfy.

`test_optimizers.py` has what is particular to drop-and-grow, and `test_dnw.py`, `test_gradual.py`,
`test_growth.py` and `test_redistribution.py` what is particular to each of theirs.
"""

import dataclasses
import itertools
import warnings
from collections.abc import Callable

import keras
import numpy as np
import pytest
import tensorflow as tf

import rigl_tf
from scripts.train import strategies

layers, optimizers = keras.layers, keras.optimizers


def half(step):
    return 0.5


@keras.saving.register_keras_serializable(package="rigl_tf_properties")
def all_alike(shapes, sparsity):
    return dict.fromkeys(shapes, sparsity)


@dataclasses.dataclass
class Algorithm:
    """How to make it, and what it does to the number of connections, and when.

    `counts`: constant per `"kernel"`, in `"total"`, or `"falling"`. `moves`: at `"updates"`,
    in each `"step"`, or `"never"`.
    """

    make: Callable  # of the inner optimizer, and of begin_step, end_step, update_frequency
    counts: str = "kernel"
    moves: str = "updates"
    grows: bool = True
    sparsity: float = 0.5  # of the model that it starts with


def dynamic(cls, **kwargs):
    def make(inner, begin=0, end=11, frequency=3):
        return cls(inner, end, begin, frequency, drop_fraction=0.7, **kwargs)

    return make


def gradual(inner, begin=0, end=11, frequency=3):
    return rigl_tf.GradualPruning(inner, end, 0.75, begin, frequency, distribution=all_alike)


def static(inner, **kwargs):
    return rigl_tf.StaticSparse(inner)


def dnw(inner, **kwargs):
    return rigl_tf.DNW(inner, 0.5, all_alike, track_exploration=True)


ALGORITHMS = {
    "RigL": Algorithm(dynamic(rigl_tf.RigL)),
    "RigL explored": Algorithm(
        dynamic(rigl_tf.RigL, grow_init="initial_distribution", track_exploration=True)
    ),
    "RigLInverted": Algorithm(dynamic(rigl_tf.RigLInverted)),
    "SET": Algorithm(dynamic(rigl_tf.SET)),
    "SNFS": Algorithm(dynamic(rigl_tf.SNFS)),
    "SNFS redistributed": Algorithm(dynamic(rigl_tf.SNFS, redistribute=True), counts="total"),
    "StaticSparse": Algorithm(static, moves="never", grows=False),
    "GradualPruning": Algorithm(gradual, counts="falling", grows=False, sparsity=0.0),
    "DNW": Algorithm(dnw, moves="step", grows=False),
}
GROWING = [name for name, algorithm in ALGORITHMS.items() if algorithm.grows]
AT_UPDATES = [name for name, algorithm in ALGORITHMS.items() if algorithm.moves != "step"]
every_algorithm = pytest.mark.parametrize("name", ALGORITHMS)

INNER = {
    "sgd": lambda: optimizers.SGD(0.1),
    "momentum": lambda: optimizers.SGD(0.1, momentum=0.9),
    "adam": lambda: optimizers.Adam(0.05),
    "adamw": lambda: optimizers.AdamW(0.05, weight_decay=0.1),
    "ema": lambda: optimizers.Adam(0.05, use_ema=True),
}
WORLDS = {
    "eager": {"run_eagerly": True},
    "graph": {"jit_compile": False},
    "jit": {"jit_compile": True},
}


def make_model(name):
    keras.utils.set_random_seed(0)
    dense = keras.Sequential(
        [keras.Input((6,)), layers.Dense(8, activation="tanh"), layers.Dense(5)]
    )
    return rigl_tf.sparsify(dense, ALGORITHMS[name].sparsity, all_alike)


def make(name, inner="adam", **kwargs):
    return make_model(name), ALGORITHMS[name].make(INNER[inner](), **kwargs)


def masks_of(model):
    return list(rigl_tf.get_masks(model).values())


def counts_of(masks):
    return np.array([mask.sum() for mask in masks])


def differ(masks, others):
    return any((one != other).any() for one, other in zip(masks, others, strict=True))


def state_of(model, optimizer):
    variables = [*model.weights, *optimizer.variables]
    return {f"{index}:{v.path}": np.asarray(v) for index, v in enumerate(variables)}


def assert_same(state, want):
    for (path, value), other in zip(state.items(), want.values(), strict=True):
        assert value.dtype == other.dtype
        np.testing.assert_array_equal(value, other, err_msg=path)


def gradients_at(model, step):
    """Random multiples of 1/64: sums of a few of them are exact. The first kernel's are larger."""
    rng = np.random.default_rng(step)
    shapes = [weight.shape for weight in model.trainable_weights]
    factors = [8, *[1] * (len(shapes) - 1)]
    return [
        (factor * rng.integers(-128, 128, shape) / 64).astype("float32")
        for factor, shape in zip(factors, shapes, strict=True)
    ]


def check_invariant(model):
    for kernel in rigl_tf.masks.sparse_kernels(model).values():
        mask = rigl_tf.masks.mask_of(kernel).numpy()
        np.testing.assert_array_equal(kernel.numpy(), np.where(mask, kernel.numpy(), 0))


def check_counts(name, history):
    """Of the masks of a model before training and after each step."""
    counts = np.array([counts_of(masks) for masks in history])
    rule = ALGORITHMS[name].counts
    if rule == "falling":
        assert (np.diff(counts, axis=0) <= 0).all()
        assert (counts[-1] < counts[0]).all()
        for before, after in itertools.pairwise(history):
            assert all((new <= old).all() for old, new in zip(before, after, strict=True))
        return
    sums = counts.sum(axis=1, keepdims=True)
    np.testing.assert_array_equal(sums, np.broadcast_to(sums[0], sums.shape))
    if rule == "total":
        assert (counts != counts[0]).any()
    else:
        np.testing.assert_array_equal(counts, np.broadcast_to(counts[0], counts.shape))


def train(model, optimizer, steps, apply=None):
    """Steps with given gradients; the masks before and after each, with the invariant checked."""
    history = [masks_of(model)]
    for step in steps:
        gradients = [tf.constant(g) for g in gradients_at(model, step)]
        (apply or optimizer.apply)(gradients, model.trainable_weights)
        check_invariant(model)
        history.append(masks_of(model))
    return history


def moves_in(history):
    return [step for step, pair in enumerate(itertools.pairwise(history)) if differ(*pair)]


# Counts, and the invariant after every step.


@every_algorithm
@pytest.mark.parametrize("inner", ["momentum", "adam", "adamw", "ema"])
def test_counts_and_invariant(name, inner):
    model, optimizer = make(name, inner)
    before = [np.asarray(weight) for weight in model.trainable_weights]
    history = train(model, optimizer, range(10))
    check_counts(name, history)
    optimizer.finalize_variable_values(model.trainable_weights)
    check_invariant(model)
    moves = {"updates": {3, 6, 9}, "never": set(), "step": set(range(10))}[ALGORITHMS[name].moves]
    assert set(moves_in(history)) <= moves
    assert bool(moves_in(history)) == bool(moves)
    after = [np.asarray(weight) for weight in model.trainable_weights]
    assert differ(before, after)
    assert np.isfinite(np.concatenate([weight.ravel() for weight in after])).all()


# Eager mode, a graph, XLA.


# Compiling takes seconds: the others, which `test_optimizers.py` and `test_gradual.py` compile
# too, run with `pytest -m slow`.
COMPILED = ("SNFS redistributed", "DNW")


@pytest.mark.parametrize(
    "name",
    [n if n in COMPILED else pytest.param(n, marks=pytest.mark.slow) for n in ALGORITHMS],
)
def test_the_three_worlds_agree(name):
    results = []
    x, y = np.random.default_rng(1).normal(size=(2, 8, 6)).astype("float32")
    for world in WORLDS.values():
        model, optimizer = make(name, "momentum", frequency=1)
        model.compile(optimizer, "mse", **world)
        history = [masks_of(model)]
        for _ in range(4):
            model.train_on_batch(x, y[:, :5])
            check_invariant(model)
            history.append(masks_of(model))
        check_counts(name, history)
        results.append((history, [np.asarray(w) for w in model.trainable_weights]))
    for history, weights in results[1:]:
        for masks, want in zip(history, results[0][0], strict=True):
            assert not differ(masks, want)
        for weight, want in zip(weights, results[0][1], strict=True):
            np.testing.assert_allclose(weight, want, rtol=1e-4, atol=1e-6)


# When.


@pytest.mark.parametrize("name", AT_UPDATES)
@pytest.mark.parametrize(
    ("begin", "end", "frequency", "want"),
    [(0, 7, 3, [3, 6]), (4, 7, 1, [4, 5, 6])],
)
def test_nothing_moves_but_at_update_steps(name, begin, end, frequency, want):
    model, optimizer = make(name, "sgd", begin=begin, end=end, frequency=frequency)
    moved = moves_in(train(model, optimizer, range(12)))
    never = ALGORITHMS[name].moves == "never"
    # Where there are several, gradual pruning begins at sparsity 0 if `begin_step` is an update.
    first = name == "GradualPruning" and begin > 0 and len(want) > 1
    # The cosine and the cubic ramp are flat near the end: 0.7 may come to no connection.
    assert set(moved) <= set([] if never else want)
    assert moved[:1] == ([] if never else want[first:][:1])


# One update.


@pytest.mark.parametrize("name", GROWING)
@pytest.mark.parametrize("inner", ["momentum", "adam", "adamw", "ema"])
def test_slots_restart_where_connections_moved(name, inner):
    """And nothing else changes at all; where grown weights start is in `test_growth.py`."""
    model, optimizer = make(name, inner)
    train(model, optimizer, range(3))
    kernels = rigl_tf.masks.sparse_kernels(model).values()
    before = {k.shape: (rigl_tf.masks.mask_of(k).numpy(), k.numpy()) for k in kernels}
    slots = [v for v in optimizer.inner_optimizer.variables if v.shape in before]
    old_slots = [v.numpy() for v in slots]
    others = [w for w in model.trainable_weights if w.shape not in before]
    old_others = [w.numpy() for w in others]
    train(model, optimizer, [3])
    for kernel in kernels:
        old, values = before[kernel.shape]
        new = rigl_tf.masks.mask_of(kernel).numpy()
        np.testing.assert_array_equal(kernel.numpy()[old & new], values[old & new])
        if "explored" not in name:
            assert not kernel.numpy()[new & ~old].any()
        before[kernel.shape] = old != new
        assert (old != new).any()
    assert len(slots) == len(before) * {"momentum": 1, "ema": 3}.get(inner, 2)
    for slot, old in zip(slots, old_slots, strict=True):
        np.testing.assert_array_equal(slot, np.where(before[slot.shape], 0, old), slot.path)
    for weight, old in zip(others, old_others, strict=True):
        np.testing.assert_array_equal(weight, old)


# Config and files.


@every_algorithm
def test_config_round_trip_compares_behaviour(name):
    model, optimizer = make(name, begin=1, end=9, frequency=2)
    config = optimizer.get_config()
    serialized = keras.saving.serialize_keras_object(optimizer)
    want = train(model, optimizer, range(8)), state_of(model, optimizer)
    for copy in (
        type(optimizer).from_config(config),
        keras.saving.deserialize_keras_object(serialized),
    ):
        model = make_model(name)
        history = train(model, copy, range(8))
        assert not any(differ(*pair) for pair in zip(history, want[0], strict=True))
        assert_same(state_of(model, copy), want[1])
        assert copy.get_config() == config


@every_algorithm
def test_save_load_continue_is_uninterrupted(name, tmp_path):
    """With momentum and without averages: `test_saving.py`."""
    whole, optimizer = make(name, "ema", frequency=2)
    history = train(whole, optimizer, range(9))

    stopped, stopped_optimizer = make(name, "ema", frequency=2)
    stopped.compile(stopped_optimizer, "mse")
    train(stopped, stopped_optimizer, range(5))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        stopped.save(tmp_path / "model.keras")
        loaded = keras.models.load_model(tmp_path / "model.keras")
    assert_same(state_of(loaded, loaded.optimizer), state_of(stopped, stopped_optimizer))
    continued = train(loaded, loaded.optimizer, range(5, 9))
    assert not differ(continued[-1], history[-1])
    assert_same(state_of(loaded, loaded.optimizer), state_of(whole, optimizer))
    assert bool(moves_in(continued)) == (name != "StaticSparse")


@every_algorithm
def test_a_checkpoint_of_tensorflow(name, tmp_path):
    model, optimizer = make(name, frequency=2)
    train(model, optimizer, range(5))
    checkpoint = tf.train.Checkpoint(model=model, optimizer=optimizer)
    path = checkpoint.write(str(tmp_path / "checkpoint"))
    want = state_of(model, optimizer)
    train(model, optimizer, range(5, 8))
    checkpoint.read(path).assert_consumed()
    assert_same(state_of(model, optimizer), want)


# Replicas.


@pytest.fixture(scope="module")
def mirrored():
    return strategies.mirrored("CPU")


def on_replicas(strategy, optimizer):
    """`apply` on each replica, with gradients that differ and have the given sum."""

    def apply(gradients, variables):
        noise = [np.roll(gradient, 1) for gradient in gradients]
        parts = [
            [g - n for g, n in zip(gradients, noise, strict=True)],
            [tf.constant(n) for n in noise],
        ]
        per_replica = strategy.experimental_distribute_values_from_function(
            lambda context: parts[context.replica_id_in_sync_group]
        )
        strategy.run(lambda part: optimizer.apply(part, variables), args=(per_replica,))

    return apply


@every_algorithm
def test_two_replicas_are_one(name, mirrored):
    """Bit for bit, as the sums of these gradients are exact."""
    model, optimizer = make(name, "momentum")
    want = train(model, optimizer, range(10))
    with mirrored.scope():
        replicated, optimizer = make(name, "momentum")
        optimizer.build(replicated.trainable_weights)
        history = train(replicated, optimizer, range(10), apply=on_replicas(mirrored, optimizer))
        for variable in [*replicated.weights, *optimizer.variables]:
            one, two = mirrored.experimental_local_results(variable.value)
            np.testing.assert_array_equal(one.numpy(), two.numpy(), err_msg=variable.path)
    assert not any(differ(*pair) for pair in zip(history, want, strict=True))
    for weight, other in zip(replicated.weights, model.weights, strict=True):
        np.testing.assert_array_equal(weight.numpy(), other.numpy(), err_msg=weight.path)


@pytest.mark.parametrize("name", ["SNFS redistributed", "DNW"])
def test_two_replicas_in_a_graph(name, mirrored):
    x, y = np.random.default_rng(1).normal(size=(2, 32, 6)).astype("float32")

    def fit(strategy):
        with strategy.scope():
            model, optimizer = make(name, "momentum", frequency=2)
            model.compile(optimizer, "mse")
            model.fit(x, y[:, :5], batch_size=8, shuffle=False, verbose=0)
            check_invariant(model)
            return masks_of(model), model.get_weights()

    want, got = fit(tf.distribute.get_strategy()), fit(mirrored)
    assert not differ(got[0], want[0])
    for weight, other in zip(got[1], want[1], strict=True):
        np.testing.assert_allclose(weight, other, rtol=1e-4, atol=1e-5)
