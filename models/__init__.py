"""Builders of plain dense Keras models, which do not depend on `rigl_tf`."""

from typing import Any

import keras

from models.imagenet import mobilenet_v1, mobilenet_v2, resnet50
from models.language import gru_language_model
from models.lenet import lenet5, lenet_300_100
from models.resnet_cifar import resnet20, resnet32, resnet56
from models.small_dense import count_kernel_weights, small_dense_width
from models.vgg_cifar import vgg16, vgg19
from models.vision_transformer import vision_transformer
from models.wide_resnet import wide_resnet

BUILDERS = {
    "lenet_300_100": lenet_300_100,
    "lenet5": lenet5,
    "resnet20": resnet20,
    "resnet32": resnet32,
    "resnet56": resnet56,
    "resnet50": resnet50,
    "vgg16": vgg16,
    "vgg19": vgg19,
    "wide_resnet": wide_resnet,
}


def build(name: str, **kwargs: Any) -> keras.Model:
    """Builds a model by name.

    Args:
        name: String, a key of `BUILDERS`.
        **kwargs: The arguments of this builder, such as `input_shape`, `num_classes` and `width`.

    Returns:
        A `keras.Model`.

    Raises:
        ValueError: If `name` is unknown.
    """
    if name not in BUILDERS:
        raise ValueError(f"`name` must be one of {', '.join(BUILDERS)}. Received: name={name!r}")
    return BUILDERS[name](**kwargs)


__all__ = [
    "BUILDERS",
    "build",
    "count_kernel_weights",
    "gru_language_model",
    "lenet5",
    "lenet_300_100",
    "mobilenet_v1",
    "mobilenet_v2",
    "resnet20",
    "resnet32",
    "resnet50",
    "resnet56",
    "small_dense_width",
    "vgg16",
    "vgg19",
    "vision_transformer",
    "wide_resnet",
]
