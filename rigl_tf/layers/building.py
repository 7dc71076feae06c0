"""Builds any layer: by its `build`, or by a call that computes nothing."""

import inspect
from typing import Any

import keras
import numpy as np

from rigl_tf.walk import unbuilt


def builds_by_call(layer):
    """Whether Keras builds a layer by calling it on symbolic inputs."""
    return type(layer).build in (keras.layers.Layer.build, keras.Model.build)


def build_signature(layer):
    """The signature of a layer's `build`: the names of the shapes that it wants."""
    if not builds_by_call(layer):
        return inspect.signature(layer.build)
    several = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
    return inspect.Signature(
        [
            inspect.Parameter(f"{name}_shape", parameter.POSITIONAL_OR_KEYWORD, default=None)
            for name, parameter in inspect.signature(layer.call).parameters.items()
            if parameter.kind not in several
        ]
    )


class _Traced(keras.layers.Layer):
    """A function of tensors as a layer, whose output Keras finds without computing it."""

    def __init__(self, function):
        super().__init__()
        self.__dict__["call"] = function  # which Keras is not to track

    def call(self, *args, **kwargs):
        raise NotImplementedError


def build_by_call(function, args, kwargs):
    """Builds the layers that a function calls, a layer for one, without computing anything.

    Args:
        function: The function. Python in it runs once.
        args, kwargs: Its arguments. Only the shapes and types of tensors and arrays in it matter.
    """

    def symbolic(value):
        if keras.ops.is_tensor(value) or isinstance(value, np.ndarray):
            dtype = keras.backend.standardize_dtype(value.dtype)
            return keras.KerasTensor(value.shape, dtype)
        return value

    args, kwargs = keras.tree.map_structure(symbolic, (args, kwargs))
    _Traced(function).compute_output_spec(*args, **kwargs)


def symbolic_arguments(layer, shapes):
    """Symbolic inputs of these shapes, `{name of the argument of call: tensors}`."""
    missing = [
        str(parameter)
        for name, parameter in inspect.signature(layer.call).parameters.items()
        if parameter.kind is not parameter.VAR_KEYWORD
        and parameter.default is parameter.empty
        and shapes.get(f"{name}_shape") is None
    ]
    if missing:
        raise ValueError(
            "A layer without a `build` must take in `call` only named tensors and arguments with a "
            f"default; give it a `build` that builds {unbuilt(layer)}. "
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
    """The config of a layer, such that layers inside it are not built when it is made from it.

    Keras builds them at once, so that their weights are not in the paths of the layers around.
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
