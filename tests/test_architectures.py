"""Small networks of every usual form learn while they are sparse."""

import keras
import numpy as np
import pytest

import rigl_tf

layers = keras.layers
TEXT = "the quick brown fox jumps over the lazy dog while the cat sleeps in the warm sun. " * 12


def transformer():
    """A Transformer encoder that says which of the tokens 1 to 4 comes first."""
    tokens = keras.Input((12,), dtype="int32")
    x = layers.Embedding(10, 16, mask_zero=True, name="tokens")(tokens)
    positions = layers.Embedding(12, 16, name="positions")(keras.ops.arange(12))
    x = x + positions
    for index in range(2):
        attention = layers.MultiHeadAttention(4, 4, name=f"attention{index}")
        x = layers.LayerNormalization()(x + attention(x, x))
        hidden = layers.Dense(32, activation="gelu", name=f"up{index}")(x)
        x = layers.LayerNormalization()(x + layers.Dense(16, name=f"down{index}")(hidden))
    outputs = layers.Dense(5, name="head")(layers.GlobalAveragePooling1D()(x))
    x = np.random.default_rng(0).integers(1, 10, size=(64, 12))
    x[:, 0] = np.arange(64) % 4 + 1
    x[:, 9:] = 0
    return keras.Model(tokens, outputs), x, x[:, 0]


def language_model():
    """A character-level GRU: the next character at each position."""
    characters = sorted(set(TEXT))
    codes = np.array([characters.index(character) for character in TEXT])
    model = keras.Sequential(
        [
            keras.Input((16,), dtype="int32"),
            layers.Embedding(len(characters), 16),
            layers.GRU(32, return_sequences=True),
            layers.TimeDistributed(layers.Dense(len(characters))),
        ]
    )
    starts = np.arange(64) * 7
    x = np.stack([codes[start : start + 16] for start in starts])
    return model, x, np.stack([codes[start + 1 : start + 17] for start in starts])


def convolutional_1d():
    """Which of four frequencies a signal has."""
    model = keras.Sequential(
        [
            keras.Input((64, 1)),
            layers.Conv1D(16, 7, strides=2, activation="relu"),
            layers.BatchNormalization(momentum=0.5),
            layers.SeparableConv1D(24, 5, activation="relu"),
            layers.Conv1D(16, 3, dilation_rate=2, activation="relu"),
            layers.GlobalMaxPooling1D(),
            layers.Dense(4),
        ]
    )
    y = np.arange(64) % 4
    x = np.sin(np.arange(64) * (y[:, None] + 1) * 0.3 + np.arange(64)[:, None])
    return model, x[..., None].astype("float32"), y


def u_net():
    """Which pixels are brighter than their image's corner."""
    inputs = keras.Input((16, 16, 1))
    down1 = layers.Conv2D(8, 3, padding="same", activation="relu")(inputs)
    down2 = layers.Conv2D(16, 3, strides=2, padding="same", activation="relu")(down1)
    bottom = layers.Conv2D(16, 3, strides=2, padding="same", activation="relu")(down2)
    up2 = layers.Conv2DTranspose(16, 2, strides=2, activation="relu")(bottom)
    up2 = layers.Conv2D(16, 3, padding="same", activation="relu")(
        layers.Concatenate()([up2, down2])
    )
    up1 = layers.Conv2DTranspose(8, 2, strides=2, activation="relu")(up2)
    outputs = layers.Conv2D(2, 1)(layers.Concatenate()([up1, down1]))
    x = np.random.default_rng(0).uniform(size=(64, 16, 16, 1)).astype("float32")
    x[:, 0, 0] = 0.5
    return keras.Model(inputs, outputs), x, (x[..., 0] > 0.5).astype(int)


@pytest.mark.parametrize("make", [transformer, language_model, convolutional_1d, u_net])
def test_it_learns_while_it_is_sparse(make, tmp_path):
    dense, x, y = make()
    sparse = rigl_tf.sparsify(dense, 0.6)
    counts = {path: mask.sum() for path, mask in rigl_tf.get_masks(sparse).items()}
    summary = rigl_tf.sparsity_summary(sparse)
    assert 0.58 < summary.sparsity < 0.6
    assert {weights.reason for weights in summary.dense} <= {"embedding", "bias", "depthwise"}

    before = rigl_tf.get_masks(sparse)
    sparse.compile(
        rigl_tf.RigL(keras.optimizers.Adam(0.01), end_step=60, update_frequency=20),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    first = sparse.evaluate(x, y, verbose=0)
    sparse.fit(x, y, batch_size=16, epochs=20, verbose=0)
    assert sparse.evaluate(x, y, verbose=0) < 0.7 * first

    kernels = {weight.path: weight.numpy() for weight in sparse.trainable_weights}
    after = rigl_tf.get_masks(sparse)
    assert {path: mask.sum() for path, mask in after.items()} == counts
    assert any((mask != before[path]).any() for path, mask in after.items())
    for path, mask in after.items():
        np.testing.assert_array_equal(kernels[path], np.where(mask, kernels[path], 0))
    want = sparse(x[:4])
    sparse.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(x[:4]), want)
    np.testing.assert_array_equal(rigl_tf.strip(loaded)(x[:4]), want)
