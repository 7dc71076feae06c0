"""A mixture of experts: layers in lists, tuples and dictionaries, in layers and in the model.

- model = SwitchNet(num_experts=3)
+ model = rigl_tf.sparsify(SwitchNet(num_experts=3), 0.8)
- optimizer=keras.optimizers.Adam(0.003),
+ optimizer=rigl_tf.RigL(keras.optimizers.Adam(0.003), end_step=30, update_frequency=5),
"""

import keras
from keras import layers, ops
from sklearn.datasets import load_digits

keras.utils.set_random_seed(36)
x, y = load_digits(return_X_y=True)
x = x.astype("float32") / 16


class Router(layers.Layer):
    def __init__(self, num_experts):
        super().__init__()
        self.num_experts = num_experts
        self.route = layers.Dense(units=num_experts)

    def call(self, inputs, training=False):
        logits = self.route(inputs)
        if training:
            logits += keras.random.uniform(ops.shape(logits), minval=0.9, maxval=1.1)
        probabilities = ops.softmax(logits, axis=-1)
        # An additional loss so that no expert has all the work.
        share = ops.mean(probabilities, axis=0)
        self.add_loss(0.01 * self.num_experts * ops.sum(share * share))
        return probabilities


class Switch(layers.Layer):
    def __init__(self, num_experts, embed_dim, ff_dim):
        super().__init__()
        self.embed_dim = embed_dim
        self.experts = [
            keras.Sequential([layers.Dense(ff_dim, activation="relu"), layers.Dense(embed_dim)])
            for _ in range(num_experts)
        ]
        self.router = Router(num_experts)

    def call(self, inputs, training=False):
        weights = self.router(inputs, training=training)
        outputs = ops.stack([expert(inputs) for expert in self.experts], axis=1)
        return ops.sum(outputs * weights[:, :, None], axis=1)


class SwitchNet(keras.Model):
    def __init__(self, num_experts):
        super().__init__()
        self.branches = {
            "direct": layers.Dense(32),
            "gated": (layers.Dense(32), layers.Dense(32, activation="sigmoid")),
        }
        self.blocks = []
        for _ in range(2):
            self.blocks.append(
                {"norm": layers.LayerNormalization(), "mix": Switch(num_experts, 32, 24)}
            )
        self.head = [layers.Dropout(0.1), layers.Dense(10)]

    def call(self, inputs, training=False):
        value, gate = self.branches["gated"]
        x = self.branches["direct"](inputs) + value(inputs) * gate(inputs)
        for block in self.blocks:
            x = x + block["mix"](block["norm"](x), training=training)
        for layer in self.head:
            x = layer(x)
        return x


model = SwitchNet(num_experts=3)
model.compile(
    optimizer=keras.optimizers.Adam(0.003),
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=["accuracy"],
)
model.fit(x[:640], y[:640], batch_size=32, epochs=2)
model.evaluate(x[640:700], y[640:700])

sample = x[:4]
