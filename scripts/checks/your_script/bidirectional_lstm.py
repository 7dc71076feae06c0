"""Text classification with stacked bidirectional LSTMs; padding is masked.

- model = keras.Model(inputs, outputs)
+ model = rigl_tf.sparsify(keras.Model(inputs, outputs), 0.8)
- model.compile(optimizer="adam", loss="binary_crossentropy", metrics=["accuracy"])
+ model.compile(rigl_tf.RigL("adam", 30, update_frequency=5), loss="binary_crossentropy")
"""

import keras
import numpy as np
from keras import layers

max_features = 120
maxlen = 20

keras.utils.set_random_seed(18)
rng = np.random.default_rng(18)
y = rng.integers(0, 2, 720)
lengths = rng.integers(4, maxlen, 720)
x = [rng.integers(1 + 20 * c, 100 + 20 * c, n) for c, n in zip(y, lengths, strict=True)]
x = keras.utils.pad_sequences(x, maxlen=maxlen, padding="post")

inputs = keras.Input(shape=(None,), dtype="int32")
x_embedded = layers.Embedding(max_features, 16, mask_zero=True)(inputs)
h = layers.Bidirectional(layers.LSTM(12, return_sequences=True))(x_embedded)
h = layers.Bidirectional(layers.LSTM(12))(h)
outputs = layers.Dense(1, activation="sigmoid")(h)

model = keras.Model(inputs, outputs)
model.summary()
model.compile(optimizer="adam", loss="binary_crossentropy", metrics=["accuracy"])
model.fit(x[:640], y[:640], batch_size=32, epochs=2, validation_data=(x[640:], y[640:]))

# What stands in the padding makes no difference.
assert np.allclose(model.predict(x[:4, :-1]), model.predict(x[:4]), atol=1e-5)

sample = x[:4]
