"""Schedules that do nothing are told, schedules that are changed count, arguments are explained."""

import inspect
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import (
    ALGORITHMS,
    DYNAMIC,
    WORLDS,
    active,
    all_alike,
    assert_equal,
    ends_early,
    masks_of,
    messages,
    mlp,
    numbers,
    strategy_of,
    values,
)

import rigl_tf
from rigl_tf.optimizers.drop_and_grow import num_to_drop

layers, optimizers = keras.layers, keras.optimizers

CLASSES = [ALGORITHMS[name].cls for name in DYNAMIC]
ALL = [*CLASSES, rigl_tf.StaticSparse, rigl_tf.GradualPruning, rigl_tf.DNW]


def sparse_model(sparsity=0.5):
    return rigl_tf.sparsify(mlp(8, 16, 8), sparsity, all_alike)


X = numbers((64, 8))


class Watch(keras.callbacks.Callback):
    """The steps at which masks changed, and how many connections went then."""

    def __init__(self):
        super().__init__()
        self.step = 0
        self.lost = {}

    def now(self):
        return np.concatenate([mask.ravel() for mask in rigl_tf.get_masks(self.model).values()])

    def on_train_batch_begin(self, batch, logs=None):
        self.before = self.now()

    def on_train_batch_end(self, batch, logs=None):
        now = self.now()
        if (self.before != now).any():
            self.lost[self.step] = int((self.before & ~now).sum())
        self.step += 1


def compiled(optimizer, sparsity=0.5, **world):
    model = sparse_model(sparsity)
    model.compile(optimizer, "mse", **(world or {"run_eagerly": True}))
    return model


def fit(model, steps, watch=None):
    """Trains so many steps, at most 16."""
    callbacks = [] if watch is None else [watch]
    x = X[: 4 * steps]
    model.fit(x, x, batch_size=4, shuffle=False, verbose=0, callbacks=callbacks)


def told(model, steps):
    """What `fit` warns of."""
    return messages(fit, model, steps)


# Nothing would happen.


@pytest.mark.parametrize("algorithm", CLASSES)
def test_no_update_before_the_end(algorithm):
    message = "first would be at step 100. Received: begin_step=0, end_step=75, update_frequency"
    with pytest.raises(ValueError, match=message):
        algorithm("adam", end_step=75)


def test_no_update_as_it_was_changed_before_training():
    optimizer = rigl_tf.RigL("adam", end_step=500)
    optimizer.end_step = 75
    with pytest.raises(ValueError, match="end_step=75, update_frequency=100"):
        optimizer.build(sparse_model().trainable_variables)


def test_a_schedule_of_ones_own_is_not_judged():
    class OwnTimes(rigl_tf.RigL):
        def is_update_step(self, step):
            return step == 3

    assert told(compiled(OwnTimes("sgd", end_step=75)), 8) == []


@pytest.mark.parametrize("algorithm", CLASSES)
def test_an_update_in_every_step(algorithm):
    with pytest.warns(UserWarning, match=f"{algorithm.__name__} trains no weight from step 1 to"):
        algorithm("adam", end_step=75, update_frequency=1)


@pytest.mark.parametrize(
    "make",
    [
        lambda: rigl_tf.GradualPruning("adam", 75, 0.9, update_frequency=1),  # trains in updates
        lambda: rigl_tf.RigL("adam", 6, begin_step=5, update_frequency=1),  # a single one
        lambda: rigl_tf.RigL("adam", 75, update_frequency=2),
        lambda: rigl_tf.StaticSparse("adam"),
        lambda: rigl_tf.DNW("adam", 0.5),
    ],
)
def test_updates_that_leave_steps_to_train(make):
    assert messages(make) == []


# Nothing happened.


@pytest.mark.parametrize("algorithm", CLASSES)
def test_training_that_ends_before_the_first_update(algorithm):
    model = compiled(algorithm("sgd", end_step=30, update_frequency=8))
    (message,) = told(model, 8)
    assert message == (
        f"{algorithm.__name__} has not updated a mask: training ended after 8 steps, and the "
        "first update is at 8."
    )


def test_training_that_ends_before_end_step():
    """9 tenths of the way are near enough."""
    model = compiled(rigl_tf.RigL("sgd", end_step=20, update_frequency=2))
    (message,) = told(model, 16)
    assert re.fullmatch(r"RigL has not reached `end_step`.* after 16 steps.*end_step=20", message)
    model = compiled(rigl_tf.RigL("sgd", end_step=17, update_frequency=2))
    assert told(model, 16) == []


def test_fit_in_a_loop_is_told_once():
    model = compiled(rigl_tf.RigL("sgd", end_step=100, update_frequency=6))
    assert [len(told(model, 4)) for _ in range(5)] == [1, 0, 0, 0, 0]
    model.optimizer.end_step = 60  # another schedule, another story
    assert [len(told(model, 4)) for _ in range(2)] == [1, 0]


def test_each_optimizer_of_several_is_told():
    model = sparse_model()
    first, second = (layer.layer.kernel.path for layer in model.layers)
    late, early = (rigl_tf.RigL("sgd", 20, update_frequency=f) for f in (8, 2))
    several = optimizers.MultiOptimizer(
        optimizers.OptimizerMap(optimizers.SGD(), {first: early, second: late})
    )
    model.compile(several, "mse", run_eagerly=True)
    messages = told(model, 4)
    assert sorted(message.split(":")[0] for message in messages) == [
        "RigL has not reached `end_step`, until which connections change",
        "RigL has not updated a mask",
    ]


@pytest.mark.parametrize("make", [rigl_tf.StaticSparse, lambda inner: rigl_tf.DNW(inner, 0.5)])
def test_no_schedule_no_warning(make):
    assert told(compiled(make("sgd")), 4) == []


# Changed between two calls of `fit`.


@ends_early
@pytest.mark.parametrize(("algorithm", "worlds"), [("RigL", WORLDS), ("SNFS", ["eager", "XLA"])])
def test_a_schedule_that_is_changed(algorithm, worlds):
    """In every world alike, and with the same weights."""
    ends = {}
    for world in worlds:
        keras.utils.set_random_seed(0)
        with strategy_of(world).scope():
            optimizer = ALGORITHMS[algorithm]("sgd", 5, 2, drop_fraction=0.5)
            model = compiled(optimizer, **WORLDS[world])
            watch = Watch()
            fit(model, 8, watch)
            assert list(watch.lost) == [2, 4]
            optimizer.end_step = 12
            fit(model, 8, watch)
            assert list(watch.lost) == [2, 4, 8, 10]
            # All connections go at step 18, as no cosine has begun to fall: some come back at once.
            optimizer.end_step, optimizer.begin_step = 10**6, 18
            optimizer.update_frequency, optimizer.drop_fraction = 4, 1.0
            fit(model, 8, watch)
            assert list(watch.lost) == [2, 4, 8, 10, 18, 22]
            assert watch.lost[18] > 3 * watch.lost[10]
        assert optimizer.get_config()["end_step"] == 10**6
        ends[world] = masks_of(model), values(model.trainable_weights)
    for masks, weights in ends.values():
        assert_equal(masks, ends["eager"][0])
        for one, other in zip(weights, ends["eager"][1], strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


@ends_early
@pytest.mark.parametrize("world", ["eager", "XLA"])
def test_pruning_that_is_given_more_time(world):
    """Of 128 connections each 64, 96 stay at half of the way: 1 - (1 - 1 / 2) ** 1 of 0.5."""
    optimizer = rigl_tf.GradualPruning("sgd", 9, 0.5, 0, 4, power=1, distribution=all_alike)
    model = compiled(optimizer, 0.0, **WORLDS[world])
    fit(model, 6)  # the update at 4 was half of the way to 8
    assert active(model) == [96, 96]
    optimizer.end_step = 17  # 8 is half of the way to 16
    fit(model, 6)
    assert active(model) == [96, 96]
    fit(model, 6)
    assert active(model) == [64, 64]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("end_step", 4, "end_step=4, update_frequency=5"),
        ("end_step", 2.5, "end_step=2.5"),
        ("update_frequency", 0, "update_frequency=0"),
        ("begin_step", 50, "begin_step=50, end_step=20"),
        ("drop_fraction", 1.5, "drop_fraction=1.5"),
        ("drop_fraction", lambda step: 0.5, "make a new optimizer"),
    ],
)
def test_a_change_that_cannot_be(name, value, message):
    optimizer = rigl_tf.RigL("sgd", 20, update_frequency=5)
    optimizer.build(sparse_model().trainable_variables)
    before = getattr(optimizer, name)
    with pytest.raises(ValueError, match=message):
        setattr(optimizer, name, value)
    assert getattr(optimizer, name) == before


def test_a_list_of_sparsities_has_an_entry_for_each_update():
    optimizer = rigl_tf.GradualPruning("sgd", 11, [0.2, 0.4], 0, 5)
    optimizer.build(sparse_model(0.0).trainable_variables)
    with pytest.raises(ValueError, match="an entry for each of the 3 updates"):
        optimizer.end_step = 16
    optimizer.end_step = 15
    assert optimizer.end_step == 15


# How many.


def test_many_connections_are_rounded_down():
    """In float32, 2**24 + 1 is 2**24, and 33,554,435 times a half is 16,777,218."""
    for num, share, want in [
        (2**24 - 1, 0.5, 2**23 - 1),
        (2**24 + 1, 1.0, 2**24 + 1),
        (33_554_435, 0.5, 16_777_217),
        (2**31 - 1, 1.0, 2**31 - 1),
        (2**31 - 1, 0.25, 2**29 - 1),
    ]:
        for fraction in (share, tf.constant(share)):
            assert int(num_to_drop(tf.constant(num), fraction)) == want


def test_never_more_than_the_share():
    rng = np.random.default_rng(0)
    nums = rng.integers(2**24, 2**31 - 1, 1000)
    shares = rng.random(1000).astype("float32")
    compiled_too = tf.function(num_to_drop, jit_compile=True)
    for function in (num_to_drop, compiled_too):
        got = function(tf.constant(nums, tf.int32), tf.constant(shares)).numpy()
        exact = nums * shares.astype("float64")
        assert (got <= exact).all()
        assert (got > exact - 2).all()


# Arguments.


@pytest.mark.parametrize("algorithm", ALL)
def test_an_argument_that_there_is_not(algorithm):
    names = [*inspect.signature(algorithm).parameters]
    message = f"{algorithm.__name__}: got an unexpected keyword argument 'drop_frac'; its "
    with pytest.raises(TypeError, match=message + f"arguments are {', '.join(names)}") as error:
        algorithm("adam", **{name: 500 for name in names[1:3] if name != "name"}, drop_frac=0.3)
    assert "SparseOptimizer" not in str(error.value)


def test_an_argument_that_is_missing_or_one_of_a_users_class():
    class Mine(rigl_tf.RigL):
        def __init__(self, *args, extra=1, **kwargs):
            super().__init__(*args, **kwargs)
            self.extra = extra

    with pytest.raises(TypeError, match="Mine: missing a required argument: 'end_step'; its"):
        Mine("adam", extra=2)
    with pytest.raises(TypeError, match=r"Mine: got .* 'drop_frac'; its .* drop_fraction, seed"):
        Mine("adam", 500, extra=2, drop_frac=0.3)
    assert Mine("adam", 500, extra=2).extra == 2


def explained(algorithm):
    """What the docstring says of each argument, in its order."""
    text = re.split(r"\n    (?:Attributes|Raises):", algorithm.__doc__.split("Args:")[1])[0]
    entries = re.findall(r"\n        (\w+): ((?:.|\n(?!        \w+: ))*)", text)
    return {name: words.strip() for name, words in entries}


@pytest.mark.parametrize("algorithm", [*ALL, rigl_tf.SparseOptimizer])
def test_every_argument_is_explained_with_its_default(algorithm):
    parameters = inspect.signature(algorithm).parameters
    entries = explained(algorithm)
    assert list(entries) == list(parameters)
    for name, parameter in parameters.items():
        if name == "name" or parameter.default is parameter.empty:
            continue
        default = parameter.default
        default = f'"{default}"' if isinstance(default, str) else str(default)
        assert re.search(rf"Defaults to\s+`?{default}\b", entries[name]) or (
            f'`"{parameter.default}"`' in entries[name]
        )
    if "end_step" in parameters:
        assert "int(0.75 * epochs * steps_per_epoch)" in entries["end_step"]


def test_equal_arguments_have_equal_words():
    want = explained(rigl_tf.SparseOptimizer)
    for algorithm in CLASSES:
        for name, words in explained(algorithm).items():
            own = name == "redistribute" or (algorithm, name) in [
                (rigl_tf.SNFS, "gradient_momentum"),
                (rigl_tf.RigL, "end_step"),
            ]
            assert own or words == want[name], (algorithm, name)
