"""One list of all algorithms, and what each of them must satisfy.

`test_dynamic.py` has what is particular to drop-and-grow, and `test_dnw.py`, `test_gradual.py`,
`test_growth.py` and `test_redistribution.py` what is particular to each of theirs.
"""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import (
    ALGORITHMS,
    INNER,
    ON_ONE_DEVICE,
    WORLDS,
    all_alike,
    assert_same_model,
    assert_same_state,
    check_invariant,
    differ,
    ends_early,
    every_algorithm,
    executions_of,
    masks_of,
    mirrored,
    mlp,
    sequential,
    state_of,
    updates_only,
)

import rigl_tf
from rigl_tf.structures import NM, Block, Channels, ConstantFanIn

pytestmark = [
    ends_early,
    updates_only,
    pytest.mark.optimized_graphs,
    # The last layer has the structure, too.
    pytest.mark.filterwarnings("ignore:Outputs of the model have lost all:UserWarning"),
]


GROWING = [name for name, algorithm in ALGORITHMS.items() if algorithm.grows]
AT_UPDATES = [name for name, algorithm in ALGORITHMS.items() if algorithm.moves != "step"]


def make_model(name):
    keras.utils.set_random_seed(0)
    return rigl_tf.sparsify(mlp(6, 8, 5), ALGORITHMS[name].sparsity, all_alike)


def make(name, inner="adam", begin=0, end=11, frequency=3):
    optimizer = ALGORITHMS[name](
        INNER[inner](), end, frequency, begin_step=begin, drop_fraction=0.7
    )
    return make_model(name), optimizer


def counts_of(masks):
    return np.array([mask.sum() for mask in masks])


def gradients_at(model, step):
    """Random multiples of 1/64: sums of a few of them are exact. The first kernel's are larger."""
    rng = np.random.default_rng(step)
    shapes = [weight.shape for weight in model.trainable_weights]
    factors = [8, *[1] * (len(shapes) - 1)]
    return [
        (factor * rng.integers(-128, 128, shape) / 64).astype("float32")
        for factor, shape in zip(factors, shapes, strict=True)
    ]


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


# Of every optimizer of Keras the slots are known alike: `test_inner_optimizers.py` has all inside
# RigL. Two kinds are enough here: a slot by the weights, and averages that are written back.
@every_algorithm
@pytest.mark.parametrize("inner", ["adamw", "ema"])
def test_counts_and_invariant(name, inner):
    model, optimizer = make(name, inner)
    before = [np.asarray(weight) for weight in model.trainable_weights]
    history = train(model, optimizer, range(7))
    check_counts(name, history)
    optimizer.finalize_variable_values(model.trainable_weights)
    check_invariant(model)
    moves = {"updates": {3, 6}, "never": set(), "step": set(range(7))}[ALGORITHMS[name].moves]
    assert set(moves_in(history)) <= moves
    assert bool(moves_in(history)) == bool(moves)
    after = [np.asarray(weight) for weight in model.trainable_weights]
    assert differ(before, after)
    assert np.isfinite(np.concatenate([weight.ravel() for weight in after])).all()


# Eager mode, a graph, XLA.


# Compiling takes seconds: the others, which `test_dynamic.py`, `test_changeable.py` and
# `test_gradual.py` compile too, run with `pytest -m slow`.
COMPILED = ("SNFS redistributed", "DNW")


@pytest.mark.built_in_fit
@pytest.mark.parametrize(
    "name",
    [n if n in COMPILED else pytest.param(n, marks=pytest.mark.slow) for n in ALGORITHMS],
)
def test_the_three_worlds_agree(name):
    results = []
    x, y = np.random.default_rng(1).normal(size=(2, 8, 6)).astype("float32")
    for world in ON_ONE_DEVICE:
        model, optimizer = make(name, "momentum", frequency=1)
        model.compile(optimizer, "mse", **WORLDS[world])
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


# Masked kernels and CSR.


@pytest.mark.parametrize(
    "name", ["RigL", "RigL explored", "RigLInverted", "SET", "StaticSparse", "StaticReinit"]
)
def test_the_two_executions_agree(name):
    x, y = np.random.default_rng(1).normal(size=(2, 8, 6)).astype("float32")
    results = []
    for execution, world in (("masked", "eager"), ("csr", "eager"), ("csr", "graph")):
        if world == "graph" and name != "RigLInverted":
            continue  # `test_distribute.py` has the others
        model, optimizer = make(name, "momentum", frequency=2)
        rigl_tf.with_execution(model, execution)
        model.compile(optimizer, "mse", **WORLDS[world])
        losses, history = [], [masks_of(model)]
        for _ in range(6):
            losses.append(model.train_on_batch(x, y[:, :5]))
            check_invariant(model)
            history.append(masks_of(model))
        assert executions_of(model) == [execution] * 2
        results.append((model, history, losses))
    want, masks, losses = results[0]
    assert bool(moves_in(masks)) == (ALGORITHMS[name].moves != "never")
    for model, history, others in results[1:]:
        assert not any(differ(*pair) for pair in zip(history, masks, strict=True))
        np.testing.assert_allclose(others, losses, rtol=1e-5)
        assert_same_model(model, want)
        if name == "RigL explored":
            assert model.optimizer.exploration_rate() == want.optimizer.exploration_rate()
            assert model.optimizer.turnover() == want.optimizer.turnover()


# When.


@pytest.mark.parametrize("name", AT_UPDATES)
@pytest.mark.parametrize(
    ("begin", "end", "frequency", "want"),
    [(0, 7, 3, [3, 6]), (4, 7, 1, [4, 5, 6])],
)
def test_nothing_moves_but_at_update_steps(name, begin, end, frequency, want):
    model, optimizer = make(name, "sgd", begin=begin, end=end, frequency=frequency)
    moved = moves_in(train(model, optimizer, range(8)))
    never = ALGORITHMS[name].moves == "never"
    # Where there are several, gradual pruning begins at sparsity 0 if `begin_step` is an update.
    first = name == "GradualPruning" and begin > 0 and len(want) > 1
    # The cosine and the cubic ramp are flat near the end: 0.7 may come to no connection.
    assert set(moved) <= set([] if never else want)
    assert moved[:1] == ([] if never else want[first:][:1])


# One update.


@pytest.mark.parametrize("name", GROWING)
@pytest.mark.parametrize("inner", ["momentum", "ema"])
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
    want = train(model, optimizer, range(5)), state_of(model, optimizer)
    for copy in (
        type(optimizer).from_config(config),
        keras.saving.deserialize_keras_object(serialized),
    ):
        model = make_model(name)
        history = train(model, copy, range(5))
        assert not any(differ(*pair) for pair in zip(history, want[0], strict=True))
        assert_same_state(state_of(model, copy), want[1])
        assert copy.get_config() == config


@every_algorithm
def test_save_load_continue_is_uninterrupted(name, tmp_path):
    """With momentum and without averages: `test_saving.py`."""
    whole, optimizer = make(name, "ema", frequency=2)
    history = train(whole, optimizer, range(7))

    stopped, stopped_optimizer = make(name, "ema", frequency=2)
    stopped.compile(stopped_optimizer, "mse")
    train(stopped, stopped_optimizer, range(5))
    stopped.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert_same_state(state_of(loaded, loaded.optimizer), state_of(stopped, stopped_optimizer))
    continued = train(loaded, loaded.optimizer, range(5, 7))
    assert not differ(continued[-1], history[-1])
    assert_same_state(state_of(loaded, loaded.optimizer), state_of(whole, optimizer))
    assert bool(moves_in(continued)) == (ALGORITHMS[name].moves != "never")


@every_algorithm
def test_a_checkpoint_of_tensorflow(name, tmp_path):
    model, optimizer = make(name, frequency=2)
    train(model, optimizer, range(5))
    checkpoint = tf.train.Checkpoint(model=model, optimizer=optimizer)
    path = checkpoint.write(str(tmp_path / "checkpoint"))
    want = state_of(model, optimizer)
    train(model, optimizer, range(5, 7))
    later = state_of(model, optimizer)
    checkpoint.read(path).assert_consumed()
    assert_same_state(state_of(model, optimizer), want)
    # As in TensorFlow's tutorials: it is restored before the optimizer is built, in its first step.
    other, new = make(name, frequency=2)
    status = tf.train.Checkpoint(model=other, optimizer=new).read(path)
    train(other, new, range(5, 7))
    status.assert_consumed()
    assert_same_state(state_of(other, new), later)


# Replicas.


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
def test_two_replicas_are_one(name):
    """Bit for bit, as the sums of these gradients are exact. In a graph: `test_distribute.py`."""
    model, optimizer = make(name, "momentum")
    want = train(model, optimizer, range(7))
    strategy = mirrored()
    with strategy.scope():
        replicated, optimizer = make(name, "momentum")
        optimizer.build(replicated.trainable_weights)
        history = train(replicated, optimizer, range(7), apply=on_replicas(strategy, optimizer))
        for variable in [*replicated.weights, *optimizer.variables]:
            one, two = strategy.experimental_local_results(variable.value)
            np.testing.assert_array_equal(one.numpy(), two.numpy(), err_msg=variable.path)
    assert not any(differ(*pair) for pair in zip(history, want, strict=True))
    for weight, other in zip(replicated.weights, model.weights, strict=True):
        np.testing.assert_array_equal(weight.numpy(), other.numpy(), err_msg=weight.path)


# Structures.


STRUCTURED = [name for name in ALGORITHMS if name != "SNFS redistributed"]  # which is refused
STRUCTURES = {
    "block": Block((2, 2)),
    "N of M": NM(2, 4),
    "fan-in": ConstantFanIn(0),
    "fan-in, ablated": ConstantFanIn(0.8),
    "channels": Channels(),
}


def with_structure(structure, name):
    keras.utils.set_random_seed(0)
    sparsity = ALGORITHMS[name].sparsity
    return rigl_tf.sparsify(mlp(8, 16, 8), sparsity, all_alike, structure=structure)


def with_all_structures():
    keras.utils.set_random_seed(0)
    structures = [Block((4, 1)), NM(1, 4), ConstantFanIn(0.8), Channels("inputs")]
    return sequential(
        (8,),
        *(
            rigl_tf.SparseWrapper(
                keras.layers.Dense(8, "tanh"), structure.sparsity or 0.5, 1, structure=structure
            )
            for structure in structures
        ),
    )


def check_structures(model):
    for path, kernel in rigl_tf.masks.kernels_of(model).items():
        kernel.units.check(kernel.mask, path)


@pytest.mark.parametrize("name", STRUCTURED)
@pytest.mark.parametrize("kind", STRUCTURES)
def test_structures_hold_after_every_step(name, kind):
    structure = STRUCTURES[kind]
    if kind == "N of M" and name == "GradualPruning":
        structure = NM(1, 4)  # the sparsity that it goes to
    model = with_structure(structure, name)
    optimizer = ALGORITHMS[name](INNER["momentum"](), 11, 2, drop_fraction=0.7)
    history = [masks_of(model)]
    for step in range(7):
        gradients = [tf.constant(g) for g in gradients_at(model, step)]
        optimizer.apply(gradients, model.trainable_weights)
        check_invariant(model)
        check_structures(model)
        history.append(masks_of(model))
    assert bool(moves_in(history)) == (ALGORITHMS[name].moves != "never")
    if kind == "fan-in, ablated" and ALGORITHMS[name].grows:
        # As many as there may be, but for what does not divide by the outputs in use.
        for mask, first in zip(history[-1], history[0], strict=True):
            assert 0 <= first.sum() - mask.sum() < mask.any(axis=0).sum()
        assert any(not mask.any(axis=0).all() for mask in history[-1])
    else:
        check_counts(name, history[1:] if ALGORITHMS[name].moves == "step" else history)


def test_structures_in_the_three_worlds():
    x, y = np.random.default_rng(1).normal(size=(2, 8, 8)).astype("float32")
    results = []
    for world in ON_ONE_DEVICE:
        model = with_all_structures()
        model.compile(
            ALGORITHMS["RigL"](INNER["momentum"](), 11, 1, drop_fraction=0.7),
            "mse",
            **WORLDS[world],
        )
        history = [masks_of(model)]
        for _ in range(3):
            model.train_on_batch(x, y)
            check_structures(model)
            history.append(masks_of(model))
        results.append(history)
    for history in results[1:]:
        assert not any(differ(*pair) for pair in zip(history, results[0], strict=True))
    moved = [not np.array_equal(*pair) for pair in zip(history[0], history[-1], strict=True)]
    assert all(moved[:3])  # of few channels, the same ones may be best


@pytest.mark.parametrize("name", ["RigL", "SET"])
def test_structures_on_two_replicas_are_those_of_one(name):
    model = with_all_structures()
    optimizer = ALGORITHMS[name](INNER["momentum"](), 11, 2, drop_fraction=0.7)
    want = train(model, optimizer, range(5))
    strategy = mirrored()
    with strategy.scope():
        replicated = with_all_structures()
        optimizer = ALGORITHMS[name](INNER["momentum"](), 11, 2, drop_fraction=0.7)
        optimizer.build(replicated.trainable_weights)
        history = train(replicated, optimizer, range(5), apply=on_replicas(strategy, optimizer))
    assert moves_in(history) == [2, 4]
    assert not any(differ(*pair) for pair in zip(history, want, strict=True))


def test_structures_saved_loaded_and_trained_on(tmp_path):
    def start():
        model = with_all_structures()
        model.compile(ALGORITHMS["RigL"](INNER["adam"](), 11, 2, drop_fraction=0.7), "mse")
        return model

    whole, stopped = start(), start()
    history = train(whole, whole.optimizer, range(7))
    train(stopped, stopped.optimizer, range(5))
    stopped.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    continued = train(loaded, loaded.optimizer, range(5, 7))
    assert moves_in(continued)
    assert not differ(continued[-1], history[-1])
    assert_same_state(state_of(loaded, loaded.optimizer), state_of(whole, whole.optimizer))
