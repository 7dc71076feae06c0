"""Tests of gradual pruning."""

import functools
import itertools
import json
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import (
    ON_ONE_DEVICE,
    ROOT,
    WORLDS,
    all_alike,
    check_invariant,
    ends_early,
    masks_of,
    mirrored,
    mlp,
    numbers,
    python,
)

import rigl_tf

layers = keras.layers


BY_HAND = {
    "end_step": 11,
    "sparsity": 0.75,
    "begin_step": 2,
    "update_frequency": 2,
    "distribution": all_alike,
}
# Updates at 2, 4, 6, 8, 10, that is p = 0, 1/4, 1/2, 3/4, 1: of 64 and 24 connections
# s = 0.75 * (1 - (1 - p) ** 3) = 0, 0.43359, 0.65625, 0.73828, 0.75.
ACTIVE = {2: [64, 24], 4: [37, 14], 6: [22, 9], 8: [17, 7], 10: [16, 6]}


def model_to_prune():
    keras.utils.set_random_seed(0)
    return rigl_tf.sparsify(mlp(8, 8, 3), 0.0)


class Watch(keras.callbacks.Callback):
    """Collects the masks after every step, and asserts the invariant."""

    def on_train_begin(self, logs=None):
        self.masks = []

    def on_train_batch_end(self, batch, logs=None):
        self.masks.append(masks_of(self.model))
        check_invariant(self.model)


def fit(model, optimizer, **kwargs):
    model.compile(optimizer, "mse", **kwargs)
    watch = Watch()
    x, y = numbers((56, 8)), numbers((56, 3))
    model.fit(x, y, batch_size=4, shuffle=False, verbose=0, callbacks=[watch])
    return watch.masks


@pytest.mark.parametrize(
    ("inner", "world"), [("sgd", "eager"), *[("adam", world) for world in ON_ONE_DEVICE]]
)
def test_counts_by_hand(inner, world):
    model = model_to_prune()
    optimizer = rigl_tf.GradualPruning(inner, **BY_HAND)
    history = fit(model, optimizer, **WORLDS[world])
    counts = [[int(mask.sum()) for mask in masks] for masks in history]
    want = [64, 24]
    for step, got in enumerate(counts):
        want = ACTIVE.get(step, want)
        assert got == want, step
    # What is pruned does not come back.
    for masks, later in itertools.pairwise(history):
        assert all((new <= old).all() for old, new in zip(masks, later, strict=True))
    # Every step trains.
    assert int(optimizer.iterations) == int(optimizer.step) == 14


def test_an_initial_sparsity():
    optimizer = rigl_tf.GradualPruning("sgd", **BY_HAND, initial_sparsity=0.25)
    history = fit(model_to_prune(), optimizer, run_eagerly=True)
    counts = [[int(mask.sum()) for mask in masks] for masks in history]
    # s = 0.75 - 0.5 * (1 - p) ** 3 = 0.25, 0.53906, 0.6875, 0.74219, 0.75 of 64 and 24.
    assert counts[1] == [64, 24]
    assert [counts[step] for step in (2, 4, 6, 8, 10)] == [
        [48, 18],
        [30, 12],
        [20, 8],
        [17, 7],
        [16, 6],
    ]
    copy = rigl_tf.GradualPruning.from_config(optimizer.get_config())
    assert copy.initial_sparsity == 0.25


def test_the_smallest_weights_go():
    model = model_to_prune()
    kernel = model.layers[0].layer.kernel
    values = np.arange(1, 65, dtype="float32").reshape(8, 8) * np.where(numbers((8, 8)) > 0, 1, -1)
    kernel.assign(values)
    optimizer = rigl_tf.GradualPruning(
        keras.optimizers.SGD(0.0), 2, sparsity=0.75, update_frequency=1, distribution=all_alike
    )
    gradients = [tf.zeros(weight.shape) for weight in model.trainable_weights]
    for _ in range(2):
        optimizer.apply(gradients, model.trainable_weights)
    # One update, at step 1: it prunes all at once.
    np.testing.assert_array_equal(masks_of(model)[0], np.abs(values) > 48)


def test_an_update_looks_at_the_weights_after_the_gradient_step():
    model = model_to_prune()
    kernel = model.layers[0].layer.kernel
    kernel.assign(np.arange(1, 65).reshape(8, 8))
    optimizer = rigl_tf.GradualPruning(
        keras.optimizers.SGD(1.0), 2, sparsity=0.75, update_frequency=1, distribution=all_alike
    )
    gradients = [tf.zeros(weight.shape) for weight in model.trainable_weights]
    optimizer.apply(gradients, model.trainable_weights)
    # The first row becomes the largest in this step.
    gradients[0] = tf.constant(-1000.0 * np.eye(8)[0][:, np.newaxis] * np.ones((1, 8)), tf.float32)
    optimizer.apply(gradients, model.trainable_weights)
    want = np.arange(1, 65).reshape(8, 8) > 56
    want[0] = True
    np.testing.assert_array_equal(masks_of(model)[0], want)


def polynomial(step):
    """As a pruning schedule of TFMOT: whether to prune, and to which sparsity."""
    progress = tf.clip_by_value((tf.cast(step, tf.float64) - 2) / 8, 0, 1)
    return step % 2 == 0, 0.75 * (1 - (1 - progress) ** 3)


def test_a_schedule_and_a_list():
    made = rigl_tf.GradualPruning("sgd", **{**BY_HAND, "sparsity": polynomial})
    given = rigl_tf.GradualPruning("sgd", **{**BY_HAND, "sparsity": made.sparsity})
    np.testing.assert_allclose(made.sparsity, [0, 0.43359375, 0.65625, 0.73828125, 0.75])
    for optimizer in (made, given, type(made).from_config(made.get_config())):
        history = fit(model_to_prune(), optimizer, run_eagerly=True)
        assert {step: [int(mask.sum()) for mask in history[step]] for step in ACTIVE} == ACTIVE


def test_a_schedule_of_tfmot():
    # In a process of its own: TFMOT makes `tf.keras` that of Keras 2.
    program = (
        "import rigl_tf, tensorflow_model_optimization as tfmot\n"
        "schedule = tfmot.sparsity.keras.PolynomialDecay(0.0, 0.75, 2, 10, frequency=2)\n"
        "optimizer = rigl_tf.GradualPruning('sgd', 11, schedule, 2, 2)\n"
        "print([round(value, 5) for value in optimizer.sparsity])\n"
    )
    process = python("-c", program, PYTHONPATH=str(ROOT))
    assert process.returncode == 0, process.stderr
    assert process.stdout.splitlines()[-1] == "[0.0, 0.43359, 0.65625, 0.73828, 0.75]"


def test_distribution():
    model = model_to_prune()
    optimizer = rigl_tf.GradualPruning(
        "sgd", end_step=13, sparsity=0.5, update_frequency=2, distribution="erk"
    )
    masks = fit(model, optimizer)[-1]
    shapes = {path: mask.shape for path, mask in rigl_tf.get_masks(model).items()}
    shares = rigl_tf.distributions.erk(shapes, 0.5).values()
    assert [(~mask).sum() for mask in masks] == [
        int(share * mask.size) for share, mask in zip(shares, masks, strict=True)
    ]


def test_two_replicas_are_one():
    def run(strategy):
        with strategy.scope():
            model = model_to_prune()
            return fit(model, rigl_tf.GradualPruning("sgd", **BY_HAND)), model.get_weights()

    one = run(tf.distribute.get_strategy())
    two = run(mirrored())
    for masks, same in zip(one[0], two[0], strict=True):
        for mask, other in zip(masks, same, strict=True):
            np.testing.assert_array_equal(mask, other)
    for weight, other in zip(one[1], two[1], strict=True):
        np.testing.assert_allclose(weight, other, rtol=1e-4, atol=1e-5)


@ends_early
def test_saved_loaded_and_continued(tmp_path):
    whole = model_to_prune()
    history = fit(whole, rigl_tf.GradualPruning("adam", **BY_HAND), run_eagerly=True)
    part = model_to_prune()
    part.compile(rigl_tf.GradualPruning("adam", **BY_HAND), "mse", run_eagerly=True)
    x, y = numbers((56, 8)), numbers((56, 3))
    part.fit(x[:20], y[:20], batch_size=4, shuffle=False, verbose=0)
    part.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    loaded.run_eagerly = True
    loaded.fit(x[20:], y[20:], batch_size=4, shuffle=False, verbose=0)
    for mask, want in zip(masks_of(loaded), history[-1], strict=True):
        np.testing.assert_array_equal(mask, want)
    for weight, want in zip(loaded.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, want)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sparsity": 1.0}, "sparsity=1.0"),
        ({"sparsity": -0.1}, "sparsity=-0.1"),
        ({"sparsity": [0.5, 0.6]}, r"sparsity=\[0.5, 0.6\]"),
        ({"sparsity": [0.1, 0.2, 0.3, 0.4, 1.0]}, "sparsity=1.0"),
        ({"sparsity": lambda step: 1.5}, "sparsity=1.5"),
        ({"sparsity": [0.5, 0.5, 0.2, 0.1, 0.6]}, r"sparsity=\[0.5, 0.5, 0.2, 0.1, 0.6\]"),
        ({"sparsity": lambda step: "a"}, r"sparsity\(2\)='a'"),
        ({"sparsity": lambda step: None}, r"sparsity\(2\)=None"),
        ({"power": 0}, "power=0"),
        ({"initial_sparsity": -0.1}, "initial_sparsity=-0.1"),
        ({"initial_sparsity": 0.8}, "initial_sparsity=0.8, sparsity=0.75"),
        ({"distribution": "erdos"}, "identifier='erdos'"),
        ({"end_step": 2}, "begin_step=2, end_step=2"),
        ({"begin_step": 0, "end_step": 2}, "begin_step=0, end_step=2, update_frequency=2"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=f"Received: {message}"):
        rigl_tf.GradualPruning("sgd", **{**BY_HAND, **arguments})


def test_a_kernel_without_a_gradient_is_pruned_too():
    model = model_to_prune()
    variables = model.trainable_weights
    optimizer = rigl_tf.GradualPruning("sgd", **BY_HAND)
    for step in range(11):
        gradients = [tf.ones(weight.shape) for weight in variables]
        first = slice(0, 2) if step == 10 else slice(0, 4)
        optimizer.apply(gradients[first], variables[first])
    assert [int(mask.sum()) for mask in masks_of(model)] == ACTIVE[10]


def test_steps_that_are_changed_before_training():
    optimizer = rigl_tf.GradualPruning("sgd", **{**BY_HAND, "end_step": 21, "begin_step": 0})
    optimizer.begin_step, optimizer.end_step = 2, 11
    history = fit(model_to_prune(), optimizer, run_eagerly=True)
    assert {step: [int(mask.sum()) for mask in history[step]] for step in ACTIVE} == ACTIVE


def test_norms_that_a_constraint_keeps():
    model = keras.Sequential([keras.Input((8,)), layers.Dense(8, kernel_constraint="unit_norm")])
    model = rigl_tf.sparsify(model, 0.0)
    optimizer = rigl_tf.GradualPruning(
        "sgd", 2, sparsity=0.5, update_frequency=1, distribution=all_alike
    )
    gradients = [tf.ones(weight.shape) for weight in model.trainable_weights]
    for _ in range(2):
        optimizer.apply(gradients, model.trainable_weights)
    (mask,) = masks_of(model)
    norms = np.linalg.norm(model.layers[0].layer.kernel, axis=0)
    assert mask.sum() == 32
    np.testing.assert_allclose(norms[mask.any(axis=0)], 1, rtol=1e-5)


class OwnDistribution:
    def __call__(self, shapes, sparsity):
        return dict.fromkeys(shapes, sparsity)


@pytest.mark.parametrize("algorithm", ["GradualPruning", "DNW"])
def test_a_distribution_that_cannot_be_saved(algorithm):
    arguments = BY_HAND if algorithm == "GradualPruning" else {"sparsity": 0.5}
    own = functools.partial(OwnDistribution())
    optimizer = getattr(rigl_tf, algorithm)("sgd", **{**arguments, "distribution": own})
    with pytest.raises(ValueError, match=r"`distribution` must be .*register_keras_serializable"):
        optimizer.get_config()


@pytest.mark.parametrize("algorithm", ["GradualPruning", "DNW"])
@pytest.mark.parametrize(
    "distribution",
    [
        rigl_tf.distributions.erk,
        functools.partial(rigl_tf.distributions.uniform, dense_first=False),
        functools.partial(rigl_tf.distributions.erk, custom={"0": 0.25}, power=0.5),
    ],
)
def test_distributions_of_this_library_are_saved(algorithm, distribution):
    arguments = {"end_step": 200} if algorithm == "GradualPruning" else {}
    make = getattr(rigl_tf, algorithm)
    optimizer = make("sgd", sparsity=0.5, distribution=distribution, **arguments)
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(optimizer)))
    loaded = keras.saving.deserialize_keras_object(config)
    shapes = {"0": (20, 10), "1": (10, 10)}
    assert loaded.distribution(shapes, 0.5) == distribution(shapes, 0.5)
    if isinstance(distribution, functools.partial):
        again = keras.saving.deserialize_keras_object(config).distribution
        assert again == loaded.distribution == distribution
        assert again != functools.partial(distribution.func)


# The number that was asked for.


def large_first():
    """88 % of 800 connections are those of the first layer."""
    return rigl_tf.sparsify(mlp(44, 16, 6), 0.0)


def trained(optimizer, num_steps, model=None, widths=(44, 6)):
    model = model or large_first()
    model.compile(optimizer, "mse", run_eagerly=True)
    x, y = (numbers((4 * num_steps, width)) for width in widths)
    model.fit(x, y, batch_size=4, shuffle=False, verbose=0)
    return model


def sparsity_of(model):
    return 1 - np.concatenate([mask.ravel() for mask in masks_of(model)]).mean()


@pytest.mark.parametrize("sparsity", [0.5, 0.9, 0.98])
def test_the_sparsity_is_held_by_default(sparsity):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model = trained(rigl_tf.GradualPruning("sgd", 5, sparsity, update_frequency=2), 6)
    assert sparsity_of(model) == pytest.approx(sparsity, abs=3 / 800)


def make_uniform(algorithm):
    if algorithm == "DNW":
        return rigl_tf.DNW("sgd", 0.9, "uniform")
    return rigl_tf.GradualPruning("sgd", 5, 0.9, update_frequency=2, distribution="uniform")


@pytest.mark.parametrize("algorithm", ["GradualPruning", "DNW"])
def test_a_distribution_that_does_not_hold_the_sparsity(algorithm):
    """Of 96 connections 86 are left out; the 704 of the first layer stay: 86 of 800."""
    message = rf"{algorithm} reaches a sparsity of 0.107 instead of 0.9, .*/dense/kernel'\] dense"
    with pytest.warns(UserWarning, match=message):
        model = trained(make_uniform(algorithm), 6)
    assert sparsity_of(model) == pytest.approx(86 / 800)


def test_a_model_that_is_sparser_already():
    model = rigl_tf.sparsify(mlp(44, 16, 6), 0.8)
    message = r"a sparsity of 0\.(79.|80.) instead of 0\.5, because \[.*'\] are sparser already; "
    with pytest.warns(UserWarning, match=message):
        model = trained(rigl_tf.GradualPruning("sgd", 5, 0.5, update_frequency=2), 6, model)
    assert sparsity_of(model) == pytest.approx(0.8, abs=3 / 800)


def test_training_that_ends_before_the_last_update():
    """The update at 2 is halfway to that at 4: of 704 and 96 weights 281 and 38 go, 40 %."""
    optimizer = rigl_tf.GradualPruning(
        "sgd", 5, 0.8, update_frequency=2, power=1, distribution=all_alike
    )
    message = "has reached a sparsity of 0.399 of 0.8: training ended after 4 steps, .* is at 4."
    with pytest.warns(UserWarning, match=message):
        trained(optimizer, 4)


def test_pruning_needs_no_gradient():
    """The gradients of the last update are not finite, and the inner optimizer skips them."""
    model = model_to_prune()
    inner = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1))
    optimizer = rigl_tf.GradualPruning(inner, **BY_HAND)
    for step in range(11):
        variables = [w for w in model.trainable_weights if len(w.shape) == 2]
        gradients = [tf.fill(w.shape, np.inf if step == 10 else 1.0) for w in variables]
        optimizer.apply(gradients, variables)
    assert [int(mask.sum()) for mask in masks_of(model)] == ACTIVE[10]
    assert int(optimizer.num_skipped_updates) == 0


def test_scores_of_ones_own_by_the_gradient():
    """The connections whose gradients are largest stay; those that are not finite say nothing."""

    class ByGradient(rigl_tf.GradualPruning):
        def drop_scores(self, kernel, mask, gradient):
            return gradient

    model = model_to_prune()
    optimizer = ByGradient("sgd", **{**BY_HAND, "end_step": 4})  # one update, of 75 %
    variables = model.trainable_weights
    gradients = [np.arange(np.prod(w.shape), dtype="float32").reshape(w.shape) for w in variables]
    for _ in range(4):
        optimizer.apply(gradients, variables)
    np.testing.assert_array_equal(masks_of(model)[0].ravel(), np.arange(64) >= 48)


@ends_early
def test_a_million_updates():
    """After the update at step t, 0.5 * (t - 0) / 999,999 of the connections are gone."""
    optimizer = rigl_tf.GradualPruning("sgd", 10**6, 0.5, power=1, update_frequency=1)
    dense = keras.Sequential([keras.Input((44,)), layers.Dense(100, use_bias=False)])
    model = rigl_tf.sparsify(dense, 0.0)
    model.compile(optimizer, "mse", jit_compile=False)
    optimizer.build(model.trainable_variables)
    optimizer.step.assign(500_000)
    x = numbers((4, 44))
    model.fit(x, numbers((4, 100)), verbose=0)
    assert int(masks_of(model)[0].sum()) == 4400 - 1100


@keras.saving.register_keras_serializable(package="tests")
def by_name(shapes, sparsity):
    """The kernel whose path holds `first` stays dense: 192 of 256 weights are the second one's."""
    return {path: 0.0 if "first" in path else sparsity for path in shapes}


@pytest.mark.parametrize("algorithm", ["GradualPruning", "DNW"])
def test_the_allocation_is_remembered_where_paths_change(algorithm, tmp_path):
    dense = keras.Sequential(
        [keras.Input((8,)), layers.Dense(8, name="first"), layers.Dense(24, name="second")]
    )
    model = rigl_tf.sparsify(dense, 0.0)
    arguments = {"sparsity": 0.5, "distribution": by_name}
    times = {"end_step": 3, "update_frequency": 2} if algorithm == "GradualPruning" else {}
    optimizer = getattr(rigl_tf, algorithm)("sgd", **arguments, **times)
    with pytest.warns(UserWarning, match="reaches a sparsity of 0.375 instead of 0.5"):
        optimizer.build(model.trainable_variables)
    config = optimizer.get_config()
    renamed = keras.Sequential([keras.Input((8,)), layers.Dense(8), layers.Dense(24)])
    renamed = rigl_tf.sparsify(renamed, 0.0)
    loaded = type(optimizer).from_config(config)
    trained(loaded, 4, renamed, (8, 24))
    assert [int(mask.sum()) for mask in masks_of(renamed)] == [64, 96]
    # Another distribution, another sparsity or another model: it is decided anew.
    for other in ({"distribution": "erk"}, {"sparsity": 0.75}):
        changed = type(optimizer).from_config({**config, **other})
        changed.build(renamed.trainable_variables)
        assert changed._plan.by_id[id(renamed.trainable_variables[0])].sparsity > 0
