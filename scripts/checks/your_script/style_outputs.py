"""Several outputs and several losses: features of a fixed network judge what another one draws.

- painter = create_painter()
+ painter = rigl_tf.sparsify(create_painter(), 0.8)
- optimizer=keras.optimizers.Adam(0.005),
+ optimizer=rigl_tf.RigL(keras.optimizers.Adam(0.005), end_step=30, update_frequency=5),
"""

import keras
import numpy as np
from keras import layers, ops
from sklearn.datasets import load_digits

keras.utils.set_random_seed(46)
x_train, y_train = load_digits(return_X_y=True)
x_train = x_train.reshape(-1, 8, 8, 1).astype("float32")[:640] / 16
y_train = y_train[:640]


def create_critic():
    inputs = keras.Input((8, 8, 1))
    x = layers.Conv2D(8, 3, activation="relu", name="low")(inputs)
    x = layers.Conv2D(8, 3, activation="relu", name="high")(x)
    return keras.Model(inputs, layers.Dense(10)(layers.Flatten()(x)), name="critic")


def create_painter():
    inputs = keras.Input((8, 8, 1))
    x = layers.Conv2D(16, 3, padding="same", activation="relu")(inputs)
    x = layers.Conv2D(16, 3, padding="same", activation="relu")(x)
    return keras.Model(
        inputs, layers.Conv2D(1, 3, padding="same", name="canvas")(x), name="painter"
    )


def gram_matrix(x):
    x = ops.reshape(x, (-1, x.shape[1] * x.shape[2], x.shape[3]))
    return ops.matmul(ops.transpose(x, (0, 2, 1)), x) / x.shape[1]


class GramMatrix(layers.Layer):
    def call(self, x):
        return gram_matrix(x)


def style_loss(y_true, y_pred):
    return ops.mean(ops.square(y_true - y_pred), axis=(1, 2))


critic = create_critic()
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
critic.compile("adam", loss)
critic.fit(x_train, y_train, epochs=1)
critic.trainable = False
low, high = (critic.get_layer(name).output for name in ("low", "high"))
features = keras.Model(critic.input, {"content": high, "style": GramMatrix()(low)})

painter = create_painter()
inputs = keras.Input((8, 8, 1))
painted = painter(inputs)
seen = features(painted)
model = keras.Model(inputs, {"painted": painted, **seen})

dark = 1 - x_train
style = features.predict(dark)["style"].mean(axis=0, keepdims=True)
targets = {
    "painted": x_train,
    "content": features.predict(x_train)["content"],
    "style": np.repeat(style, len(x_train), axis=0),
}
model.compile(
    optimizer=keras.optimizers.Adam(0.005),
    loss={"painted": "mae", "content": "mse", "style": style_loss},
    loss_weights={"painted": 0.1, "content": 1.0, "style": 5.0},
    metrics={"painted": ["mse"]},
)
model.fit(x_train, targets, batch_size=32, epochs=2)

sample = x_train[:4]
