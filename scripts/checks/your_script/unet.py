"""Image segmentation with a U-Net-like network: skip connections, separable convolutions.

- model = get_model(img_size, num_classes)
+ model = rigl_tf.sparsify(get_model(img_size, num_classes), 0.8)
- optimizer = keras.optimizers.Adam(1e-3)
+ optimizer = rigl_tf.RigL(keras.optimizers.Adam(1e-3), end_step=30, update_frequency=5)
"""

import pathlib
import tempfile

import keras
import numpy as np
from keras import layers
from sklearn.datasets import load_digits

img_size = (16, 16)
num_classes = 3
batch_size = 16

keras.utils.set_random_seed(17)
digits = load_digits().images[:400].astype("float32")
images = np.kron(digits, np.ones((1, 2, 2), "float32"))[..., np.newaxis]
# Background, the edge of a stroke, its middle.
targets = (images > 2).astype("uint8") + (images > 9)


class Digits(keras.utils.PyDataset):
    """Batches of images and of what is to be seen in each pixel."""

    def __init__(self, images, targets, **kwargs):
        super().__init__(**kwargs)
        self.images, self.targets = images, targets

    def __len__(self):
        return len(self.images) // batch_size

    def __getitem__(self, idx):
        rows = slice(idx * batch_size, (idx + 1) * batch_size)
        return self.images[rows], self.targets[rows]


def get_model(img_size, num_classes):
    inputs = keras.Input(shape=(*img_size, 1))

    x = layers.Conv2D(8, 3, strides=2, padding="same")(layers.Rescaling(1 / 16)(inputs))
    x = layers.BatchNormalization()(x)
    x = layers.Activation("relu")(x)
    previous_block_activation = x
    skip = x

    for filters in [16]:
        x = layers.Activation("relu")(x)
        x = layers.SeparableConv2D(filters, 3, padding="same")(x)
        x = layers.BatchNormalization()(x)
        x = layers.Activation("relu")(x)
        x = layers.SeparableConv2D(filters, 3, padding="same")(x)
        x = layers.BatchNormalization()(x)
        x = layers.MaxPooling2D(3, strides=2, padding="same")(x)
        residual = layers.Conv2D(filters, 1, strides=2, padding="same")(previous_block_activation)
        x = layers.add([x, residual])
        previous_block_activation = x

    for filters in [16, 8]:
        x = layers.Activation("relu")(x)
        x = layers.Conv2DTranspose(filters, 3, padding="same")(x)
        x = layers.BatchNormalization()(x)
        x = layers.UpSampling2D(2)(x)
        if filters == 16:
            x = layers.concatenate([x, skip])
            continue
        residual = layers.UpSampling2D(4)(previous_block_activation)
        residual = layers.Conv2D(filters, 1, padding="same")(residual)
        x = layers.add([x, residual])

    outputs = layers.Conv2D(num_classes, 3, activation="softmax", padding="same")(x)
    return keras.Model(inputs, outputs)


train_dataset = Digits(images[:320], targets[:320])
valid_dataset = Digits(images[320:], targets[320:])

model = get_model(img_size, num_classes)
optimizer = keras.optimizers.Adam(1e-3)
model.compile(optimizer=optimizer, loss="sparse_categorical_crossentropy")
with tempfile.TemporaryDirectory() as directory:
    best = pathlib.Path(directory, "segmentation.keras")
    callbacks = [keras.callbacks.ModelCheckpoint(best, save_best_only=True)]
    model.fit(train_dataset, epochs=2, validation_data=valid_dataset, callbacks=callbacks)
    assert keras.saving.load_model(best).predict(images[:2]).shape == (2, *img_size, num_classes)

sample = images[:4]
