"""A Sequential model without an Input: its weights are made when fit sees the data.

- model = keras.Sequential(network)
+ model = rigl_tf.sparsify(keras.Sequential(network), 0.9)
- model.compile(optimizer="sgd", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
+ model.compile(rigl_tf.RigL("sgd", 45, update_frequency=5), loss="sparse_categorical_crossentropy")
"""

import keras
from keras import layers
from sklearn.datasets import load_digits

keras.utils.set_random_seed(37)
x, y = load_digits(return_X_y=True)
x = x.reshape(-1, 8, 8) / 16

network = [
    layers.Reshape((8, 8, 1)),
    layers.Conv2D(16, (3, 3), activation="relu"),
    layers.MaxPooling2D((2, 2)),
    layers.Conv2D(32, (3, 3), activation="relu"),
    layers.Flatten(),
    layers.Dense(64, activation="relu"),
    layers.Dense(10, activation="softmax"),
]
model = keras.Sequential(network)
assert not model.built
model.compile(optimizer="sgd", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
model.fit(x[:960], y[:960], batch_size=32, epochs=2)
model.summary()
print(model.evaluate(x[960:1100], y[960:1100], return_dict=True))

# Layers can still be taken away: what is left gives features.
probabilities = model.predict(x[:4])
kernel, bias, *_ = model.layers[-1].get_weights()
features = keras.Sequential(model.layers[:-1])
logits = features.predict(x[:4]) @ kernel + bias
assert (logits.argmax(1) == probabilities.argmax(1)).all()

sample = x[:4]
