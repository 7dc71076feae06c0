"""Parts that the builders share: widths, L2 penalty, convolutions, the layer of logits."""

import keras


def scaled(count, width):
    """Returns `count` units or filters times the multiplier `width`, at least 1."""
    if not width > 0:
        raise ValueError(f"`width` must be greater than 0. Received: width={width}")
    return max(1, round(count * width))


def kernel_regularizer(l2):
    """Returns the penalty `l2 * sum(kernel ** 2)`, or `None` when `l2` is 0."""
    if not l2 >= 0:
        raise ValueError(f"`l2` must be at least 0. Received: l2={l2}")
    return keras.regularizers.L2(l2) if l2 else None


def convolution(x, filters, size, strides, l2, name, padding="same", use_bias=False):
    """Returns `x` after a square convolution with He initialisation and the L2 penalty `l2`."""
    return keras.layers.Conv2D(
        filters,
        size,
        strides=strides,
        padding=padding,
        use_bias=use_bias,
        kernel_initializer="he_normal",
        kernel_regularizer=kernel_regularizer(l2),
        name=name,
    )(x)


def batch_norm(x, name):
    """Returns `x` after batch normalisation with the settings of ResNets."""
    return keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=name)(x)


def classifier(num_classes, l2):
    """Returns the layer of logits. It computes in float32 with any dtype policy."""
    return keras.layers.Dense(
        num_classes, kernel_regularizer=kernel_regularizer(l2), dtype="float32", name="classifier"
    )
