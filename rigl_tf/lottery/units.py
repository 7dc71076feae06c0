"""Selected units of a layer and their weights, and smaller models with only these units."""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from rigl_tf.layers import wrapper
from rigl_tf.layers.building import without_build_configs
from rigl_tf.transforms.rebuild import copy_of_layer, copy_state, is_clonable, with_layers
from rigl_tf.transforms.units import treats_units_alike

_RULE = (
    "Units can be selected in a plain Dense or Conv2D layer (use `rigl_tf.strip` first if it is "
    "wrapped) whose outputs go to one other such layer. Between them, each layer must treat each "
    "unit alike: activations, pooling, BatchNormalization, DepthwiseConv2D, Flatten."
)
_KERNEL_LAYERS = (keras.layers.Dense, keras.layers.Conv2D)


@dataclasses.dataclass(frozen=True, eq=False)
class Selection:
    """Selected units of a layer, which replace all of its units.

    Attributes:
        units: Array of integers, the indices of the selected units in ascending order.
        weights: Array of floats, the weight of each selected unit; their sum is 1.
        discrepancies: List of floats, the discrepancy after each step.
        num_units: List of integers, how many units were selected after each step.
        layer_units: Integer, how many units the layer has.
    """

    units: np.ndarray
    weights: np.ndarray
    discrepancies: list[float]
    num_units: list[int]
    layer_units: int


def keep_units(model: keras.Model, selections: Mapping[str, Selection]) -> keras.Model:
    """Makes a smaller model with only the selected units of some layers.

    The connections from a unit to the next layer are multiplied by the weight of the unit and by
    the number of all units of the layer. Everything else stays the same.

    Args:
        model: The built Sequential or Functional `keras.Model` in which units were selected. It is
            not changed.
        selections: `{layer name: Selection}`, see `select_units`.

    Returns:
        A new, uncompiled model of plain dense layers, with the same layer names.

    Raises:
        ValueError: If `selections` is not such a dictionary, units of a layer cannot be selected,
            or a selection does not fit its layer.

    Example:

    >>> model = keras.Sequential([
    ...     keras.Input((4,)), keras.layers.Dense(20, "relu", name="hidden"),
    ...     keras.layers.Dense(3)])
    >>> inputs = np.random.default_rng(0).normal(size=(50, 4))
    >>> selection = rigl_tf.lottery.select_units(model, "hidden", inputs, num_units=8)
    >>> small = keep_units(model, {"hidden": selection})
    >>> [layer.units for layer in small.layers]
    [8, 3]
    """
    _check_selections(selections)
    links = {name: link_of(model, name) for name in selections}
    for name, selection in selections.items():
        _check_selection(name, selection, links[name].num_units)

    def smaller(layer):
        if layer.name not in links or layer is not links[layer.name].layer:
            return copy_of_layer(layer)
        config = without_build_configs(layer.get_config())
        size = "units" if isinstance(layer, keras.layers.Dense) else "filters"
        return type(layer).from_config({**config, size: len(selections[layer.name].units)})

    result = with_layers(model, smaller)
    weights = {}
    for name, selection in selections.items():
        _keep(weights, links[name], selection)
    for layer, new_layer in zip(model.layers, result.layers, strict=True):
        if layer.name in weights:
            new_layer.set_weights(weights[layer.name])
        elif isinstance(layer, keras.layers.Layer):
            copy_state(layer, new_layer)
    return result


@dataclasses.dataclass(frozen=True)
class Link:
    """How the units of a layer reach the next one.

    Attributes:
        layer: The Dense or Conv2D layer.
        between: The layers between both, which treat each unit by itself.
        next_layer: The Dense or Conv2D layer that takes their outputs.
    """

    layer: keras.layers.Layer
    between: tuple[keras.layers.Layer, ...]
    next_layer: keras.layers.Layer

    @property
    def num_units(self):
        return self.layer.kernel.shape[-1]

    @property
    def kernel(self):
        """The kernel of the next layer, of shape `(positions, units, outputs)`.

        The positions are the pixels of a convolution's kernel, or the pixels that were flattened.
        """
        kernel = keras.ops.convert_to_numpy(self.next_layer.kernel).astype("float64")
        return kernel.reshape(-1, self.num_units, kernel.shape[-1])

    def rows(self, x):
        """The inputs that are multiplied by the next kernel, a row for each example and pixel.

        Args:
            x: Tensor, the inputs of the next layer.

        Returns:
            Array with as many columns as the kernel has rows.
        """
        next_layer = self.next_layer
        if isinstance(next_layer, keras.layers.Conv2D):
            x = tf.image.extract_patches(
                x,
                [1, *next_layer.kernel_size, 1],
                [1, *next_layer.strides, 1],
                [1, *next_layer.dilation_rate, 1],
                next_layer.padding.upper(),
            )
        x = np.asarray(tf.cast(x, "float64"))
        return x.reshape(-1, x.shape[-1])


def link_of(model, name):
    """The `Link` of a layer; raises a `ValueError` if its units cannot be selected."""
    if not isinstance(model, keras.Model) or not is_clonable(model) or not model.built:
        raise ValueError(
            f"{_RULE} The model is a built Sequential or Functional one. Received: {model!r}"
        )
    sources, outputs = _graph(model)
    layer = model.get_layer(name)
    _check_kernel_layer(layer)
    _check(treats_units_alike(layer.activation, _shape(layer.output)), name, "mixes its units")
    between = []
    while True:
        last = between[-1] if between else layer
        _check(last.name not in outputs, last.name, "is an output of the model")
        takers = [other for other, names in sources.items() if last.name in names]
        _check(len(takers) == 1, last.name, f"is followed by {len(takers)} layers")
        _check(len(sources[takers[0]]) == 1, takers[0], "takes more than one input")
        following: Any = next((each for each in model.layers if each.name == takers[0]), None)
        _check(following is not None, takers[0], "is an operation, no layer")
        if isinstance(following, _KERNEL_LAYERS):
            _check_kernel_layer(following)
            return Link(layer, tuple(between), following)
        _check(_keeps_units_apart(following), following.name, "mixes units")
        between.append(following)


def _keep(weights, link, selection):
    """Sets the weights of the selected units in `weights`, `{layer name: list of arrays}`."""

    def of(layer):
        return weights.setdefault(layer.name, layer.get_weights())

    def taken(array, axis):
        places = np.arange(array.shape[axis] // link.num_units)[:, np.newaxis]
        return np.take(array, (places * link.num_units + selection.units).ravel(), axis)

    weights[link.layer.name] = [taken(array, -1) for array in of(link.layer)]
    for layer in link.between:
        if _is_depthwise(layer):
            kernel, *bias = of(layer)
            weights[layer.name] = [taken(kernel, -2), *(taken(array, -1) for array in bias)]
        elif layer.weights:
            weights[layer.name] = [taken(array, -1) for array in of(layer)]
    kernel, *bias = of(link.next_layer)
    kernel = taken(kernel, -2)
    factors = np.tile(selection.weights * link.num_units, kernel.shape[-2] // len(selection.units))
    weights[link.next_layer.name] = [kernel * factors[:, np.newaxis], *bias]


def _keeps_units_apart(layer):
    if isinstance(layer, keras.layers.BatchNormalization):
        return layer.axis in (-1, len(layer.input.shape) - 1)
    if _is_depthwise(layer):
        return layer.depth_multiplier == 1 and layer.data_format == "channels_last"
    if isinstance(layer, keras.layers.Flatten):
        return layer.data_format == "channels_last"
    # These would have the number of units in their config.
    if isinstance(layer, keras.layers.Reshape) and layer.target_shape[-1] != -1:
        return False
    if getattr(layer, "noise_shape", None) and layer.noise_shape[-1] not in (None, 1):
        return False
    return not layer.weights and treats_units_alike(layer, _shape(layer.input))


def _is_depthwise(layer):
    return type(layer) is keras.layers.DepthwiseConv2D


def _shape(tensor):
    return tuple(size or 8 for size in tensor.shape[1:])


def _graph(model):
    """`{layer name: names of the layers it takes tensors from}`, and the names of output layers."""
    if isinstance(model, keras.Sequential):
        names = [layer.name for layer in model.layers]
        return {name: [before] for before, name in itertools.pairwise(names)}, names[-1:]
    config = model.get_config()
    sources = {entry["name"]: _sources(entry["inbound_nodes"]) for entry in config["layers"]}
    return sources, keras.tree.flatten(config["output_layers"])


def _sources(value):
    if isinstance(value, dict) and "keras_history" in value:
        return [value["keras_history"][0]]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [name for each in value for name in _sources(each)]
    return []


def _check_kernel_layer(layer):
    """Refuses other layers, and layers with quantised kernels, LoRA or groups of filters."""
    _check(not isinstance(layer, wrapper.SparseWrapper), layer.name, "inside a SparseWrapper")
    is_plain = type(layer) in _KERNEL_LAYERS and len(layer.weights) == 1 + layer.use_bias
    _check(is_plain, layer.name, f"of class {type(layer).__name__}")
    if isinstance(layer, keras.layers.Conv2D):
        is_whole = layer.groups == 1 and layer.data_format == "channels_last"
        _check(is_whole, layer.name, "has groups of filters, or channels first")


def _check_selections(selections):
    rule = "`selections` must be a dictionary `{layer name: Selection}`"
    if not isinstance(selections, Mapping):
        raise ValueError(f"{rule}. Received: {type(selections).__name__}")
    for name, selection in selections.items():
        if not isinstance(selection, Selection):
            raise ValueError(f"{rule}. Received: {type(selection).__name__} for {name!r}")


def _check_selection(name, selection, num_units):
    units = np.asarray(selection.units)
    is_set = len(units) and len(np.unique(units)) == len(units) == len(selection.weights)
    if (
        not is_set
        or selection.layer_units != num_units
        or units.min() < 0
        or units.max() >= num_units
    ):
        raise ValueError(
            "A selection must fit its layer, and have one or more units, each once. Received: "
            f"layer {name!r} of {num_units} units, and units={units.tolist()} of "
            f"{selection.layer_units}"
        )


def _check(is_so, name, reason):
    if not is_so:
        raise ValueError(f"{_RULE} Received: layer {name!r} {reason}")
