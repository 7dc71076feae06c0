"""A conditional GAN: only the generator becomes sparse, the discriminator stays dense.

- generator = create_generator()
+ generator = rigl_tf.sparsify(create_generator(), 0.8)
- g_optimizer=keras.optimizers.Adam(learning_rate=0.0003, beta_1=0.5),
+ g_optimizer=rigl_tf.RigL(keras.optimizers.Adam(0.0003, beta_1=0.5), 30, update_frequency=5),
"""

import keras
import tensorflow as tf
from keras import layers, ops
from sklearn.datasets import load_digits

batch_size = 32
num_classes = 10
image_size = 8
latent_dim = 12

keras.utils.set_random_seed(15)
digits, labels = load_digits(return_X_y=True)
digits = digits.reshape(-1, 8, 8, 1).astype("float32") / 16
labels = keras.utils.to_categorical(labels, num_classes)
dataset = tf.data.Dataset.from_tensor_slices((digits[:640], labels[:640])).batch(batch_size)


def create_generator():
    in_channels = latent_dim + num_classes
    return keras.Sequential(
        [
            keras.layers.InputLayer((in_channels,)),
            layers.Dense(2 * 2 * in_channels),
            layers.LeakyReLU(negative_slope=0.2),
            layers.Reshape((2, 2, in_channels)),
            layers.Conv2DTranspose(16, (4, 4), strides=(2, 2), padding="same"),
            layers.BatchNormalization(),
            layers.LeakyReLU(negative_slope=0.2),
            layers.Conv2DTranspose(1, (4, 4), strides=(2, 2), padding="same", activation="sigmoid"),
        ],
        name="generator",
    )


def create_discriminator():
    return keras.Sequential(
        [
            keras.layers.InputLayer((image_size, image_size, 1 + num_classes)),
            layers.Conv2D(16, (3, 3), strides=(2, 2), padding="same"),
            layers.LeakyReLU(negative_slope=0.2),
            layers.GlobalMaxPooling2D(),
            layers.Dense(1),
        ],
        name="discriminator",
    )


class ConditionalGAN(keras.Model):
    def __init__(self, discriminator, generator, latent_dim):
        super().__init__()
        self.discriminator = discriminator
        self.generator = generator
        self.latent_dim = latent_dim
        self.seed_generator = keras.random.SeedGenerator(1337)
        self.gen_loss_tracker = keras.metrics.Mean(name="generator_loss")
        self.disc_loss_tracker = keras.metrics.Mean(name="discriminator_loss")

    @property
    def metrics(self):
        return [self.gen_loss_tracker, self.disc_loss_tracker]

    def compile(self, d_optimizer, g_optimizer, loss_fn):
        super().compile()
        self.d_optimizer = d_optimizer
        self.g_optimizer = g_optimizer
        self.loss_fn = loss_fn

    def with_labels(self, images, one_hot):
        shape = (ops.shape(images)[0], image_size, image_size, num_classes)
        return ops.concatenate([images, ops.broadcast_to(one_hot[:, None, None], shape)], -1)

    def generate(self, one_hot):
        shape = (ops.shape(one_hot)[0], self.latent_dim)
        noise = keras.random.normal(shape=shape, seed=self.seed_generator)
        return self.generator(ops.concatenate([noise, one_hot], axis=1))

    def train_step(self, data):
        real_images, one_hot = data
        size = ops.shape(real_images)[0]
        fake = self.with_labels(self.generate(one_hot), one_hot)
        real = self.with_labels(real_images, one_hot)
        combined = ops.concatenate([fake, real], axis=0)
        labels = ops.concatenate([ops.ones((size, 1)), ops.zeros((size, 1))], axis=0)
        with tf.GradientTape() as tape:
            d_loss = self.loss_fn(labels, self.discriminator(combined))
        grads = tape.gradient(d_loss, self.discriminator.trainable_weights)
        self.d_optimizer.apply_gradients(
            zip(grads, self.discriminator.trainable_weights, strict=True)
        )
        with tf.GradientTape() as tape:
            fake = self.with_labels(self.generate(one_hot), one_hot)
            g_loss = self.loss_fn(ops.zeros((size, 1)), self.discriminator(fake))
        grads = tape.gradient(g_loss, self.generator.trainable_weights)
        self.g_optimizer.apply_gradients(zip(grads, self.generator.trainable_weights, strict=True))
        self.gen_loss_tracker.update_state(g_loss)
        self.disc_loss_tracker.update_state(d_loss)
        return {metric.name: metric.result() for metric in self.metrics}


generator = create_generator()
cond_gan = ConditionalGAN(create_discriminator(), generator, latent_dim=latent_dim)
cond_gan.compile(
    d_optimizer=keras.optimizers.Adam(learning_rate=0.0003),
    g_optimizer=keras.optimizers.Adam(learning_rate=0.0003, beta_1=0.5),
    loss_fn=keras.losses.BinaryCrossentropy(from_logits=True),
)
cond_gan.fit(dataset, epochs=2)

trained_gen = cond_gan.generator
noise = keras.random.normal((4, latent_dim), seed=2)
model, sample = trained_gen, ops.concatenate([noise, labels[:4]], axis=1)
