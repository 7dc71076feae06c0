"""VGG for CIFAR: the convolutions of VGG, batch normalisation, one Dense layer."""

import keras
from keras import layers

from models._common import batch_norm, classifier, convolution, scaled

# Filters, stage by stage; a stage ends with max pooling.
_VGG16 = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
_VGG19 = ((64, 64), (128, 128), (256,) * 4, (512,) * 4, (512,) * 4)


def vgg16(
    input_shape: tuple[int, ...] = (32, 32, 3),
    num_classes: int = 10,
    width: float = 1.0,
    l2: float = 0.0,
) -> keras.Model:
    """VGG-16 for CIFAR: 13 convolutions, 14.7 million parameters. See `vgg19`."""
    return _vgg(_VGG16, "vgg16", input_shape, num_classes, width, l2)


def vgg19(
    input_shape: tuple[int, ...] = (32, 32, 3),
    num_classes: int = 10,
    width: float = 1.0,
    l2: float = 0.0,
) -> keras.Model:
    """VGG-19 for CIFAR: 16 convolutions, 20.0 million parameters.

    There are five stages of 3x3 convolutions, each followed by batch normalisation and ReLU. A
    stage ends with max pooling. Then follow the mean over the image, which is one pixel for images
    of 32x32 pixels, and a Dense layer.

    Reference:

    - [Simonyan and Zisserman, 2015](https://arxiv.org/abs/1409.1556), configurations D and E, with
      the usual changes for CIFAR: batch normalisation, one Dense layer instead of three

    Args:
        input_shape: Tuple `(height, width, channels)`, 32 pixels or more.
        num_classes: Integer, the number of logits.
        width: Float above 0, multiplies the filters.
        l2: Float, adds `l2 * sum(kernel ** 2)` to the loss for each kernel.

    Returns:
        A `keras.Model` whose output are logits, shape `(batch, num_classes)`.
    """
    return _vgg(_VGG19, "vgg19", input_shape, num_classes, width, l2)


def _vgg(stages, name, input_shape, num_classes, width, l2):
    x = inputs = keras.Input(input_shape, name="inputs")
    for stage, all_filters in enumerate(stages, start=1):
        for number, filters in enumerate(all_filters, start=1):
            conv = f"stage{stage}_conv{number}"
            x = convolution(x, scaled(filters, width), 3, 1, l2, conv, use_bias=True)
            x = batch_norm(x, f"stage{stage}_bn{number}")
            x = layers.ReLU(name=f"stage{stage}_relu{number}")(x)
        x = layers.MaxPooling2D(name=f"stage{stage}_pool")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, classifier(num_classes, l2)(x), name=name)
