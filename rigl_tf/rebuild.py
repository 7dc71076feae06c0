"""Copies of models with some of their layers exchanged."""

import contextlib

import keras
import tensorflow as tf

from rigl_tf.copies import (
    another,
    copy_adapted,
    copy_inside,
    copy_of_lambda,
    own_attributes,
    without_wrappers,
)
from rigl_tf.layers import all_layers, without_build_configs

# Models whose structure is known; a Functional model is a `keras.Function` of its inputs.
_CLONABLE = (keras.Sequential, keras.Function)

# What a class of models may do in a way of its own, and Keras's own classes would not.
_METHODS = ("call", "train_step", "test_step", "predict_step", "compute_loss", "compute_metrics")


def is_clonable(model):
    """Whether a model is Sequential or Functional: its layers can be exchanged in a copy."""
    return isinstance(model, _CLONABLE)


def leaves(model):
    """The layers of a model that can be exchanged, each once.

    These are the layers of Sequential and Functional models, those of nested ones in their place,
    and the layers that attributes of a subclassed model hold, also in lists and dictionaries.

    Returns:
        List of `(layer, containers)`: `containers` are the models around it, from the outside in.
    """
    seen = set()

    def walk(model, containers):
        for layer in model.layers if is_clonable(model) else _held_layers(model):
            # Functional models also hold operations such as slicing.
            is_layer = isinstance(layer, keras.layers.Layer)
            if id(layer) in seen or not is_layer or isinstance(layer, keras.layers.InputLayer):
                continue
            seen.add(id(layer))
            if _is_walked(layer, model):
                yield from walk(layer, (*containers, layer))
            else:
                yield layer, containers

    return list(walk(model, (model,)))


def _is_walked(layer, parent):
    # A subclassed model inside a Functional one is copied from its config, as a layer is.
    return isinstance(layer, _CLONABLE if is_clonable(parent) else keras.Model)


def rebuild(model, exchange):
    """A copy of a Sequential or Functional model with its layers exchanged, uncompiled.

    Args:
        model: The model. It is not changed.
        exchange: Gets a layer, returns the layer to put into its place in the copy.

    Raises:
        ValueError: If Keras cannot make another model of the same class.
    """
    with _uncompiled(model):
        copy = keras.models.clone_model(
            model, input_tensors=_new_inputs(model), clone_function=exchange, recursive=True
        )
    _check_classes(model, copy)
    return copy


def exchange_in_place(model, exchange):
    """Exchanges the layers that the attributes of a subclassed model hold.

    Args:
        model: The model, not built.
        exchange: As in `rebuild`. Models in Sequential or Functional form become copies.
    """

    def exchanged(value):
        if isinstance(value, _CLONABLE):
            return rebuild(value, exchange)
        if isinstance(value, keras.Model):
            exchange_in_place(value, exchange)
            return value
        return exchange(value)

    values = {name: value for name, value in own_attributes(model).items() if _layers_in(value)}
    new_layers = {
        id(layer): exchanged(layer) for value in values.values() for layer in _layers_in(value)
    }
    # Keras forgets the layers that are taken out of a list which it tracks, and would keep those
    # whose attribute is given another value. All are set anew, so that their order stays.
    for name in list(values)[:1]:
        setattr(model, name, [layer for value in values.values() for layer in _layers_in(value)])
        getattr(model, name).clear()
    for name, value in values.items():
        setattr(model, name, _with_layers(value, new_layers))


def copy_of_subclassed(model, caller):
    """Another model of a subclassed model's class and config, without its weights, not built."""
    try:
        copy = another(model, model.get_config())
    except (NotImplementedError, TypeError) as error:
        raise ValueError(
            f"`{caller}` needs another model of the same class, made by `from_config` from what "
            f"`get_config` returns: implement them. Received: model={model.name!r} of class "
            f"{type(model).__name__} ({' '.join(str(error).split())})"
        ) from error
    for (layer, _), (new_layer, _) in zip(leaves(model), leaves(copy), strict=False):
        new_layer.trainable = layer.trainable
    return copy


def build_like(copy, model):
    """Builds a copy of a subclassed model and gives it all the state, other than masks."""
    copy_adapted(model, copy)  # some layers can be called only after that
    copy.build_from_config(model.get_build_config())
    copy.built = True
    copy_inside(model, copy)


def copy_of_layer(layer, plain=False):
    """Another layer of the same class and config, not built.

    Args:
        layer: The layer, or an operation of a Functional model.
        plain: Whether each `SparseWrapper` inside is left out.
    """
    if type(layer) is keras.layers.Lambda:
        return copy_of_lambda(layer)
    config = without_build_configs(layer.get_config())
    copy = another(layer, without_wrappers(config) if plain else config)
    if isinstance(layer, keras.layers.Layer):
        copy_adapted(layer, copy)
    return copy


def copy_state(layer, new_layer):
    """Gives a layer the state of another one of the same class and config, built if that is."""
    layers = zip(all_layers(layer), all_layers(new_layer), strict=False)
    for old, new in layers if not layer.built else [(layer, new_layer)]:
        # In a Sequential model that is not built itself.
        if old.built and old.weights and not new.built:
            new.build_from_config(old.get_build_config())
    copy_inside(layer, new_layer)


def _held_layers(model):
    return [layer for value in own_attributes(model).values() for layer in _layers_in(value)]


def _layers_in(value):
    """The layers in a value of lists, tuples and dictionaries."""
    if isinstance(value, keras.layers.Layer):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [layer for each in value for layer in _layers_in(each)]
    return []


def _with_layers(value, new_layers):
    """A value like that of `_layers_in`, with other layers: `{id of a layer: layer}`."""
    if isinstance(value, keras.layers.Layer):
        return new_layers[id(value)]
    if isinstance(value, dict):
        return {key: _with_layers(each, new_layers) for key, each in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_with_layers(each, new_layers) for each in value))
    if isinstance(value, (list, tuple)):
        kind = tuple if isinstance(value, tuple) else list
        return kind(_with_layers(each, new_layers) for each in value)
    return value


def _check_classes(model, copy):
    """Refuses a copy that behaves in another way, as Keras lost the class."""
    lost = [
        name for name in _METHODS if getattr(type(model), name) is not getattr(type(copy), name)
    ]
    if type(model) is not type(copy) and lost:
        raise ValueError(
            "To copy a model, Keras must be able to make another one of its class from inputs and "
            "outputs: let the constructor take `*args, **kwargs` and pass them on, or wrap the "
            "layers by hand with `rigl_tf.SparseWrapper`. Received: model="
            f"{model.name!r} of class {type(model).__name__}, with {', '.join(lost)} of its own"
        )
    for layer, new_layer in zip(model.layers, copy.layers, strict=True):
        if is_clonable(layer):
            _check_classes(layer, new_layer)


def _new_inputs(model):
    """Inputs like those of a model: `clone_model` forgets their names, and what else they are."""
    inputs = getattr(model, "inputs", None)  # none, if a Sequential model is not built
    if isinstance(model, keras.Sequential) and not (inputs and inputs[0].sparse):
        return None  # As Keras copies it: name, shape, dtype, optional.
    input_layers = {
        id(layer.output): layer
        for layer in model.layers
        if isinstance(layer, keras.layers.InputLayer)
    }

    def new_input(tensor):
        layer = input_layers.get(id(tensor))
        return keras.Input(
            batch_shape=tensor.shape,
            dtype=tensor.dtype,
            sparse=tensor.sparse,
            ragged=tensor.ragged,
            optional=layer is not None and layer.optional,
            name=tensor.name if layer is None else layer.name,
        )

    if isinstance(model, keras.Sequential):
        return new_input(inputs[0])
    return tf.nest.map_structure(new_input, model.input)


@contextlib.contextmanager
def _uncompiled(model):
    """Hides that a model is compiled: `clone_model` would compile its copy, optimizer and all."""
    compiled = model.compiled
    model.compiled = False
    try:
        yield
    finally:
        model.compiled = compiled
