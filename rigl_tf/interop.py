"""Converts Keras 3 models to `tf_keras` (Keras 2), for TensorFlow Model Optimization."""

import importlib.util
from typing import Any

import keras

from rigl_tf.inputs import known_inputs
from rigl_tf.transforms.sparsify import check_built, strip

_CONVOLUTION = (
    "filters", "kernel_size", "strides", "padding", "data_format", "dilation_rate", "groups",
    "activation", "use_bias",
)  # fmt: skip
_POOLING = ("pool_size", "strides", "padding", "data_format")
_GLOBAL = ("data_format", "keepdims")
# The layers that TensorFlow Model Optimization can quantise, and the arguments of each.
_ARGUMENTS = {
    "Activation": ("activation",),
    "Add": (),
    "AveragePooling1D": _POOLING,
    "AveragePooling2D": _POOLING,
    "BatchNormalization": ("axis", "momentum", "epsilon", "center", "scale"),
    "Concatenate": ("axis",),
    "Conv2D": _CONVOLUTION,
    "Conv2DTranspose": (*_CONVOLUTION[:6], "output_padding", "activation", "use_bias"),
    "Cropping2D": ("cropping", "data_format"),
    "Dense": ("units", "activation", "use_bias"),
    "DepthwiseConv2D": (
        "kernel_size", "strides", "padding", "depth_multiplier", "data_format", "dilation_rate",
        "activation", "use_bias",
    ),
    "Dropout": ("rate", "noise_shape", "seed"),
    "Flatten": ("data_format",),
    "GlobalAveragePooling1D": _GLOBAL,
    "GlobalAveragePooling2D": _GLOBAL,
    "GlobalMaxPooling1D": _GLOBAL,
    "GlobalMaxPooling2D": _GLOBAL,
    "LeakyReLU": ("negative_slope",),
    "MaxPooling2D": _POOLING,
    "Permute": ("dims",),
    "ReLU": ("max_value", "negative_slope", "threshold"),
    "Reshape": ("target_shape",),
    "Softmax": ("axis",),
    "SpatialDropout2D": ("rate", "data_format"),
    "UpSampling2D": ("size", "data_format", "interpolation"),
    "ZeroPadding2D": ("padding", "data_format"),
}  # fmt: skip
# Arguments with another name in Keras 2.
_RENAMED = {("LeakyReLU", "negative_slope"): "alpha"}
# Activations that have the same name in Keras 2 and are computed in the same way.
_ACTIVATIONS = ("linear", "relu", "relu6", "sigmoid", "softmax", "tanh")


def to_tf_keras(model: keras.Model) -> Any:
    """Builds the same model in `tf_keras`, which is Keras 2, with the same weights.

    TensorFlow Model Optimization works only with models of `tf_keras`, so this function is needed
    for its quantisation. The zeros of the kernels stay, but the result has no masks.

    Args:
        model: A built Sequential or Functional `keras.Model` in float32, sparse or stripped, with
            layers that TensorFlow Model Optimization can quantise.

    Returns:
        An uncompiled `tf_keras.Model` with the same layer names and predictions.

    Raises:
        ImportError: If `tf_keras` is not installed.
        ValueError: If the model is subclassed, or has a layer that is not supported.
    """
    if importlib.util.find_spec("tf_keras") is None:
        raise ImportError("`to_tf_keras` needs the package tf_keras: `pip install tf_keras`")
    check_built(model, "to_tf_keras")
    plain = strip(model)
    if not known_inputs(plain):
        raise ValueError(
            "`to_tf_keras` takes a Sequential or Functional model. Received: "
            f"model={model.name!r} of class {type(model).__name__}"
        )
    layers = [layer for layer in plain.layers if not isinstance(layer, keras.layers.InputLayer)]
    configs = {id(layer): _config(layer) for layer in layers}

    import tf_keras

    made = {
        id(layer): getattr(tf_keras.layers, type(layer).__name__)(**configs[id(layer)])
        for layer in layers
    }
    tensors = {
        id(tensor): tf_keras.Input(tensor.shape[1:], tensor.shape[0], tensor.name, tensor.dtype)
        for tensor in plain.inputs
    }
    keep = list(plain.inputs)

    def call(layer, *arguments, **settings):
        """Calls the layer on symbolic tensors, and its copy in `tf_keras` on its own tensors."""
        if id(layer) not in made:
            raise ValueError(
                "`to_tf_keras` takes layers, no other operations: put it into a layer, such as "
                f"`keras.layers.Add` or `Rescaling`. Received: operation {layer.name!r}"
            )
        outputs = layer(*arguments, **settings)
        keep.append(outputs)  # Otherwise another tensor may get the same id.
        given = keras.tree.map_structure(lambda symbol: tensors[id(symbol)], arguments[0])
        tensors[id(outputs)] = made[id(layer)](given)
        return outputs

    outputs = _outputs(plain, call)
    ends = ([tensors[id(each)] for each in flat] for flat in (plain.inputs, outputs))
    new = tf_keras.Model(*(end if len(end) > 1 else end[0] for end in ends), name=model.name)
    for layer in layers:
        made[id(layer)].set_weights(layer.get_weights())
    return new


def _outputs(model, call):
    """The outputs of a model's graph, each layer called by `call`."""
    if isinstance(model, keras.Sequential):
        x = model.inputs[0]
        for layer in model.layers:
            x = call(layer, x)
        return [x]
    clone = keras.models.clone_model(
        model,
        input_tensors=model.input,
        clone_function=lambda layer: layer,
        call_function=call,
    )
    return clone.outputs


def _config(layer):
    """The arguments for the layer in Keras 2; a `ValueError` if the layer is not supported."""
    kind = type(layer).__name__
    known = _ARGUMENTS.get(kind)
    if known is None or type(layer) is not getattr(keras.layers, kind, None):
        raise ValueError(
            f"`to_tf_keras` takes layers of the classes {sorted(_ARGUMENTS)}. "
            f"Received: layer {layer.name!r} of class {kind}"
        )
    if layer.dtype_policy.name != "float32":
        raise ValueError(
            "`to_tf_keras` takes layers in float32. Received: "
            f"layer {layer.name!r} in {layer.dtype_policy.name}"
        )
    config = layer.get_config()
    activation = config.get("activation", "linear")
    if activation not in _ACTIVATIONS:
        raise ValueError(
            f"`to_tf_keras` takes the activations {list(_ACTIVATIONS)}. "
            f"Received: layer {layer.name!r} with {activation!r}"
        )
    arguments = {_RENAMED.get((kind, name), name): config[name] for name in known if name in config}
    return {"name": layer.name, "trainable": layer.trainable, **arguments}
