"""Text generation with a miniature GPT.

- model = keras.Model(inputs=inputs, outputs=[outputs, x])
+ model = rigl_tf.sparsify(keras.Model(inputs=inputs, outputs=[outputs, x]), sparsity=0.8, seed=1)
- model.compile("adam", loss=[loss_fn, None])
+ model.compile(rigl_tf.RigL("adam", end_step=30, update_frequency=5), loss=[loss_fn, None])
"""

import keras
import numpy as np
from keras import layers, ops

vocab_size = 28
maxlen = 16
embed_dim = 24
num_heads = 2
feed_forward_dim = 48

keras.utils.set_random_seed(5)
text = "the quick brown fox jumps over the lazy dog and the dog sleeps while the fox runs on " * 20
tokens = np.array([1 + ord(c) - ord("a") if c != " " else 27 for c in text])
windows = np.lib.stride_tricks.sliding_window_view(tokens, maxlen + 1)[::2]


def causal_attention_mask(batch_size, n_dest, n_src, dtype):
    i = ops.arange(n_dest)[:, None]
    j = ops.arange(n_src)
    mask = ops.reshape(ops.cast(i >= j - n_src + n_dest, dtype), [1, n_dest, n_src])
    return ops.broadcast_to(mask, (batch_size, n_dest, n_src))


class TransformerBlock(layers.Layer):
    def __init__(self, embed_dim, num_heads, ff_dim, rate=0.1):
        super().__init__()
        self.att = layers.MultiHeadAttention(num_heads, embed_dim)
        self.ffn = keras.Sequential(
            [
                layers.Dense(ff_dim, activation="relu"),
                layers.Dense(embed_dim),
            ]
        )
        self.layernorm1 = layers.LayerNormalization(epsilon=1e-6)
        self.layernorm2 = layers.LayerNormalization(epsilon=1e-6)
        self.dropout1 = layers.Dropout(rate)
        self.dropout2 = layers.Dropout(rate)

    def call(self, inputs):
        batch_size, seq_len = ops.shape(inputs)[0], ops.shape(inputs)[1]
        mask = causal_attention_mask(batch_size, seq_len, seq_len, "bool")
        attention = self.dropout1(self.att(inputs, inputs, attention_mask=mask))
        out1 = self.layernorm1(inputs + attention)
        return self.layernorm2(out1 + self.dropout2(self.ffn(out1)))


class TokenAndPositionEmbedding(layers.Layer):
    def __init__(self, maxlen, vocab_size, embed_dim):
        super().__init__()
        self.token_emb = layers.Embedding(input_dim=vocab_size, output_dim=embed_dim)
        self.pos_emb = layers.Embedding(input_dim=maxlen, output_dim=embed_dim)

    def call(self, x):
        positions = self.pos_emb(ops.arange(0, ops.shape(x)[-1], 1))
        return self.token_emb(x) + positions


def create_model():
    inputs = layers.Input(shape=(maxlen,), dtype="int32")
    x = TokenAndPositionEmbedding(maxlen, vocab_size, embed_dim)(inputs)
    x = TransformerBlock(embed_dim, num_heads, feed_forward_dim)(x)
    outputs = layers.Dense(vocab_size)(x)
    model = keras.Model(inputs=inputs, outputs=[outputs, x])
    loss_fn = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss=[loss_fn, None])
    return model


class TextGenerator(keras.callbacks.Callback):
    def __init__(self, max_tokens, start_tokens):
        super().__init__()
        self.max_tokens = max_tokens
        self.start_tokens = start_tokens

    def on_epoch_end(self, epoch, logs=None):
        done = list(self.start_tokens)
        while len(done) < self.max_tokens:
            x = np.array([done + [0] * (maxlen - len(done))])
            y, _ = self.model.predict(x, verbose=0)
            done.append(int(np.argmax(y[0][len(done) - 1])))
        print("generated:", "".join(" " if t == 27 else chr(96 + t) for t in done))


model = create_model()
model.fit(windows[:, :-1], windows[:, 1:], 32, epochs=2, callbacks=[TextGenerator(9, [20, 8])])

sample = windows[:4, :-1]
