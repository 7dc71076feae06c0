"""Builds the smaller model of `compact`: each layer with the units that are left."""

import keras
import numpy as np

from rigl_tf.masks import kernels_of
from rigl_tf.transforms.channels import is_symbolic, symbolic
from rigl_tf.transforms.rebuild import copy_of_layer, copy_state
from rigl_tf.transforms.units import fill


def smaller_model(channels):
    """Builds the smaller model, and says which entries of its inputs are left.

    Args:
        channels: A solved `rigl_tf.transforms.channels.Channels`.

    Returns:
        An uncompiled Functional model of new layers. And for each input `None` if all entries are
        left, or `(flat, places)`: the indices of the entries that are left, in the flattened input
        if `flat` is true, else along the last axis.
    """
    builder = _Builder(channels)
    trace = channels.trace
    inputs = keras.tree.flatten(trace.plain.input)
    left = [builder.left_of_input(value) for value in trace.inputs]
    new = [
        tensor if places is None else _input_like(tensor, _left_shape(value, *places))
        for tensor, value, places in zip(inputs, trace.inputs, left, strict=True)
    ]
    outputs = builder.outputs(trace, new)
    structure = keras.tree.pack_sequence_as(trace.plain.input, new)
    model = keras.Model(structure, outputs, name=trace.model.name)
    builder.fill()
    return model, left


def _left_shape(value, is_flat, places):
    return (len(places),) if is_flat else (*value.shape[1:-1], len(places))


def _like_given(tensor, given):
    """The shape of one example for a nested model's input, with the units of the given tensor."""
    if len(given.shape) != len(tensor.shape):  # it was flattened
        return given.shape[1:]
    return (*tensor.shape[1:-1], given.shape[-1])


def _input_like(tensor, shape):
    return keras.Input(batch_shape=(tensor.shape[0], *shape), dtype=tensor.dtype, name=tensor.name)


class _Builder:
    def __init__(self, channels):
        self._channels = channels
        self._new_layers, self._new_models, self._values = {}, {}, []

    def left_of_input(self, value):
        """The entries of one input that are left, as in `smaller_model`."""
        kept = self._channels.kept[self._channels.root(value.labels)]
        if kept.all():
            return None
        by_unit = kept.reshape(-1, kept.shape[-1])
        labels = self._channels.root(value.labels).reshape(by_unit.shape)
        if (labels == labels[0]).all():
            return False, np.flatnonzero(by_unit[0])
        return True, np.flatnonzero(kept)

    def outputs(self, trace, inputs):
        """Calls the new layers of a model, and returns the outputs in the model's structure."""
        new = dict(zip(map(id, keras.tree.flatten(trace.plain.input)), inputs, strict=True))

        def replaced(value):
            return new[id(value)] if is_symbolic(value) else value

        for step in trace.steps:
            args, kwargs = keras.tree.map_structure(replaced, (step.call.args, step.call.kwargs))
            made = getattr(self, f"_call_{step.kind or 'unknown'}")(step, args, kwargs)
            new.update(
                zip(map(id, symbolic(step.call.outputs)), keras.tree.flatten(made), strict=True)
            )
        return keras.tree.map_structure(replaced, trace.plain.output)

    def fill(self):
        """Sets the weights of the new layers, which are built by now."""
        for layer, new_layer, values in self._values:
            if values is None:
                copy_state(layer, new_layer)
                if new_layer is not layer:
                    for kernel in kernels_of(new_layer).values():
                        kernel.zero_inactive()
                continue
            fill(new_layer, values)
            new_layer.trainable = layer.trainable
            if hasattr(new_layer, "finalize_state"):
                new_layer.finalize_state()

    def _call_model(self, step, args, kwargs):
        key = id(step.call.layer)
        if key not in self._new_models:
            trace = step.inner
            old = keras.tree.flatten(trace.plain.input)
            inputs = [
                _input_like(tensor, _like_given(tensor, given))
                for tensor, given in zip(old, symbolic((args, kwargs)), strict=True)
            ]
            outputs = self.outputs(trace, inputs)
            structure = keras.tree.pack_sequence_as(trace.plain.input, inputs)
            self._new_models[key] = keras.Model(structure, outputs, name=step.call.layer.name)
        return self._new_models[key](*args, **kwargs)

    def _call_kernel(self, step, args, kwargs):
        key, channels = id(step.call.layer), self._channels
        kernel, x = step.weights, args[0]
        (value,), (output,) = step.inputs, step.outputs
        rows, columns = channels.places(value), channels.places(output)
        if len(kernel.connections):
            taken = channels.taken(step)
            if len(taken) < len(rows):
                x = keras.ops.take(x, np.searchsorted(rows, taken), axis=-1)
                rows = taken
        if key not in self._new_layers:
            live_rows, live_columns = (
                channels.live[channels.root(each.labels)] for each in (value, output)
            )
            constants = np.nan_to_num(channels.constants_of(key))
            row = channels.stand_ins.get(key)
            stand_in = None if row is None else (row, constants[row])
            if len(kernel.connections):
                live_rows = channels.reads[key]
                is_left_out = channels.dropped[channels.root(value.labels)]
                constants = np.where(live_rows | is_left_out, 0, constants)
            live = live_rows, live_columns
            self._add(step, *kernel.smaller(rows, columns, *live, constants, stand_in))
        return self._new_layers[key](x, *args[1:], **kwargs)

    def _call_unitwise(self, step, args, kwargs):
        rows, columns = (self._channels.places(each[0]) for each in (step.inputs, step.outputs))
        if id(step.call.layer) not in self._new_layers:
            if len(rows) == step.inputs[0].num_units and hasattr(step.call.layer, "adapt"):
                self._new_layers[id(step.call.layer)] = step.call.layer
            else:
                self._add(step, *step.weights.smaller(rows, columns))
        return self._new_layers[id(step.call.layer)](*args, **kwargs)

    def _add(self, step, new_layer, values):
        self._new_layers[id(step.call.layer)] = new_layer
        self._values.append((step.call.layer, new_layer, values))

    def _call_unknown(self, step, args, kwargs):
        layer = step.call.layer
        if id(layer) not in self._new_layers:
            self._add(step, _copy(layer), None)
        return self._new_layers[id(layer)](*args, **kwargs)

    _call_alike = _call_joined = _call_unknown

    def _call_reshaped(self, step, args, kwargs):
        (value,), (output,) = step.inputs, step.outputs
        x = symbolic((args, kwargs))[0]
        shape = (*output.shape[1:-1], len(self._channels.places(output)))
        if shape == output.shape[1:] and x.shape == value.shape:
            return self._call_unknown(step, args, kwargs)
        if isinstance(step.call.layer, keras.layers.Flatten):
            return x if len(x.shape) == 2 else step.call.layer(x)
        key = (id(step.call.layer), shape)
        if key not in self._new_layers:
            self._new_layers[key] = keras.layers.Reshape(shape, name=step.call.layer.name)
        return self._new_layers[key](x)


def _copy(layer):
    """A copy of a layer, or the layer itself if it has no config to copy it from."""
    try:
        return copy_of_layer(layer)
    except (NotImplementedError, TypeError, ValueError):
        return layer
