"""A learning-rate schedule that is a class of the script: a cosine after a warm-up.

- model = ConvMixer(filters=16, depth=2, patch_size=2)
+ model = rigl_tf.sparsify(ConvMixer(filters=16, depth=2, patch_size=2), 0.7)
- optimizer = keras.optimizers.AdamW(learning_rate=schedule, weight_decay=1e-4, clipnorm=1.0)
+ optimizer = rigl_tf.RigL(keras.optimizers.AdamW(schedule, 1e-4), end_step=30, update_frequency=5)
"""

import keras
import numpy as np
from keras import layers, ops
from sklearn.datasets import load_digits

keras.utils.set_random_seed(41)
x, y = load_digits(return_X_y=True)
x = x.reshape(-1, 8, 8, 1).astype("float32")
batch_size, epochs = 32, 2


class WarmUpCosine(keras.optimizers.schedules.LearningRateSchedule):
    def __init__(self, learning_rate_base, total_steps, warmup_learning_rate, warmup_steps):
        super().__init__()
        self.learning_rate_base = learning_rate_base
        self.total_steps = total_steps
        self.warmup_learning_rate = warmup_learning_rate
        self.warmup_steps = warmup_steps

    def __call__(self, step):
        step = ops.cast(step, "float32")
        rest = (step - self.warmup_steps) / (self.total_steps - self.warmup_steps)
        learning_rate = 0.5 * self.learning_rate_base * (1 + ops.cos(np.pi * rest))
        slope = (self.learning_rate_base - self.warmup_learning_rate) / self.warmup_steps
        warmup_rate = slope * step + self.warmup_learning_rate
        learning_rate = ops.where(step < self.warmup_steps, warmup_rate, learning_rate)
        return ops.where(step > self.total_steps, 0.0, learning_rate)


def activation_block(x):
    x = layers.Activation("gelu")(x)
    return layers.BatchNormalization()(x)


def conv_mixer_block(x, filters, kernel_size):
    x0 = x
    x = layers.DepthwiseConv2D(kernel_size=kernel_size, padding="same")(x)
    x = layers.Add()([activation_block(x), x0])
    x = layers.Conv2D(filters, kernel_size=1)(x)
    return activation_block(x)


def ConvMixer(filters, depth, patch_size, kernel_size=3):
    inputs = keras.Input((8, 8, 1))
    x = layers.Rescaling(scale=1.0 / 16)(inputs)
    x = activation_block(layers.Conv2D(filters, kernel_size=patch_size, strides=patch_size)(x))
    for _ in range(depth):
        x = conv_mixer_block(x, filters, kernel_size)
    x = layers.GlobalAvgPool2D()(x)
    return keras.Model(inputs, layers.Dense(10, activation="softmax")(x))


total_steps = 640 // batch_size * epochs
schedule = WarmUpCosine(0.01, total_steps, warmup_learning_rate=0.0, warmup_steps=total_steps // 4)
optimizer = keras.optimizers.AdamW(learning_rate=schedule, weight_decay=1e-4, clipnorm=1.0)

model = ConvMixer(filters=16, depth=2, patch_size=2)
model.compile(optimizer=optimizer, loss="sparse_categorical_crossentropy", metrics=["accuracy"])
model.fit(x[:640], y[:640], batch_size=batch_size, epochs=epochs)
print("learning rate at the end:", float(optimizer.learning_rate))

sample = x[:4]
