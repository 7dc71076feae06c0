"""Structured data: a wide and deep network, layers in a dictionary of the model.

- model = WideAndDeep(vocabularies, hidden_units=[32, 16])
+ model = rigl_tf.sparsify(WideAndDeep(vocabularies, hidden_units=[32, 16]), 0.8)
- optimizer=keras.optimizers.Adagrad(learning_rate=0.05),
+ optimizer=rigl_tf.RigL(keras.optimizers.Adagrad(0.05), end_step=30, update_frequency=5),
"""

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

keras.utils.set_random_seed(22)
rng = np.random.default_rng(22)
vocabularies = {"soil": [f"soil_{i}" for i in range(12)], "area": ["north", "east", "south"]}
num = 640
features = {name: rng.choice(words, num) for name, words in vocabularies.items()}
features["elevation"] = rng.normal(size=(num,)).astype("float32")
features["slope"] = rng.normal(size=(num,)).astype("float32")
labels = (features["elevation"] > 0) + 2 * (features["area"] == "east")


class WideAndDeep(keras.Model):
    def __init__(self, vocabularies, hidden_units):
        super().__init__()
        self.lookups = {
            name: layers.StringLookup(vocabulary=words, num_oov_indices=1)
            for name, words in vocabularies.items()
        }
        self.one_hot = {
            name: layers.CategoryEncoding(len(words) + 1, output_mode="one_hot")
            for name, words in vocabularies.items()
        }
        self.embeddings = {
            name: layers.Embedding(len(words) + 1, 4) for name, words in vocabularies.items()
        }
        self.deep = [layers.Dense(units) for units in hidden_units]
        self.norms = [layers.BatchNormalization() for _ in hidden_units]
        self.wide_norm = layers.BatchNormalization()
        self.outputs_of = {"wide": layers.Dense(8), "deep": layers.Dense(4)}

    def call(self, inputs, training=False):
        indices = {name: lookup(inputs[name]) for name, lookup in self.lookups.items()}
        numbers = [ops.expand_dims(inputs[name], -1) for name in ("elevation", "slope")]
        wide = [self.one_hot[name](index) for name, index in indices.items()]
        wide = self.wide_norm(ops.concatenate([*wide, *numbers], axis=-1), training=training)
        deep = [self.embeddings[name](index) for name, index in indices.items()]
        deep = ops.concatenate([*deep, *numbers], axis=-1)
        for dense, norm in zip(self.deep, self.norms, strict=True):
            deep = ops.relu(norm(dense(deep), training=training))
        merged = [self.outputs_of["wide"](wide), self.outputs_of["deep"](deep)]
        return ops.concatenate(merged, axis=-1)


dataset = tf.data.Dataset.from_tensor_slices((features, labels)).batch(32)
model = WideAndDeep(vocabularies, hidden_units=[32, 16])
model.compile(
    optimizer=keras.optimizers.Adagrad(learning_rate=0.05),
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=[keras.metrics.SparseCategoricalAccuracy()],
)
model.fit(dataset, epochs=2)
_, accuracy = model.evaluate(dataset, verbose=0)
print(f"accuracy: {round(accuracy * 100, 2)}%")

sample = next(iter(dataset.unbatch().batch(4)))[0]
