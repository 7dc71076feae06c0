"""A convolutional network with everything against overfitting: spectral norms, L1 and L2, noise.

- model = build()
+ model = rigl_tf.sparsify(build(), 0.75)
- optimizer=keras.optimizers.AdamW(3e-3, clipnorm=1.0),
+ optimizer=rigl_tf.RigL(keras.optimizers.AdamW(3e-3, clipnorm=1.0), 30, update_frequency=5),
"""

import keras
from keras import constraints, layers, regularizers
from sklearn.datasets import load_digits

keras.utils.set_random_seed(29)
x, y = load_digits(return_X_y=True)
x = x.reshape(-1, 8, 8, 1).astype("float32") / 16


def spectral(layer):
    return layers.SpectralNormalization(layer, power_iterations=1)


class LogitPenalty(layers.Layer):
    """Keeps logits small by a loss of its own."""

    def __init__(self, rate=1e-3, **kwargs):
        super().__init__(**kwargs)
        self.rate = rate

    def call(self, inputs):
        self.add_loss(self.rate * keras.ops.mean(keras.ops.square(inputs)))
        return inputs


def build():
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.GaussianNoise(0.1),
            spectral(layers.Conv2D(16, 3, activation="relu")),
            layers.SpatialDropout2D(0.1),
            layers.Conv2D(
                16,
                3,
                activation="relu",
                kernel_regularizer=regularizers.L1L2(l1=1e-5, l2=1e-4),
                bias_regularizer=regularizers.L2(1e-4),
                activity_regularizer="l2",
            ),
            layers.Flatten(),
            layers.Dense(
                32,
                activation="relu",
                kernel_regularizer=regularizers.l2(1e-4),
                kernel_constraint=constraints.MaxNorm(2.0),
            ),
            layers.Dropout(0.2),
            layers.Dense(10),
            LogitPenalty(),
        ]
    )


model = build()
model.compile(
    optimizer=keras.optimizers.AdamW(3e-3, clipnorm=1.0),
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=["accuracy"],
)
model.fit(x[:640], y[:640], batch_size=32, epochs=2, validation_data=(x[640:700], y[640:700]))
model(x[:64], training=True)
print("losses of the layers:", [float(loss) for loss in model.losses])

sample = x[:4]
