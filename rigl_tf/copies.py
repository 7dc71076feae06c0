"""What a copy of a layer gets from the layer beyond its config."""

import inspect
import tempfile

import keras
import tensorflow as tf

from rigl_tf import masks
from rigl_tf.layers import all_layers
from rigl_tf.wrapper import SparseWrapper


def without_wrappers(config):
    """The config of a layer, with what is wrapped in the place of each `SparseWrapper` in it."""
    if isinstance(config, dict):
        if config.get("registered_name") == keras.saving.get_registered_name(SparseWrapper):
            return without_wrappers(config["config"]["layer"])
        return {key: without_wrappers(value) for key, value in config.items()}
    if isinstance(config, list):
        return [without_wrappers(value) for value in config]
    return config


def another(layer, config):
    """Another layer or model of a layer's class, made from its config.

    Keras's own config of a subclassed model has the defaults of the constructor's arguments,
    whatever they were. `copy_inside` refuses the copy where that makes a difference.
    """
    if _has_defaults(layer):
        arguments = inspect.signature(type(layer)).parameters
        if not any(each.kind is each.VAR_KEYWORD for each in arguments.values()):
            config = {name: value for name, value in config.items() if name in arguments}
    return type(layer).from_config(config)


def own_attributes(model):
    """The attributes that a model has beyond those of every Keras model which holds a layer."""
    other = keras.Model()
    other.held = keras.layers.Identity()
    keras_own = vars(other).keys() - {"held"}
    return {name: value for name, value in vars(model).items() if name not in keras_own}


def copy_of_lambda(layer):
    """Another `Lambda` layer of the same functions: Keras loads no lambda from a config."""
    output_shape = layer.get_config().get("output_shape")
    if isinstance(output_shape, dict):  # a function
        output_shape = layer.compute_output_shape
    return keras.layers.Lambda(
        layer.function,
        output_shape=output_shape,
        mask=layer.mask,
        arguments=layer.arguments,
        name=layer.name,
        dtype=layer.dtype_policy,
        trainable=layer.trainable,
    )


def copy_adapted(layer, new_layer):
    """Gives the preprocessing layers inside a copy what those of the layer learned by `adapt`.

    These are vocabularies and bins, which are no weights. Where the copy holds other layers, as
    some are made when it is built, they are left out: call it again then.
    """
    for old, new in zip(_plain_layers(layer), _plain_layers(new_layer), strict=False):
        if type(old) is not type(new):
            continue
        if isinstance(old, keras.layers.Discretization):
            new.bin_boundaries = old.bin_boundaries
        if hasattr(old, "get_vocabulary") and old.get_vocabulary(include_special_tokens=False):
            # As Keras saves them.
            variables = {}
            old.save_own_variables(variables)
            new.load_own_variables(variables)
            with tempfile.TemporaryDirectory() as directory:
                old.save_assets(directory)
                new.load_assets(directory)


def copy_inside(layer, new_layer):
    """Gives a copy that is built as the layer is all that the layer holds.

    These are the values of its variables (weights, states and seeds), which layers and weights are
    frozen, what was learned by `adapt`, and the masks of kernels that are sparse in both.

    Raises:
        ValueError: If the copy holds other layers or variables, or layers of other settings.
    """
    copy_adapted(layer, new_layer)
    pairs = list(zip(*_same_layers(layer, new_layer), strict=True))
    for old, new in pairs:  # from the outside in, as a layer passes it on to the layers inside
        if new.trainable != old.trainable:
            new.trainable = old.trainable
    for old, new in pairs:
        if _has_defaults(old):
            _check_settings(old, new)
    _copy_variables(layer, new_layer)
    for old, new in pairs:
        if isinstance(old, keras.layers.RNN) and old.states is not None:
            # Keras does not count them among the variables of the layer.
            states = tf.nest.flatten(old.states), tf.nest.flatten(new.states)
            for state, new_state in zip(*states, strict=True):
                new_state.assign(state)
        if old.built and old.weights and hasattr(new, "finalize_state"):
            new.finalize_state()


def variables_but_masks(layer):
    """The variables of a layer, seeds and states too, without the masks of its sparse kernels."""
    linked = {id(masks.mask_of(weight)) for weight in layer.weights}
    return [variable for variable in layer.variables if id(variable) not in linked]


def check_tied(pairs):
    """Refuses copies of layers that do not share the variables that the layers share.

    Args:
        pairs: List of `(layer, its copy)`.
    """
    layers, new_layers = zip(*pairs, strict=True)
    if _number_of_variables(layers) != _number_of_variables(new_layers):
        shared = [layer.name for layer, _ in pairs if _number_of_variables([layer])]
        raise ValueError(
            "Layers that share a weight as one was given to the other's constructor cannot be "
            "copied one by one: wrap the layers by hand with `rigl_tf.SparseWrapper`. Received: "
            f"layers {shared} with {_number_of_variables(layers)} variables, "
            f"{_number_of_variables(new_layers)} in their copies"
        )


def _number_of_variables(layers):
    return len({id(each) for layer in layers for each in variables_but_masks(layer)})


def _copy_variables(layer, new_layer):
    variables, new_variables = variables_but_masks(layer), variables_but_masks(new_layer)
    if [each.shape for each in variables] != [each.shape for each in new_variables]:
        raise ValueError(
            "A copy of a layer or model must get the same variables when it is built. "
            f"Received: {len(variables)} in {layer.name!r} of class {type(layer).__name__}, "
            f"{len(new_variables)} in its copy, or of other shapes"
        )
    for old, new in zip(variables, new_variables, strict=True):
        new.assign(old)
        new.trainable = old.trainable
        if masks.mask_of(old) is not None and masks.mask_of(new) is not None:
            masks.assign(new, masks.mask_of(old))


def _has_defaults(layer):
    """Whether the config is Keras's own of a subclassed model."""
    return isinstance(layer, keras.Model) and type(layer).get_config is keras.Model.get_config


def _check_settings(model, copy):
    for old, new in zip(*_same_layers(model, copy), strict=True):
        settings, new_settings = dict(_settings(old)), dict(_settings(new))
        for path, value in settings.items():
            if new_settings.get(path, value) != value:
                raise ValueError(
                    "Keras does not keep what the constructor of a subclassed model was given: let "
                    "`get_config` return it. Received: model "
                    f"{model.name!r} of class {type(model).__name__}, where {'.'.join(path)} of "
                    f"{old.name!r} is {value!r}, and {new_settings[path]!r} in a copy"
                )


def _settings(layer):
    """The numbers and strings in the config of a layer, in the attributes of a subclassed model."""
    if hasattr(layer, "adapt"):
        return []
    try:
        config = own_attributes(layer) if _has_defaults(layer) else layer.get_config()
    except NotImplementedError:
        return []
    return _plain_values(without_wrappers(config))


def _plain_values(value, path=()):
    if isinstance(value, (list, tuple)):
        value = {str(index): each for index, each in enumerate(value)}
    if isinstance(value, dict):
        for key, each in value.items():
            if key != "name":
                yield from _plain_values(each, (*path, str(key)))
    elif isinstance(value, (bool, int, float, str)):
        yield path, value


def _same_layers(layer, new_layer):
    """The layers inside a layer and inside its copy."""
    layers, new_layers = _plain_layers(layer), _plain_layers(new_layer)
    if [_kind(each) for each in layers] != [_kind(each) for each in new_layers]:
        raise ValueError(
            "A layer or model that is made from the config of another one must hold the same "
            f"layers: let `get_config` return what its constructor needs. Received: {layer.name!r} "
            f"of class {type(layer).__name__}, with {len(layers) - 1} layers inside, and a copy "
            f"with {len(new_layers) - 1}, or with others"
        )
    return layers, new_layers


def _plain_layers(layer):
    return [each for each in all_layers(layer) if not isinstance(each, SparseWrapper)]


def _kind(layer):
    # Keras may copy a model of a class like Functional as a Functional one.
    return keras.Model if isinstance(layer, keras.Model) else type(layer)
