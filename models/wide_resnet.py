"""Wide residual networks for CIFAR (Zagoruyko and Komodakis, 2016)."""

import keras
from keras import layers

from models._common import batch_norm, classifier, convolution, scaled


def wide_resnet(
    depth: int = 22,
    widen: int = 2,
    input_shape: tuple[int, ...] = (32, 32, 3),
    num_classes: int = 10,
    width: float = 1.0,
    dropout: float = 0.0,
    l2: float = 0.0,
) -> keras.Model:
    """WRN-depth-widen: blocks of two 3x3 convolutions, each after batch normalisation and ReLU.

    WRN-22-2, which the RigL paper trains, has 1.1 million parameters.

    Reference:

    - [Zagoruyko and Komodakis, 2016](https://arxiv.org/abs/1605.07146), section 2

    Args:
        depth: Integer, `6 n + 4` for `n` blocks in each of the three stages.
        widen: Integer, multiplies the 16, 32 and 64 filters of the stages.
        input_shape: Tuple `(height, width, channels)`.
        num_classes: Integer, the number of logits.
        width: Float above 0, multiplies all filters, those of the first convolution too.
        dropout: Float in `[0, 1)`, between the two convolutions of a block.
        l2: Float, adds `l2 * sum(kernel ** 2)` to the loss for each kernel.

    Returns:
        A `keras.Model` whose output are logits, shape `(batch, num_classes)`.

    Raises:
        ValueError: If `depth` is not one of 10, 16, 22, 28, ...

    Example:

    >>> wide_resnet(10, 1).count_params()
    78330
    """
    if depth < 10 or (depth - 4) % 6:
        raise ValueError(f"`depth` must be 6 n + 4: 10, 16, 22, 28, ... Received: depth={depth}")
    inputs = keras.Input(input_shape, name="inputs")
    x = convolution(inputs, scaled(16, width), 3, 1, l2, "conv_1")
    for stage, filters in enumerate((16, 32, 64), start=1):
        filters = scaled(filters * widen, width)
        for block in range(1, (depth - 4) // 6 + 1):
            strides = 2 if stage > 1 and block == 1 else 1
            x = _block(x, filters, strides, dropout, l2, f"stage{stage}_block{block}")
    x = _norm_relu(x, "final")
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    name = f"wide_resnet_{depth}_{widen}"
    return keras.Model(inputs, classifier(num_classes, l2)(x), name=name)


def _block(inputs, filters, strides, dropout, l2, name):
    x = _norm_relu(inputs, f"{name}_1")
    shortcut = inputs
    if strides > 1 or inputs.shape[-1] != filters:
        shortcut = convolution(x, filters, 1, strides, l2, f"{name}_shortcut")
    x = convolution(x, filters, 3, strides, l2, f"{name}_conv1")
    x = _norm_relu(x, f"{name}_2")
    if dropout:
        x = layers.Dropout(dropout, name=f"{name}_dropout")(x)
    x = convolution(x, filters, 3, 1, l2, f"{name}_conv2")
    return layers.Add(name=f"{name}_add")([x, shortcut])


def _norm_relu(x, name):
    return layers.ReLU(name=f"{name}_relu")(batch_norm(x, f"{name}_bn"))
