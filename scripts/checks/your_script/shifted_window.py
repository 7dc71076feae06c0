"""Image classification with a shifted-window transformer.

- model = keras.Model(inputs, outputs)
+ model = rigl_tf.sparsify(keras.Model(inputs, outputs), 0.8)
- optimizer=keras.optimizers.AdamW(learning_rate=1e-3, weight_decay=1e-4),
+ optimizer=rigl_tf.RigL(keras.optimizers.AdamW(1e-3, weight_decay=1e-4), 30, update_frequency=5),
"""

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops
from sklearn.datasets import load_digits

embed_dim, num_heads, window_size, shift_size, num_patch = 16, 2, 2, 1, (4, 4)

keras.utils.set_random_seed(3)
images, labels = load_digits(return_X_y=True)
images = (images / 16).reshape(-1, 8, 8, 1).astype("float32")


def window_partition(x, size):
    _, height, width, channels = x.shape
    x = ops.reshape(x, (-1, height // size, size, width // size, size, channels))
    return ops.reshape(ops.transpose(x, (0, 1, 3, 2, 4, 5)), (-1, size * size, channels))


def window_reverse(windows, size, height, width, channels):
    x = ops.reshape(windows, (-1, height // size, width // size, size, size, channels))
    return ops.reshape(ops.transpose(x, (0, 1, 3, 2, 4, 5)), (-1, height, width, channels))


class WindowAttention(layers.Layer):
    def __init__(self, dim, window_size, num_heads, qkv_bias=True, dropout_rate=0.0, **kwargs):
        super().__init__(**kwargs)
        self.dim = dim
        self.window_size = window_size
        self.num_heads = num_heads
        self.scale = (dim // num_heads) ** -0.5
        self.qkv = layers.Dense(dim * 3, use_bias=qkv_bias)
        self.dropout = layers.Dropout(dropout_rate)
        self.proj = layers.Dense(dim)

        coords = np.stack(np.meshgrid(*[range(s) for s in window_size], indexing="ij"))
        coords = coords.reshape(2, -1)
        relative = (coords[:, :, None] - coords[:, None, :]).transpose([1, 2, 0])
        relative += np.array(window_size) - 1
        relative[:, :, 0] *= 2 * window_size[1] - 1
        self.relative_position_index = keras.Variable(
            initializer=relative.sum(-1), shape=relative.shape[:2], dtype="int", trainable=False
        )

    def build(self, input_shape):
        num_elements = (2 * self.window_size[0] - 1) * (2 * self.window_size[1] - 1)
        self.relative_position_bias_table = self.add_weight(
            shape=(num_elements, self.num_heads), initializer="zeros", trainable=True
        )

    def call(self, x, mask=None):
        _, size, channels = x.shape
        qkv = ops.reshape(self.qkv(x), (-1, size, 3, self.num_heads, channels // self.num_heads))
        q, k, v = ops.unstack(ops.transpose(qkv, (2, 0, 3, 1, 4)), axis=0)
        attention = (q * self.scale) @ ops.transpose(k, (0, 1, 3, 2))
        index = ops.reshape(self.relative_position_index, (-1,))
        bias = ops.take(self.relative_position_bias_table, index, axis=0)
        bias = ops.transpose(ops.reshape(bias, (size, size, -1)), (2, 0, 1))
        attention = attention + ops.expand_dims(bias, axis=0)
        if mask is not None:
            shape = (-1, mask.shape[0], self.num_heads, size, size)
            attention = ops.reshape(attention, shape) + ops.cast(mask, "float32")[None, :, None]
            attention = ops.reshape(attention, (-1, self.num_heads, size, size))
        attention = self.dropout(keras.activations.softmax(attention, axis=-1))
        x = ops.reshape(ops.transpose(attention @ v, (0, 2, 1, 3)), (-1, size, channels))
        return self.proj(x)


class SwinTransformer(layers.Layer):
    def __init__(self, dim, num_patch, num_heads, window_size, shift_size, num_mlp, **kwargs):
        super().__init__(**kwargs)
        self.num_patch, self.window_size, self.shift_size = num_patch, window_size, shift_size
        self.norm1 = layers.LayerNormalization(epsilon=1e-5)
        self.attn = WindowAttention(dim, (window_size, window_size), num_heads)
        self.norm2 = layers.LayerNormalization(epsilon=1e-5)
        self.mlp = keras.Sequential(
            [layers.Dense(num_mlp, activation="gelu"), layers.Dropout(0.03), layers.Dense(dim)]
        )

    def build(self, input_shape):
        self.attn_mask = None
        if self.shift_size:
            regions = np.zeros((1, *self.num_patch, 1))
            cuts = (slice(0, -self.window_size), slice(-self.window_size, -self.shift_size))
            cuts = (*cuts, slice(-self.shift_size, None))
            for number, (rows, columns) in enumerate((r, c) for r in cuts for c in cuts):
                regions[:, rows, columns, :] = number
            windows = window_partition(ops.convert_to_tensor(regions), self.window_size)[..., 0]
            differ = ops.expand_dims(windows, axis=1) != ops.expand_dims(windows, axis=2)
            self.attn_mask = keras.Variable(
                initializer=ops.where(differ, -100.0, 0.0), trainable=False
            )

    def call(self, x, training=False):
        height, width = self.num_patch
        channels = x.shape[-1]
        grid = ops.reshape(self.norm1(x), (-1, height, width, channels))
        grid = ops.roll(grid, shift=[-self.shift_size, -self.shift_size], axis=[1, 2])
        windows = self.attn(window_partition(grid, self.window_size), mask=self.attn_mask)
        grid = window_reverse(windows, self.window_size, height, width, channels)
        grid = ops.roll(grid, shift=[self.shift_size, self.shift_size], axis=[1, 2])
        x = x + ops.reshape(grid, (-1, height * width, channels))
        return x + self.mlp(self.norm2(x))


class PatchEmbedding(layers.Layer):
    def __init__(self, num_patch, embed_dim):
        super().__init__()
        self.num_patch = num_patch
        self.proj = layers.Dense(embed_dim)
        self.pos_embed = layers.Embedding(input_dim=num_patch, output_dim=embed_dim)

    def call(self, patch):
        return self.proj(patch) + self.pos_embed(ops.arange(start=0, stop=self.num_patch))


def to_patches(image, label):
    patches = tf.nn.space_to_depth(image, 2)
    return tf.reshape(patches, (-1, num_patch[0] * num_patch[1], 4)), label


dataset = tf.data.Dataset.from_tensor_slices((images[:640], labels[:640])).batch(32).map(to_patches)

inputs = layers.Input(shape=(num_patch[0] * num_patch[1], 4))
x = PatchEmbedding(num_patch[0] * num_patch[1], embed_dim)(inputs)
x = SwinTransformer(embed_dim, num_patch, num_heads, window_size, 0, 32)(x)
x = SwinTransformer(embed_dim, num_patch, num_heads, window_size, shift_size, 32)(x)
x = layers.GlobalAveragePooling1D()(x)
outputs = layers.Dense(10, activation="softmax")(x)

model = keras.Model(inputs, outputs)
model.compile(
    loss=keras.losses.SparseCategoricalCrossentropy(),
    optimizer=keras.optimizers.AdamW(learning_rate=1e-3, weight_decay=1e-4),
    metrics=["accuracy"],
)
model.fit(dataset, epochs=2)

sample = next(iter(dataset))[0][:4]
