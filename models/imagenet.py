"""ResNet-50 and MobileNets for ImageNet, with a width multiplier for wider or smaller models."""

import keras
from keras import layers

from models._common import batch_norm, classifier, convolution, scaled


def resnet50(
    input_shape: tuple[int, ...] = (224, 224, 3),
    num_classes: int = 1000,
    width: float = 1.0,
    l2: float = 0.0,
) -> keras.Model:
    """ResNet-50: 16 bottleneck blocks, 25.6 million parameters.

    The convolutions have no bias and are followed by batch normalisation (momentum 0.9, epsilon
    1e-5). The size of a stage is halved by the 3x3 convolution of its first block, as in most
    implementations; in the paper it is halved by the first 1x1 convolution.

    Reference:

    - [He et al., 2016](https://arxiv.org/abs/1512.03385), table 1

    Args:
        input_shape: Tuple `(height, width, channels)`.
        num_classes: Integer, the number of logits.
        width: Float above 0, multiplies the filters.
        l2: Float, adds `l2 * sum(kernel ** 2)` to the loss for each kernel.

    Returns:
        A `keras.Model` whose output are logits, shape `(batch, num_classes)`.
    """
    inputs = keras.Input(input_shape, name="inputs")
    x = layers.ZeroPadding2D(3, name="conv_1_pad")(inputs)
    x = _conv_norm(x, scaled(64, width), 7, 2, l2, "conv_1", padding="valid")
    x = layers.ReLU(name="conv_1_relu")(x)
    x = layers.ZeroPadding2D(1, name="pool_1_pad")(x)
    x = layers.MaxPooling2D(3, strides=2, name="pool_1")(x)
    for stage, (filters, num_blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3)), start=1):
        for block in range(1, num_blocks + 1):
            strides = 2 if stage > 1 and block == 1 else 1
            x = _bottleneck(x, filters, width, strides, l2, f"stage{stage}_block{block}")
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, classifier(num_classes, l2)(x), name="resnet50")


def mobilenet_v1(
    input_shape: tuple[int, ...] = (224, 224, 3), num_classes: int = 1000, width: float = 1.0
) -> keras.Model:
    """MobileNet-v1: 13 depthwise-separable convolutions, 4.2 million parameters.

    Reference:

    - [Howard et al., 2017](https://arxiv.org/abs/1704.04861), table 1

    Args:
        input_shape: Tuple `(height, width, channels)`, 32 pixels or more.
        num_classes: Integer, the number of logits.
        width: Float above 0, multiplies the filters.

    Returns:
        A `keras.Model` whose output are logits, shape `(batch, num_classes)`.
    """
    return keras.applications.MobileNet(
        input_shape=input_shape,
        alpha=width,
        dropout=0.0,
        weights=None,
        classes=num_classes,
        classifier_activation=None,
        name="mobilenet_v1",
    )


def mobilenet_v2(
    input_shape: tuple[int, ...] = (224, 224, 3), num_classes: int = 1000, width: float = 1.0
) -> keras.Model:
    """MobileNet-v2: 17 inverted residual blocks, 3.5 million parameters.

    Reference:

    - [Sandler et al., 2018](https://arxiv.org/abs/1801.04381), table 2

    Args:
        input_shape, num_classes, width: As in `mobilenet_v1`.

    Returns:
        A `keras.Model` whose output are logits, shape `(batch, num_classes)`.
    """
    return keras.applications.MobileNetV2(
        input_shape=input_shape,
        alpha=width,
        weights=None,
        classes=num_classes,
        classifier_activation=None,
        name="mobilenet_v2",
    )


def _bottleneck(inputs, filters, width, strides, l2, name):
    inner, outer = scaled(filters, width), scaled(4 * filters, width)
    x = _conv_norm(inputs, inner, 1, 1, l2, f"{name}_conv1")
    x = layers.ReLU(name=f"{name}_conv1_relu")(x)
    if strides > 1:
        x = layers.ZeroPadding2D(1, name=f"{name}_conv2_pad")(x)
    padding = "valid" if strides > 1 else "same"
    x = _conv_norm(x, inner, 3, strides, l2, f"{name}_conv2", padding=padding)
    x = layers.ReLU(name=f"{name}_conv2_relu")(x)
    x = _conv_norm(x, outer, 1, 1, l2, f"{name}_conv3")
    shortcut = inputs
    if strides > 1 or inputs.shape[-1] != outer:
        shortcut = _conv_norm(inputs, outer, 1, strides, l2, f"{name}_shortcut")
    x = layers.Add(name=f"{name}_add")([x, shortcut])
    return layers.ReLU(name=f"{name}_relu")(x)


def _conv_norm(x, filters, size, strides, l2, name, padding="same"):
    return batch_norm(convolution(x, filters, size, strides, l2, name, padding), f"{name}_bn")
