"""Molecular properties by message passing: sublayers and weights made in a layer's build.

- mpnn = MPNNModel(atom_dim=6, bond_dim=3)
+ mpnn = rigl_tf.sparsify(MPNNModel(atom_dim=6, bond_dim=3), 0.6)
- optimizer=keras.optimizers.Adam(learning_rate=5e-3),
+ optimizer=rigl_tf.RigL(keras.optimizers.Adam(5e-3), end_step=30, update_frequency=5),
"""

import keras
import numpy as np
import tensorflow as tf
from keras import layers

BATCH_SIZE, NUM_ATOMS, NUM_BONDS = 16, 8, 20

keras.utils.set_random_seed(31)
rng = np.random.default_rng(31)
atoms = rng.normal(size=(480, NUM_ATOMS, 6)).astype("float32")
bonds = rng.normal(size=(480, NUM_BONDS, 3)).astype("float32")
pairs = rng.integers(0, NUM_ATOMS, size=(480, NUM_BONDS, 2))
y = (atoms[:, :, 0].mean(1) + bonds[:, :, 1].mean(1) > 0).astype("float32")


def merge_batch(x, y):
    """The molecules of a batch become one graph that does not hang together."""
    atom_features, bond_features, pair_indices = x
    num = tf.shape(atom_features)[0]
    shift = NUM_ATOMS * tf.range(num, dtype=pair_indices.dtype)[:, None, None]
    indicator = tf.repeat(tf.range(num), NUM_ATOMS)
    graph = (
        tf.reshape(atom_features, (-1, 6)),
        tf.reshape(bond_features, (-1, 3)),
        tf.reshape(pair_indices + shift, (-1, 2)),
        indicator,
    )
    return graph, y


class EdgeNetwork(layers.Layer):
    def build(self, input_shape):
        self.atom_dim = input_shape[0][-1]
        self.bond_dim = input_shape[1][-1]
        self.kernel = self.add_weight(
            shape=(self.bond_dim, self.atom_dim * self.atom_dim),
            initializer="glorot_uniform",
            name="kernel",
        )
        self.bias = self.add_weight(
            shape=(self.atom_dim * self.atom_dim,), initializer="zeros", name="bias"
        )
        self.built = True

    def call(self, inputs):
        atom_features, bond_features, pair_indices = inputs
        bond_features = tf.matmul(bond_features, self.kernel) + self.bias
        bond_features = tf.reshape(bond_features, (-1, self.atom_dim, self.atom_dim))
        neighbors = tf.expand_dims(tf.gather(atom_features, pair_indices[:, 1]), axis=-1)
        transformed = tf.squeeze(tf.matmul(bond_features, neighbors), axis=-1)
        num_atoms = tf.shape(atom_features)[0]
        return tf.math.unsorted_segment_sum(transformed, pair_indices[:, 0], num_atoms)


class MessagePassing(layers.Layer):
    def __init__(self, units, steps=2, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.steps = steps

    def build(self, input_shape):
        self.atom_dim = input_shape[0][-1]
        self.message_step = EdgeNetwork()
        self.pad_length = max(0, self.units - self.atom_dim)
        self.update_step = layers.GRUCell(self.atom_dim + self.pad_length)
        self.built = True

    def call(self, inputs):
        atom_features, bond_features, pair_indices = inputs
        updated = tf.pad(atom_features, [(0, 0), (0, self.pad_length)])
        for _ in range(self.steps):
            aggregated = self.message_step([updated, bond_features, pair_indices])
            updated, _ = self.update_step(aggregated, updated)
        return updated


class Readout(layers.Layer):
    def __init__(self, units):
        super().__init__()
        self.dense = layers.Dense(units, activation="relu")

    def call(self, inputs):
        atom_features, molecule_indicator = inputs
        count = tf.reduce_max(molecule_indicator) + 1
        return tf.math.unsorted_segment_mean(self.dense(atom_features), molecule_indicator, count)


def MPNNModel(atom_dim, bond_dim, message_units=12):
    atom_features = layers.Input((atom_dim,), dtype="float32", name="atom_features")
    bond_features = layers.Input((bond_dim,), dtype="float32", name="bond_features")
    pair_indices = layers.Input((2,), dtype="int32", name="pair_indices")
    molecule_indicator = layers.Input((), dtype="int32", name="molecule_indicator")
    x = MessagePassing(message_units)([atom_features, bond_features, pair_indices])
    x = Readout(16)([x, molecule_indicator])
    x = layers.Dense(16, activation="relu")(x)
    x = layers.Dense(1, activation="sigmoid")(x)
    return keras.Model([atom_features, bond_features, pair_indices, molecule_indicator], x)


dataset = tf.data.Dataset.from_tensor_slices(((atoms, bonds, pairs), y))
dataset = dataset.batch(BATCH_SIZE).map(merge_batch, -1).prefetch(-1)

mpnn = MPNNModel(atom_dim=6, bond_dim=3)
mpnn.compile(
    loss=keras.losses.BinaryCrossentropy(),
    optimizer=keras.optimizers.Adam(learning_rate=5e-3),
    metrics=[keras.metrics.AUC(name="AUC")],
)
mpnn.fit(dataset, epochs=2, class_weight={0: 1.0, 1: 1.5})

model, sample = mpnn, list(next(iter(dataset))[0])
