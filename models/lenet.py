"""The two LeNets of LeCun et al. (1998), as the sparse-training papers use them on MNIST."""

import keras
from keras import layers

from models._common import classifier, kernel_regularizer, scaled


def lenet_300_100(
    input_shape: tuple[int, ...] = (28, 28, 1),
    num_classes: int = 10,
    l2: float = 0.0,
    width: float = 1.0,
    units: tuple[int, int] = (300, 100),
    activation: str = "relu",
) -> keras.Model:
    """Two hidden layers of 300 and 100 units; 266,610 parameters on MNIST.

    Args:
        input_shape: Tuple of integers, an image or a flat vector: `(28, 28, 1)`,
            `(28, 28)`, `(784,)`. It is flattened inside the model.
        num_classes: Integer, the number of logits.
        l2: Float, adds `l2 * sum(kernel ** 2)` to the loss for each kernel.
        width: Float above 0, multiplies the hidden units.
        units: Pair of integers, the units of the two hidden layers before `width`.
        activation: String or callable, that of the hidden layers.

    Returns:
        A `keras.Model` whose output are logits, shape `(batch, num_classes)`.
    """
    hidden = {"activation": activation, "kernel_regularizer": kernel_regularizer(l2)}
    inputs = keras.Input(input_shape, name="inputs")
    x = layers.Flatten(name="flatten")(inputs)
    x = layers.Dense(scaled(units[0], width), name="dense_1", **hidden)(x)
    x = layers.Dense(scaled(units[1], width), name="dense_2", **hidden)(x)
    return keras.Model(inputs, classifier(num_classes, l2)(x), name="lenet_300_100")


def lenet5(
    input_shape: tuple[int, ...] = (28, 28, 1),
    num_classes: int = 10,
    l2: float = 0.0,
    width: float = 1.0,
) -> keras.Model:
    """Two 5x5 convolutions (6, 16) and two hidden layers (120, 84); 44,426 parameters on MNIST.

    The convolutions have no padding, as in the Gradient Flow paper. So the first hidden layer gets
    4 x 4 x 16 values for an image of 28x28 pixels.

    Reference:

    - [Evci et al., 2022](https://arxiv.org/abs/2010.03533)

    Args:
        input_shape: Tuple `(height, width, channels)`, at least 16 x 16 pixels.
        num_classes: Integer, the number of logits.
        l2: Float, adds `l2 * sum(kernel ** 2)` to the loss for each kernel.
        width: Float above 0, multiplies the filters and the hidden units.

    Returns:
        A `keras.Model` whose output are logits, shape `(batch, num_classes)`.
    """
    if len(input_shape) != 3 or min(input_shape[:2]) < 16:
        raise ValueError(
            "`input_shape` must be (height, width, channels) with at least 16 x 16 pixels. "
            f"Received: input_shape={input_shape}"
        )
    hidden = {"activation": "relu", "kernel_regularizer": kernel_regularizer(l2)}
    inputs = keras.Input(input_shape, name="inputs")
    x = layers.Conv2D(scaled(6, width), 5, name="conv_1", **hidden)(inputs)
    x = layers.MaxPooling2D(2, name="pool_1")(x)
    x = layers.Conv2D(scaled(16, width), 5, name="conv_2", **hidden)(x)
    x = layers.MaxPooling2D(2, name="pool_2")(x)
    x = layers.Flatten(name="flatten")(x)
    x = layers.Dense(scaled(120, width), name="dense_1", **hidden)(x)
    x = layers.Dense(scaled(84, width), name="dense_2", **hidden)(x)
    return keras.Model(inputs, classifier(num_classes, l2)(x), name="lenet5")
