"""Builds any layer, by its `build` or by a call with symbolic inputs."""

import inspect
from typing import Any

import keras
import numpy as np

from rigl_tf.walk import unbuilt

_SEVERAL = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD


def builds_by_call(layer):
    """Whether Keras builds a layer by calling it on symbolic inputs."""
    return type(layer).build in (keras.layers.Layer.build, keras.Model.build)


def builds_itself(layer):
    """Whether a layer's `build` takes more than shapes, so that only its own code can call it."""
    names = [
        name
        for name, parameter in inspect.signature(layer.build).parameters.items()
        if parameter.kind not in _SEVERAL
    ]
    is_for_shapes = len(names) < 2 or all(name.endswith("_shape") for name in names)
    return not builds_by_call(layer) and not is_for_shapes


def build_signature(layer):
    """The signature of a layer's `build`: the names of the shapes that it takes."""
    if not builds_by_call(layer) and not (layer.built and builds_itself(layer)):
        return inspect.signature(layer.build)
    return inspect.Signature(
        [
            inspect.Parameter(f"{name}_shape", parameter.POSITIONAL_OR_KEYWORD, default=None)
            for name, parameter in inspect.signature(layer.call).parameters.items()
            if parameter.kind not in _SEVERAL
        ]
    )


class _Traced(keras.layers.Layer):
    """Makes a layer of a function, so that Keras infers its outputs without computing them."""

    def __init__(self, function):
        super().__init__()
        self.__dict__["call"] = function  # set like this, Keras does not track it

    def call(self, *args, **kwargs):
        raise NotImplementedError


def build_by_call(function, args, kwargs):
    """Builds the layers that a function (or a layer) calls, without computing anything.

    Args:
        function: The function. Its Python code runs once.
        args: Its positional arguments. Of tensors and arrays, only shapes and types are used.
        kwargs: Its keyword arguments, likewise.
    """

    def symbolic(value):
        if keras.ops.is_tensor(value) or isinstance(value, np.ndarray):
            dtype = keras.backend.standardize_dtype(value.dtype)
            return keras.KerasTensor(value.shape, dtype)
        return value

    errors = []

    def observed(*args, **kwargs):
        try:
            return function(*args, **kwargs)
        except Exception as error:
            errors.append(error)
            raise

    args, kwargs = keras.tree.map_structure(symbolic, (args, kwargs))
    try:
        _Traced(observed).compute_output_spec(*args, **kwargs)
    except Exception:
        if errors:
            raise errors[-1] from None  # without what Keras says of `_Traced`
        raise


def symbolic_arguments(layer, shapes):
    """Symbolic inputs of these shapes, as `{name of an argument of call: tensors}`."""
    missing = [
        str(parameter)
        for name, parameter in inspect.signature(layer.call).parameters.items()
        if parameter.kind is not parameter.VAR_KEYWORD
        and parameter.default is parameter.empty
        and shapes.get(f"{name}_shape") is None
    ]
    if missing:
        raise ValueError(
            "The `call` of a layer without `build` must take only named tensors, and arguments "
            f"with a default; or give the layer a `build` that builds {unbuilt(layer)}. "
            f"Received: layer={layer.name!r} with {missing} in `call`"
        )

    def tensor(shape):
        return keras.KerasTensor(shape, dtype=layer.input_dtype)

    return {
        name.removesuffix("_shape"): keras.tree.map_shape_structure(tensor, shape)
        for name, shape in shapes.items()
        if shape is not None
    }


def without_build_configs(config: Any) -> Any:
    """The config of a layer without the shapes to build it with.

    With these shapes, `from_config` would build inner layers at once. Then the paths of their
    weights would lack the names of the layers around them.
    """
    if isinstance(config, dict):
        return {
            key: without_build_configs(value)
            for key, value in config.items()
            if key != "build_config"
        }
    if isinstance(config, list):
        return [without_build_configs(value) for value in config]
    return config
