"""Weights that two layers share, as a layer is passed to another one's constructor.

- model = TiedModel(num_words, units)
+ model = rigl_tf.sparsify(TiedModel(num_words, units), 0.7, sparse_layers="embedding")
- optimizer=keras.optimizers.Adam(0.005),
+ optimizer=rigl_tf.RigL(keras.optimizers.Adam(0.005), end_step=30, update_frequency=5),
"""

import keras
import numpy as np
from keras import layers, ops

num_words, units, length = 40, 24, 12

keras.utils.set_random_seed(48)
rng = np.random.default_rng(48)
# Each word follows from the one before, but for some noise.
text = np.cumsum(rng.integers(1, 3, size=(640, length + 1)), axis=1) % num_words


class DenseTranspose(layers.Layer):
    """The transpose of a dense layer: the same kernel, a bias of its own."""

    def __init__(self, dense, activation=None, **kwargs):
        super().__init__(**kwargs)
        self.dense = dense
        self.activation = keras.activations.get(activation)

    def build(self, input_shape):
        self.biases = self.add_weight(
            name="bias", shape=self.dense.kernel.shape[:1], initializer="zeros"
        )

    def call(self, inputs):
        outputs = ops.matmul(inputs, ops.transpose(self.dense.kernel))
        return self.activation(outputs + self.biases)


class TiedLogits(layers.Layer):
    """The probabilities of the words, by the vectors that the embedding has for them."""

    def __init__(self, embedding):
        super().__init__()
        self.embedding = embedding
        self.bias = self.add_weight(name="bias", shape=(embedding.input_dim,), initializer="zeros")

    def call(self, inputs):
        return ops.matmul(inputs, ops.transpose(self.embedding.embeddings)) + self.bias


class TiedModel(keras.Model):
    def __init__(self, num_words, units):
        super().__init__()
        self.embedding = layers.Embedding(num_words, units, name="embedding")
        self.rnn = layers.GRU(units, return_sequences=True)
        self.dense = layers.Dense(2 * units, activation="tanh", name="dense")
        self.transpose = DenseTranspose(self.dense)
        self.logits = TiedLogits(self.embedding)

    def call(self, inputs):
        x = self.rnn(self.embedding(inputs))
        return self.logits(self.transpose(self.dense(x)))


model = TiedModel(num_words, units)
model.compile(
    optimizer=keras.optimizers.Adam(0.005),
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=["accuracy"],
)
model.fit(text[:, :-1], text[:, 1:], batch_size=32, epochs=2)
assert len(model.trainable_weights) == 8  # the two shared ones are counted once

sample = text[:4, :-1]
