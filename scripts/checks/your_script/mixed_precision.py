"""Mixed precision: a dtype policy for each layer; the last one computes in float32.

- model = keras.Model(inputs, outputs)
+ model = rigl_tf.sparsify(keras.Model(inputs, outputs), 0.8)
- optimizer = keras.optimizers.RMSprop(2e-3)
+ optimizer = rigl_tf.RigL(keras.optimizers.RMSprop(2e-3), end_step=30, update_frequency=5)
"""

import keras
from keras import layers
from sklearn.datasets import load_digits

keras.utils.set_random_seed(38)
x, y = load_digits(return_X_y=True)
x = x.astype("float32") / 16

policy = keras.dtype_policies.DTypePolicy("mixed_bfloat16")
print("compute in", policy.compute_dtype, "keep weights in", policy.variable_dtype)


class ScaledDense(layers.Layer):
    """Casts what it adds by hand, as layers for mixed precision have to."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.dense = layers.Dense(units, use_bias=False, dtype=self.dtype_policy)
        self.scale = self.add_weight(shape=(units,), initializer="ones", name="scale")

    def call(self, inputs):
        return self.dense(inputs) * keras.ops.cast(self.scale, self.compute_dtype)


inputs = keras.Input(shape=(64,), name="digits")
x1 = layers.Dense(64, activation="relu", name="dense_1", dtype=policy)(inputs)
assert x1.dtype == "bfloat16"
x2 = ScaledDense(32, name="dense_2", dtype=policy)(x1)
x2 = layers.Activation("relu", dtype=policy)(x2)
logits = layers.Dense(10, name="dense_logits", dtype=policy)(x2)
# A softmax in half precision is not to be trusted.
outputs = layers.Activation("softmax", dtype="float32", name="predictions")(logits)

model = keras.Model(inputs, outputs)
assert model.get_layer("dense_1").variable_dtype == "float32"
optimizer = keras.optimizers.RMSprop(2e-3)
model.compile(
    loss="sparse_categorical_crossentropy",
    optimizer=optimizer,
    metrics=["accuracy"],
)
model.fit(x[:640], y[:640], batch_size=32, epochs=2, validation_split=0.2)

sample = x[:4]
