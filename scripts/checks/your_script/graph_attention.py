"""Node classification with graph attention: layers with kernels of their own, a list of heads.

- gat_model = GraphAttentionNetwork(node_states, edges, HIDDEN_UNITS, NUM_HEADS, NUM_CLASSES)
+ gat_model = rigl_tf.sparsify(GraphAttentionNetwork(node_states, edges, 16, 2, 3), 0.7)
- optimizer=keras.optimizers.SGD(0.05, momentum=0.9),
+ optimizer=rigl_tf.RigL(keras.optimizers.SGD(0.05, momentum=0.9), 30, update_frequency=5),
"""

import keras
import numpy as np
import tensorflow as tf
from keras import layers

HIDDEN_UNITS, NUM_HEADS, NUM_CLASSES = 16, 2, 3

keras.utils.set_random_seed(30)
rng = np.random.default_rng(30)
classes = rng.integers(0, NUM_CLASSES, 240)
node_states = (rng.random((240, 60)) < 0.05 + 0.1 * np.eye(3).repeat(20, 1)[classes]).astype("f")
pairs = rng.integers(0, 240, size=(6000, 2))
pairs = pairs[(classes[pairs[:, 0]] == classes[pairs[:, 1]]) | (rng.random(6000) < 0.05)]
node_states, edges = tf.convert_to_tensor(node_states), tf.convert_to_tensor(pairs, "int32")


class GraphAttention(layers.Layer):
    def __init__(
        self, units, kernel_initializer="glorot_uniform", kernel_regularizer=None, **kwargs
    ):
        super().__init__(**kwargs)
        self.units = units
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)

    def build(self, input_shape):
        self.kernel = self.add_weight(
            shape=(input_shape[0][-1], self.units),
            trainable=True,
            initializer=self.kernel_initializer,
            regularizer=self.kernel_regularizer,
            name="kernel",
        )
        self.kernel_attention = self.add_weight(
            shape=(self.units * 2, 1),
            trainable=True,
            initializer=self.kernel_initializer,
            name="kernel_attention",
        )
        self.built = True

    def call(self, inputs):
        node_states, edges = inputs
        transformed = tf.matmul(node_states, self.kernel)
        ends = tf.reshape(tf.gather(transformed, edges), (tf.shape(edges)[0], -1))
        scores = tf.squeeze(tf.nn.leaky_relu(tf.matmul(ends, self.kernel_attention)), -1)
        scores = tf.math.exp(keras.ops.clip(scores, -2, 2))
        num_nodes = tf.shape(node_states)[0]
        sums = tf.math.unsorted_segment_sum(scores, edges[:, 0], num_nodes)
        scores = scores / tf.gather(sums, edges[:, 0])
        messages = tf.gather(transformed, edges[:, 1]) * scores[:, tf.newaxis]
        return tf.math.unsorted_segment_sum(messages, edges[:, 0], num_nodes)


class MultiHeadGraphAttention(layers.Layer):
    def __init__(self, units, num_heads=8, merge_type="concat", **kwargs):
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.merge_type = merge_type
        self.attention_layers = [GraphAttention(units) for _ in range(num_heads)]

    def call(self, inputs):
        atom_features, pair_indices = inputs
        outputs = [layer([atom_features, pair_indices]) for layer in self.attention_layers]
        if self.merge_type == "concat":
            outputs = tf.concat(outputs, axis=-1)
        else:
            outputs = tf.reduce_mean(tf.stack(outputs, axis=-1), axis=-1)
        return tf.nn.relu(outputs)


class GraphAttentionNetwork(keras.Model):
    def __init__(self, node_states, edges, hidden_units, num_heads, output_dim, **kwargs):
        super().__init__(**kwargs)
        self.node_states = node_states
        self.edges = edges
        self.preprocess = layers.Dense(hidden_units * num_heads, activation="relu")
        self.attention_layers = [MultiHeadGraphAttention(hidden_units, num_heads)]
        self.attention_layers.append(MultiHeadGraphAttention(hidden_units, num_heads))
        self.output_layer = layers.Dense(output_dim)

    def call(self, inputs):
        node_states, edges = inputs
        x = self.preprocess(node_states)
        for attention_layer in self.attention_layers:
            x = attention_layer([x, edges]) + x
        return self.output_layer(x)

    def train_step(self, data):
        indices, labels = data
        with tf.GradientTape() as tape:
            outputs = self([self.node_states, self.edges])
            loss = self.compute_loss(y=labels, y_pred=tf.gather(outputs, indices))
        grads = tape.gradient(loss, self.trainable_weights)
        self.optimizer.apply_gradients(zip(grads, self.trainable_weights, strict=True))
        return self.compute_metrics(None, labels, tf.gather(outputs, indices), None)


gat_model = GraphAttentionNetwork(node_states, edges, HIDDEN_UNITS, NUM_HEADS, NUM_CLASSES)
gat_model.compile(
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    optimizer=keras.optimizers.SGD(0.05, momentum=0.9),
    metrics=[keras.metrics.SparseCategoricalAccuracy(name="acc")],
)
gat_model.fit(x=np.arange(192), y=classes[:192], batch_size=16, epochs=3)
predicted = gat_model([node_states, edges]).numpy().argmax(1)
print("test accuracy:", (predicted[192:] == classes[192:]).mean())

model, sample = gat_model, [node_states, edges]
