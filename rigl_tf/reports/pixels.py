"""Finds out whether the inputs of a kernel are the pixels of the model's input."""

import math

import keras

from rigl_tf.inputs import known_inputs
from rigl_tf.transforms.rebuild import calls_of, is_clonable
from rigl_tf.transforms.units import inner_of

# These layers change neither the number nor the order of the values.
_IN_ORDER = (
    *(keras.layers.Flatten, keras.layers.Reshape, keras.layers.Identity),
    *(keras.layers.Activation, keras.layers.ReLU, keras.layers.LeakyReLU, keras.layers.PReLU),
    *(keras.layers.ELU, keras.layers.Softmax, keras.layers.ActivityRegularization),
    *(keras.layers.Rescaling, keras.layers.Normalization, keras.layers.BatchNormalization),
    *(keras.layers.LayerNormalization, keras.layers.Dropout, keras.layers.SpatialDropout1D),
    *(keras.layers.SpatialDropout2D, keras.layers.GaussianDropout, keras.layers.GaussianNoise),
)


def shape_of_image(kernel, model):
    """Height, width and channels of the images whose pixels a kernel reads.

    It is `None` if the kernel reads something else, or if this is not certain: as in a subclassed
    model, whose layers may be called in any way.
    """
    shape = _shape_of_inputs(model)
    is_vector = kernel.inputs.ndim == 1
    if shape is None or not is_vector or math.prod(shape) != kernel.inputs.size:
        return None
    return shape if _reads_inputs(model, kernel.layers[1:]) else None


def _shape_of_inputs(model):
    inputs = known_inputs(model)
    shape = tuple(inputs[0].shape[1:]) if len(inputs) == 1 else ()
    if len(shape) not in (2, 3) or None in shape:
        return None
    return shape if len(shape) == 3 else (*shape, 1)


def _reads_inputs(model, layers):
    """Whether a Dense layer gets the values of the model's inputs in their order.

    Args:
        model: The model.
        layers: The layers in it that are around the kernel, the outermost first.
    """
    if not is_clonable(model):
        return False
    plain, calls = calls_of(model)
    in_order = {id(tensor) for tensor in plain.inputs}
    found = []
    for call in calls:
        is_in_order = bool(call.args) and id(call.args[0]) in in_order
        if call.layer is layers[0]:
            found.append(is_in_order)
        if is_in_order and _keeps_order(call.layer):
            in_order.add(id(call.outputs))
    if not found or not all(found):
        return False
    return type(inner_of(layers[0])) is keras.layers.Dense or _reads_inputs(layers[0], layers[1:])


def _keeps_order(layer):
    if isinstance(layer, keras.Sequential):
        return all(map(_keeps_order, layer.layers))
    # With `channels_first`, Flatten moves the channels to the end.
    return type(layer) in _IN_ORDER and getattr(layer, "data_format", "") != "channels_first"
