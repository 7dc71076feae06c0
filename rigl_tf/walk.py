"""Walks the layers of any model: Sequential, Functional, subclassed, nested; and builds them."""

import inspect

import keras
import numpy as np


def all_layers(layer):
    """Every layer inside a layer or model, itself first, each once, in the order of use.

    Example:

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="hidden")])
    >>> [layer.name for layer in all_layers(model)][1:]
    ['hidden']
    """
    seen = {}

    def walk(layer):
        if id(layer) in seen or isinstance(layer, keras.layers.InputLayer):
            return
        seen[id(layer)] = layer
        for child in _children(layer):
            walk(child)

    walk(layer)
    return list(seen.values())


def layers_of_weights(layer):
    """The weights of a layer or model in their order, each with the layers around it.

    The outermost layer is the first, the one that computes with the weight the last.

    Example:

    >>> layer = keras.layers.TimeDistributed(keras.layers.Dense(2, use_bias=False))
    >>> layer.build((None, 3, 4))
    >>> [(weight.name, [type(each).__name__ for each in layers])
    ...  for weight, layers in layers_of_weights(layer)]
    [('kernel', ['TimeDistributed', 'Dense'])]
    """
    around, seen = {}, set()

    def walk(layer, outer):
        # From the last child to the first, inner layers before outer ones: of several layers that
        # hold a weight, the last and innermost counts. Each layer is looked at once: those of a
        # user hold theirs in an attribute and, as Keras tracks them, in a list as well.
        seen.add(id(layer))
        for child in reversed(list(_children(layer))):
            if id(child) not in seen:
                walk(child, (*outer, layer))
        for weight in layer.weights:
            around.setdefault(id(weight), (*outer, layer))

    walk(layer, ())
    return [(weight, around[id(weight)]) for weight in layer.weights]


def _children(layer):
    if not isinstance(layer, keras.Model):
        return _attributes(layer)
    # Functional models also hold operations such as slicing.
    return [child for child in layer.layers if isinstance(child, keras.layers.Layer)]


def _attributes(layer):
    """The layers among a layer's public attributes, also inside lists, tuples and dictionaries."""
    return layers_in([value for name, value in vars(layer).items() if not name.startswith("__")])


def layers_in(values):
    """The layers among values, and in lists, tuples and dictionaries of them, in their order."""
    for value in values:
        if isinstance(value, keras.layers.Layer):
            yield value
        elif isinstance(value, dict):
            yield from layers_in(value.values())
        elif isinstance(value, (list, tuple)):
            yield from layers_in(value)


def unbuilt(layer):
    """The names of the layers inside a layer that are not built."""
    return [each.name for each in all_layers(layer)[1:] if not each.built]


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
        vars(self)["call"] = function  # which Keras is not to track

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


def without_build_configs(config):
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
