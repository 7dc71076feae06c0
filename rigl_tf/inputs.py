"""The inputs of a model: their shapes and types, and batches to try the model on."""

import re

import keras
import numpy as np
import tensorflow as tf

from rigl_tf.walk import all_layers


def check_has_call(model):
    """Raises a `ValueError` if a model only has methods of its own, as those of GANs often do."""
    if type(model).call in (keras.Model.call, keras.layers.Layer.call):
        raise ValueError(
            "The model has no `call`, so no outputs of its own: give a part of it that has one, "
            f"such as a generator. Received: model={model.name!r} of class {type(model).__name__}"
        )


def signature(model, inputs=None):
    """The inputs of a built model, in the structure in which the model is called.

    Args:
        model: A built `keras.Model`.
        inputs: A batch, or `tf.TensorSpec`s, for a model that does not know its inputs.

    Returns:
        Structure of `tf.TensorSpec`s. Dimensions of any size are `None`: those of the model's own
        inputs, or only the first dimension of `inputs`.

    Raises:
        ValueError: If the model is not built, its inputs are neither known nor given, or the given
            inputs have another structure.
    """
    check_has_call(model)
    if not model.built:
        raise ValueError(
            "The model must be built: call it on a batch first. "
            f"Received: model={model.name!r}, not built"
        )
    inputs = by_name(model, inputs)
    given = _specs_of_batch(inputs)
    if not known_inputs(model):
        if inputs is None:
            raise ValueError(
                "The model does not know its inputs (as Sequential and Functional models do): pass "
                "a batch, `inputs=...`. "
                f"Received: model={model.name!r} of class {type(model).__name__}"
            )
        return given
    # A Sequential model has the attribute `input` only after it was called.
    known = model.inputs[0] if isinstance(model, keras.Sequential) else model.input
    specs = tf.nest.map_structure(_spec, known)
    if isinstance(model, keras.Sequential) and not _is_stateful(model):
        # It may know the batch size that it was built with, but it takes any batch size.
        specs = tf.TensorSpec((None, *specs.shape[1:]), specs.dtype, specs.name)
    _check(model, specs, given)
    return specs


def known_inputs(model):
    """List of the symbolic inputs of a Sequential or Functional model; empty for other models.

    Other models may have an attribute `inputs` that is something else, such as a layer.
    """
    has_graph = isinstance(model, (keras.Sequential, keras.Function))
    # A Sequential model that is not built does not know them.
    return (getattr(model, "inputs", None) or []) if has_graph else []


def by_name(model, inputs):
    """`inputs` in the order of a model's inputs, if they are a dictionary with their names."""
    names = [tensor.name for tensor in known_inputs(model)]
    if not isinstance(inputs, dict) or isinstance(getattr(model, "input", None), dict):
        return inputs
    if not names or set(names) != set(inputs):
        return inputs
    flat = [inputs[name] for name in names]
    return tf.nest.pack_sequence_as(model.input, flat)


def concrete(model, inputs=None, batch_size=1):
    """The inputs of a model as from `signature`, but with known dimensions.

    Args:
        model: A built `keras.Model`.
        inputs: As in `signature`.
        batch_size: Integer, the first dimension if the model takes any batch size.

    Raises:
        ValueError: As `signature`; or if another dimension is unknown.
    """
    inputs = by_name(model, inputs)
    specs = signature(model, inputs)
    given = specs if inputs is None else _specs_of_batch(inputs)

    def known(spec, given):
        shape = tuple(given.shape)
        if None in shape[1:]:
            raise ValueError(
                "The input dimensions of the model, except the batch size, must be known: pass a "
                f"batch, `inputs=...`. Received: input {spec.name!r} of shape {shape}"
            )
        first = (spec.shape[0] or batch_size,) if shape else ()
        return tf.TensorSpec((*first, *shape[1:]), spec.dtype, spec.name)

    flat = map(known, tf.nest.flatten(specs), tf.nest.flatten(given))
    return tf.nest.pack_sequence_as(specs, list(flat))


def batch_of(model, inputs=None):
    """A batch to try a model on: `inputs` if they are arrays, else random numbers.

    Random numbers are in `[0, 2)`, and random integers are 0 or 1, so they are in the range of any
    embedding. Random strings are "0" or "1".

    Raises:
        ValueError: As `concrete`; or if `inputs` have wrong types, or no example.
    """
    inputs = by_name(model, inputs)
    specs = concrete(model, inputs, batch_size=8)
    if inputs is not None and not any(
        isinstance(x, tf.TensorSpec) for x in tf.nest.flatten(inputs)
    ):
        flat = zip(tf.nest.flatten(inputs), tf.nest.flatten(specs), strict=True)
        tensors = [_tensor(array, spec) for array, spec in flat]
        if any(tensor.shape[:1] == [0] for tensor in tensors):
            shapes = [tuple(tensor.shape) for tensor in tensors]
            raise ValueError(
                f"`inputs` must have at least one example. Received: arrays of shapes {shapes}"
            )
        return tf.nest.pack_sequence_as(specs, tensors)
    generator = np.random.default_rng(0)

    def random(spec):
        values = tf.constant(generator.uniform(0, 2, size=spec.shape))
        if spec.dtype == tf.string:
            return tf.strings.as_string(tf.cast(values, tf.int32))
        return tf.cast(values if spec.dtype.is_floating else tf.floor(values), spec.dtype)

    return tf.nest.map_structure(random, specs)


def _is_stateful(model):
    return any(getattr(layer, "stateful", False) for layer in all_layers(model))


def check_shapes(specs, batch):
    """Raises a `ValueError` if the shape of an array does not fit its `tf.TensorSpec`."""
    for spec, tensor in zip(tf.nest.flatten(specs), tf.nest.flatten(batch), strict=True):
        if not spec.shape.is_compatible_with(tensor.shape):
            raise ValueError(
                "`inputs` must have the shapes of the model's inputs. Received: an array of shape "
                f"{tuple(tensor.shape)} for {spec.name!r}, whose shape is {tuple(spec.shape)}"
            )


def _spec(tensor):
    # Names in Keras may contain spaces, names of arguments in TensorFlow may not.
    return tf.TensorSpec(tensor.shape, tensor.dtype, re.sub(r"\W", "_", tensor.name))


def _specs_of_batch(inputs):
    if inputs is None:
        return None
    flat = [_spec_of_batch(path, batch) for path, batch in keras.tree.flatten_with_path(inputs)]
    # With Keras, as they were flattened: it keeps the order of an `OrderedDict`, unlike `tf.nest`.
    return keras.tree.pack_sequence_as(inputs, flat)


def _spec_of_batch(path, batch):
    # As TensorFlow does with the names of arguments that begin with a digit.
    start = ["arg"] if path and isinstance(path[0], int) else []
    name = "_".join(re.sub(r"\W", "_", str(key)) for key in (*start, *path)) or "inputs"
    if not isinstance(batch, tf.TensorSpec):
        try:
            batch = tf.convert_to_tensor(batch)
        except (TypeError, ValueError) as error:
            raise ValueError(
                "`inputs` must be a batch of arrays, as the model is called with. "
                f"Received: inputs with a {type(batch).__name__}"
            ) from error
        # Keras converts float64 arrays in this way, too.
        dtype = keras.config.floatx() if batch.dtype == tf.float64 else batch.dtype
        batch = tf.TensorSpec(batch.shape, dtype)
    shape = (None, *batch.shape[1:]) if batch.shape.rank else batch.shape
    return tf.TensorSpec(shape, batch.dtype, batch.name or name)


def _tensor(array, spec):
    tensor = tf.convert_to_tensor(array)
    if (tensor.dtype == tf.string) != (spec.dtype == tf.string):
        raise ValueError(
            "`inputs` must be strings where the model takes strings, else numbers. Received: "
            f"{tensor.dtype.name} for {spec.name!r}, whose type is {spec.dtype.name}"
        )
    return tf.cast(tensor, spec.dtype)


def _check(model, specs, given):
    if given is None or len(tf.nest.flatten(given)) == len(tf.nest.flatten(specs)) == 1:
        return
    try:
        tf.nest.assert_same_structure(specs, given, check_types=False)
    except ValueError as error:
        names = tf.nest.map_structure(lambda spec: spec.name, specs)
        raise ValueError(
            "`inputs` must have the structure in which the model is called. "
            f"Received: model={model.name!r} with inputs {names}, and inputs={given}"
        ) from error
