"""A subclassed model whose layers are made in its build, from the shape of the input.

- model = PyramidNet(num_classes=10)
+ model = rigl_tf.sparsify(PyramidNet(num_classes=10), 0.8)
- optimizer="nadam",
+ optimizer=rigl_tf.RigL("nadam", end_step=30, update_frequency=5),
"""

import keras
from keras import layers
from sklearn.datasets import load_digits

keras.utils.set_random_seed(34)
x, y = load_digits(return_X_y=True)
x = x.astype("float32") / 16


class Standardize(layers.Layer):
    """Learns what to subtract, and what to multiply by, for each feature."""

    def build(self, input_shape):
        self.shift = self.add_weight(shape=input_shape[1:], initializer="zeros", name="shift")
        self.scale = self.add_weight(shape=input_shape[1:], initializer="ones", name="scale")

    def call(self, inputs):
        return (inputs - self.shift) * self.scale


class PyramidNet(keras.Model):
    """Each layer is half as wide as the one before, down to the number of classes."""

    def __init__(self, num_classes):
        super().__init__()
        self.num_classes = num_classes

    def build(self, input_shape):
        self.standardize = Standardize()
        self.hidden_layers = []
        units = input_shape[-1]
        while units > 2 * self.num_classes:
            self.hidden_layers.append(layers.Dense(units, activation="relu"))
            units //= 2
        self.classifier = layers.Dense(self.num_classes, activation="softmax")

        self.standardize.build(input_shape)
        shape = input_shape
        for layer in self.hidden_layers:
            layer.build(shape)
            shape = layer.compute_output_shape(shape)
        self.classifier.build(shape)
        self.built = True

    def call(self, inputs):
        x = self.standardize(inputs)
        for layer in self.hidden_layers:
            x = layer(x)
        return self.classifier(x)


model = PyramidNet(num_classes=10)
model.compile(
    optimizer="nadam",
    loss="sparse_categorical_crossentropy",
    metrics=["accuracy"],
)
model.fit(x[:640], y[:640], batch_size=32, epochs=2, validation_split=0.1)
model.summary()
assert len(model.hidden_layers) == 2

sample = x[:4]
