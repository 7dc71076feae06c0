"""What one of two workers does; `test_multi_worker.py` starts both and reads what they write.

TF_CONFIG=... python tests/multi_worker_program.py DIRECTORY
"""

import json
import os
import pathlib
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf

import rigl_tf
from rigl_tf import multi_worker

BATCH = 8
STEPS = 6
EPOCHS = 3


def data():
    """Each half of a batch, which is what a worker gets, has a distribution of its own."""
    rng = np.random.default_rng(0)
    shift = np.arange(BATCH * STEPS) % BATCH < BATCH // 2
    x = rng.normal(size=(BATCH * STEPS, 6)) + 2 * shift[:, np.newaxis]
    y = rng.normal(size=(BATCH * STEPS, 3)) - 3 * shift[:, np.newaxis]
    return x.astype("float32"), y.astype("float32")


def datasets():
    """Batches to train on, and to validate on; the last of those is not full."""
    x, y = data()
    training = tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH, drop_remainder=True)
    validation = tf.data.Dataset.from_tensor_slices((x[:21], y[:21])).batch(BATCH)
    return training, validation


def sparse_model():
    """Updates masks at steps 2, 4, ..., 16 of 18."""
    layers = keras.layers
    dense = keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(8, activation="tanh", kernel_regularizer=keras.regularizers.L2(0.01)),
            layers.Dense(3),
        ]
    )
    model = rigl_tf.sparsify(dense, 0.5)
    inner = keras.optimizers.SGD(0.05, momentum=0.9)
    optimizer = rigl_tf.RigL(inner, end_step=17, update_frequency=2, drop_fraction=0.5)
    model.compile(optimizer, "mse", metrics=["mae"])
    return model


class MaskHistory(keras.callbacks.Callback):
    """The masks after every step, end to end; the kernels must be zero elsewhere."""

    def on_train_begin(self, logs=None):
        self.masks = []

    def on_train_batch_end(self, batch, logs=None):
        masks = rigl_tf.get_masks(self.model)
        weights = {weight.path: weight.numpy() for weight in self.model.weights}
        assert all((weights[path][~mask] == 0).all() for path, mask in masks.items())
        self.masks.append(np.concatenate([mask.ravel() for mask in masks.values()]))


class StepOfOnesOwn(keras.Model):
    """Tells how many examples a replica has, and the mean of their inputs."""

    def train_step(self, data):
        x, _ = data
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(self(x, training=True)) / BATCH
        self.optimizer.apply(tape.gradient(loss, self.trainable_weights), self.trainable_weights)
        return {"mean": tf.reduce_mean(x), "size": tf.cast(tf.shape(x)[0], tf.float32)}


def state(model):
    variables = [*model.weights, *model.optimizer.variables]
    return np.concatenate([variable.numpy().ravel().astype("float64") for variable in variables])


def train(strategy, arrays, report):
    with strategy.scope():
        model = sparse_model()
    training, validation = datasets()
    masks = MaskHistory()
    arguments = {"epochs": EPOCHS, "validation_data": validation, "verbose": 0}
    history = multi_worker.fit(model, training, callbacks=[masks], **arguments)
    report["history"] = history.history
    report["evaluated"] = multi_worker.evaluate(model, validation, verbose=0)
    arrays |= {"masks": np.stack(masks.masks), "state": state(model)}


def train_and_resume(strategy, directory, arrays, report):
    """The same, stopped in the last epoch and gone on with from a backup that the chief has."""
    callbacks = []
    if multi_worker.is_chief(strategy):
        callbacks = [keras.callbacks.BackupAndRestore(directory / "backup")]
    training, validation = datasets()
    arguments = {"epochs": EPOCHS, "validation_data": validation, "verbose": 0}

    def stop(epoch, logs=None):
        if epoch == EPOCHS - 1:
            raise KeyboardInterrupt

    stopper = keras.callbacks.LambdaCallback(on_epoch_begin=stop)
    with strategy.scope():
        model = sparse_model()
    try:
        multi_worker.fit(model, training, callbacks=[*callbacks, stopper], **arguments)
    except KeyboardInterrupt:
        report["stopped"] = int(model.optimizer.step.numpy())
    with strategy.scope():
        model = sparse_model()
    history = multi_worker.fit(model, training, callbacks=callbacks, **arguments)
    report["resumed_history"] = history.history
    arrays["resumed_state"] = state(model)


def train_with_a_step_of_ones_own(strategy, report):
    """Four steps in an execution, a dataset without end, and a stop asked for by one worker."""
    x, y = data()
    endless = tf.data.Dataset.from_tensor_slices((x, y)).repeat().batch(BATCH, drop_remainder=True)
    with strategy.scope():
        inputs = keras.Input((6,))
        model = StepOfOnesOwn(inputs, keras.layers.Dense(1, name="dense")(inputs))
        model.compile("sgd", steps_per_execution=4)

    def stop(batch, logs=None):
        is_second_epoch = model.optimizer.iterations.numpy() > STEPS
        if is_second_epoch and not multi_worker.is_chief(strategy):
            model.stop_training = True

    history = multi_worker.fit(
        model,
        endless,
        epochs=4,
        steps_per_epoch=STEPS,
        callbacks=[keras.callbacks.LambdaCallback(on_train_batch_end=stop)],
        verbose=0,
    )
    report["own_history"] = history.history
    report["own_steps"] = int(model.optimizer.iterations.numpy())
    report["own_bias"] = model.get_layer("dense").bias.numpy().tolist()


def be_refused(strategy, report):
    x, y = data()
    odd = tf.data.Dataset.from_tensor_slices((x, y)).batch(3, drop_remainder=True)
    with strategy.scope():
        model = sparse_model()
    try:
        multi_worker.fit(model, odd)
    except ValueError as error:
        report["refusal"] = str(error)


def fit_as_keras_does(strategy, report):
    """Plain Keras, nothing of ours."""
    with strategy.scope():
        model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3)])
        model.compile("sgd", "mse")
    try:
        model.fit(datasets()[0], verbose=0)
        report["keras_fit"] = "works"
    except Exception as error:
        report["keras_fit"] = f"{type(error).__name__}: {error}"


def main(directory):
    worker = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    # What the chief starts from counts.
    keras.utils.set_random_seed(worker)
    arrays, report = {}, {"is_chief": multi_worker.is_chief(strategy)}
    train(strategy, arrays, report)
    keras.utils.set_random_seed(worker)
    train_and_resume(strategy, directory, arrays, report)
    train_with_a_step_of_ones_own(strategy, report)
    be_refused(strategy, report)
    fit_as_keras_does(strategy, report)
    np.savez(directory / f"arrays-{worker}.npz", **arrays)
    (directory / f"report-{worker}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
