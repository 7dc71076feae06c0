"""Layers of the script's own whose config forgets arguments, one of them a function.

- model = keras.Model(inputs, outputs)
+ model = rigl_tf.sparsify(keras.Model(inputs, outputs), 0.8)
- optimizer=keras.optimizers.Lion(1e-3),
+ optimizer=rigl_tf.RigL(keras.optimizers.Lion(1e-3), end_step=30, update_frequency=5),
"""

import keras
from keras import layers, ops
from sklearn.datasets import load_digits

keras.utils.set_random_seed(49)
x_train, y_train = load_digits(return_X_y=True)
x_train = x_train.astype("float32") / 16


class Maxout(layers.Layer):
    def __init__(self, units, pieces, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.pieces = pieces

    def build(self, input_shape):
        self.kernel = self.add_weight(
            shape=(input_shape[-1], self.units * self.pieces), name="kernel"
        )
        self.bias = self.add_weight(shape=(self.units * self.pieces,), name="bias")

    def call(self, inputs):
        x = ops.matmul(inputs, self.kernel) + self.bias
        return ops.max(ops.reshape(x, (-1, self.units, self.pieces)), axis=-1)

    def get_config(self):  # it forgets the number of pieces
        return {**super().get_config(), "units": self.units}


class Residual(layers.Layer):
    """It is given a function that makes a layer, and a layer that is made already."""

    def __init__(self, make, gate):
        super().__init__()
        self.transform = make()
        self.gate = gate
        self.norm = layers.RMSNormalization()

    def call(self, inputs):
        return inputs + self.gate(inputs) * self.transform(self.norm(inputs))


class LinearAttention(layers.Layer):
    """Its only own weights are a token and a temperature, next to a sublayer."""

    def __init__(self, dim):
        super().__init__()
        self.qkv = layers.Dense(3 * dim, use_bias=False)
        self.cls_token = self.add_weight(shape=(1, 1, dim), name="cls_token")
        self.temperature = self.add_weight(shape=(1, 1, 1), initializer="ones", name="temperature")

    def call(self, x):
        token = ops.broadcast_to(self.cls_token, (ops.shape(x)[0], 1, x.shape[-1]))
        q, k, v = ops.split(self.qkv(ops.concatenate([token, x], axis=1)), 3, axis=-1)
        context = ops.matmul(ops.transpose(ops.softmax(k, axis=1), (0, 2, 1)), v)
        return ops.matmul(ops.softmax(q * self.temperature, axis=-1), context)[:, 0]


gate = layers.Dense(32, activation="sigmoid", name="gate")
inputs = keras.Input((64,))
x = Maxout(32, 3)(inputs)
x = Residual(lambda: layers.Dense(32, activation="silu"), gate)(x)
x = Residual(lambda: layers.Dense(32, activation="silu"), gate)(x)
x = layers.Lambda(lambda tensor: tensor * 0.5)(x)
x = LinearAttention(8)(layers.Reshape((4, 8))(x))
outputs = layers.Dense(10, activation="softmax")(x)
model = keras.Model(inputs, outputs)
model.compile(
    optimizer=keras.optimizers.Lion(1e-3),
    loss="sparse_categorical_crossentropy",
    metrics=["accuracy"],
)
model.fit(x_train[:640], y_train[:640], batch_size=32, epochs=2)

sample = x_train[:4]
