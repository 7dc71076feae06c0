"""A recurrent language model for characters."""

import keras
from keras import layers

from models._common import kernel_regularizer, scaled


def gru_language_model(
    vocabulary_size: int = 256,
    embedding: int = 128,
    units: int = 512,
    readout: int = 256,
    l2: float = 0.0,
    width: float = 1.0,
) -> keras.Model:
    """A GRU that predicts the next character; 1,183,104 parameters.

    It has an embedding, a GRU, and two Dense layers that read out the state of the GRU. The logits
    are the products of the last layer with the embeddings, so this layer is as wide as the
    embedding. The paper names no activation; here the first Dense layer has a ReLU.

    Reference:

    - [Evci et al., 2020](https://arxiv.org/abs/1911.11134), section 4.2 and appendix I

    Args:
        vocabulary_size: Integer, the number of different tokens.
        embedding: Integer, the width of the embedding and of the second readout layer.
        units: Integer, the size of the GRU's state.
        readout: Integer, the width of the first readout layer.
        l2: Float, adds `l2 * sum(kernel ** 2)` to the loss for each kernel, also those of the GRU,
            but not for the embeddings.
        width: Float above 0, multiplies the widths of all layers.

    Returns:
        A `keras.Model`. Its inputs are integer tokens of shape `(batch, time)`, its outputs are
        logits of shape `(batch, time, vocabulary_size)`, in float32 with any dtype policy.
    """
    regularizer = kernel_regularizer(l2)
    shared = layers.ReversibleEmbedding(
        vocabulary_size, scaled(embedding, width), reverse_dtype="float32", name="embedding"
    )
    inputs = keras.Input((None,), dtype="int32", name="inputs")
    x = layers.GRU(
        scaled(units, width),
        return_sequences=True,
        kernel_regularizer=regularizer,
        recurrent_regularizer=regularizer,
        name="gru",
    )(shared(inputs))
    x = layers.Dense(
        scaled(readout, width), activation="relu", kernel_regularizer=regularizer, name="readout_1"
    )(x)
    x = layers.Dense(scaled(embedding, width), kernel_regularizer=regularizer, name="readout_2")(x)
    return keras.Model(inputs, shared(x, reverse=True), name="gru_language_model")
