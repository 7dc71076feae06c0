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
        for child in _children(layer):
            walk(child)

    walk(layer)
    return list(seen.values())


def layers_of_weights(layer):
    """The weights of a layer or model in their order, each with the layers around it.

    Example:

    >>> layer = keras.layers.TimeDistributed(keras.layers.Dense(2, use_bias=False))
    >>> layer.build((None, 3, 4))
    >>> [(weight.name, [type(each).__name__ for each in layers])
    ...  for weight, layers in layers_of_weights(layer)]
    [('kernel', ['TimeDistributed', 'Dense'])]
    """
    around = {}

    def walk(layer, outer):
        around.update({id(weight): (*outer, layer) for weight in layer.weights})
        for child in _children(layer):
            if child not in outer:
                walk(child, (*outer, layer))

    walk(layer, ())
    return [(weight, around[id(weight)]) for weight in layer.weights]


def _children(layer):
    if not isinstance(layer, keras.Model):
        return _attributes(layer)
    # Functional models also hold operations such as slicing.
    return [child for child in layer.layers if isinstance(child, keras.layers.Layer)]


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
