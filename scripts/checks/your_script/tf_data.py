"""An input pipeline of tf.data with augmentation in it, and windows of a time series.

- model = keras.Model(inputs=inputs, outputs=outputs)
+ model = rigl_tf.sparsify(keras.Model(inputs=inputs, outputs=outputs), 0.75)
- model.compile(optimizer=keras.optimizers.Adam(learning_rate=0.005), loss="mse")
+ model.compile(rigl_tf.RigL(keras.optimizers.Adam(0.005), 40, update_frequency=5), loss="mse")
"""

import keras
import numpy as np
import tensorflow as tf
from keras import layers

past, future, step, batch_size = 48, 6, 4, 32

keras.utils.set_random_seed(43)
rng = np.random.default_rng(43)
hours = np.arange(2400)
temperature = 10 * np.sin(hours / 24 * 2 * np.pi) + rng.normal(0, 1, hours.shape)
pressure = 990 + np.cumsum(rng.normal(0, 0.3, hours.shape))
features = np.stack([temperature, pressure], axis=1)
features = ((features - features.mean(axis=0)) / features.std(axis=0)).astype("float32")

dataset = keras.utils.timeseries_dataset_from_array(
    features[: -past - future],
    features[past + future :, :1],
    sequence_length=past // step,
    sampling_rate=step,
    batch_size=batch_size,
)


def jitter(x, y):
    return x + tf.random.normal(tf.shape(x), stddev=0.05), y


num_train = 40
train = dataset.take(num_train).cache().shuffle(num_train, seed=1)
train = train.map(jitter, num_parallel_calls=tf.data.AUTOTUNE).repeat().prefetch(tf.data.AUTOTUNE)
validation = dataset.skip(num_train).take(8)

inputs = layers.Input(shape=(past // step, 2))
x = layers.Conv1D(16, 3, padding="causal", dilation_rate=2, activation="relu")(inputs)
x = layers.GRU(16, return_sequences=True, dropout=0.1)(x)
x = layers.RNN(layers.StackedRNNCells([layers.LSTMCell(12), layers.SimpleRNNCell(8)]))(x)
outputs = layers.Dense(1)(x)
model = keras.Model(inputs=inputs, outputs=outputs)
model.compile(optimizer=keras.optimizers.Adam(learning_rate=0.005), loss="mse")
model.summary()
history = model.fit(train, epochs=2, steps_per_epoch=25, validation_data=validation)
print("validation loss:", history.history["val_loss"])

for x, y in validation.take(1):
    prediction = model.predict(x)
    print(f"in {future} hours: {float(y[0, 0]):.2f}, predicted {prediction[0, 0]:.2f}")

sample = x[:4]
