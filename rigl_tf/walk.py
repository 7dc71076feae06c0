"""Visits the layers of any model: Sequential, Functional, subclassed or nested."""

import collections
from collections.abc import Iterable, Iterator
from typing import Any

import keras

# Lists in which Keras and TensorFlow track the variables that are in other attributes.
_TRACKING = (
    "_trainable_variables",
    "_non_trainable_variables",
    "_self_unconditional_checkpoint_dependencies",
    "_self_unconditional_dependency_names",
)


def all_layers(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    """The layer or model itself, then every layer inside it, each once, in the order of use.

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


def recurrent_states(model: keras.layers.Layer) -> list[keras.Variable]:
    """The states of recurrent layers with `stateful=True`, which Keras does not list as variables.

    Args:
        model: A built `keras.Model` or layer.

    Returns:
        List of variables, each once, without those in `model.variables`.

    Example:

    >>> rnn = keras.layers.LSTM(3, stateful=True)
    >>> model = keras.Sequential([keras.Input((4, 2), batch_size=5), rnn])
    >>> [tuple(state.shape) for state in recurrent_states(model)]
    [(5, 3), (5, 3)]
    """
    states = [
        state
        for layer in all_layers(model)
        if getattr(layer, "stateful", False)
        for state in keras.tree.flatten(getattr(layer, "states", None) or [])
        if isinstance(state, keras.Variable)
    ]
    listed = {id(variable) for variable in model.variables}
    return list({id(state): state for state in states if id(state) not in listed}.values())


def layers_of_weights(
    layer: keras.layers.Layer,
) -> list[tuple[keras.Variable, tuple[keras.layers.Layer, ...]]]:
    """The weights of a layer or model in their order, each with the layers around it.

    The outermost layer comes first, the layer that computes with the weight comes last. (The layer
    that only stores the values of a CSR kernel is not listed.)

    Example:

    >>> layer = keras.layers.TimeDistributed(keras.layers.Dense(2, use_bias=False))
    >>> layer.build((None, 3, 4))
    >>> [(weight.name, [type(each).__name__ for each in layers])
    ...  for weight, layers in layers_of_weights(layer)]
    [('kernel', ['TimeDistributed', 'Dense'])]
    """
    around, seen = {}, set()

    def walk(layer, outer):
        # From the last child to the first, and inner layers before outer ones: if several layers
        # hold a weight, the last and innermost one counts. Each layer is visited once, although a
        # user's layer holds inner layers in an attribute and in the list where Keras tracks them.
        seen.add(id(layer))
        for child in reversed(list(_children(layer))):
            if id(child) not in seen:
                walk(child, (*outer, layer))
        layers = outer if getattr(layer, "only_stores", False) else (*outer, layer)
        for weight in layer.weights:
            around.setdefault(id(weight), layers)

    walk(layer, ())
    return [(weight, around[id(weight)]) for weight in layer.weights]


def layers_by_weight(
    layer: keras.layers.Layer,
) -> dict[int, tuple[keras.layers.Layer, ...]]:
    """`{id of a weight: the layers around it}`, as `layers_of_weights` lists them."""
    return {id(weight): layers for weight, layers in layers_of_weights(layer)}


def _children(layer):
    if not isinstance(layer, keras.Model):
        return _attributes(layer)
    # Functional models also hold operations such as slicing.
    return [child for child in layer.layers if isinstance(child, keras.layers.Layer)]


def _attributes(layer):
    """The layers in a layer's attributes, also inside lists, tuples and dictionaries."""
    return layers_in([value for name, value in vars(layer).items() if not name.startswith("__")])


def layers_in(values: Iterable[Any]) -> Iterator[keras.layers.Layer]:
    """The layers among some values, also inside lists, tuples, dictionaries and sets.

    They come in their order; those in a set, which has no order, in the order of their names.
    """
    yield from _instances_in(values, keras.layers.Layer)


def _instances_in(values, kind):
    for value in values:
        if isinstance(value, kind):
            yield value
        elif isinstance(value, dict):
            yield from _instances_in(value.values(), kind)
        elif isinstance(value, (list, tuple)):
            yield from _instances_in(value, kind)
        elif isinstance(value, (set, frozenset)):
            found = [each for each in value if isinstance(each, kind)]
            yield from sorted(found, key=lambda each: (len(each.name), each.name))


def held_twice(layer: keras.layers.Layer) -> set[int]:
    """The ids of the variables that stand in several attributes of a layer or of layers inside it.

    Example:

    >>> layer = keras.layers.SpectralNormalization(keras.layers.Dense(2))
    >>> layer.build((None, 3))
    >>> held_twice(layer) == {id(layer.kernel)}
    True
    """
    attributes = [
        value
        for each in all_layers(layer)
        if not getattr(each, "only_stores", False)
        for name, value in vars(each).items()
        if name not in _TRACKING
    ]
    held = collections.Counter(map(id, _instances_in(attributes, keras.Variable)))
    return {each for each, number in held.items() if number > 1}


def unbuilt(layer: keras.layers.Layer) -> list[str]:
    """The names of all layers inside a layer that are not built yet."""
    return [each.name for each in all_layers(layer)[1:] if not each.built]
