"""A convolutional autoencoder: first it copies images, then the same model removes noise.

- autoencoder = keras.Model(input, x)
+ autoencoder = rigl_tf.sparsify(keras.Model(input, x), 0.8)
- autoencoder.compile(optimizer="adam", loss="binary_crossentropy")
+ autoencoder.compile(rigl_tf.RigL("adam", end_step=30, update_frequency=5), "binary_crossentropy")
"""

import keras
import numpy as np
from keras import layers
from sklearn.datasets import load_digits

keras.utils.set_random_seed(16)
rng = np.random.default_rng(16)


def noise(array):
    noise_factor = 0.4
    noisy = array + noise_factor * rng.normal(loc=0.0, scale=1.0, size=array.shape)
    return np.clip(noisy, 0.0, 1.0).astype("float32")


digits = load_digits().images.reshape(-1, 8, 8, 1).astype("float32") / 16
train_data, test_data = digits[:640], digits[640:720]
noisy_train_data = noise(train_data)
noisy_test_data = noise(test_data)

input = layers.Input(shape=(8, 8, 1))
x = layers.Conv2D(16, (3, 3), activation="relu", padding="same")(input)
x = layers.MaxPooling2D((2, 2), padding="same")(x)
x = layers.Conv2D(16, (3, 3), activation="relu", padding="same")(x)
x = layers.MaxPooling2D((2, 2), padding="same")(x)
x = layers.Conv2DTranspose(16, (3, 3), strides=2, activation="relu", padding="same")(x)
x = layers.Conv2DTranspose(16, (3, 3), strides=2, activation="relu", padding="same")(x)
x = layers.Conv2D(1, (3, 3), activation="sigmoid", padding="same")(x)

autoencoder = keras.Model(input, x)
autoencoder.compile(optimizer="adam", loss="binary_crossentropy")
autoencoder.summary()
autoencoder.fit(
    x=train_data, y=train_data, epochs=1, batch_size=32, validation_data=(test_data, test_data)
)
predictions = autoencoder.predict(test_data)

autoencoder.fit(
    x=noisy_train_data,
    y=train_data,
    epochs=1,
    batch_size=32,
    shuffle=True,
    validation_data=(noisy_test_data, test_data),
)

model, sample = autoencoder, noisy_test_data[:4]
