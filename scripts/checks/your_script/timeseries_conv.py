"""Time series classification with a fully convolutional network and the usual callbacks.

- model = make_model(input_shape=x_train.shape[1:])
+ model = rigl_tf.sparsify(make_model(input_shape=x_train.shape[1:]), 0.8)
- optimizer="adam",
+ optimizer=rigl_tf.RigL("adam", end_step=45, update_frequency=5),
"""

import pathlib
import tempfile

import keras
import numpy as np

num_classes = 2

keras.utils.set_random_seed(20)
rng = np.random.default_rng(20)
y_train = rng.integers(0, num_classes, 720)
time = np.linspace(0, 6, 32)
x_train = np.sin(time * (2 + y_train[:, None])) + rng.normal(0, 0.3, (720, 32))
x_train = x_train[..., np.newaxis].astype("float32")
x_train, x_test, y_train, y_test = x_train[:640], x_train[640:], y_train[:640], y_train[640:]


def make_model(input_shape):
    input_layer = keras.layers.Input(input_shape)
    x = input_layer
    for _ in range(3):
        x = keras.layers.Conv1D(filters=16, kernel_size=3, padding="same")(x)
        x = keras.layers.BatchNormalization()(x)
        x = keras.layers.ReLU()(x)
    gap = keras.layers.GlobalAveragePooling1D()(x)
    output_layer = keras.layers.Dense(num_classes, activation="softmax")(gap)
    return keras.models.Model(inputs=input_layer, outputs=output_layer)


model = make_model(input_shape=x_train.shape[1:])

with tempfile.TemporaryDirectory() as directory:
    best = pathlib.Path(directory, "best_model.keras")
    callbacks = [
        keras.callbacks.ModelCheckpoint(best, save_best_only=True, monitor="val_loss"),
        keras.callbacks.ReduceLROnPlateau(monitor="val_loss", factor=0.5, patience=1, min_lr=1e-4),
        keras.callbacks.EarlyStopping(
            monitor="val_loss", patience=2, verbose=1, restore_best_weights=True
        ),
    ]
    model.compile(
        optimizer="adam",
        loss="sparse_categorical_crossentropy",
        metrics=["sparse_categorical_accuracy"],
    )
    history = model.fit(
        x_train,
        y_train,
        batch_size=32,
        epochs=3,
        callbacks=callbacks,
        validation_split=0.2,
    )
    model = keras.models.load_model(best)

test_loss, test_acc = model.evaluate(x_test, y_test)
print("Test accuracy", test_acc, "after", len(history.history["loss"]), "epochs")

sample = x_test[:4]
