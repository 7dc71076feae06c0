"""Tests of `SparsityLogger`: its numbers are those of the masks after each step."""

import csv
import itertools
import math
import re
import sys
import time

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import (
    ALGORITHMS,
    INNER,
    WORLDS,
    all_alike,
    covers_part,
    drop_half,
    ends_early,
    every_algorithm,
    half,
    logs_of,
    mirrored,
    mlp,
    numbers,
    rigl,
    two_workers,
    updates_only,
    wait_for,
)

import rigl_tf
from rigl_tf.callbacks import SparsityLogger, watching
from rigl_tf.callbacks.board import Board
from rigl_tf.callbacks.updates import UpdateClock

layers, optimizers = keras.layers, keras.optimizers
pytestmark = [ends_early, covers_part, updates_only]

NUM_STEPS = 4  # in an epoch


class Masks(keras.callbacks.Callback):
    """Keeps `{path: mask}` before training, and after each step or execution of steps."""

    def on_train_begin(self, logs=None):
        self.history = [rigl_tf.get_masks(self.model)]

    def on_train_batch_end(self, batch, logs=None):
        self.history.append(rigl_tf.get_masks(self.model))


def fit(model, optimizer, *callbacks, epochs=3, scale=1.0, **settings):
    x, y = numbers((16, 6)), numbers((16, 3), seed=1, scale=scale)
    settings = {"run_eagerly": True, **settings}
    model.compile(optimizer, "mse", **settings)
    fitted = model.fit(
        x, y, batch_size=4, epochs=epochs, shuffle=False, verbose=0, callbacks=list(callbacks)
    )
    return fitted.history


def check(history, masks, every=1):
    """Compares the logs of all epochs with masks that were kept after every so many steps."""
    assert len(masks) == 1 + len(history["loss"]) * NUM_STEPS // every
    per_epoch = NUM_STEPS // every
    for epoch in range(len(history["loss"])):
        last = (epoch + 1) * per_epoch
        now, in_epoch = masks[last], masks[last - per_epoch : last + 1]
        moved = {
            path: sum((two[path] & ~one[path]).sum() for one, two in itertools.pairwise(in_epoch))
            for path in now
        }
        sizes = {path: mask.size for path, mask in now.items()}
        active = {path: mask.sum() for path, mask in now.items()}
        ever = {path: np.any([each[path] for each in masks[: last + 1]], axis=0) for path in now}
        dead = {
            path: (~mask.reshape(-1, mask.shape[-1]).any(0)).sum() for path, mask in now.items()
        }
        want = {
            "sparsity": 1 - sum(active.values()) / sum(sizes.values()),
            "moved": sum(moved.values()),
            "exploration_rate": sum(e.sum() for e in ever.values()) / sum(sizes.values()),
            "dead_units": sum(dead.values()) / sum(mask.shape[-1] for mask in now.values()),
            **{f"sparsity/{path}": 1 - active[path] / sizes[path] for path in now},
            **{f"moved/{path}": moved[path] for path in now},
        }
        for name, value in want.items():
            assert history[name][epoch] == pytest.approx(value), (name, epoch)


@every_algorithm
def test_the_logs_are_those_of_the_masks(name):
    algorithm, masks = ALGORITHMS[name], Masks()
    model = rigl_tf.sparsify(mlp(), algorithm.sparsity, all_alike)
    logger = SparsityLogger(every=1 if algorithm.moves == "step" else "update")
    history = fit(model, algorithm(), masks, logger)
    check(history, masks.history)
    norm = np.sqrt(sum((k.numpy() ** 2).sum() for k in rigl_tf.masks.kernels_of(model).values()))
    assert history["weight_norm"][-1] == pytest.approx(norm)
    assert ("drop_fraction" in history) == isinstance(model.optimizer, rigl_tf.SparseOptimizer)
    assert ("turnover" in history) == (name != "StaticSparse")
    if algorithm.moves == "updates" or name == "StaticReinit":
        # The last of the updates, which are at even steps below 11.
        *_, old, new = [masks.history[step] for step in (10, 11)]
        grown = sum((new[path] & ~old[path]).sum() for path in new)
        assert history["turnover"][-1] == pytest.approx(grown / sum(m.sum() for m in new.values()))
        assert all(seconds > 0 for seconds in history["seconds_per_update"])
    else:
        assert "seconds_per_update" not in history


def test_the_drop_fraction_is_that_of_the_last_update():
    history = fit(half(mlp()), rigl(end_step=9, update_frequency=4), SparsityLogger())
    at_4 = 0.25 * (1 + math.cos(math.pi * 4 / 9))
    at_8 = 0.25 * (1 + math.cos(math.pi * 8 / 9))
    assert np.isnan(history["drop_fraction"][0])
    np.testing.assert_allclose(history["drop_fraction"][1:], [at_4, at_8], rtol=1e-5)


@pytest.mark.parametrize("world", [*WORLDS, "csr", "executions", "float16", "accumulated"])
def test_in_every_world(world):
    settings = WORLDS.get(world, {"jit_compile": False})
    strategy = mirrored() if world == "two replicas" else tf.distribute.get_strategy()
    every = 2 if world == "executions" else 1
    masks = Masks()
    with strategy.scope():
        model = half(mlp(), execution="csr" if world == "csr" else "masked")
        inner = INNER["sgd"]()
        if world == "accumulated":
            inner = optimizers.SGD(0.1, gradient_accumulation_steps=2)
        optimizer = rigl(inner, update_frequency=3, drop_fraction=drop_half)
        if world == "float16":
            optimizer = optimizers.LossScaleOptimizer(optimizer)
        # The order of callbacks does not matter to what each of them sees in the masks.
        settings = {"run_eagerly": False, **settings, "steps_per_execution": every}
        history = fit(model, optimizer, SparsityLogger(), masks, **settings)
    check(history, masks.history, every)
    assert sum(history["moved"]) > 0


@pytest.mark.parametrize(("most_marks", "most_readings"), [(0, 0), (48, 65535), (48, 3)])
def test_marks_and_lists_count_the_same(most_marks, most_readings, monkeypatch):
    monkeypatch.setattr(watching, "_MOST_MARKS", most_marks)
    monkeypatch.setattr(watching, "_MOST_READINGS", most_readings)
    model = half(mlp(6, 8, 3), execution="csr")
    (path, *_), rng = rigl_tf.get_masks(model), np.random.default_rng(0)
    (watched, *_) = watching.watch(model).values()
    ever = before = rigl_tf.get_masks(model)[path]
    for _ in range(4):
        mask = rng.permutation(before.ravel()).reshape(before.shape)
        rigl_tf.set_masks(model, {path: mask})
        ever = ever | mask
        seen = watched.look()
        assert (seen.num_grown, seen.num_ever) == ((mask > before).sum(), ever.sum())
        assert watched.look() == seen._replace(num_grown=0)
        before = mask


def test_steps_that_overflow_are_no_steps():
    """The first steps of a large loss scale are left out, and updates come later."""
    masks = Masks()
    optimizer = optimizers.LossScaleOptimizer(
        rigl("sgd", update_frequency=3, drop_fraction=drop_half), initial_scale=2.0**127
    )
    logger = SparsityLogger()
    model = half(mlp())
    history = fit(model, optimizer, masks, logger, epochs=5, scale=30.0)
    num_steps = int(optimizer.inner_optimizer.step)
    assert 3 < num_steps < 17
    check(history, masks.history)
    assert [each["step"] for each in logger.history if each.get("moved")] == [
        step + 1 for step in range(3, num_steps, 3)
    ]


def nested():
    inner = mlp(6, 8, 5, name="inner")
    return keras.Sequential([keras.Input((6,)), inner, layers.Dense(3)])


def shared():
    inputs, dense = keras.Input((6,)), layers.Dense(6)
    return keras.Model(inputs, layers.Dense(3)(dense(dense(inputs))))


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.one, self.two = layers.Dense(8), layers.Dense(3)

    def call(self, inputs):
        return self.two(self.one(inputs))


def recurrent():
    return keras.Sequential(
        [keras.Input((6,)), layers.Reshape((3, 2)), layers.GRU(5), layers.Dense(3)]
    )


def convolutions():
    inputs = keras.Input((6,))
    x = layers.Reshape((3, 2))(inputs)
    x = layers.Conv1D(8, 2)(x)
    return keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x)))


@pytest.mark.built_in_fit
@pytest.mark.parametrize(
    "make",
    [nested, shared, Subclassed, recurrent, convolutions, lambda: mlp_without_input()],
)
def test_any_model(make):
    """Those that are built in `fit`, too."""
    model, masks = half(make()), Masks()
    history = fit(model, rigl("sgd", drop_fraction=drop_half), SparsityLogger(), masks)
    if masks.history[0]:
        check(history, masks.history)
    assert sum(history["moved"]) > 0
    paths = {name.partition("/")[2] for name in history if "/" in name}
    assert paths == set(rigl_tf.get_masks(model))


def mlp_without_input():
    return keras.Sequential([layers.Dense(8), layers.Dense(3)])


def test_a_dense_optimizer_of_a_sparse_model():
    history = fit(half(mlp()), "adam", SparsityLogger())
    assert history["sparsity"] == [0.5] * 3
    assert not {"turnover", "drop_fraction", "seconds_per_update"} & set(history)


def test_masks_that_other_code_sets():
    class Other(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            masks = rigl_tf.get_masks(self.model)
            rigl_tf.set_masks(self.model, {path: ~mask for path, mask in masks.items()})

    model = half(mlp())
    history = fit(model, rigl_tf.StaticSparse("sgd"), Other(), SparsityLogger())
    assert history["moved"] == [36, 36, 36]
    assert history["exploration_rate"] == [1, 1, 1]


class Twice(keras.Model):
    """A model whose batches have several steps of an optimizer that it holds itself."""

    def __init__(self, times, other=None):
        super().__init__()
        self.hidden, self.outputs = layers.Dense(8), layers.Dense(3)
        self.times, self.others = times, [other] * (other is not None)

    def call(self, x):
        return self.outputs(self.hidden(x))

    def train_step(self, data):
        x, y = data
        for _ in range(self.times):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean((self(x) - y) ** 2)
            gradients = tape.gradient(loss, self.trainable_variables)
            optimizer = self.others[0] if self.others else self.optimizer
            optimizer.apply(gradients, self.trainable_variables)
        return {"loss": loss}


@pytest.mark.parametrize("is_own", [False, True], ids=["optimizer", "own optimizer"])
@pytest.mark.parametrize("frequency", [2, 3, 4, 8])
def test_several_steps_in_a_batch(frequency, is_own):
    """Nothing is missed, whether the optimizer is the model's or in a list of the script's own."""
    optimizer = rigl("sgd", 10**6, frequency)
    model = Twice(2, optimizer if is_own else None)
    model(np.zeros((1, 6)))
    model, masks, logger = half(model), Masks(), SparsityLogger()
    model.others = [optimizer] * is_own
    history = fit(model, "sgd" if is_own else optimizer, masks, logger)
    if frequency > 2:  # otherwise two updates may be in a batch
        check(history, masks.history)
    updates = [[step for step in range(1, stop) if step % frequency == 0] for stop in (8, 16, 24)]
    want = [float(optimizer.drop_fraction_at(each[-1])) if each else math.nan for each in updates]
    assert history["drop_fraction"] == pytest.approx(want, nan_ok=True)


@pytest.mark.parametrize("size", [1, 3])
def test_counters_are_read_around_updates_only(size):
    """Also from the second epoch on, and if the last execution of an epoch is shorter."""
    logger = SparsityLogger()
    fit(half(mlp()), rigl("sgd", 10**6, 5), logger, epochs=5, steps_per_execution=size)
    assert not logger._clock._reads_all


def test_a_schedule_that_is_changed_inside_an_epoch():
    class Change(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 1:
                self.model.optimizer.update_frequency = 1

    masks = Masks()
    history = fit(half(mlp()), rigl("sgd", 10**6, 50), Change(), masks, SparsityLogger())
    check(history, masks.history)
    assert sum(history["moved"]) > 0


def test_a_counter_that_is_restored_when_the_optimizer_is_built():
    """As TensorFlow does it, with a checkpoint that was read before."""

    class Restored(rigl_tf.RigL):
        def build(self, variables):
            super().build(variables)
            self.step.assign(100)

    model = Twice(1, Restored("sgd", 1000, update_frequency=50))
    model(np.zeros((1, 6)))
    model, logger = half(model), SparsityLogger()
    history = fit(model, "sgd", logger)
    assert not logger._clock._reads_all
    assert history["moved"][0] > 0  # in step 100
    assert history["moved"][1:] == [0, 0]


def test_weights_that_a_callback_loads_are_no_moves(tmp_path):
    def model():
        keras.utils.set_random_seed(0)
        return half(mlp())

    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    backup = keras.callbacks.BackupAndRestore(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        fit(model(), rigl("sgd", 10**6, 2), backup, Stop())
    backup, masks = keras.callbacks.BackupAndRestore(tmp_path), Masks()
    history = fit(model(), rigl("sgd", 10**6, 2), SparsityLogger(), backup, masks)
    assert len(history["loss"]) == 1
    check(history, masks.history)


def test_the_same_logger_in_several_fits():
    """What was seen is not forgotten, and what others do between two `fit`s are no moves."""
    model, logger, rates = half(mlp()), SparsityLogger(), []
    optimizer = rigl("sgd", 10**6, 2)
    for _ in range(3):
        masks = Masks()
        history = fit(model, optimizer, masks, logger)
        rates += history["exploration_rate"]
        check({**history, "exploration_rate": explored(masks.history)}, masks.history)
        other = {path: mask[::-1] for path, mask in rigl_tf.get_masks(model).items()}
        rigl_tf.set_masks(model, other)
    assert rates == sorted(rates)
    assert rates[3] > explored(masks.history)[0]
    assert not np.isnan(history["drop_fraction"][0])


def explored(masks):
    """The exploration rate at the end of each epoch, if nothing was seen before."""
    rates = []
    for last in range(NUM_STEPS, len(masks), NUM_STEPS):
        ever = [np.any([m[path] for m in masks[: last + 1]], axis=0) for path in masks[0]]
        rates.append(sum(each.sum() for each in ever) / sum(each.size for each in ever))
    return rates


def test_each_step_of_dnw_is_an_update():
    history = SparsityLogger(every=1)
    fit(half(mlp()), rigl_tf.DNW(optimizers.SGD(1e-3), sparsity=0.5), history)
    seen = [(each.get("moved"), each["turnover"]) for each in history.history]
    assert any(moved == 0 for moved, _ in seen)
    assert all((moved == 0) == (turnover == 0) for moved, turnover in seen)


def test_each_drop_fraction_is_that_of_the_optimizers_own_last_update():
    one, two = rigl("sgd", 100, 2), rigl_tf.SET("sgd", end_step=100, update_frequency=3)
    model = half(mlp())
    first = model.trainable_variables[0].path
    both = optimizers.MultiOptimizer(lambda variable: one if variable.path == first else two)
    history = fit(model, both, SparsityLogger())
    for name, optimizer, steps in (
        ("drop_fraction", one, (2, 6, 10)),
        ("drop_fraction_2", two, (3, 6, 9)),
    ):
        want = [float(optimizer.drop_fraction_at(step)) for step in steps]
        assert history[name] == pytest.approx(want)


def test_skipped_updates_are_no_updates():
    logger = SparsityLogger()
    with pytest.warns(UserWarning, match="skipped 5 mask updates"):
        history = fit(half(mlp()), rigl("sgd", 100, 2), logger, scale=math.nan)
    assert np.isnan(history["drop_fraction"]).all()
    assert np.isnan(history["seconds_per_update"]).all()


def test_data_that_does_not_fit_is_found_before_training():
    x, y = numbers((4, 5)), numbers((4, 3))
    model = half(mlp())
    before = model.get_weights()
    with pytest.raises(ValueError, match=r"`data` must fit the model .* inputs of shape \(4, 5\)"):
        fit(model, rigl(), SparsityLogger(data=(x, y)))
    assert all(map(np.array_equal, before, model.get_weights()))


def test_a_connection_that_moves_to_another_input():
    """The columns of a CSR kernel then stay the same."""
    dense = keras.Sequential([keras.Input((3,)), layers.Dense(4, name="last")])
    model = rigl_tf.sparsify(dense, 11 / 12, execution="csr")
    rigl_tf.set_masks(model, {"last/kernel": np.eye(3, 4, dtype=bool) * [1, 0, 0, 0]})
    (watched,) = watching.watch(model).values()
    rigl_tf.set_masks(model, {"last/kernel": np.eye(3, 4, -1, dtype=bool) * [1, 0, 0, 0]})
    assert watched.look().num_grown == 1


def test_norms_of_large_weights():
    assert watching.squared_norm(tf.constant([3e20, 4e20])) ** 0.5 == pytest.approx(5e20)
    assert watching.squared_norm(tf.constant([math.inf])) == math.inf
    assert math.isnan(watching.squared_norm(tf.constant([math.nan])))


@pytest.mark.parametrize("log_dir", ["", "/dev/null/folder"])
def test_a_folder_that_cannot_be_written_to(log_dir):
    with pytest.raises(ValueError, match=r"`log_dir` must be (the path of )?a folder"):
        fit(half(mlp()), "sgd", SparsityLogger(log_dir))


def test_gradients_of_active_and_inactive_connections():
    """`mean(x @ w)` has the gradient `mean(x)` of the input at each connection of one unit."""
    x, y = np.array([[1.0, 2, 2, 4]]), np.zeros((1, 1))
    model = keras.Sequential([keras.Input((4,)), layers.Dense(1, use_bias=False, name="sum")])
    model = rigl_tf.sparsify(model, 0.5)
    rigl_tf.set_masks(model, {"sum/kernel": [[1], [1], [0], [0]]})
    model.compile(rigl_tf.StaticSparse(optimizers.SGD(0.0)), "mse")
    logger = SparsityLogger(data=(x, y), loss=lambda y, z: tf.reduce_mean(z, axis=-1))
    history = model.fit(x, y, epochs=1, verbose=0, callbacks=[logger]).history
    assert history["gradient_norm_active"] == [pytest.approx(5**0.5)]
    assert history["gradient_norm_inactive"] == [pytest.approx(20**0.5)]
    rigl_tf.with_execution(model, "csr")
    model.compile(rigl_tf.StaticSparse(optimizers.SGD(0.0)), "mse")
    history = model.fit(x, y, epochs=1, verbose=0, callbacks=[logger]).history
    assert history["gradient_norm_active"] == [pytest.approx(5**0.5)]
    assert "gradient_norm_inactive" not in history


def test_looking_changes_nothing():
    def trained(*callbacks):
        model = half(mlp())
        fit(model, rigl("adam", drop_fraction=drop_half), *callbacks)
        return model.get_weights()

    keras.utils.set_random_seed(0)
    want = trained()
    keras.utils.set_random_seed(0)
    got = trained(SparsityLogger(every=1, data=(numbers((4, 6)), numbers((4, 3)))))
    for one, two in zip(got, want, strict=True):
        np.testing.assert_array_equal(one, two)


def events(directory):
    """`{tag: {step: value}}` of all event files."""
    found = {}
    for path in sorted(directory.rglob("*tfevents*")):
        for record in tf.data.TFRecordDataset(str(path)):
            event = tf.compat.v1.Event.FromString(record.numpy())
            for value in event.summary.value:
                found.setdefault(value.tag, {})[event.step] = tf.make_ndarray(value.tensor)
    return found


@pytest.mark.parametrize("execution", ["masked", "csr"])
def test_what_tensorboard_gets(tmp_path, execution):
    model = half(mlp(6, 300, 3), execution=execution)
    logger = SparsityLogger(tmp_path / "logs", masks=True)
    optimizer = rigl("sgd", end_step=7, update_frequency=3, drop_fraction=drop_half)
    history = fit(model, optimizer, logger)
    found = events(tmp_path / "logs")
    # Looks are after the updates at 3 and 6, and at the end of each epoch.
    assert list(found["sparsity"]) == [4, 7, 8, 12]
    assert found["sparsity"][12] == pytest.approx(0.5)
    assert list(found["moved"]) == [4, 7]
    assert [found["moved"][4], found["moved"][7]] == history["moved"][:2]
    path = next(iter(rigl_tf.get_masks(model)))
    assert list(found[f"dead_units/{path}"]) == [4, 7, 8, 12]
    pictures = found[f"mask/{path}"]
    assert list(pictures) == [0, 4, 8, 12]
    width, height, *png = pictures[12]
    assert (int(width), int(height)) == (256, 6)
    picture = tf.io.decode_png(png[0]).numpy()[..., 0]
    mask = rigl_tf.get_masks(model)[path]
    for column in (0, 7, 255):
        cells = np.arange(300) * 256 // 300 == column
        np.testing.assert_allclose(picture[:, column] / 255, mask[:, cells].mean(axis=1), atol=0.01)


def test_without_tensorboard(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.warns(UserWarning, match="Nothing is written for TensorBoard"):
        history = fit(half(mlp()), rigl(), SparsityLogger(tmp_path / "logs", masks=True))
    assert history["sparsity"] == [0.5] * 3
    assert not (tmp_path / "logs").exists()


def test_csv_files_have_all_of_it(tmp_path):
    path = tmp_path / "log.csv"
    history = fit(half(mlp()), rigl(), SparsityLogger(), keras.callbacks.CSVLogger(path))
    with path.open() as file:
        rows = list(csv.DictReader(file))
    for name, values in history.items():
        np.testing.assert_allclose([float(row[name]) for row in rows], values, err_msg=name)


def test_the_progress_bar_shows_a_sparsity_that_changes():
    class Bar(keras.callbacks.Callback):
        """Comes after the logger, as the progress bar of Keras does."""

        def on_train_begin(self, logs=None):
            self.seen = []

        def on_train_batch_end(self, batch, logs=None):
            self.seen.append(logs.get("sparsity"))

    bar = Bar()
    pruning = ALGORITHMS["GradualPruning"]()
    fit(rigl_tf.sparsify(mlp(), 0.0), pruning, SparsityLogger(kernels=False), bar)
    assert bar.seen[0] == 0
    assert bar.seen == sorted(bar.seen)
    assert bar.seen[-1] == 0.75
    fit(half(mlp()), rigl(), SparsityLogger(), bar)
    assert set(bar.seen) == {None}


def test_no_number_of_a_kernel():
    history = fit(half(mlp()), rigl(), SparsityLogger(kernels=False))
    assert not [name for name in history if "/" in name]


def test_one_logger_for_several_fits():
    model, logger = half(mlp()), SparsityLogger()
    model.compile(rigl("sgd", end_step=100, update_frequency=3), "mse")
    x, y = numbers((16, 6)), numbers((16, 3))
    for _ in range(2):
        model.fit(x, y, batch_size=4, verbose=0, callbacks=[logger])
    assert [each["step"] for each in logger.history] == [4, 7, 8] or [
        each["step"] for each in logger.history
    ] == [4, 4, 7, 8]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"every": 0}, "`every` must be an integer >= 1"),
        ({"every": "epoch"}, "`every` must be 'update' or an integer"),
        ({"every": 2.5}, "`every` must be an integer"),
        ({"masks": True}, "needs a `log_dir`"),
        ({"log_dir": __file__}, "`log_dir` must be the path of a folder"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        SparsityLogger(**arguments)


@pytest.mark.built_in_fit
@pytest.mark.parametrize("make", [mlp, mlp_without_input])
def test_a_model_without_sparse_kernels(make):
    with pytest.raises(ValueError, match="needs a model with sparse kernels"):
        fit(make(), "sgd", SparsityLogger())


PROGRAM = """
import json, sys
import keras, tensorflow as tf
import rigl_tf

strategy = tf.distribute.MultiWorkerMirroredStrategy()
with strategy.scope():
    dense = keras.Sequential([keras.Input((6,)), keras.layers.Dense(8), keras.layers.Dense(3)])
    model = rigl_tf.sparsify(dense, 0.5)
    model.compile(rigl_tf.RigL("sgd", end_step=99, update_frequency=2), "mse")
data = tf.data.Dataset.from_tensors((tf.ones((8, 6)), tf.ones((8, 3)))).repeat(4)
folder = f"{sys.argv[1]}/{strategy.cluster_resolver.task_id}"
logger = rigl_tf.callbacks.SparsityLogger(folder)
history = rigl_tf.multi_worker.fit(model, data, epochs=2, callbacks=[logger], verbose=0).history
print("HISTORY", json.dumps({name: history[name] for name in ("moved", "sparsity")}))
"""


@pytest.mark.slow
def test_of_two_workers_the_chief_writes(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    with two_workers(tmp_path, str(program), str(tmp_path / "logs")) as processes:
        codes, last = wait_for(processes, tmp_path)
    assert codes == [0, 0], last
    histories = [re.search("HISTORY (.*)", log).group(1) for log in logs_of(tmp_path)]
    assert histories[0] == histories[1]
    assert [path.name for path in (tmp_path / "logs").iterdir()] == ["0"]
    assert set(events(tmp_path / "logs")["sparsity"]) >= {3, 4, 8}


def test_records_are_those_of_tensorboard(tmp_path):
    matrix = np.linspace(0, 1, 12, dtype="float32").reshape(3, 4)
    board = Board(tmp_path / "ours")
    board.write(7, {"one": 0.25, "two/kernel": 3}, {"mask/kernel": matrix})
    board.close()
    with tf.summary.create_file_writer(str(tmp_path / "theirs")).as_default(step=7):
        tf.summary.scalar("one", 0.25)
        tf.summary.scalar("two/kernel", 3)
        tf.summary.image("mask/kernel", matrix[np.newaxis, :, :, np.newaxis])

    def records(directory):
        (path,) = directory.iterdir()
        found = [record.numpy() for record in tf.data.TFRecordDataset(str(path))]
        first, *others = [tf.compat.v1.Event.FromString(record) for record in found]
        return first.file_version, [(e.step, v) for e in others for v in e.summary.value]

    (version, ours), (their_version, theirs) = (
        records(tmp_path / "ours"),
        records(tmp_path / "theirs"),
    )
    assert version == their_version
    assert [(step, v.tag) for step, v in ours] == [(step, v.tag) for step, v in theirs]
    for (_, one), (_, two) in zip(ours, theirs, strict=True):
        assert np.array_equal(tf.make_ndarray(one.tensor), tf.make_ndarray(two.tensor))
        assert one.tensor.dtype == two.tensor.dtype
        assert one.metadata == two.metadata


def test_a_model_that_is_refused_leaves_no_file(tmp_path):
    with pytest.raises(ValueError, match="needs a model with sparse kernels"):
        fit(mlp(), "sgd", SparsityLogger(tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("log_dir", [b"logs", 7, "x" * 300, ""])
def test_what_is_no_path_of_a_folder(log_dir):
    with pytest.raises(ValueError, match="`log_dir` must be the path of a folder"):
        SparsityLogger(log_dir)


def test_each_training_writes_a_file_of_its_own(tmp_path):
    for step in range(3):  # in the same second
        board = Board(tmp_path)
        board.write(step, {"number": step})
        board.close()
        board.write(9, {"number": 9})  # nothing
    assert len(list(tmp_path.iterdir())) == 3
    assert events(tmp_path)["number"] == {0: 0, 1: 1, 2: 2}


def test_records_of_long_epochs_can_be_seen_before_the_end(tmp_path, monkeypatch):
    board = Board(tmp_path)
    board.write(1, {"number": 1})
    assert events(tmp_path) == {}
    later = time.time() + 121
    monkeypatch.setattr(time, "time", lambda: later)
    board.write(2, {"number": 2})
    assert list(events(tmp_path)["number"]) == [1, 2]


def test_steps_with_updates_are_those_of_the_optimizer():
    class Own(rigl_tf.SET):
        def is_update_step(self, step):
            return step % 5 == 3

    for optimizer in (
        rigl("sgd", 20, 4),
        rigl("sgd", 20, 4, begin_step=6),
        rigl("sgd", 20, 7, begin_step=0),
        Own("sgd", end_step=20),
    ):
        model = half(mlp())
        model.compile(optimizer, "mse")
        optimizer.build(model.trainable_variables)
        steps = [step for step in range(100) if optimizer.is_update_step(step)]
        for size in (1, 3):
            model.steps_per_execution = size
            optimizer.step.assign(0)
            clock, seen = UpdateClock(model), []
            for batch in range(0, 30, size):
                if not clock.is_quiet(batch) and clock.before_batch(batch):
                    seen.append(clock.last_update(optimizer))
                optimizer.step.assign_add(size)
            clock.end_epoch()
            last = {batch // size: batch for batch in steps if batch < 30 - size}
            assert seen == list(last.values())


def test_a_step_that_was_skipped_is_no_update():
    """As in float16, where a step that overflows is not counted by the optimizer."""
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
    model = rigl_tf.sparsify(model, 0.5)
    optimizer = rigl_tf.RigL("sgd", end_step=10, update_frequency=2)
    model.compile(optimizer, "mse")
    optimizer.build(model.trainable_variables)
    optimizer.step.assign(2)
    clock = UpdateClock(model)
    clock.begin_epoch()
    assert not clock.before_batch(0)
    assert not clock.before_batch(1)  # step 2 is still to come
    optimizer.step.assign(3)
    assert clock.before_batch(2)
    assert clock.last_update(optimizer) == 2
