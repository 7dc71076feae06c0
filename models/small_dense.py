"""Small-dense models: dense models with as many weights as a sparse model has active ones."""

import math
from collections.abc import Callable
from typing import Any

import keras

# Small enough for widths up to 1: two widths at which a layer gets one more unit are never in the
# same step. The closest ones, (2i + 1)/240 and (2j + 1)/168 in LeNet-5, differ by at least 1/1680.
_STEP = 1 / 2048


def count_kernel_weights(model: keras.Model) -> int:
    """Returns the number of weights in all kernels of a model, without biases and normalisations.

    Args:
        model: A built `keras.Model`.
    """
    return sum(
        math.prod(weight.shape)
        for weight in model.trainable_weights
        if weight.name.endswith("kernel")
    )


def small_dense_width(
    builder: Callable[..., keras.Model], target_parameters: int, **kwargs: Any
) -> float:
    """Finds the widest model of a family whose kernels have at most `target_parameters` weights.

    Only kernels count, because only kernels are made sparse; the sparse model and the small dense
    one both have biases and batch normalisation. The search is a bisection down to 1/2048 that
    builds twelve models (more if the result is wider than `width=1`).

    Args:
        builder: A builder of this package, or any function that takes `width` and returns a built
            model whose kernels do not become smaller for a larger `width`.
        target_parameters: Integer, the number of active weights to reach.
        **kwargs: More arguments of `builder`: `input_shape`, `num_classes`, ...

    Returns:
        The width multiplier, a float.

    Raises:
        ValueError: If even the narrowest model has more weights.

    Example:

    >>> import models
    >>> width = models.small_dense_width(models.lenet_300_100, 26_620)  # a tenth of 266,200
    >>> twin = models.build("lenet_300_100", width=width)
    """

    def excess(width):
        return count_kernel_weights(builder(width=width, **kwargs)) - target_parameters

    low, high = 0.0, 1.0
    while excess(high) <= 0:
        low, high = high, 2 * high
    while high - low > _STEP:
        middle = (low + high) / 2
        over = excess(middle)
        low, high = (low, middle) if over > 0 else (middle, high)
    if low == 0.0:
        raise ValueError(
            "`target_parameters` must be at least the number of kernel weights of the narrowest "
            f"model, {over + target_parameters}. Received: target_parameters={target_parameters}"
        )
    return low
