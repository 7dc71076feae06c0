"""Builds a model in which some layers are replaced, and all others are shared."""

import dataclasses
from typing import Any

import keras

from rigl_tf import masks
from rigl_tf.layers.building import without_build_configs
from rigl_tf.layers.storage import csr_storages
from rigl_tf.layers.wrapper import SparseWrapper
from rigl_tf.walk import all_layers, layers_in, layers_of_weights

# Models whose structure is known; a Functional model is a `keras.Function` of its inputs.
_CLONABLE = (keras.Sequential, keras.Function)

# What Keras tracks for a layer. Keras has no public way to replace a layer inside a built layer, or
# to make another object with the same attributes.
_STORES = ("trainable_variables", "non_trainable_variables", "layers", "metrics", "seed_generators")
_TRACKED = ("_tracker", *(f"_{name}" for name in _STORES))

# Attributes in which TensorFlow tracks the others. It creates them itself.
_OF_TENSORFLOW = (
    "_self_setattr_tracking",
    "_self_unconditional_checkpoint_dependencies",
    "_self_unconditional_dependency_names",
    "_self_unconditional_deferred_dependencies",
    "_self_update_uid",
    "_self_name_based_restores",
    "_self_saveable_object_factories",
)

# What a copy does not take over: its place in graphs, losses of calls, all that `compile` sets, and
# methods on the object that replace those of the class.
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
    "get_config",
    "set_weights",
)


def is_clonable(model):
    """Whether a model is Sequential or Functional: Keras knows its graph."""
    return isinstance(model, _CLONABLE)


def leaves(model):
    """The layers of a model that can be replaced, each once.

    These are the layers of Sequential and Functional models, and the layers in attributes of a
    model, also in lists and dictionaries. For a nested model, or a layer such as `TimeDistributed`
    that calls another layer, the layers inside are listed instead.

    Returns:
        List of `(layer, containers)`, where `containers` are the models and layers around it, the
        outermost first.
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
    """Whether a layer has another layer in its attribute `layer`, and no kernel of its own.

    A `SparseWrapper` cannot wrap such a layer: the wrapper hides the attribute `layer`, where Keras
    looks for the layers to save.
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


def with_layers(model, exchange, in_place=False, copied=()):
    """Builds a model with the layers of another one, some of which are replaced.

    Layers that are not replaced are the same objects, so both models share their weights.

    Args:
        model: A `keras.Model`.
        exchange: Function of a layer (never a model) that returns its replacement: the layer
            itself, a layer inside it, or any other layer. It is called for layers inside layers,
            too, but not for layers inside a layer that it has replaced.
        in_place: Whether subclassed models, and layers that are not built, are changed in place. If
            not, and for built layers with layers inside, a copy is made: another object of the same
            class with the same attributes.
        copied: The ids of layers that are copied in any case. A layer that several others hold is
            copied once for all of them.

    Returns:
        A model: `model` itself if it was changed in place or no layer was replaced. A new model is
        not compiled.
    """
    cache = {}

    def visit(layer):
        if id(layer) not in cache:
            # The layer is stored, too, so that its id is not used again. It may contain itself.
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
        if all(visit(each) is each for each in _held(layer)) and id(layer) not in copied:
            return layer
        # A built layer may belong to another model, which must not change.
        return _around(layer, visit, in_place and (is_model or not layer.built))

    return visit(model)


def as_masked(model):
    """A model whose kernels are all masked: the model itself, or one with copies of CSR layers.

    All other weights are shared, masks as well. Nothing is made of a config, as many layers of
    users have none.
    """

    def with_csr(model):
        wrappers = [each for each in all_layers(model) if isinstance(each, SparseWrapper)]
        return [each for each in wrappers if each.has_csr]

    copied = set()
    for wrapper in with_csr(model):
        copied |= {id(owner) for _, owner in csr_storages(wrapper)}
        copied |= {
            id(each) for each in all_layers(wrapper) if isinstance(each, masks.MaskVariables)
        }
    if not copied:
        return model
    new = with_layers(model, lambda layer: layer, copied=copied)
    for wrapper in with_csr(new):
        wrapper.separate()
        # If layers share a kernel, the first of them has made it a masked one for all of them.
        wrapper.use_execution("masked")
    return new


@dataclasses.dataclass(frozen=True)
class Call:
    """A call of a layer, or of an operation, in a model's graph.

    Attributes:
        layer: The layer.
        args, kwargs: Its arguments: symbolic tensors and other values.
        outputs: What it returns.
    """

    layer: keras.Operation
    args: tuple
    kwargs: dict
    outputs: object


def calls_of(model):
    """The graph of a built Sequential or Functional model: its calls in their order.

    (`layer.input` and `layer.output` belong to the graph in which the layer was used first, for
    example the graph of the dense model.)

    Returns:
        A Functional model with the same inputs and layers, and the list of `Call`s from its inputs
        to its outputs.
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
    """A new layer of the same class and config, not built, for a model with its own weights.

    A layer that training does not change is returned itself.
    """
    if not isinstance(layer, keras.layers.Layer) or not layer.variables or hasattr(layer, "adapt"):
        return layer
    return type(layer).from_config(without_build_configs(layer.get_config()))


def copy_state(layer, new_layer):
    """Copies the values of a layer's variables to its (now built) copy from `copy_of_layer`."""
    if new_layer is not layer:
        new_layer.trainable = layer.trainable
        for variable, new_variable in zip(layer.variables, new_layer.variables, strict=True):
            new_variable.assign(variable)


def _held(layer):
    """The layers (and operations) in a model's graph and in a layer's attributes."""
    in_graph = layer.layers if is_clonable(layer) else []
    values = [value for name, value in vars(layer).items() if name not in _TRACKED]
    held = {id(each): each for each in [*in_graph, *layers_in(values)]}
    internal = getattr(layer, "_functional", None)  # of a Sequential model
    return [each for each in held.values() if each is not internal]


def _around(layer, visit, in_place):
    """`layer`, or a copy of it, with the layers inside replaced by what `visit` returns."""
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
    # A Functional model of the same tensors: of a subclass `clone_model` calls the constructor.
    plain = keras.Model(model.input, model.output, name=model.name)
    # With the model's own inputs, users can also make a model from them to a layer's `output`.
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
    return getattr(model, "inputs", None)  # a Sequential model may not know them


def _of_class(kind, base, *args, **kwargs):
    """A model of a class, made with the constructor of its base class only."""
    new = kind.__new__(kind)
    base.__init__(new, *args, **kwargs)
    return new


def _like(new, model, visit):
    """Copies the attributes of a model, and what Keras tracks for them, to the new model."""
    _take_tracked(new, model, visit)
    _set_attributes(new, model, visit)
    # Not through the property, which would change the layers that both models share.
    vars(new)["_trainable"] = model.trainable
    return new


def _twin(layer, visit):
    """Another object of a layer's class with the same attributes; no constructor is called.

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
    """Makes Keras track the same for a new layer as for another one, in the same order."""
    tracker = vars(new)["_tracker"]
    for name in _STORES:
        for each in vars(layer)[f"_{name}"]:
            each = visit(each) if name == "layers" else each
            if not any(tracker.is_in_store(store, each) for store in _STORES):
                tracker.add_to_store(name, each)


def _set_attributes(new, layer, visit):
    """Copies attributes from one layer to another, and replaces the layers in them.

    Args:
        new: The layer to change. It keeps attributes that it already has, unless it is `layer`
            itself.
        layer: The layer with the attributes.
        visit: Function of a layer that returns its replacement.
    """
    for name, value in list(vars(layer).items()):
        if name in (*_TRACKED, *_OF_TENSORFLOW, *_OWN):
            continue
        if new is not layer and name in vars(new):
            continue
        if any(visit(each) is not each for each in layers_in([value])):
            setattr(new, name, _exchanged(value, visit))
        else:
            vars(new)[name] = value


def _exchanged(value, visit):
    """A value with the layers in it replaced; lists, sets and dictionaries are copied."""
    if isinstance(value, keras.layers.Layer):
        return visit(value)
    if isinstance(value, dict):
        return {key: _exchanged(each, visit) for key, each in value.items()}
    make: Any = getattr(value, "_make", None)
    if isinstance(value, tuple) and make is not None:
        # (The type is not that of the named tuple if TensorFlow has put it into another object.)
        return make(_exchanged(each, visit) for each in value)
    for kind in (list, tuple, set, frozenset):
        if isinstance(value, kind):
            return kind(_exchanged(each, visit) for each in value)
    return value
