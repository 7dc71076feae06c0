"""Two real worker processes on this machine, and what can be seen with one."""

import csv
import json
import tracemalloc

import keras
import multi_worker_program as program
import numpy as np
import pytest
import tensorflow as tf
from helpers import two_workers, wait_for

from rigl_tf import multi_worker

# The loop.


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """What the program wrote: for each worker its report and its arrays."""
    directory = tmp_path_factory.mktemp("workers")
    with two_workers(directory, "tests/multi_worker_program.py", str(directory)) as processes:
        codes, output = wait_for(processes, directory)
    assert codes == [0, 0], output
    reports = [json.loads((directory / f"report-{i}.json").read_text()) for i in range(2)]
    arrays = [dict(np.load(directory / f"arrays-{i}.npz")) for i in range(2)]
    return reports, arrays


@pytest.fixture(scope="module")
def alone():
    """The same training in this process, by `model.fit` with whole batches."""
    keras.utils.set_random_seed(0)
    model = program.sparse_model()
    training, validation = program.datasets()
    masks = program.MaskHistory()
    history = model.fit(
        training,
        epochs=program.EPOCHS,
        validation_data=validation,
        callbacks=[masks],
        shuffle=False,
        verbose=0,
    )
    return history.history, np.stack(masks.masks), program.state(model)


def test_masks_are_equal_on_both_workers_and_to_those_of_one(both, alone):
    _, (chief, other) = both
    np.testing.assert_array_equal(chief["masks"], other["masks"])
    np.testing.assert_array_equal(chief["masks"], alone[1])
    changes = (chief["masks"][1:] != chief["masks"][:-1]).any(axis=1)
    # From step 14 on the cosine leaves less than one connection to drop.
    assert changes.tolist() == [step % 2 == 0 and step < 14 for step in range(1, 18)]


def test_two_workers_train_as_one(both, alone):
    (report, other_report), (chief, other) = both
    history, _, state = alone
    np.testing.assert_array_equal(chief["state"], other["state"])
    np.testing.assert_allclose(chief["state"], state, rtol=1e-4, atol=1e-5)
    assert report["history"] == other_report["history"]
    assert report["history"].keys() == {"loss", "mae", "val_loss", "val_mae"} == history.keys()
    for name, values in history.items():
        np.testing.assert_allclose(report["history"][name], values, rtol=1e-5, err_msg=name)
    assert [report["is_chief"], other_report["is_chief"]] == [True, False]


def test_evaluate_is_that_of_all_workers(both):
    for report in both[0]:
        validated = {name: report["history"][f"val_{name}"][-1] for name in ("loss", "mae")}
        assert report["evaluated"] == pytest.approx(validated)


def test_only_the_chief_needs_a_backup(both):
    for report, arrays in zip(*both, strict=True):
        assert report["stopped"] == 12
        np.testing.assert_array_equal(arrays["resumed_state"], arrays["state"])
        for name, values in report["resumed_history"].items():
            assert values == report["history"][name][-1:]


def test_a_train_step_of_ones_own(both):
    """Executions of 4 and 2 steps; in the second epoch worker 1 stops after the first of them."""
    batches = program.data()[0].reshape(program.STEPS, program.BATCH, 6)
    for report in both[0]:
        assert report["own_steps"] == program.STEPS + 4
        # The last batch of each epoch: the 6th of the data, then the 10th, which is the 4th again.
        want = [batches[5].mean(), batches[3].mean()]
        np.testing.assert_allclose(report["own_history"]["mean"], want, rtol=1e-5)
        assert report["own_history"]["size"] == [program.BATCH / 2] * 2
        # Each of ten steps takes 0.01 from the bias, half of it for each worker's examples.
        np.testing.assert_allclose(report["own_bias"], [-0.1], rtol=1e-5)


def test_batches_that_cannot_be_shared_are_refused(both):
    for report in both[0]:
        assert "divisible by the number of replicas, 2. Received: batches of 3" in report["refusal"]


def test_keras_cannot_fit_there(both):
    """When this fails, `model.fit` works and `rigl_tf.multi_worker` has done its duty."""
    for report in both[0]:
        assert "PerReplica" in report["keras_fit"]


# One worker, in this process.


@pytest.fixture(scope="module")
def strategy():
    return tf.distribute.MultiWorkerMirroredStrategy()


def dense_model(strategy, **compile_arguments):
    with strategy.scope():
        model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3)])
        model.compile("sgd", "mse", **compile_arguments)
    return model


def test_the_state_is_copied_one_variable_at_a_time(strategy):
    """Ten kernels of 1 MB: what NumPy and Python hold meanwhile is a few of them, not all twice."""
    with strategy.scope():
        hidden = [keras.layers.Dense(512, use_bias=False) for _ in range(10)]
        model = keras.Sequential([keras.Input((512,)), *hidden])
        model.compile("sgd", "mse")
    data = tf.data.Dataset.from_tensors((np.ones((1, 512)), np.ones((1, 512))))
    tracemalloc.start()
    try:
        multi_worker.fit(model, data, epochs=0, verbose=0)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 * 2**20


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"jit_compile": True}, "jit_compile=True"),
        ({"length": "unknown"}, "steps_per_epoch=None"),
        ({"steps_per_epoch": 0}, "steps_per_epoch=0"),
        ({"steps_per_epoch": True}, "steps_per_epoch=True"),
        ({"steps_per_epoch": 1.5}, "steps_per_epoch=1.5"),
        ({"epochs": 1.5}, "epochs=1.5"),
        ({"initial_epoch": -1}, "initial_epoch=-1"),
        ({"steps_per_epoch": program.STEPS, "epochs": 2}, "a dataset that ended"),
        ({"validation_steps": -1}, "validation_steps=-1"),
        ({"strategy": "none"}, "a model of _DefaultDistributionStrategy"),
        ({"compiled": False}, "compiled=False"),
    ],
)
def test_refusals(strategy, arguments, word):
    training, validation = program.datasets()
    arguments = dict(arguments)
    if arguments.pop("strategy", None):
        strategy = tf.distribute.get_strategy()
    model = dense_model(strategy, jit_compile=arguments.pop("jit_compile", False))
    if not arguments.pop("compiled", True):
        with strategy.scope():
            model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3)])
    if arguments.pop("length", None):
        training = training.filter(lambda x, y: True)
    with pytest.raises(ValueError, match=word):
        multi_worker.fit(model, training, validation_data=validation, verbose=0, **arguments)


def test_callbacks_and_the_progress_bar(strategy, tmp_path, capsys):
    model = dense_model(strategy, steps_per_execution=4)
    training, validation = program.datasets()
    callbacks = [
        keras.callbacks.EarlyStopping(min_delta=100, patience=1),
        keras.callbacks.LearningRateScheduler(lambda epoch, rate: 0.1 / (epoch + 1)),
        keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.keras", save_best_only=True),
        keras.callbacks.CSVLogger(tmp_path / "log.csv"),
        keras.callbacks.TensorBoard(tmp_path / "board"),
    ]
    history = multi_worker.fit(
        model, training, epochs=5, validation_data=validation, callbacks=callbacks
    )
    assert history is model.history
    assert history.history["learning_rate"] == pytest.approx([0.1, 0.05])
    with (tmp_path / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["val_loss"]) for row in rows] == pytest.approx(history.history["val_loss"])
    assert (tmp_path / "1.keras").exists()
    assert list((tmp_path / "board").rglob("*events*"))
    text = capsys.readouterr().out
    assert "Epoch 2/5" in text
    assert "6/6" in text
    assert "val_loss" in text
