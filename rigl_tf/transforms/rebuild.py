"""Exchanges some layers of a model, and shares all others with it."""

import dataclasses
from typing import Any

import keras

from rigl_tf.layers.building import without_build_configs
from rigl_tf.layers.wrapper import SparseWrapper
from rigl_tf.walk import layers_in, layers_of_weights

# Models whose structure is known; a Functional model is a `keras.Function` of its inputs.
_CLONABLE = (keras.Sequential, keras.Function)

# What Keras tracks for a layer. There is no public way to give a layer that is built another one in
# the place of one that it holds, nor to make another object with the same attributes.
_STORES = ("trainable_variables", "non_trainable_variables", "layers", "metrics", "seed_generators")
_TRACKED = ("_tracker", *(f"_{name}" for name in _STORES))

# What a twin does not take over: places in graphs, losses of calls, what belongs to `compile`, and
# methods that stand in the place of the class's.
_OWN = (
    "_inbound_nodes",
    "_outbound_nodes",
    "_losses",
    "_loss_ids",
    "_losses_override",
    "optimizer",
    "train_function",
    "test_function",
    "predict_function",
    "compiled",
    "build",
    "quantize",
    "call",
    "set_weights",
)


def is_clonable(model):
    """Whether a model is Sequential or Functional: Keras knows its graph."""
    return isinstance(model, _CLONABLE)


def leaves(model):
    """The layers of a model that can be exchanged, each once.

    These are the layers of Sequential and Functional models, and those that attributes of a model
    hold, also in lists and dictionaries; those of nested models in their place, and those in a
    layer like `TimeDistributed`, which computes with another one.

    Returns:
        List of `(layer, containers)`: `containers` are the models, and layers like that, around
        it, from the outside in.
    """
    seen = {id(model)}

    def walk(model, containers):
        for layer in _held(model):
            # Functional models also hold operations such as slicing.
            is_layer = isinstance(layer, keras.layers.Layer)
            if id(layer) in seen or not is_layer or isinstance(layer, keras.layers.InputLayer):
                continue
            seen.add(id(layer))
            if isinstance(layer, keras.Model) or _only_calls(layer):
                yield from walk(layer, (*containers, layer))
            else:
                yield layer, containers

    return list(walk(model, (model,)))


def _only_calls(layer):
    """Whether a layer has another one in its attribute `layer`, and no kernel of its own.

    Around such a layer no `SparseWrapper` could stand: it hides the attribute, in which Keras looks
    for what is to be saved.
    """
    if isinstance(layer, SparseWrapper) or not isinstance(
        vars(layer).get("layer"), keras.layers.Layer
    ):
        return False
    if not layer.built:
        return type(layer) in (keras.layers.TimeDistributed, keras.layers.SpectralNormalization)
    return all(
        len(weight.shape) < 2 or not weight.trainable or layers[-1] is not layer
        for weight, layers in layers_of_weights(layer)
    )


def with_layers(model, exchange, in_place=False):
    """A model around the layers of another one, some of which are exchanged.

    What is not exchanged is the same object, so both models share their weights.

    Args:
        model: A `keras.Model`.
        exchange: Gets a layer that is no model, returns what takes its place: the layer, or one
            inside of it, or any other. It is asked for the layers inside of layers, too, but not
            for those inside of what it has exchanged for another one.
        in_place: Whether subclassed models, and what is not built, are changed themselves. If not,
            and for built layers that hold others, a twin is made: another object of the class with
            the same attributes.

    Returns:
        A model; `model` itself if it was changed in place, or nothing was exchanged. A new one is
        not compiled.
    """
    cache = {}

    def visit(layer):
        if id(layer) not in cache:
            # The layer is kept, so that no other gets its identity; it may hold itself.
            cache[id(layer)] = layer, layer
            cache[id(layer)] = layer, exchanged(layer)
        return cache[id(layer)][1]

    def exchanged(layer):
        if not isinstance(layer, keras.layers.Layer):
            return layer  # an operation
        is_model = isinstance(layer, keras.Model)
        if not is_model and (new := exchange(layer)) is not layer:
            is_inner = any(new is each for each in _held(layer))
            return visit(new) if is_inner else new
        if all(visit(each) is each for each in _held(layer)):
            return layer
        # A layer that is built may be one of another model, which is to stay as it is.
        return _around(layer, visit, in_place and (is_model or not layer.built))

    return visit(model)


@dataclasses.dataclass(frozen=True)
class Call:
    """A call of a layer, or of an operation, in a model's graph.

    Attributes:
        layer: The layer.
        args, kwargs: What it is called with: symbolic tensors and whatever else.
        outputs: What it returns.
    """

    layer: keras.Operation
    args: tuple
    kwargs: dict
    outputs: object


def calls_of(model):
    """The graph of a built Sequential or Functional model: its calls in their order.

    `layer.input` and `layer.output` would be those of the graph in which the layer was first used,
    that of the dense model for one.

    Returns:
        A Functional model of the same inputs and layers, and a list of `Call`s on the way from its
        inputs to its outputs.
    """
    calls = []

    def call(layer, *args, **kwargs):
        outputs = layer(*args, **kwargs)
        calls.append(Call(layer, args, kwargs, outputs))
        return outputs

    is_function = isinstance(model, keras.Function)
    inputs = model.input if is_function else model.inputs[0]
    plain = keras.Model(inputs, model.output if is_function else model.outputs[0], name=model.name)
    new = keras.models.clone_model(
        plain,
        input_tensors=inputs,
        clone_function=lambda layer: layer,
        call_function=call,
        recursive=False,
    )
    return new, calls


def copy_of_layer(layer):
    """A layer of the same class and config without weights, for a model that is trained on its own.

    A layer that nothing in a training changes is no copy, but the layer itself.
    """
    if not isinstance(layer, keras.layers.Layer) or not layer.variables or hasattr(layer, "adapt"):
        return layer
    return type(layer).from_config(without_build_configs(layer.get_config()))


def copy_state(layer, new_layer):
    """Gives what `copy_of_layer` made, and was built since, the values of the layer's variables."""
    if new_layer is not layer:
        new_layer.trainable = layer.trainable
        for variable, new_variable in zip(layer.variables, new_layer.variables, strict=True):
            new_variable.assign(variable)


def _held(layer):
    """The layers (and operations) of a model's graph, and those in a layer's attributes."""
    in_graph = layer.layers if is_clonable(layer) else []
    values = [value for name, value in vars(layer).items() if name not in _TRACKED]
    held = {id(each): each for each in [*in_graph, *layers_in(values)]}
    internal = getattr(layer, "_functional", None)  # of a Sequential model
    return [each for each in held.values() if each is not internal]


def _around(layer, visit, in_place):
    """`layer`, or one like it, around what `visit` gives for the layers that it holds."""
    if isinstance(layer, keras.Function):
        return _functional(layer, visit)
    if isinstance(layer, keras.Sequential):
        if in_place and not _inputs(layer):
            return _changed_sequential(layer, visit)
        return _sequential(layer, visit)
    if in_place:
        for old in list(vars(layer)["_layers"]):
            if visit(old) is not old:
                vars(layer)["_tracker"].replace_tracked_value("layers", old, visit(old))
        _set_attributes(layer, layer, visit)
        return layer
    return _twin(layer, visit)


def _functional(model, visit):
    # A Functional model of the same tensors: `clone_model` would ask for a class's constructor.
    plain = keras.Model(model.input, model.output, name=model.name)
    # The inputs are the model's own: so what is made of them and of a layer's `output`, which is
    # that of the model's graph, is a model, too.
    new = keras.models.clone_model(
        plain, input_tensors=model.input, clone_function=visit, recursive=False
    )
    if type(model) is not type(plain):
        new = _of_class(type(model), type(plain), new.input, new.output, name=model.name)
    return _like(new, model, visit)


def _sequential(model, visit):
    layers = [visit(layer) for layer in model.layers]
    inputs = _inputs(model)
    if inputs:
        layers.insert(0, inputs[0])
    new = _of_class(type(model), keras.Sequential, layers, name=model.name)
    new.built = new.built or model.built
    return _like(new, model, visit)


def _changed_sequential(model, visit):
    layers, built = [visit(layer) for layer in model.layers], model.built
    while model.layers:
        model.pop(rebuild=False)
    for layer in layers:
        model.add(layer)
    model.built = model.built or built
    return model


def _inputs(model):
    return getattr(model, "inputs", None)  # none, where a Sequential model does not know them


def _of_class(kind, base, *args, **kwargs):
    """A model of a class by the constructor of its base class alone."""
    new = kind.__new__(kind)
    base.__init__(new, *args, **kwargs)
    return new


def _like(new, model, visit):
    """Gives a new graph what else the model has: attributes, and what Keras tracks for these."""
    _take_tracked(new, model, visit)
    _set_attributes(new, model, visit)
    # Without telling the layers, which both models share.
    vars(new)["_trainable"] = model.trainable
    return new


def _twin(layer, visit):
    """Another layer of a layer's class with the same attributes, whose constructor is not called.

    It shares the weights.
    """
    kind: Any = type(layer)
    new = kind.__new__(kind)
    fresh = {"_inbound_nodes": [], "_outbound_nodes": []}
    fresh |= {"_losses": [], "_loss_ids": set(), "_losses_override": []}
    if isinstance(layer, keras.Model):
        fresh |= dict.fromkeys(("train_function", "test_function", "predict_function"))
        fresh["compiled"] = False
    taken = {name: vars(layer)[name] for name in ("_auto_config", "_lock") if name in vars(layer)}
    vars(new).update(fresh | taken)
    _take_tracked(new, layer, visit)
    _set_attributes(new, layer, visit)
    return new


def _take_tracked(new, layer, visit):
    """Lets Keras track for a layer what it tracks for another one, in the same order."""
    tracker = vars(new)["_tracker"]
    for name in _STORES:
        for each in vars(layer)[f"_{name}"]:
            each = visit(each) if name == "layers" else each
            if not any(tracker.is_in_store(store, each) for store in _STORES):
                tracker.add_to_store(name, each)


def _set_attributes(new, layer, visit):
    """Gives a layer the attributes of another one, with the layers in them exchanged.

    Args:
        new: The layer; `layer` itself to exchange layers in its attributes. Another one keeps the
            attributes that it has.
        layer: The layer that has them.
        visit: Gets a layer, returns what takes its place.
    """
    for name, value in list(vars(layer).items()):
        # TensorFlow's own bookkeeping comes by itself.
        if name in (*_TRACKED, *_OWN) or name.startswith("_self_"):
            continue
        if new is not layer and name in vars(new):
            continue
        if any(visit(each) is not each for each in layers_in([value])):
            setattr(new, name, _exchanged(value, visit))
        else:
            vars(new)[name] = value


def _exchanged(value, visit):
    """A value with the layers in it exchanged, in containers of their own."""
    if isinstance(value, keras.layers.Layer):
        return visit(value)
    if isinstance(value, dict):
        return {key: _exchanged(each, visit) for key, each in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_exchanged(each, visit) for each in value))
    if isinstance(value, (list, tuple)):
        kind = tuple if isinstance(value, tuple) else list
        return kind(_exchanged(each, visit) for each in value)
    return value
