"""Makes smaller models, without units that no input reaches or that reach no output."""

import collections
import dataclasses
import warnings
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import rich.table
import tensorflow as tf

from rigl_tf._types import Data, Loss
from rigl_tf.checks import check_booleans, check_choice, check_keras_3, check_numbers
from rigl_tf.differences import are_within, differences, largest, tolerances
from rigl_tf.inputs import batch_of
from rigl_tf.layers.summary import as_text
from rigl_tf.masks import kernels_of, masked, without_masks
from rigl_tf.objective import MeanGradients, read_batches
from rigl_tf.transforms.channels import Channels, is_its_graph
from rigl_tf.transforms.rebuild import as_masked, is_clonable
from rigl_tf.transforms.smaller import smaller_model

_RULE = (
    "`compact` and `live_units` take a built Sequential or Functional model, because Keras knows "
    "its graph."
)
_SALIENCIES = ("magnitude", "gradient")
# The outputs may differ by more than rounding: by this many times the change of the model's own
# outputs when the last digits of its inputs change.
_NUM_OWN_DIFFERENCES = 20


@dataclasses.dataclass(frozen=True)
class LayerUnits:
    """What `rigl_tf.compact` did to the units of one layer.

    Attributes:
        path: String, the name of the layer, after the names of the models around it.
        num_units: Integer, the number of units before.
        kept: Array of integers, the indices of the units that are left, in ascending order.
        num_dead: Integer, how many of the kept units are dead: their output is constant.
        reason: String, why dead units had to stay, or why no unit could be removed. `None` if no
            dead unit had to stay.
    """

    path: str
    num_units: int
    kept: np.ndarray
    num_dead: int
    reason: str | None


@dataclasses.dataclass(frozen=True)
class CompactReport:
    """What `rigl_tf.compact` removed, and what it could not remove; `print` shows it as a table.

    Attributes:
        layers: A `LayerUnits` for each layer with a kernel, in the order of use.
        unread_inputs: `{name of an input: array of integers}`, the entries of inputs that no
            connection reads: indices along the last axis, or into the flattened input if the model
            flattens it.
        dropped_inputs: The same for the entries that the new model does not take any more.
        num_weights_before: Integer, the number of weights of the given model, without masks.
        num_weights: Integer, the number of weights of the new model, without masks.
        max_difference: Float, the largest absolute difference between the outputs of both models.
            With `keep`, the new model is compared with the given one after the outputs of the
            chosen units were set to zero.
    """

    layers: tuple[LayerUnits, ...]
    unread_inputs: dict[str, np.ndarray]
    dropped_inputs: dict[str, np.ndarray]
    num_weights_before: int
    num_weights: int
    max_difference: float

    @property
    def cannot_remove(self) -> dict[str, str]:
        """`{path of a layer: why its units, or dead ones among them, had to stay}`."""
        return {each.path: each.reason for each in self.layers if each.reason}

    def __str__(self):
        table = rich.table.Table(title="Units that are left", title_justify="left")
        table.add_column("layer", overflow="fold")
        table.add_column("units", justify="right")
        table.add_column("of", justify="right")
        table.add_column("what had to stay, and why", overflow="fold")
        for each in self.layers:
            table.add_row(each.path, str(len(each.kept)), str(each.num_units), each.reason or "")
        table.add_section()
        table.add_row("weights", f"{self.num_weights:,}", f"{self.num_weights_before:,}", "")
        for name, places in self.unread_inputs.items():
            done = "left out" if name in self.dropped_inputs else "not read"
            table.add_row(f"input {name}", "", "", f"{len(places)} entries {done}")
        return as_text(table)


def compact(
    model: keras.Model,
    keep: float | Mapping[str, float] | None = None,
    *,
    saliency: str = "magnitude",
    data: Data | None = None,
    loss: Loss | None = None,
    drop_inputs: bool = False,
    inputs: Any = None,
    return_report: bool = False,
) -> keras.Model | tuple[keras.Model, CompactReport]:
    """Makes a smaller model without dead units, with the same predictions.

    A unit is an output of a Dense layer or a filter of a convolution. It is dead if no path of
    active connections leads from the inputs to it, or from it to the outputs. The output of a unit
    without inputs is constant, so it is added to the biases of the next layers. In a kernel without
    a mask, all connections that are not zero are active.

    Units are followed through Dense, EinsumDense, Embedding, convolutions (also depthwise,
    separable, grouped and transposed ones), BatchNormalization, GroupNormalization, PReLU and
    nested models. They are also followed through layers and operations without weights that treat
    each unit in the same way (activations, pooling, sums), or that concatenate units. Units that
    are added or multiplied together are removed together.

    Other layers use all units together, so none of these units is removed: LayerNormalization,
    attention, recurrent layers, softmax, slices, and a user's own layers with weights. Where a
    convolution pads with zeros, a constant other than 0 cannot become a bias. Then one constant
    unit stays and replaces all constant units that this convolution reads. In front of a depthwise
    or separable convolution with zero padding, all constant units stay. Each layer keeps at least
    one unit.

    Inputs that no connection reads are removed by `keras.ops.take` in front of the first layer with
    a kernel. The new model still takes all inputs, unless `drop_inputs` is true.

    Layers in a `SparseWrapper` stay wrapped and keep the masks of what is left, so the new model
    can be trained further. (Training then differs from training the given model, where dead units
    can become alive again.) The result of `rigl_tf.strip(rigl_tf.compact(model))` is plain Keras;
    so is the result for a plain model. Layers without weights are shared with the given model, all
    other layers are new, made of their configs. So weights that different layers of the model share
    are separate in the new one, as in `keras.models.clone_model`; a warning names them.

    Both models are run on a batch, and their outputs are compared.

    The RigL paper (appendix B) counts the size of such models as `rigl_tf.flops.count` does: two
    FLOPs for each connection, float32 values and biases, a bit mask for each sparse kernel. Its
    408-100-69 network of 31,914 bytes has 6,309 connections; `num_bytes` gives 31,915, because a
    mask takes whole bytes. The code of the paper visits each layer once, from the inputs on, so it
    keeps a few inputs and units whose connections lead only to removed units.

    With `keep`, units with the lowest saliency are removed as well. Then the predictions change,
    and the new model should be trained further.

    Reference:

    - [Evci et al., 2020](https://arxiv.org/abs/1911.11134), appendix B
    - `keep`: [Li et al., 2017](https://arxiv.org/abs/1608.08710), magnitude;
      [Molchanov et al., 2019](https://arxiv.org/abs/1906.10771), gradient times weight

    Args:
        model: A built Sequential or Functional `keras.Model`, sparse or not. It is not changed.
        keep: `None`, or the share of units to keep, in `(0, 1]`. It holds for all layers whose
            units can be removed; `{layer name: share}` names some of them. Of `n` units, the
            `ceil(keep * n)` with the highest saliency stay, except dead ones. Units that must stay
            or go together, such as units that are added up, have a common saliency, and their
            layers a common share.
        saliency: String, the saliency of a unit: `"magnitude"`, the L2 norm of its incoming
            weights, or `"gradient"`, the sum of `|gradient * weight|` over these weights.
        data: For `"gradient"`: a pair `(inputs, targets)`, or a list or data set of such batches.
        loss: For `"gradient"`: a Keras loss, its name, or a function of targets and outputs.
        drop_inputs: Boolean, whether the new model takes only those entries of the inputs that it
            reads: fewer entries along the last axis, or a vector if the model only flattens its
            inputs. The report says which entries are left out.
        inputs: A batch on which the outputs are compared, instead of random numbers. It is needed
            only if the model takes sequences or images of any size.
        return_report: Boolean, whether to return a pair of the model and a `CompactReport`.

    Returns:
        A new, uncompiled Functional model with the same layer names. A layer without bias gets a
        bias if constants must be added to its outputs.

    Raises:
        ValueError: If the model is not built, is subclassed or not deterministic, or an argument is
            out of its range.
        RuntimeError: If the outputs differ by more than rounding errors.

    Example:

    >>> dense = keras.Sequential([
    ...     keras.Input((28, 28)), keras.layers.Flatten(),
    ...     keras.layers.Dense(300, "relu"), keras.layers.Dense(10)])
    >>> sparse = rigl_tf.sparsify(dense, 0.995, dense_layers=dense.layers[-1].name)
    >>> small, report = compact(sparse, return_report=True)
    >>> [len(units) for units in live_units(sparse)] == [*small.layers[-2].kernel.shape, 10]
    True
    >>> len(report.unread_inputs[dense.inputs[0].name]) == 784 - small.layers[-2].kernel.shape[0]
    True
    >>> half = compact(dense, keep=0.5)
    >>> half.layers[-1].kernel.shape
    TensorShape([150, 10])
    """
    check_choice(_SALIENCIES, saliency=saliency)
    check_booleans(drop_inputs=drop_inputs, return_report=return_report)
    if saliency == "gradient" and keep is not None and (data is None or loss is None):
        raise ValueError(
            "`saliency='gradient'` needs `data`, a pair `(inputs, targets)`, and a `loss`. "
            f"Received: data={type(data).__name__}, loss={loss!r}"
        )
    _check_model(model)
    model = as_masked(model)
    batch = batch_of(model, inputs)
    channels = Channels(model, drop_inputs)
    channels.solve()
    if keep is not None:
        gradients = {}
        if saliency == "gradient":
            gradients = _gradients(model, channels, data, loss)
        channels.solve(_least_salient(channels, keep, gradients))
    small, left = smaller_model(channels)
    difference = _compare(model, small, channels, batch, left)
    _tell_untied(channels)
    if not return_report:
        return small
    return small, _report(model, small, channels, left, difference)


def live_units(model: keras.Model) -> list[np.ndarray]:
    """Lists the units of a model that `compact` keeps.

    Args:
        model: A built Sequential or Functional `keras.Model`, sparse or not.

    Returns:
        List of arrays of integers, the indices of what is kept: first the inputs of the first layer
        with a kernel (flattened pixels, for example), then the units of each layer with a kernel,
        in the order of use. All units of the output layer are kept.

    Raises:
        ValueError: If the model is not built or is subclassed, or no layer has a kernel that reads
            units.

    Example:

    >>> inputs = keras.Input((4,))
    >>> dense = keras.Model(inputs, keras.layers.Dense(1, name="sum")(inputs))
    >>> sparse = rigl_tf.sparsify(dense, 0.5)
    >>> rigl_tf.set_masks(sparse, {"sum/kernel": [[1], [0], [0], [1]]})
    >>> [units.tolist() for units in live_units(sparse)]
    [[0, 3], [0]]
    """
    _check_model(model)
    channels = Channels(as_masked(model))
    channels.solve()
    steps = [steps[0] for steps in channels.kernels.values()]
    first = next((step for step in steps if len(step.weights.connections)), None)
    if first is None:
        raise ValueError(
            "`live_units` needs a model with a kernel, as that of a Dense layer. "
            f"Received: model={model.name!r}"
        )
    return [
        channels.taken(first),
        *(channels.places(step.outputs[0]) for step in steps),
    ]


def _check_model(model):
    check_keras_3(model=model)
    if not isinstance(model, keras.Model):
        raise ValueError(f"{_RULE} Received: {model!r}")
    if not model.built:
        raise ValueError(f"{_RULE} Build the model before. Received: model={model.name!r}")
    if not is_clonable(model) or not is_its_graph(model):
        raise ValueError(
            f"{_RULE} Received: model={model.name!r} of class {type(model).__name__}, with a "
            "`call` of its own"
        )


# Which units to remove that are not dead.


def _least_salient(channels, keep, gradients):
    """Labels of the units to remove: those of the lowest saliency in each group of layers."""
    groups = _groups(channels)
    shares = _shares(channels, groups, keep)
    scores = _scores(channels, gradients)
    dropped = []
    for group, share in zip(groups, shares, strict=True):
        labels = np.unique(np.concatenate([labels for _, labels in group]))
        if share is None or not len(labels):
            continue
        # Units that are dead go anyway.
        ranks = np.where(channels.live[labels], scores[labels], -1.0)
        order = labels[np.argsort(-ranks, kind="stable")]
        kept = set(order[: max(1, int(np.ceil(share * len(labels) - 1e-9)))].tolist())
        for _, own in group:
            if len(own) and not kept.intersection(own.tolist()):
                kept.add(int(own[np.argmax(scores[own])]))
        dropped += [label for label in labels.tolist() if label not in kept]
    return dropped


def _groups(channels):
    """Groups of layers with common units: lists of `(step, labels that can be removed)`."""
    groups = []
    for step, *_ in channels.kernels.values():
        roots = np.unique(channels.root(step.outputs[0].labels))
        own = np.array([root for root in roots if channels.can_choose(root)], int)
        met = [group for group in groups if any(np.isin(own, labels).any() for _, labels in group)]
        groups = [group for group in groups if group not in met]
        groups.append([*(each for group in met for each in group), (step, own)])
    return groups


def _shares(channels, groups, keep):
    """For each group, the share of units to keep, or `None` to keep all."""
    if not isinstance(keep, Mapping):
        check_numbers("(0, 1]", keep=keep)
        return [keep] * len(groups)
    paths = [step.path for group in groups for step, _ in group]
    for name, share in keep.items():
        check_numbers("(0, 1]", **{f"keep[{name!r}]": share})
        if sum(_is_named(path, name) for path in paths) != 1:
            raise ValueError(
                "Each name in `keep` must fit one layer with a kernel; name a layer in a nested "
                f"model as 'model/layer'. Received: {name!r}, of the layers {paths}"
            )
    shares = []
    for group in groups:
        named = {
            name: share
            for step, _ in group
            for name, share in keep.items()
            if _is_named(step.path, name)
        }
        for step, labels in group:
            if not len(labels) and any(_is_named(step.path, name) for name in named):
                reason = channels.reason(step.outputs[0].labels[0]) or "inputs are added to them"
                raise ValueError(
                    "`keep` must name layers whose units can be removed. "
                    f"Received: {step.path!r}, whose units have to stay: {reason}"
                )
        if len(set(named.values())) > 1:
            raise ValueError(
                "Layers whose units are added or multiplied together must have the same share in "
                f"`keep`. Received: {named}"
            )
        shares.append(next(iter(named.values()), None))
    return shares


def _is_named(path, name):
    return name in (path, path.rpartition("/")[2])


def _scores(channels, gradients):
    """Array with the saliency of the units of each label."""
    scores = np.zeros(len(channels.live))
    for key, (step, *_) in channels.kernels.items():
        roots = channels.root(step.outputs[0].labels)
        np.add.at(scores, roots, step.weights.norms(gradients.get(key)))
    return scores if gradients else np.sqrt(scores)


def _gradients(model, channels, data, loss):
    """`{id of a layer: gradient of the mean loss, an array of its kernel's shape}`."""
    kernels = {
        key: getattr(step.weights.inner, step.weights.kernel_name)
        for key, (step, *_) in channels.kernels.items()
    }
    gradients = MeanGradients(model, loss, kernels.values())(read_batches(data))
    found = {key: each.numpy() for key, each in zip(kernels, gradients, strict=True)}
    if not all(np.isfinite(each).all() for each in found.values()):
        raise ValueError(
            "The gradients must be finite, as they decide which units are kept: check the weights "
            f"and `data`. Received: model={model.name!r} with NaN or infinite gradients"
        )
    return found


# The comparison.


def _compare(model, small, channels, batch, left):
    """The largest difference of the outputs; raises a `RuntimeError` if it is too large."""
    weights = _weights_to_compare(model, channels)

    def run(batch):
        with keras.StatelessScope(state_mapping=weights):
            return model(batch, training=False)

    flat = keras.tree.flatten(batch)
    fewer = [_left(x, places) for x, places in zip(flat, left, strict=True)]
    with keras.StatelessScope():
        outputs = small(keras.tree.pack_sequence_as(batch, fewer), training=False)
    expected = run(batch)
    found = differences(outputs, expected, equal_nan=True)
    if not are_within(found, tolerances(model, expected)):
        # Rounding errors are about as large as the change when the last digits of inputs change.
        close = [x * (1 + 1e-6) if x.dtype.is_floating else x for x in flat]
        changed = run(keras.tree.pack_sequence_as(batch, close))
        own = differences(changed, expected, equal_nan=True)
        if any(differences(run(batch), expected, equal_nan=True)):
            raise ValueError(
                f"{_RULE} Its predictions must not be random, because they are compared. "
                f"Received: model={model.name!r}"
            )
        if not are_within(found, [_NUM_OWN_DIFFERENCES * each for each in own]):
            raise RuntimeError(
                "The outputs of the smaller model differ from those of the model, so it is not "
                f"returned. Received: model={model.name!r}, with a largest difference of "
                f"{max(found):.3g} between outputs up to {largest(expected):.3g}"
            )
    return max(found, default=0.0)


def _weights_to_compare(model, channels):
    """The values that the model is compared with: pairs `(variable, value)`.

    Inactive connections count as zero, and so do the connections from removed units.
    """
    changed = {
        id(kernel.variable): (kernel.variable, masked(kernel.variable, kernel.mask))
        for kernel in kernels_of(model).values()
    }
    for step, *_ in channels.kernels.values():
        if len(step.weights.connections):
            rows = np.flatnonzero(channels.dropped[channels.root(step.inputs[0].labels)])
            if len(rows):
                variable, value = step.weights.without(rows)
                changed[id(variable)] = variable, keras.ops.convert_to_tensor(value)
    return list(changed.values())


def _left(x, places):
    if places is None:
        return x
    is_flat, places = places
    x = tf.reshape(x, (len(x), -1)) if is_flat else x
    return tf.gather(x, places, axis=-1)


def _tell_untied(channels):
    """Warns if several layers hold a weight, as each of their copies has its own."""
    layers = {id(step.call.layer): step.call.layer for step in channels.steps}.values()
    weights = [weight for layer in layers for weight in getattr(layer, "weights", ())]
    numbers = collections.Counter(map(id, weights))
    tied = sorted({weight.path for weight in weights if numbers[id(weight)] > 1})
    if tied:
        warnings.warn(
            "Several layers of the model share these weights. In the smaller model each layer has "
            f"its own, because layers are copied from their configs. Received: {tied}",
            stacklevel=3,
        )


# The report.


def _report(model, small, channels, left, difference):
    names = [tensor.name for tensor in keras.tree.flatten(channels.trace.plain.input)]
    dropped = {}
    for name, value, places in zip(names, channels.trace.inputs, left, strict=True):
        if places is not None:
            is_flat, kept = places
            size = np.prod(value.shape[1:]) if is_flat else value.shape[-1]
            dropped[name] = np.setdiff1d(np.arange(size), kept)
    return CompactReport(
        layers=tuple(_layer_units(channels, steps[0]) for steps in channels.kernels.values()),
        unread_inputs={
            name: places
            for name, value in zip(names, channels.trace.inputs, strict=True)
            if len(places := channels.unread(value))
        },
        dropped_inputs=dropped,
        num_weights_before=_num_weights(model),
        num_weights=_num_weights(small),
        max_difference=difference,
    )


def _num_weights(model):
    return sum(int(np.prod(weight.shape)) for weight in without_masks(model, model.weights))


def _layer_units(channels, step):
    (output,) = step.outputs
    kept, labels = channels.places(output), channels.root(output.labels)
    dead = kept[~np.isnan(output.constants[kept])]
    reasons = [reason for reason in map(channels.reason, labels) if reason]
    reason = None
    if len(reasons) == len(labels):
        reason = f"all: {reasons[0]}"
    elif len(dead):
        why = list(dict.fromkeys(channels.why_kept(label) for label in labels[dead]))
        reason = f"{len(dead)} dead: {'; '.join(why)}"
    return LayerUnits(step.path, output.num_units, kept, len(dead), reason)
