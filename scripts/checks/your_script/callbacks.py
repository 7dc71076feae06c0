"""Callbacks: early stopping with the best weights, checkpoints, a callback of the script's own.

- model = get_model()
+ model = rigl_tf.sparsify(get_model(), 0.8)
- optimizer=keras.optimizers.Adam(0.01),
+ optimizer=rigl_tf.RigL(keras.optimizers.Adam(0.01), end_step=60, update_frequency=5),
"""

import pathlib
import tempfile

import keras
import numpy as np
from keras import layers
from sklearn.datasets import load_digits

keras.utils.set_random_seed(40)
x, y = load_digits(return_X_y=True)
x = x.astype("float32") / 16


class LossAndErrorPrinting(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.best = None

    def on_train_begin(self, logs=None):
        self.best = np.inf

    def on_epoch_end(self, epoch, logs=None):
        if logs["val_loss"] < self.best:
            self.best = logs["val_loss"]
            self.best_weights = self.model.get_weights()
        print(f"epoch {epoch}: loss {logs['loss']:.3f}, best {self.best:.3f}")


def get_model():
    return keras.Sequential(
        [keras.Input((64,)), layers.Dense(64, "relu"), layers.Dropout(0.1), layers.Dense(10)]
    )


def schedule(epoch, lr):
    return lr if epoch < 2 else 1.0  # so large that the third epoch is no good


model = get_model()
model.compile(
    optimizer=keras.optimizers.Adam(0.01),
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=["accuracy"],
)
with tempfile.TemporaryDirectory() as directory:
    directory = pathlib.Path(directory)
    printing = LossAndErrorPrinting()
    history = model.fit(
        x[:640],
        y[:640],
        batch_size=32,
        epochs=4,
        verbose=0,
        validation_data=(x[640:], y[640:]),
        callbacks=[
            printing,
            keras.callbacks.LearningRateScheduler(schedule),
            keras.callbacks.ReduceLROnPlateau(monitor="val_loss", factor=0.2, patience=1),
            keras.callbacks.ModelCheckpoint(
                directory / "epoch-{epoch:02d}.weights.h5", save_weights_only=True
            ),
            keras.callbacks.ModelCheckpoint(directory / "best.keras", save_best_only=True),
            keras.callbacks.BackupAndRestore(directory / "backup"),
            keras.callbacks.CSVLogger(directory / "log.csv"),
            keras.callbacks.TerminateOnNaN(),
            keras.callbacks.EarlyStopping(patience=1, restore_best_weights=True),
        ],
    )
    assert len(history.epoch) == 3
    for weight, best in zip(model.get_weights(), printing.best_weights, strict=True):
        np.testing.assert_array_equal(weight, best)
    expected = model.predict(x[:4], verbose=0)
    best_model = keras.saving.load_model(directory / "best.keras")
    np.testing.assert_array_equal(best_model.predict(x[:4], verbose=0), expected)
    model.load_weights(directory / "epoch-02.weights.h5")
    np.testing.assert_array_equal(model.predict(x[:4], verbose=0), expected)

sample = x[:4]
