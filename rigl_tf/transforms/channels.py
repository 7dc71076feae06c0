"""Follows units through the graph of a model, to find the units that the outputs depend on.

Units are the entries along the last axis of a tensor. Each unit has a label. Units with the same
label must be kept or removed together, for example because they are added to each other.
"""

import dataclasses
import functools
import inspect
import math
from typing import Any

import keras
import numpy as np

from rigl_tf.transforms.rebuild import Call, calls_of, is_clonable
from rigl_tf.transforms.units import (
    Kernel,
    as_array,
    inner_of,
    kind_of,
    treats_units_alike,
    works_without_a_unit,
)

# Layers that use all units together, though in trials they seem to treat each unit in the same way.
_MIXING = (keras.layers.Masking,)
_NORMALISING = ("LayerNormalization", "RMSNormalization", "UnitNormalization")
# First, layers are tried with this many positions along an axis.
_FEW = 6
# Along an axis of unknown size, what is constant must be so for all of these: whether a layer pads
# depends on the size and its strides.
_SIZES = (*range(_FEW, 14), 17, 33)
_LARGEST = 2**24
_INPUTS, _OUTPUTS = "inputs of the model", "outputs of the model"


class Value:
    """A tensor of the graph.

    Attributes:
        shape: Tuple, that of the symbolic tensor.
        labels: Array of integers of shape `(units,)`. For an input that may be flattened, one label
            for each entry, in the shape of an example.
        constants: Array of shape `(units,)`: the constant value of a unit at all positions and for
            all inputs, or NaN if it is not constant.
        is_input: Whether no layer with weights is between the inputs of the model and this tensor.
    """

    def __init__(self, tensor):
        self.shape = tuple(tensor.shape)
        self.dtype = keras.backend.standardize_dtype(tensor.dtype)
        self.is_input = False
        self.labels = None
        self.constants = np.full(self.num_units or 1, np.nan)

    @property
    def num_units(self):
        """The size of the last axis, or `None` if there is none or it is unknown."""
        return self.shape[-1] if len(self.shape) > 1 else None

    def example(self, most=math.inf, unknown=_FEW):
        """The shape of an example: `unknown` for unknown sizes, large ones limited to `most`."""
        sizes = [min(most, size or unknown) for size in self.shape[1:-1]]
        return (*sizes, *self.shape[-1:])


@dataclasses.dataclass
class Step:
    """A call in the graph of a model.

    Attributes:
        call: The `rigl_tf.transforms.rebuild.Call`.
        path: String, the names of the models around the layer, then the name of the layer.
        inputs, outputs: Lists of `Value`.
        kind: `"kernel"`, `"unitwise"`, `"alike"`, `"joined"`, `"reshaped"`, `"model"` or `None`.
        weights: The `Kernel` or `Unitwise` of the layer.
        inner: The `Trace` of a nested model.
    """

    call: Call
    path: str
    inputs: list
    outputs: list
    kind: str | None = None
    weights: Any = None
    inner: Any = None
    is_product: bool = False

    def run(self, *arrays):
        """Calls the layer on other tensors."""
        new = iter(arrays)

        def replaced(value):
            return next(new) if is_symbolic(value) else value

        args, kwargs = keras.tree.map_structure(replaced, (self.call.args, self.call.kwargs))
        if "training" in kwargs:
            kwargs["training"] = False
        return self.call.layer(*args, **kwargs)


@dataclasses.dataclass
class Trace:
    """The steps of one call of a model.

    Attributes:
        model: The model.
        plain: A Functional model of the same layers; the steps use its tensors.
        inputs: List of `Value`, the inputs.
        outputs: List of `Value`, the outputs.
        steps: List of `Step`.
    """

    model: keras.Model
    plain: keras.Model
    inputs: list
    outputs: list
    steps: list


class Channels:
    """The units of a model, and which of them the outputs depend on.

    Args:
        model: A built Sequential or Functional model.
        drop_inputs: Whether inputs of the model may be removed, too.

    Attributes:
        trace: The `Trace` of the model.
        steps: List of all steps. The call of a nested model is replaced by the steps inside it.
        kernels: `{id of a layer: list of its steps}` of the layers with a `Kernel`.
        live: Boolean array, for each label whether the outputs depend on its units. Set by `solve`.
        kept: Boolean array, for each label whether its units stay: live ones, and at least one of
            each tensor.
        changed: `{label: name of a layer}`: a layer that turns a constant into values that differ
            by position, for example because it pads with zeros.
        is_needed: Boolean array, like `live`, but a unit does not count only because it is an input
            of the model.
        reads: `{id of a layer: boolean array}`, which of its inputs a layer with a kernel reads.
        stand_ins: `{id of a layer: input}`: the constant input that replaces all constant inputs
            of a convolution with zero padding, since they cannot become biases.
    """

    def __init__(self, model, drop_inputs=False):
        self.steps, self.kernels = [], {}
        self._graphs, self._values, self._pairs, self._pins = {}, [], [], []
        self._num_labels, self._changed = 0, {}
        self._drop_inputs, self._first_inputs = drop_inputs, {}
        plain, _ = self._graph(model)
        inputs = [self._input(tensor) for tensor in keras.tree.flatten(plain.input)]
        self.trace = self._trace(model, inputs, "")
        for value in self.trace.outputs:
            self._pin(value, _OUTPUTS)
        self._unite()

    def root(self, labels):
        """The label that represents all labels that must stay or go together."""
        return self._roots[labels]

    def reason(self, label):
        """Why units with this label must stay, or `None`."""
        return self._reasons.get(int(self._roots[label]))

    def can_choose(self, label):
        """Whether units with this label may be removed even if they are not dead."""
        return self.reason(label) is None and not self._are_inputs[self._roots[label]]

    def places(self, value):
        """Array of integers, the indices of the units of a tensor that stay."""
        return np.flatnonzero(self.kept[self.root(value.labels)])

    def taken(self, step):
        """Array of integers: the inputs that a layer with a kernel takes, at least one.

        These are the inputs that stay, without inputs of the model that this layer does not read.
        """
        key, (value,) = id(step.call.layer), step.inputs
        places = self.places(value)
        if len(self.kernels[key]) > 1:
            return places
        taken = places[self.reads[key][places] | ~self._are_inputs[self.root(value.labels[places])]]
        return taken if len(taken) else places[:1]

    def unread(self, value):
        """Array of integers: the entries of an input of the model that no layer reads.

        They are indices along the last axis, or into the flattened input if it is flattened.
        """
        labels = self.root(value.labels)
        by_unit = labels.reshape(-1, labels.shape[-1])
        labels = by_unit[0] if (by_unit == by_unit[0]).all() else by_unit.ravel()
        return np.flatnonzero(~self.is_needed[labels])

    def why_kept(self, label):
        """Why dead units with this label stay."""
        label = int(self.root(label))
        reader, is_border = self.readers.get(label, (None, False))
        if reason := self.reason(label):
            return reason
        if label in self.changed:
            return f"their outputs differ by position after {self.changed[label]!r}"
        if reader is None:
            return "a layer keeps at least one unit"
        if is_border:
            return f"{reader!r} pads their outputs with zeros"
        return "units that are not dead are added to them or multiplied with them"

    def solve(self, dropped=()):
        """Finds out which units are live.

        Args:
            dropped: Labels of units that must not be read any more.
        """
        self.dropped = np.zeros(self._num_labels, bool)
        self.dropped[self._roots[np.asarray(dropped, int)]] = True
        live = np.zeros(self._num_labels, bool)
        live[list(self._reasons)] = True
        self.is_needed = self._must.copy()
        self.reads, self.readers, self.stand_ins = {}, {}, {}
        is_new = True
        while is_new:
            before = live.sum()
            for key, steps in reversed(self.kernels.items()):
                self._read(key, steps, live)
            is_new = live.sum() > before
        self.live, self.kept = live, live.copy()
        for value in self._values:
            if value.labels is not None and value.labels.size:
                roots = self.root(value.labels)
                if not self.kept[roots].any():
                    self.kept[roots.flat[0]] = True

    def _read(self, key, steps, live):
        """Marks the inputs as live that live units of a layer read."""
        kernel, (step, *_) = steps[0].weights, steps
        if not len(kernel.connections):
            return
        rows, columns = (self.root(each.labels) for each in (step.inputs[0], step.outputs[0]))
        is_read = kernel.connections[:, live[columns]].any(axis=1) & ~self.dropped[rows]
        constants = self.constants_of(key)
        is_folded = ~np.isnan(constants) & ~(kernel.is_padded & (constants != 0))
        is_read &= ~is_folded
        if kernel.can_merge:
            self._merge(key, is_read, constants, live[rows])
        self.reads[key] = is_read
        for row in np.flatnonzero(is_read):
            is_border = not np.isnan(constants[row])
            self.readers.setdefault(int(rows[row]), (step.path, is_border))
        live[rows[is_read]] = True
        self.is_needed[rows[is_read]] = True

    def _merge(self, key, is_read, constants, is_live):
        """Replaces all constants that a layer reads by one, if they cannot become biases."""
        sizes = np.where(is_read, np.abs(np.nan_to_num(constants)), 0)
        if not sizes.any():
            return
        if key not in self.stand_ins:
            # If possible one that stays anyway, and is not so small that rounding matters.
            is_good = is_live & (sizes > 0.1 * sizes.max())
            self.stand_ins[key] = int(
                np.argmax(np.where(is_good, sizes, 0) if is_good.any() else sizes)
            )
        is_read[sizes > 0] = False
        is_read[self.stand_ins[key]] = True

    def constants_of(self, key):
        """The values of the constant inputs of a layer with a kernel; NaN for all other inputs.

        A layer that is called several times must have the same constant in each call.
        """
        first, *others = [step.inputs[0].constants for step in self.kernels[key]]
        is_same = np.all([first == each for each in others], axis=0)
        return np.where(is_same, first, np.nan)

    # The graph.

    def _graph(self, model):
        if id(model) not in self._graphs:
            self._graphs[id(model)] = calls_of(model)
        return self._graphs[id(model)]

    def _value(self, tensor):
        value = Value(tensor)
        self._values.append(value)
        return value

    def _trace(self, model, inputs, path):
        plain, calls = self._graph(model)
        values = dict(zip(map(id, keras.tree.flatten(plain.input)), inputs, strict=True))
        steps = []
        for call in calls:
            name = f"{path}{call.layer.name}"
            _check_call(call, name)
            taken = [values[id(each)] for each in symbolic((call.args, call.kwargs))]
            made = symbolic(call.outputs)
            if self._is_nested(call, taken):
                step = Step(call, name, taken, [self._value(each) for each in made], "model")
                # A nested model that is called again takes the same units.
                for value, first in zip(taken, self._taken_first(call.layer, taken), strict=True):
                    if value is not first:
                        self._same(self._by_unit(value), self._by_unit(first))
                step.inner = self._trace(call.layer, taken, f"{name}/")
                # The outputs of the call: the model's own tensors may have more unknown sizes.
                for value, inner in zip(step.outputs, step.inner.outputs, strict=True):
                    value.labels, value.constants = inner.labels, inner.constants
            else:
                step = Step(call, name, taken, [self._value(each) for each in made])
                self._link(step)
                self.steps.append(step)
            values.update(zip(map(id, made), step.outputs, strict=True))
            steps.append(step)
        outputs = [values[id(each)] for each in symbolic(plain.output)]
        return Trace(model, plain, inputs, outputs, steps)

    def _taken_first(self, model, taken):
        return self._first_inputs.setdefault(id(model), taken)

    def _is_nested(self, call, taken):
        model = call.layer
        if not is_clonable(model) or not is_its_graph(model):
            return False
        plain, _ = self._graph(model)
        wanted = keras.tree.flatten(plain.input)
        # Other arguments, such as a mask of timesteps, are not in the graph.
        only_inputs = len(symbolic(call.args)) == len(taken) == len(wanted)
        return only_inputs and all(
            len(one.shape) == len(other.shape) and one.shape[-1:] == other.shape[-1:]
            for one, other in zip(wanted, taken, strict=True)
        )

    # Labels.

    def _input(self, tensor):
        value = self._value(tensor)
        value.is_input = True
        shape = value.shape[1:]
        is_known = len(shape) > 1 and None not in shape and math.prod(shape) <= _LARGEST
        size = math.prod(shape) if is_known else value.num_units or 1
        value.labels = self._new_labels(size).reshape(shape if is_known else -1)
        is_number = value.num_units and value.dtype.startswith(("float", "bfloat"))
        must_stay = not self._drop_inputs or not is_number
        self._pin(value, _INPUTS if must_stay else None, is_input=True)
        return value

    def _new_labels(self, number):
        labels = np.arange(self._num_labels, self._num_labels + number)
        self._num_labels += number
        return labels

    def _fresh(self, value):
        value.labels = self._new_labels(value.num_units or 1)

    def _pin(self, value, reason, is_input=False):
        self._pins.append((value.labels.ravel(), reason, is_input))

    def _same(self, labels, others):
        self._pairs.append(np.stack(np.broadcast_arrays(labels, others)).reshape(2, -1))

    def _by_unit(self, value):
        """The labels of a value, `(units,)`: all places of a unit stay or go together."""
        if value.labels.ndim > 1:
            first = value.labels.reshape(-1, value.labels.shape[-1])[0]
            self._same(value.labels, first)
            value.labels = first
        return value.labels

    def _unite(self):
        roots = np.arange(self._num_labels)
        pairs = np.concatenate([np.zeros((2, 0), int), *self._pairs], axis=1)
        while True:
            ends = roots[pairs]
            least = ends.min(axis=0)
            if (ends == least).all():
                break
            for each in ends:
                np.minimum.at(roots, each, least)
            while (roots[roots] != roots).any():
                roots = roots[roots]
        self._roots, self._reasons = roots, {}
        self.changed = {int(roots[label]): path for label, path in self._changed.items()}
        self._are_inputs, self._must = np.zeros((2, self._num_labels), bool)
        # The reason "outputs" goes before all others, "inputs" comes last.
        order = {_OUTPUTS: 0, _INPUTS: 2}
        for labels, reason, is_input in sorted(self._pins, key=lambda pin: order.get(pin[1], 1)):
            self._are_inputs[roots[labels]] |= is_input
            if reason is not None:
                self._must[roots[labels]] |= reason != _INPUTS
                for label in np.unique(roots[labels]):
                    self._reasons.setdefault(int(label), reason)

    # What each step does with units.

    def _link(self, step):
        layer = step.call.layer
        known = all(value.num_units for value in (*step.inputs, *step.outputs))
        takes_one = len(step.inputs) == len(step.outputs) == 1
        has_weights = bool(getattr(layer, "weights", ()))
        for value in step.outputs:
            value.is_input = not has_weights and all(each.is_input for each in step.inputs)
        if known and takes_one and has_weights and is_symbolic(step.call.args[0]):
            step.weights = kind_of(layer, len(step.inputs[0].shape))
        if isinstance(step.weights, Kernel):
            step.kind = "kernel"
            self._link_kernel(step)
        elif step.weights is not None:
            step.kind = "unitwise"
            self._link_unitwise(step)
        elif known and len(step.outputs) == 1 and step.inputs and not has_weights:
            self._link_function(step)
        if step.kind is None:
            self._link_unknown(step)

    def _link_kernel(self, step):
        (value,), (output,), kernel = step.inputs, step.outputs, step.weights
        self._fresh(output)
        steps = self.kernels.setdefault(id(step.call.layer), [])
        if steps:  # used before: the same units
            step.weights = kernel = steps[0].weights
            self._same(output.labels, steps[0].outputs[0].labels)
        rows = self._by_unit(value)
        if len(kernel.connections):
            if steps:
                self._same(rows, steps[0].inputs[0].labels)
        else:  # an embedding, which takes numbers of tokens
            self._pin(value, f"{step.path!r} looks up embeddings by them")
        steps.append(step)
        if kernel.mixes_units:
            self._pin(output, f"the activation of {step.path!r} uses all of them together")
        else:
            self._find_constants(step)

    def _link_unitwise(self, step):
        (value,), (output,) = step.inputs, step.outputs
        rows = self._by_unit(value)
        self._same(rows, np.repeat(rows[:: step.weights.block], step.weights.block))
        output.labels = step.weights.made_of(rows)
        for other in self.steps:
            if other.call.layer is step.call.layer:  # used before
                self._same(rows, other.inputs[0].labels)
        self._find_constants(step)

    def _link_function(self, step):
        inputs, (output,) = step.inputs, step.outputs
        if not all(value.dtype == output.dtype for value in inputs):
            return
        if not output.dtype.startswith(("float", "bfloat")):
            return
        if _is_join(step):
            step.kind = "joined"
            output.labels = np.concatenate([self._by_unit(value) for value in inputs])
            output.constants = np.concatenate([value.constants for value in inputs])
        elif _is_alike(step):
            step.kind = "alike"
            step.is_product = len(inputs) > 1 and _is_product(step)
            self._link_alike(step)
        elif _is_reshape(step):
            step.kind = "reshaped"
            self._link_reshape(step)

    def _link_alike(self, step):
        (first, *_), (output,) = step.inputs, step.outputs
        if first.labels.ndim > 1 and len(step.inputs) == 1 and _is_elementwise(step):
            output.labels = first.labels
            return
        wide = [value for value in step.inputs if value.num_units == output.num_units]
        for value in step.inputs:
            self._by_unit(value)
            if value not in wide:
                self._pin(value, f"{step.path!r} combines one unit with all others")
        for value in wide[1:]:
            self._same(wide[0].labels, value.labels)
        output.labels = wide[0].labels
        self._find_constants(step)

    def _link_reshape(self, step):
        (value,), (output,) = step.inputs, step.outputs
        full = np.broadcast_to(value.labels, value.shape[1:]).reshape(output.shape[1:])
        output.labels = full
        self._by_unit(output)
        constants = np.broadcast_to(value.constants, value.shape[1:])
        output.constants = _uniform(constants.reshape(-1, output.num_units))

    def _link_unknown(self, step):
        reason = _why_unknown(step)
        for value in step.inputs:
            self._pin(value, reason)
        for value in step.outputs:
            self._fresh(value)
            self._pin(value, reason, value.is_input)

    # Constants.

    def _find_constants(self, step):
        (output,) = step.outputs
        if step.kind == "kernel" and not len(step.weights.connections):
            output.constants = step.weights.constants()
            return
        are_constant = self._are_constant(step)
        if are_constant.any():
            is_known = all(None not in value.shape[1:] for value in step.inputs)
            tried = [_run_constants(step, size) for size in (_SIZES[:1] if is_known else _SIZES)]
            found = _uniform(np.concatenate(tried))
            output.constants = np.where(are_constant, found, np.nan)
            for label in output.labels[are_constant & np.isnan(found)]:
                self._changed.setdefault(int(label), step.path)

    def _are_constant(self, step):
        """Which units do not depend on the inputs of the model."""
        given = [~np.isnan(value.constants) for value in step.inputs]
        if step.kind == "kernel":
            return ~step.weights.connections[~given[0]].any(axis=0)
        if step.kind == "unitwise":
            return step.weights.is_constant(given[0])
        (output,) = step.outputs
        are_constant = np.logical_and.reduce(
            [np.broadcast_to(each, output.num_units) for each in given]
        )
        if step.is_product:
            for value in step.inputs:
                are_constant = are_constant | (value.constants == 0)
        return are_constant


def _run_constants(step, size):
    """What a layer makes of its constant inputs, as rows; none if it does not take this size."""
    arrays = [
        np.broadcast_to(np.nan_to_num(value.constants), (1, *value.example(unknown=size))).astype(
            value.dtype if value.dtype != "bfloat16" else "float32"
        )
        for value in step.inputs
    ]
    try:
        made = as_array(step.run(*arrays)).astype("float64")
    except Exception:  # whatever a user's layer raises
        return np.zeros((0, step.outputs[0].num_units))
    return made.reshape(-1, made.shape[-1])


def is_symbolic(value):
    return isinstance(value, keras.KerasTensor)


def symbolic(structure):
    """The symbolic tensors in a structure, in their order."""
    return [each for each in keras.tree.flatten(structure) if is_symbolic(each)]


def is_its_graph(model):
    """Whether a Sequential or Functional model only calls its layers (it has no own `call`)."""
    return type(model).call in (keras.Sequential.call, _functional().call)


@functools.cache
def _functional():
    """The class of Functional models, which has no public name."""
    inputs = keras.Input((1,))
    # Keras 3.12 makes no model without a layer.
    return type(keras.Model(inputs, keras.layers.Identity()(inputs)))


def _check_call(call, path):
    # Layers for random data augmentation have `training=True` as their default.
    if call.kwargs.get("training") is True and not _trains_by_default(call.layer):
        raise ValueError(
            "The layers of a model to be made smaller must not be called with `training=True`: "
            f"its predictions are random, or depend on the batch. Received: layer={path!r}"
        )


def _trains_by_default(layer):
    training = inspect.signature(layer.call).parameters.get("training")
    return training is not None and training.default is True


def _shapes(step):
    """Shapes of examples to try a layer on: small ones first."""
    small, whole = ([value.example(most) for value in step.inputs] for most in (_FEW, math.inf))
    shapes = [small] if small == whole else [small, whole]
    return [each for each in shapes if 2 * sum(map(math.prod, each)) <= _LARGEST]


def _holds(step, function, shapes):
    """Whether a function is true for one of the shapes; if a layer refuses shapes, it is not."""
    for each in shapes:
        try:
            if function(each):
                return True
        except Exception:  # whatever a user's layer raises
            continue
    return False


def _is_join(step):
    """Whether the output is the concatenation of the inputs along the last axis."""
    (output,) = step.outputs
    if len(step.inputs) < 2 or output.num_units != sum(each.num_units for each in step.inputs):
        return False

    def is_join(shapes):
        arrays = _random(shapes)
        return np.array_equal(as_array(step.run(*arrays)), np.concatenate(arrays, axis=-1))

    return _holds(step, is_join, _shapes(step))


def _is_alike(step):
    (output,) = step.outputs
    sizes = {value.num_units for value in step.inputs}
    is_possible = len(output.shape) > 1 and max(sizes) == output.num_units
    if not is_possible or sizes - {1, output.num_units} or isinstance(step.call.layer, _MIXING):
        return False

    def is_alike(shapes):
        return treats_units_alike(step.run, *shapes) and works_without_a_unit(step.run, *shapes)

    return _holds(step, is_alike, _shapes(step))


def _is_product(step):
    def is_product(shapes):
        arrays = _random(shapes)
        product = arrays[0]
        for each in arrays[1:]:
            product = product * each
        return np.allclose(as_array(step.run(*arrays)), product, rtol=1e-5)

    return _holds(step, is_product, _shapes(step))


def _is_elementwise(step):
    """Whether the layer computes the same function of each entry, at every position."""
    (value,), (output,) = step.inputs, step.outputs
    if value.shape != output.shape:
        return False

    def is_elementwise(shapes):
        (shape,) = shapes

        def flat(x):
            return keras.ops.reshape(step.run(keras.ops.reshape(x, (-1, *shape))), (len(x), -1))

        return treats_units_alike(flat, (math.prod(shape),))

    return _holds(step, is_elementwise, [[value.example()]])


def _is_reshape(step):
    (*_, value), (output,) = step.inputs, step.outputs
    sizes = value.shape[1:], output.shape[1:]
    if len(step.inputs) > 1 or None in sizes[0] + sizes[1]:
        return False
    if math.prod(sizes[0]) != math.prod(sizes[1]) or 2 * math.prod(sizes[0]) > _LARGEST:
        return False

    def is_reshape(shapes):
        (x,) = _random(shapes)
        return np.array_equal(as_array(step.run(x)), x.reshape(2, *output.shape[1:]))

    return _holds(step, is_reshape, [[value.example()]])


def _random(shapes):
    generator = np.random.default_rng(2)
    return [generator.normal(size=(2, *shape)).astype("float32") for shape in shapes]


def _uniform(rows):
    """The constant value of each column, shape `(columns,)`; NaN if a column is not constant."""
    if not len(rows):
        return np.full(rows.shape[1:], np.nan)
    low, high = rows.min(axis=0), rows.max(axis=0)
    is_same = high - low <= 1e-5 * np.maximum(np.abs(low), np.abs(high))
    return np.where(is_same, rows[0], np.nan)


def _why_unknown(step):
    layer = inner_of(step.call.layer)
    name = type(layer).__name__
    if name in _NORMALISING:
        return f"{step.path!r} ({name}) normalises over all units"
    return f"{step.path!r} ({name}) may use all units together"
