"""Self-supervised learning with a momentum encoder: a moving average of the trained one.

- model = MomentumContrast(get_encoder())
+ model = rigl_tf.sparsify(MomentumContrast(get_encoder()), 0.8)
- model.compile(optimizer=keras.optimizers.SGD(0.05, momentum=0.9))
+ model.compile(optimizer=rigl_tf.RigL(keras.optimizers.SGD(0.05, 0.9), 30, update_frequency=5))
"""

import keras
import tensorflow as tf
from keras import layers, ops
from sklearn.datasets import load_digits

width = 24
momentum_coeff = 0.9

keras.utils.set_random_seed(26)
images = load_digits().images.reshape(-1, 8, 8, 1).astype("float32") / 16


def get_encoder():
    return keras.Sequential(
        [
            keras.Input(shape=(8, 8, 1)),
            layers.Conv2D(width, 3, strides=2, activation="relu"),
            layers.BatchNormalization(),
            layers.Flatten(),
            layers.Dense(width, activation="relu"),
            layers.Dense(width),
        ],
        name="encoder",
    )


class MomentumContrast(keras.Model):
    def __init__(self, encoder, temperature=0.2):
        super().__init__()
        self.encoder = encoder
        self.momentum_encoder = keras.models.clone_model(encoder)
        self.momentum_encoder.set_weights(encoder.get_weights())
        self.predictor = keras.Sequential([layers.Dense(width, activation="relu")])
        self.predictor.add(layers.Dense(width))
        self.augment = layers.RandomTranslation(0.15, 0.15)
        self.temperature = temperature
        self.loss_tracker = keras.metrics.Mean(name="loss")

    @property
    def metrics(self):
        return [self.loss_tracker]

    def call(self, images):
        return self.predictor(self.encoder(images))

    def train_step(self, images):
        one, other = self.augment(images, training=True), self.augment(images, training=True)
        with tf.GradientTape() as tape:
            queries = ops.normalize(self.predictor(self.encoder(one, training=True)))
            keys = ops.normalize(self.momentum_encoder(other, training=True))
            similarities = ops.matmul(queries, ops.transpose(keys)) / self.temperature
            labels = ops.arange(ops.shape(images)[0])
            loss = ops.mean(
                keras.losses.sparse_categorical_crossentropy(labels, similarities, from_logits=True)
            )
        trained = self.encoder.trainable_weights + self.predictor.trainable_weights
        gradients = tape.gradient(loss, trained)
        self.optimizer.apply_gradients(zip(gradients, trained, strict=True))
        self.loss_tracker.update_state(loss)
        # The momentum encoder follows slowly.
        for weight, m_weight in zip(
            self.encoder.weights, self.momentum_encoder.weights, strict=True
        ):
            m_weight.assign(momentum_coeff * m_weight + (1 - momentum_coeff) * weight)
        return {"loss": self.loss_tracker.result()}


dataset = tf.data.Dataset.from_tensor_slices(images[:960]).batch(48)
model = MomentumContrast(get_encoder())
model.compile(optimizer=keras.optimizers.SGD(0.05, momentum=0.9))
model.fit(dataset, epochs=2)
distances = ops.norm(model.encoder(images[:4]) - model.momentum_encoder(images[:4]), axis=1)
print("from the momentum encoder:", distances.numpy())

sample = images[:4]
