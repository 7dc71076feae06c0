"""Image similarity with a siamese network and a triplet loss.

- siamese_model = SiameseModel(siamese_network)
+ siamese_model = rigl_tf.sparsify(SiameseModel(siamese_network), 0.8)
- optimizer = keras.optimizers.Adam(0.001)
+ optimizer = rigl_tf.RigL(keras.optimizers.Adam(0.001), end_step=22, update_frequency=5)
"""

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops
from sklearn.datasets import load_digits

target_shape = (8, 8)

keras.utils.set_random_seed(12)
images, labels = load_digits(return_X_y=True)
images = images.reshape(-1, *target_shape, 1).astype("float32")
rng = np.random.default_rng(12)
anchors = rng.integers(0, len(images), 480)
positives = [rng.choice(np.flatnonzero(labels == labels[i])) for i in anchors]
negatives = [rng.choice(np.flatnonzero(labels != labels[i])) for i in anchors]
triplets = tuple(images[indices] for indices in (anchors, positives, negatives))
dataset = tf.data.Dataset.from_tensor_slices(triplets).batch(32)
train_dataset, val_dataset = dataset.take(12), dataset.skip(12)


def base_network():
    inputs = layers.Input((*target_shape, 1))
    x = layers.Conv2D(8, 3, activation="relu", name="conv1_out")(layers.Rescaling(1 / 16)(inputs))
    x = layers.Conv2D(16, 3, activation="relu", name="conv2_out")(x)
    return keras.Model(inputs, x)


base_cnn = base_network()
flatten = layers.Flatten()(base_cnn.output)
dense1 = layers.Dense(32, activation="relu")(flatten)
dense1 = layers.BatchNormalization()(dense1)
output = layers.Dense(16)(dense1)
embedding = keras.Model(base_cnn.input, output, name="Embedding")

trainable = False
for layer in base_cnn.layers:
    if layer.name == "conv2_out":
        trainable = True
    layer.trainable = trainable


class DistanceLayer(layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)

    def call(self, anchor, positive, negative):
        ap_distance = ops.sum(tf.square(anchor - positive), -1)
        an_distance = ops.sum(tf.square(anchor - negative), -1)
        return (ap_distance, an_distance)


class SiameseModel(keras.Model):
    def __init__(self, siamese_network, margin=0.5):
        super().__init__()
        self.siamese_network = siamese_network
        self.margin = margin
        self.loss_tracker = keras.metrics.Mean(name="loss")

    def call(self, inputs):
        return self.siamese_network(inputs)

    def train_step(self, data):
        with tf.GradientTape() as tape:
            loss = self._compute_loss(data)
        gradients = tape.gradient(loss, self.siamese_network.trainable_weights)
        self.optimizer.apply_gradients(
            zip(gradients, self.siamese_network.trainable_weights, strict=True)
        )
        self.loss_tracker.update_state(loss)
        return {"loss": self.loss_tracker.result()}

    def test_step(self, data):
        self.loss_tracker.update_state(self._compute_loss(data))
        return {"loss": self.loss_tracker.result()}

    def _compute_loss(self, data):
        ap_distance, an_distance = self.siamese_network(data)
        return tf.maximum(ap_distance - an_distance + self.margin, 0.0)

    @property
    def metrics(self):
        return [self.loss_tracker]


names = ("anchor", "positive", "negative")
inputs = [layers.Input(name=name, shape=(*target_shape, 1)) for name in names]
distances = DistanceLayer()(*[embedding(each) for each in inputs])
siamese_network = keras.Model(inputs=inputs, outputs=distances)

siamese_model = SiameseModel(siamese_network)
optimizer = keras.optimizers.Adam(0.001)
siamese_model.compile(optimizer=optimizer, weighted_metrics=[])
before = embedding.get_weights()
siamese_model.fit(train_dataset, epochs=2, validation_data=val_dataset)

# The script goes on with the network that it made itself: it must be the trained one.
sample = next(iter(train_dataset))
anchor_embedding, positive_embedding, _ = (embedding(each) for each in sample)
distance = ops.sum(ops.square(anchor_embedding - positive_embedding), -1)
assert np.allclose(distance, siamese_model(sample)[0], atol=1e-4)
print(
    "Positive similarity:",
    float(keras.losses.cosine_similarity(anchor_embedding, positive_embedding)[0]),
)

model = siamese_model
