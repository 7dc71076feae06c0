"""Walks the layers of any model: Sequential, Functional, subclassed, nested."""

import keras


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
        for child in layer.layers if isinstance(layer, keras.Model) else _attributes(layer):
            walk(child)

    walk(layer)
    return list(seen.values())


def _attributes(layer):
    """The layers among a layer's public attributes, also inside lists, tuples and dictionaries."""
    waiting = [value for name, value in vars(layer).items() if not name.startswith("__")]
    while waiting:
        value = waiting.pop(0)
        if isinstance(value, keras.layers.Layer):
            yield value
        elif isinstance(value, dict):
            waiting[:0] = value.values()
        elif isinstance(value, (list, tuple)):
            waiting[:0] = value
