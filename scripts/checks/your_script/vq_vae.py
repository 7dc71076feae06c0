"""A VQ-VAE: a layer with a codebook, gradients copied past it, a trainer with its own step.

- vqvae_trainer = VQVAETrainer(data_variance, latent_dim=8, num_embeddings=32)
+ vqvae_trainer = rigl_tf.sparsify(VQVAETrainer(data_variance, 8, num_embeddings=32), 0.7)
- vqvae_trainer.compile(optimizer=keras.optimizers.Adam())
+ vqvae_trainer.compile(optimizer=rigl_tf.RigL(keras.optimizers.Adam(), 30, update_frequency=5))
"""

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from sklearn.datasets import load_digits

keras.utils.set_random_seed(44)
x_train = load_digits().images[:640, ..., np.newaxis].astype("float32") / 16 - 0.5


class VectorQuantizer(layers.Layer):
    def __init__(self, num_embeddings, embedding_dim, beta=0.25, **kwargs):
        super().__init__(**kwargs)
        self.embedding_dim = embedding_dim
        self.num_embeddings = num_embeddings
        self.beta = beta
        self.embeddings = self.add_weight(
            shape=(self.embedding_dim, self.num_embeddings),
            initializer=keras.initializers.RandomUniform(),
            trainable=True,
            name="embeddings_vqvae",
        )

    def call(self, x):
        flattened = tf.reshape(x, [-1, self.embedding_dim])
        indices = self.get_code_indices(flattened)
        encodings = tf.one_hot(indices, self.num_embeddings)
        quantized = tf.matmul(encodings, self.embeddings, transpose_b=True)
        quantized = tf.reshape(quantized, tf.shape(x))
        commitment_loss = tf.reduce_mean((tf.stop_gradient(quantized) - x) ** 2)
        codebook_loss = tf.reduce_mean((quantized - tf.stop_gradient(x)) ** 2)
        self.add_loss(self.beta * commitment_loss + codebook_loss)
        return x + tf.stop_gradient(quantized - x)

    def get_code_indices(self, flattened):
        similarity = tf.matmul(flattened, self.embeddings)
        distances = (
            tf.reduce_sum(flattened**2, axis=1, keepdims=True)
            + tf.reduce_sum(self.embeddings**2, axis=0)
            - 2 * similarity
        )
        return tf.argmin(distances, axis=1)


def get_encoder(latent_dim):
    encoder_inputs = keras.Input(shape=(8, 8, 1))
    x = layers.Conv2D(16, 3, activation="relu", strides=2, padding="same")(encoder_inputs)
    return keras.Model(encoder_inputs, layers.Conv2D(latent_dim, 1)(x), name="encoder")


def get_vqvae(latent_dim, num_embeddings):
    quantizer = VectorQuantizer(num_embeddings, latent_dim, name="vector_quantizer")
    encoder = get_encoder(latent_dim)
    latent_inputs = keras.Input(shape=encoder.output.shape[1:])
    x = layers.Conv2DTranspose(16, 3, activation="relu", strides=2, padding="same")(latent_inputs)
    x = layers.Conv2DTranspose(1, 3, padding="same")(x)
    decoder = keras.Model(latent_inputs, x, name="decoder")
    inputs = keras.Input(shape=(8, 8, 1))
    return keras.Model(inputs, decoder(quantizer(encoder(inputs))), name="vq_vae")


class VQVAETrainer(keras.models.Model):
    def __init__(self, train_variance, latent_dim=8, num_embeddings=32, **kwargs):
        super().__init__(**kwargs)
        self.train_variance = train_variance
        self.latent_dim = latent_dim
        self.num_embeddings = num_embeddings
        self.vqvae = get_vqvae(self.latent_dim, self.num_embeddings)
        self.total_loss_tracker = keras.metrics.Mean(name="total_loss")
        self.reconstruction_loss_tracker = keras.metrics.Mean(name="reconstruction_loss")

    @property
    def metrics(self):
        return [self.total_loss_tracker, self.reconstruction_loss_tracker]

    def train_step(self, x):
        with tf.GradientTape() as tape:
            reconstructions = self.vqvae(x)
            reconstruction_loss = tf.reduce_mean((x - reconstructions) ** 2) / self.train_variance
            total_loss = reconstruction_loss + sum(self.vqvae.losses)
        grads = tape.gradient(total_loss, self.vqvae.trainable_variables)
        self.optimizer.apply_gradients(zip(grads, self.vqvae.trainable_variables, strict=True))
        self.total_loss_tracker.update_state(total_loss)
        self.reconstruction_loss_tracker.update_state(reconstruction_loss)
        return {metric.name: metric.result() for metric in self.metrics}


data_variance = np.var(x_train)
vqvae_trainer = VQVAETrainer(data_variance, latent_dim=8, num_embeddings=32)
vqvae_trainer.compile(optimizer=keras.optimizers.Adam())
vqvae_trainer.fit(x_train, epochs=2, batch_size=32)

trained_vqvae_model = vqvae_trainer.vqvae
encoded_outputs = trained_vqvae_model.get_layer("encoder").predict(x_train[:4])
quantizer = trained_vqvae_model.get_layer("vector_quantizer")
codes = quantizer.get_code_indices(encoded_outputs.reshape(-1, encoded_outputs.shape[-1]))
print("codes of an image:", codes.numpy()[:16])

model, sample = trained_vqvae_model, x_train[:4]
