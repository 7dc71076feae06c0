"""Structured data: features of many kinds, each with its preprocessing layer in the model.

- model = keras.Model(all_inputs, output)
+ model = rigl_tf.sparsify(keras.Model(all_inputs, output), 0.7)
- model.compile(optimizer, "binary_crossentropy", metrics=["accuracy"])
+ model.compile(rigl_tf.RigL(optimizer, 30, update_frequency=5), "binary_crossentropy")
"""

import keras
import numpy as np
import tensorflow as tf
from keras import layers

keras.utils.set_random_seed(21)
rng = np.random.default_rng(21)
num = 640
features = {
    "sex": rng.integers(0, 2, num),
    "ca": rng.integers(0, 4, num),
    "thal": rng.choice(["fixed", "normal", "reversible"], num),
    "age": rng.normal(55, 9, num).astype("float32"),
    "chol": rng.normal(245, 50, num).astype("float32"),
}
target = (features["age"] + 8 * features["ca"] + 10 * (features["thal"] == "fixed") > 70) * 1
dataset = tf.data.Dataset.from_tensor_slices((features, target)).batch(32).prefetch(2)


def encode_numerical_feature(feature, name, dataset):
    normalizer = layers.Normalization()
    feature_ds = dataset.map(lambda x, y: tf.expand_dims(x[name], -1))
    normalizer.adapt(feature_ds)
    return normalizer(feature)


def encode_string_feature(feature, name, dataset):
    lookup = layers.StringLookup(output_mode="binary")
    lookup.adapt(dataset.map(lambda x, y: tf.expand_dims(x[name], -1)))
    return lookup(feature)


def encode_integer_feature(feature, num_tokens):
    return layers.CategoryEncoding(num_tokens=num_tokens, output_mode="one_hot")(feature)


sex = keras.Input(shape=(1,), name="sex", dtype="int64")
ca = keras.Input(shape=(1,), name="ca", dtype="int64")
thal = keras.Input(shape=(1,), name="thal", dtype="string")
age = keras.Input(shape=(1,), name="age")
chol = keras.Input(shape=(1,), name="chol")
all_inputs = [sex, ca, thal, age, chol]

all_features = layers.concatenate(
    [
        encode_integer_feature(sex, 2),
        encode_integer_feature(ca, 4),
        encode_string_feature(thal, "thal", dataset),
        encode_numerical_feature(age, "age", dataset),
        encode_numerical_feature(chol, "chol", dataset),
    ]
)
x = layers.Dense(32, activation="relu")(all_features)
x = layers.Dropout(0.2)(x)
output = layers.Dense(1, activation="sigmoid")(x)

model = keras.Model(all_inputs, output)
optimizer = keras.optimizers.Adam(3e-3)
model.compile(optimizer, "binary_crossentropy", metrics=["accuracy"])
batches = dataset.map(lambda x, y: ({name: value[:, None] for name, value in x.items()}, y))
model.fit(batches, epochs=2)

patients = {
    "sex": [[1], [0]],
    "ca": [[0], [3]],
    "thal": [["fixed"], ["never seen"]],
    "age": [[60.0], [41.0]],
    "chol": [[233.0], [270.0]],
}
sample = {name: tf.convert_to_tensor(value) for name, value in patients.items()}
print("probability of a disease:", model.predict(sample)[:, 0])
