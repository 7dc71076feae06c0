"""Sublayers that are made at the first call, in a layer and in the model around it.

- net = ResidualMLP(depth=2)
+ net = rigl_tf.sparsify(ResidualMLP(depth=2), 0.75)
- optimizer = keras.optimizers.Adam(5e-3)
+ optimizer = rigl_tf.RigL(keras.optimizers.Adam(5e-3), end_step=30, update_frequency=5)
"""

import keras
import numpy as np
from keras import layers
from sklearn.datasets import load_digits

keras.utils.set_random_seed(35)
x, y = load_digits(return_X_y=True)
x = x.astype("float32") / 16


class ResidualBlock(layers.Layer):
    """Its layers depend on the width of what it is called on."""

    def __init__(self, expansion=2):
        super().__init__()
        self.expansion = expansion
        self.norm = layers.LayerNormalization()
        self.expand = None

    def call(self, inputs):
        if self.expand is None:
            width = inputs.shape[-1]
            self.expand = layers.Dense(self.expansion * width, activation="gelu")
            self.contract = layers.Dense(width)
        return inputs + self.contract(self.expand(self.norm(inputs)))


class ResidualMLP(keras.Model):
    def __init__(self, depth):
        super().__init__()
        self.depth = depth
        self.stem = layers.Dense(32)
        self.blocks = None

    def call(self, inputs):
        if self.blocks is None:
            self.blocks = [ResidualBlock() for _ in range(self.depth)]
            self.classifier = layers.Dense(10)
        x = self.stem(inputs)
        for block in self.blocks:
            x = block(x)
        return self.classifier(x)


net = ResidualMLP(depth=2)
# A first call on one example makes all the weights.
net(x[:1])
print("weights:", net.count_params())
optimizer = keras.optimizers.Adam(5e-3)
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
net.compile(optimizer=optimizer, loss=loss, metrics=["accuracy"])
net.fit(x[:640], y[:640], batch_size=32, epochs=2)
loss_before, _ = net.evaluate(x[640:700], y[640:700])
assert np.isfinite(loss_before)

model, sample = net, x[:4]
