"""The CIFAR-10 ResNets of He et al. (2016): option A, shortcuts without parameters."""

import keras
from keras import layers

from models._common import batch_norm, classifier, convolution, scaled


def resnet20(
    input_shape: tuple[int, ...] = (32, 32, 3),
    num_classes: int = 10,
    width: float = 1.0,
    l2: float = 0.0,
) -> keras.Model:
    """ResNet-20: three blocks in each stage, 0.27 million parameters. See `resnet56`."""
    return _resnet(3, "resnet20", input_shape, num_classes, width, l2)


def resnet32(
    input_shape: tuple[int, ...] = (32, 32, 3),
    num_classes: int = 10,
    width: float = 1.0,
    l2: float = 0.0,
) -> keras.Model:
    """ResNet-32: five blocks in each stage, 0.46 million parameters. See `resnet56`."""
    return _resnet(5, "resnet32", input_shape, num_classes, width, l2)


def resnet56(
    input_shape: tuple[int, ...] = (32, 32, 3),
    num_classes: int = 10,
    width: float = 1.0,
    l2: float = 0.0,
) -> keras.Model:
    """ResNet-56: nine blocks in each stage, 0.85 million parameters.

    Three stages of 16, 32 and 64 filters, each block two 3x3 convolutions without
    bias, each followed by batch normalisation (momentum 0.9, epsilon 1e-5).

    Reference:

    - [He et al., 2016](https://arxiv.org/abs/1512.03385), section 4.2

    Args:
        input_shape: Tuple `(height, width, channels)`.
        num_classes: Integer, the number of logits.
        width: Float above 0, multiplies the filters.
        l2: Float, adds `l2 * sum(kernel ** 2)` to the loss for each kernel.

    Returns:
        A `keras.Model` whose output are logits, shape `(batch, num_classes)`.
    """
    return _resnet(9, "resnet56", input_shape, num_classes, width, l2)


def _resnet(num_blocks, name, input_shape, num_classes, width, l2):
    inputs = keras.Input(input_shape, name="inputs")
    x = _conv_batch_norm(inputs, scaled(16, width), 1, l2, "conv_1")
    x = layers.ReLU(name="conv_1_relu")(x)
    for stage, filters in enumerate((16, 32, 64), start=1):
        for block in range(1, num_blocks + 1):
            strides = 2 if stage > 1 and block == 1 else 1
            x = _block(x, scaled(filters, width), strides, l2, f"stage{stage}_block{block}")
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, classifier(num_classes, l2)(x), name=name)


def _block(inputs, filters, strides, l2, name):
    x = _conv_batch_norm(inputs, filters, strides, l2, f"{name}_conv1")
    x = layers.ReLU(name=f"{name}_conv1_relu")(x)
    x = _conv_batch_norm(x, filters, 1, l2, f"{name}_conv2")
    x = layers.Add(name=f"{name}_add")([x, _shortcut(inputs, filters, strides, name)])
    return layers.ReLU(name=f"{name}_relu")(x)


def _conv_batch_norm(inputs, filters, strides, l2, name):
    return batch_norm(convolution(inputs, filters, 3, strides, l2, name), f"{name}_bn")


def _shortcut(x, filters, strides, name):
    """The shortcut of option A: every second pixel, and channels of zeros; it has no parameters."""
    if strides > 1:
        x = layers.AveragePooling2D(1, strides=strides, name=f"{name}_subsample")(x)
    missing = filters - x.shape[-1]
    if missing:
        # With "channels_first" the layer pads the last two axes: here the width (by 0) and the
        # channels. It is a layer of Keras, so the saved model can be loaded without this module.
        x = layers.ZeroPadding2D(
            ((0, 0), (missing // 2, missing - missing // 2)),
            data_format="channels_first",
            name=f"{name}_pad_channels",
        )(x)
    return x
