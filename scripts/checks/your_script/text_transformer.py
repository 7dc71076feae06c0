"""Text classification with a transformer block.

- model = keras.Model(inputs=inputs, outputs=outputs)
+ model = rigl_tf.sparsify(keras.Model(inputs=inputs, outputs=outputs), 0.7)
- optimizer="adam",
+ optimizer=rigl_tf.RigL("adam", end_step=33, update_frequency=5),
"""

import keras
import numpy as np
from keras import layers, ops

vocab_size = 200
maxlen = 24
embed_dim = 16
num_heads = 2
ff_dim = 16

keras.utils.set_random_seed(6)
rng = np.random.default_rng(6)
y_train = rng.integers(0, 2, 800)
# Reviews of any length: positive ones prefer the words with a high number.
x_train = [
    rng.integers(1 + 50 * label, vocab_size - 50 * (1 - label), rng.integers(5, 40))
    for label in y_train
]
x_train = keras.utils.pad_sequences(x_train, maxlen=maxlen)
x_val, y_val = x_train[700:], y_train[700:]
x_train, y_train = x_train[:700], y_train[:700]


class TransformerBlock(layers.Layer):
    def __init__(self, embed_dim, num_heads, ff_dim, rate=0.1):
        super().__init__()
        self.att = layers.MultiHeadAttention(num_heads=num_heads, key_dim=embed_dim)
        self.ffn = keras.Sequential(
            [layers.Dense(ff_dim, activation="relu"), layers.Dense(embed_dim)]
        )
        self.layernorm1 = layers.LayerNormalization(epsilon=1e-6)
        self.layernorm2 = layers.LayerNormalization(epsilon=1e-6)
        self.dropout1 = layers.Dropout(rate)
        self.dropout2 = layers.Dropout(rate)

    def call(self, inputs):
        attn_output = self.att(inputs, inputs)
        attn_output = self.dropout1(attn_output)
        out1 = self.layernorm1(inputs + attn_output)
        ffn_output = self.ffn(out1)
        ffn_output = self.dropout2(ffn_output)
        return self.layernorm2(out1 + ffn_output)


class TokenAndPositionEmbedding(layers.Layer):
    def __init__(self, maxlen, vocab_size, embed_dim):
        super().__init__()
        self.token_emb = layers.Embedding(input_dim=vocab_size, output_dim=embed_dim)
        self.pos_emb = layers.Embedding(input_dim=maxlen, output_dim=embed_dim)

    def call(self, x):
        maxlen = ops.shape(x)[-1]
        positions = ops.arange(start=0, stop=maxlen, step=1)
        return self.token_emb(x) + self.pos_emb(positions)


inputs = layers.Input(shape=(maxlen,))
embedding_layer = TokenAndPositionEmbedding(maxlen, vocab_size, embed_dim)
x = embedding_layer(inputs)
transformer_block = TransformerBlock(embed_dim, num_heads, ff_dim)
x = transformer_block(x)
x = layers.GlobalAveragePooling1D()(x)
x = layers.Dropout(0.1)(x)
x = layers.Dense(20, activation="relu")(x)
x = layers.Dropout(0.1)(x)
outputs = layers.Dense(2, activation="softmax")(x)

model = keras.Model(inputs=inputs, outputs=outputs)
model.compile(
    optimizer="adam",
    loss="sparse_categorical_crossentropy",
    metrics=["accuracy"],
)
history = model.fit(x_train, y_train, batch_size=32, epochs=2, validation_data=(x_val, y_val))
print("words that the embedding holds:", embedding_layer.token_emb.embeddings.shape)

sample = x_val[:4]
