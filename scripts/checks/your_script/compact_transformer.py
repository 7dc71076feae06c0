"""Image classification with a compact convolutional transformer.

- cct_model = create_cct_model()
+ cct_model = rigl_tf.sparsify(create_cct_model(), 0.75, distribution="uniform")
- optimizer = keras.optimizers.AdamW(learning_rate=0.002, weight_decay=0.0001)
+ optimizer = rigl_tf.RigL(keras.optimizers.AdamW(0.002, weight_decay=1e-4), 30, update_frequency=6)
"""

import keras
import numpy as np
from keras import layers, ops
from sklearn.datasets import load_digits

positional_emb = True
conv_layers = 2
projection_dim = 16
num_heads = 2
transformer_units = [projection_dim, projection_dim]
transformer_layers = 2
stochastic_depth_rate = 0.1

keras.utils.set_random_seed(2)
x, y = load_digits(return_X_y=True)
x = x.reshape(-1, 8, 8, 1).astype("float32")
y = keras.utils.to_categorical(y, 10)


class CCTTokenizer(layers.Layer):
    def __init__(self, kernel_size=3, stride=1, num_output_channels=(8, projection_dim), **kwargs):
        super().__init__(**kwargs)
        self.conv_model = keras.Sequential()
        for channels in num_output_channels:
            self.conv_model.add(
                layers.Conv2D(channels, kernel_size, stride, use_bias=False, activation="relu")
            )
            self.conv_model.add(layers.ZeroPadding2D(1))
            self.conv_model.add(layers.MaxPooling2D(2, 2, "same"))

    def call(self, images):
        outputs = self.conv_model(images)
        shape = ops.shape(outputs)
        return ops.reshape(outputs, (-1, shape[1] * shape[2], shape[-1]))


class PositionEmbedding(layers.Layer):
    def __init__(self, sequence_length, initializer="glorot_uniform", **kwargs):
        super().__init__(**kwargs)
        self.sequence_length = int(sequence_length)
        self.initializer = keras.initializers.get(initializer)

    def build(self, input_shape):
        self.position_embeddings = self.add_weight(
            name="embeddings",
            shape=[self.sequence_length, input_shape[-1]],
            initializer=self.initializer,
        )

    def call(self, inputs):
        return ops.broadcast_to(self.position_embeddings, ops.shape(inputs))


class SequencePooling(layers.Layer):
    def __init__(self):
        super().__init__()
        self.attention = layers.Dense(1)

    def call(self, x):
        weights = ops.softmax(self.attention(x), axis=1)
        return ops.squeeze(ops.matmul(ops.transpose(weights, (0, 2, 1)), x), -2)


class StochasticDepth(layers.Layer):
    def __init__(self, drop_prop, **kwargs):
        super().__init__(**kwargs)
        self.drop_prob = drop_prop
        self.seed_generator = keras.random.SeedGenerator(1337)

    def call(self, x, training=None):
        if not training:
            return x
        keep = 1 - self.drop_prob
        shape = (ops.shape(x)[0],) + (1,) * (len(x.shape) - 1)
        noise = keras.random.uniform(shape, 0, 1, seed=self.seed_generator)
        return (x / keep) * ops.floor(keep + noise)


def create_cct_model():
    inputs = layers.Input((8, 8, 1))
    augmented = layers.RandomTranslation(0.05, 0.05)(layers.Rescaling(1.0 / 16)(inputs))
    encoded = CCTTokenizer()(augmented)
    if positional_emb:
        encoded += PositionEmbedding(sequence_length=encoded.shape[1])(encoded)
    for rate in np.linspace(0, stochastic_depth_rate, transformer_layers):
        x1 = layers.LayerNormalization(epsilon=1e-5)(encoded)
        attention = layers.MultiHeadAttention(num_heads, key_dim=projection_dim, dropout=0.1)
        x2 = layers.Add()([StochasticDepth(rate)(attention(x1, x1)), encoded])
        x3 = layers.LayerNormalization(epsilon=1e-5)(x2)
        for units in transformer_units:
            x3 = layers.Dropout(0.1)(layers.Dense(units, activation=ops.gelu)(x3))
        encoded = layers.Add()([StochasticDepth(rate)(x3), x2])
    representation = SequencePooling()(layers.LayerNormalization(epsilon=1e-5)(encoded))
    return keras.Model(inputs=inputs, outputs=layers.Dense(10)(representation))


cct_model = create_cct_model()
optimizer = keras.optimizers.AdamW(learning_rate=0.002, weight_decay=0.0001)
cct_model.compile(
    optimizer=optimizer,
    loss=keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1),
    metrics=["accuracy"],
)
cct_model.fit(x[:640], y[:640], batch_size=32, epochs=2, validation_data=(x[640:704], y[640:704]))

model, sample = cct_model, x[:4]
