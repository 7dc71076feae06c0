"""A Vision Transformer for images."""

import keras
from keras import layers

from models._common import classifier, scaled


def vision_transformer(
    input_shape: tuple[int, ...] = (224, 224, 3),
    num_classes: int = 1000,
    patch: int = 16,
    depth: int = 12,
    units: int = 384,
    heads: int = 6,
    width: float = 1.0,
) -> keras.Model:
    """ViT-S/16, or one of another size: 22,050,664 parameters.

    Patches are embedded by a convolution. A class token and learned positions are added. Each of
    the `depth` blocks has self-attention and an MLP that is four times as wide, with layer
    normalisation (epsilon 1e-6) before both. The logits are computed from the class token.

    Reference:

    - [Dosovitskiy et al., 2021](https://arxiv.org/abs/2010.11929), section 3.1; the small size is
      that of [Touvron et al., 2021](https://arxiv.org/abs/2012.12877), table 1

    Args:
        input_shape: Tuple `(height, width, channels)`, both sides multiples of `patch`.
        num_classes: Integer, the number of logits.
        patch: Integer, the pixels of a patch's side.
        depth: Integer, the number of blocks.
        units: Integer, the width of the embeddings, a multiple of `heads`.
        heads: Integer, the number of attention heads.
        width: Float above 0, multiplies the width of the MLPs' hidden layers.

    Returns:
        A `keras.Model` whose output are logits, shape `(batch, num_classes)`.
    """
    if units % heads:
        raise ValueError(
            f"`units` must be a multiple of `heads`. Received: units={units}, heads={heads}"
        )
    if input_shape[0] % patch or input_shape[1] % patch:
        raise ValueError(
            "The sides of `input_shape` must be multiples of `patch`. "
            f"Received: input_shape={input_shape}, patch={patch}"
        )
    inputs = keras.Input(input_shape, name="inputs")
    x = layers.Conv2D(units, patch, strides=patch, name="patches")(inputs)
    x = layers.Reshape((-1, units), name="tokens")(x)
    x = _Positions(name="positions")(x)
    for block in range(1, depth + 1):
        name = f"block{block}"
        y = _layer_norm(x, f"{name}_norm_1")
        y = layers.MultiHeadAttention(heads, units // heads, name=f"{name}_attention")(y, y)
        x = layers.Add(name=f"{name}_add_1")([x, y])
        y = _layer_norm(x, f"{name}_norm_2")
        hidden = scaled(4 * units, width)
        y = layers.Dense(hidden, activation="gelu", name=f"{name}_mlp_1")(y)
        y = layers.Dense(units, name=f"{name}_mlp_2")(y)
        x = layers.Add(name=f"{name}_add_2")([x, y])
    x = _layer_norm(x, "norm")[:, 0]
    return keras.Model(inputs, classifier(num_classes, 0.0)(x), name="vision_transformer")


def _layer_norm(x, name):
    return layers.LayerNormalization(epsilon=1e-6, name=name)(x)


@keras.saving.register_keras_serializable("models")
class _Positions(layers.Layer):
    """Adds a class token in front of the tokens, and a learned vector to each token."""

    def build(self, input_shape):
        _, tokens, units = input_shape
        normal = keras.initializers.TruncatedNormal(stddev=0.02)
        self.class_token = self.add_weight((1, 1, units), normal, name="class_token")
        self.positions = self.add_weight((1, tokens + 1, units), normal, name="positions")

    def call(self, x):
        token = keras.ops.broadcast_to(
            self.class_token, (keras.ops.shape(x)[0], *self.class_token.shape[1:])
        )
        return keras.ops.concatenate([token, x], axis=1) + self.positions

    def compute_output_shape(self, input_shape):
        return (input_shape[0], input_shape[1] + 1, input_shape[2])
