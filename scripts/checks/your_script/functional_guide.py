"""The Functional API: two inputs, two outputs, a shared layer, named losses and weights.

- model = keras.Model(inputs=inputs, outputs=[priority_pred, department_pred])
+ model = rigl_tf.sparsify(keras.Model(inputs, [priority_pred, department_pred]), sparsity=0.8)
- optimizer=keras.optimizers.RMSprop(1e-3),
+ optimizer=rigl_tf.RigL(keras.optimizers.RMSprop(1e-3), end_step=60, update_frequency=10),
"""

import keras
import numpy as np
from keras import layers

num_tags = 12
num_words = 300
num_departments = 4

keras.utils.set_random_seed(7)
rng = np.random.default_rng(7)
title_data = rng.integers(1, num_words, size=(640, 6))
body_data = rng.integers(1, num_words, size=(640, 20))
tags_data = rng.integers(0, 2, size=(640, num_tags)).astype("float32")
priority_targets = (tags_data[:, :4].sum(-1, keepdims=True) > 2).astype("float32")
dept_targets = keras.utils.to_categorical(tags_data[:, :2] @ [1, 2], num_departments)


class CustomDense(layers.Layer):
    def __init__(self, units=32):
        super().__init__()
        self.units = units

    def build(self, input_shape):
        self.w = self.add_weight(
            shape=(input_shape[-1], self.units), initializer="random_normal", trainable=True
        )
        self.b = self.add_weight(shape=(self.units,), initializer="zeros", trainable=True)

    def call(self, inputs):
        return keras.ops.matmul(inputs, self.w) + self.b

    def get_config(self):
        return {"units": self.units}


title_input = keras.Input(shape=(None,), name="title")
body_input = keras.Input(shape=(None,), name="body")
tags_input = keras.Input(shape=(num_tags,), name="tags")

shared_embedding = layers.Embedding(num_words, 16)
title_features = layers.LSTM(16)(shared_embedding(title_input))
body_features = layers.LSTM(8)(shared_embedding(body_input))
x = layers.concatenate([title_features, body_features, tags_input])
x = keras.activations.relu(CustomDense(24)(x))
priority_pred = layers.Dense(1, name="priority")(x)
department_pred = layers.Dense(num_departments, name="department")(x)

inputs = [title_input, body_input, tags_input]
model = keras.Model(inputs=inputs, outputs=[priority_pred, department_pred])
model.compile(
    optimizer=keras.optimizers.RMSprop(1e-3),
    loss={
        "priority": keras.losses.BinaryCrossentropy(from_logits=True),
        "department": keras.losses.CategoricalCrossentropy(from_logits=True),
    },
    loss_weights={"priority": 1.0, "department": 0.2},
)
model.fit(
    {"title": title_data, "body": body_data, "tags": tags_data},
    {"priority": priority_targets, "department": dept_targets},
    epochs=2,
    batch_size=16,
)

sample = [title_data[:4], body_data[:4], tags_data[:4]]
