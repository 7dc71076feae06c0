"""Smaller models, without units that no input reaches, or that reach no output."""

import itertools
import math

import keras
import numpy as np

from rigl_tf import masks
from rigl_tf.layers.building import without_build_configs
from rigl_tf.layers.wrapper import SparseWrapper
from rigl_tf.transforms.execution import as_masked
from rigl_tf.transforms.rebuild import calls_of, is_clonable

_RULE = (
    "`compact` and `live_units` take a chain of Dense layers on vectors. Between them may stand "
    "layers that treat each unit alike, such as Activation and Dropout, and BatchNormalization."
)
_NORMALISATIONS = (keras.layers.BatchNormalization, keras.layers.Normalization)


def compact(model):
    """A smaller model without dead units, which predicts what the model predicts.

    A unit of a hidden layer is dead if no active connection leads to it, all the way from the
    inputs, or none leads on from it to the outputs. What a unit without inputs sends is constant;
    it is added to the biases of the next layer. Inputs without active connections are left out:
    the new model takes the same inputs, and selects the live ones by `keras.ops.take`, a part of
    Keras, before its first Dense layer. Each layer keeps one unit at least. In kernels without a
    mask, the connections that are not zero are the active ones.

    The new model is sparse, with the masks of what is left, and can be trained on: from then on
    it is another model, as the dead units could have come back to life.

    The RigL paper (appendix B) counts the cost of such models as `rigl_tf.flops.count` does: two
    FLOPs for a connection, float32 values and biases, a bit mask for each sparse kernel. Its
    408-100-69 of 31,914 bytes has 6,309 connections; `num_bytes` is 31,915 since masks end with a
    full byte. Its code looks at each layer once, from the inputs on, so that it keeps inputs and
    units whose connections all lead to units that it removes: one finds a few more there.

    Reference:

    - [Evci et al., 2020](https://arxiv.org/abs/1911.11134), appendix B

    Args:
        model: A built Sequential or Functional `keras.Model`, a chain of Dense layers, sparse or
            not. Before the first one may stand layers without kernels, such as Flatten; between
            them layers that treat each unit alike, such as Activation and Dropout, and
            BatchNormalization. It is not changed.

    Returns:
        A new, uncompiled Functional model with the same layer names. A layer without bias gets
        one if it has to take up constants.

    Raises:
        ValueError: If the model is not built, or no such chain.

    Example:

    >>> dense = keras.Sequential([
    ...     keras.Input((28, 28)), keras.layers.Flatten(),
    ...     keras.layers.Dense(300, "relu"), keras.layers.Dense(10)])
    >>> sparse = rigl_tf.sparsify(dense, 0.995, dense_layers=dense.layers[-1].name)
    >>> small = compact(sparse)
    >>> [len(units) for units in live_units(sparse)] == [*small.layers[-2].kernel.shape, 10]
    True
    >>> np.allclose(small(np.ones((1, 28, 28))), sparse(np.ones((1, 28, 28))), atol=1e-5)
    True
    """
    stages, inputs, x = _chain(model)
    live = _live(stages)
    if not live[0].all():
        x = keras.ops.take(x, np.flatnonzero(live[0]), axis=-1)
    pending = []
    for stage, rows, columns in zip(stages, live, live[1:], strict=False):
        new_layer = stage.smaller(columns)
        x = new_layer(x)
        stage.fill(new_layer, rows, columns)
        for layer in stage.after:
            new_layer = _new(layer)
            x = new_layer(x)
            pending.append((layer, new_layer, columns))
    result = keras.Model(inputs, x, name=model.name)
    _check_call(model, result)
    for layer, new_layer, columns in pending:
        _copy_state(layer, new_layer, columns)
    return result


def live_units(model):
    """Which units of a chain of Dense layers `compact` keeps.

    Args:
        model: As for `compact`.

    Returns:
        List of arrays of integers, for the inputs of the first Dense layer (flattened pixels, say)
        and for the units of each Dense layer, which ones are live. The output units all are.

    Raises:
        ValueError: As `compact`.

    Example:

    >>> inputs = keras.Input((4,))
    >>> dense = keras.Model(inputs, keras.layers.Dense(1, name="sum")(inputs))
    >>> sparse = rigl_tf.sparsify(dense, 0.5)
    >>> rigl_tf.set_masks(sparse, {"sum/kernel": [[1], [0], [0], [1]]})
    >>> [units.tolist() for units in live_units(sparse)]
    [[0, 3], [0]]
    """
    return [np.flatnonzero(live) for live in _live(_chain(model)[0])]


class _Stage:
    """A Dense layer, maybe wrapped, and the layers between it and the next one.

    Attributes:
        layer, after: The layers.
        dense: The Dense layer itself.
        connections: Boolean array, the connections that are active.
        kernel: Array, zero where they are not.
        bias: Array, zeros without a bias.
    """

    def __init__(self, layer, after):
        self.layer = layer
        self.after = after
        self.dense = _inner(layer)
        sparse = masks.kernel_of(self.dense.kernel)
        kernel = keras.ops.convert_to_numpy(self.dense.kernel)
        self.connections = kernel != 0 if sparse is None else sparse.mask
        self.kernel = np.where(self.connections, kernel, 0).astype("float64")
        self.bias = np.zeros(self.dense.units)
        if self.dense.use_bias:
            self.bias += keras.ops.convert_to_numpy(self.dense.bias)

    def outputs(self):
        """What the units send on that get nothing."""
        x = self.dense.activation(keras.ops.cast(self.bias[np.newaxis], self.dense.compute_dtype))
        for layer in self.after:
            x = layer(x)
        return keras.ops.convert_to_numpy(keras.ops.cast(x, "float64"))[0]

    def smaller(self, columns):
        """A layer like this one, wrapped if it is, with the live units and no weights yet."""
        config = without_build_configs(self.dense.get_config())
        config["units"] = int(columns.sum())
        config["use_bias"] = self.dense.use_bias or bool(self.bias[columns].any())
        dense = keras.layers.Dense.from_config(config)
        if self.dense is self.layer:
            return dense
        return SparseWrapper(dense, seed=self.layer.seed, name=self.layer.name)

    def fill(self, new_layer, rows, columns):
        """Gives the smaller layer the weights of the live units."""
        dense = _inner(new_layer)
        chosen = np.ix_(rows, columns)
        connections = self.connections[chosen]
        if dense is not new_layer:
            # For copies made from the config, which always have a sparsity below 1.
            share = min(1 - connections.mean(), math.nextafter(1.0, 0.0))
            new_layer.keep_sparsity([float(share)], new_layer.seed)
            masks.kernel_of(dense.kernel).set_mask(connections)
        dense.kernel.assign(np.where(connections, self.kernel[chosen], 0))
        if dense.use_bias:
            dense.bias.assign(self.bias[columns])


def _live(stages):
    """For the inputs and for each Dense layer, a boolean array: which units are live.

    Takes the connections of dead units out of the stages, and puts what they send into the biases.
    """
    reached = np.ones(len(stages[0].kernel), bool)
    constants = np.zeros(len(reached))
    for stage, next_stage in itertools.zip_longest(stages, stages[1:]):
        stage.bias += constants[~reached] @ stage.kernel[~reached]
        stage.connections &= reached[:, np.newaxis]
        reached = stage.connections.any(axis=0)
        if next_stage is not None:
            constants = stage.outputs()
    live = [np.ones(stages[-1].dense.units, bool)]
    for stage in reversed(stages):
        stage.connections &= live[0]
        live.insert(0, stage.connections.any(axis=1))
    for each in live:
        each[0] |= not each.any()
    return live


def _chain(model):
    """The stages of a model from its first Dense layer on; new inputs, and what comes to it."""
    if not isinstance(model, keras.Model):
        raise ValueError(f"{_RULE} Received: {model!r}")
    if not model.built:
        raise ValueError(f"{_RULE} Build the model before. Received: model={model.name!r}")
    if not is_clonable(model):
        _refuse(model, f"of class {type(model).__name__}")
    new, calls = calls_of(as_masked(model))
    places = [index for index, call in enumerate(calls) if _is_dense(call.layer)]
    if not places:
        _refuse(model, "without a Dense layer")
    _check_links(model, new, calls, places[0])
    stages = []
    for start, end in itertools.zip_longest(places, places[1:]):
        dense, *after = [call.layer for call in calls[start:end]]
        _check_units(model, dense, calls[start].args[0].shape, after, is_last=end is None)
        stages.append(_Stage(dense, after))
    for call in calls[: places[0]]:
        _check_kernels(model, call.layer)
    return stages, new.input, calls[places[0]].args[0]


def _check_links(model, new, calls, start):
    """Checks that each layer gets what the one before it sends, and nothing else does."""
    chain = calls[start:]
    for call, next_call in itertools.pairwise(chain):
        name = next_call.layer.name
        if keras.tree.flatten(next_call.args)[:1] != [call.outputs]:
            _refuse(model, f"with layer {name!r} that does not follow {call.layer.name!r}")
    for call in chain:
        if sum(call.layer is other.layer for other in calls) > 1:
            _refuse(model, f"with layer {call.layer.name!r} that is used twice")
    if keras.tree.flatten(new.output) != [chain[-1].outputs]:
        _refuse(model, f"with outputs other than those of its layer {chain[-1].layer.name!r}")
    for call in calls:
        if call.kwargs.get("training"):
            _refuse(model, f"with layer {call.layer.name!r} called with `training=True`")


def _check_units(model, layer, shape, after, is_last):
    """Checks that units of a Dense layer can be removed, unless it is the last one."""
    dense = _inner(layer)
    if len(dense.weights) != 1 + dense.use_bias or len(shape) != 2:
        _refuse(model, f"with layer {layer.name!r} of inputs {shape}")
    for each in after:
        _check_kernels(model, each)
    if is_last:
        return
    if not treats_units_alike(dense.activation, (dense.units,)):
        _refuse(model, f"with the activation of layer {layer.name!r}")
    for each in after:
        is_normalisation = isinstance(each, keras.layers.BatchNormalization)
        has_weights = getattr(each, "weights", [])  # operations have none
        if not is_normalisation and (has_weights or not treats_units_alike(each, (dense.units,))):
            _refuse(model, f"with layer {each.name!r} of class {type(each).__name__}")


def _check_kernels(model, layer):
    if getattr(layer, "weights", []) and not isinstance(layer, _NORMALISATIONS):
        _refuse(model, f"with layer {layer.name!r} of class {type(layer).__name__}")


def _check_call(model, result):
    if type(model).call not in (keras.Sequential.call, type(result).call):
        _refuse(model, f"of class {type(model).__name__}, with a `call` of its own")


def treats_units_alike(function, shape):
    """Whether each output is the same function of one input: shifted inputs, shifted outputs.

    Args:
        function: Layer or function of a tensor, which may change all axes but the last, the units.
        shape: Tuple of integers, that of one example.
    """
    x = np.random.default_rng(0).normal(size=(2, *shape)).astype("float32")
    first = np.full((*x.shape[:-1], 1), 9, "float32")
    shifted = np.concatenate([first, x[..., :-1]], axis=-1)
    y, z = (
        keras.ops.convert_to_numpy(keras.ops.cast(function(v), "float32")) for v in (x, shifted)
    )
    has_all = y.shape[-1:] == x.shape[-1:]
    return has_all and np.allclose(y[..., :-1], z[..., 1:], rtol=1e-4, atol=1e-6)


def _copy_state(layer, new_layer, columns):
    if isinstance(layer, keras.layers.BatchNormalization):
        new_layer.set_weights([weight[columns] for weight in layer.get_weights()])


def _new(layer):
    """The layer itself, if it has no weights: else one of the same config."""
    if not isinstance(layer, keras.layers.BatchNormalization):
        return layer
    return type(layer).from_config(without_build_configs(layer.get_config()))


def _inner(layer):
    return layer.layer if isinstance(layer, SparseWrapper) else layer


def _is_dense(layer):
    return type(_inner(layer)) is keras.layers.Dense


def _refuse(model, reason):
    raise ValueError(f"{_RULE} Received: model={model.name!r} {reason}")
