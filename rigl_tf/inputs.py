"""The inputs of a model: their shapes and types, and batches to try it on."""

import re

import keras
import numpy as np
import tensorflow as tf

from rigl_tf.walk import all_layers


def signature(model, inputs=None):
    """The inputs of a built model, in the structure in which it is called.

    Args:
        model: A built `keras.Model`.
        inputs: A batch, or `tf.TensorSpec`s, for a model that does not know its inputs.

    Returns:
        Structure of `tf.TensorSpec`s. Dimensions that may vary are `None`: those of the model's
        own inputs, or only the first one of `inputs`.

    Raises:
        ValueError: If the model is not built, its inputs are neither known nor given, or those
            that are given have another structure.
    """
    if not model.built:
        raise ValueError(
            "The model must be built: call it on a batch. "
            f"Received: model={model.name!r}, not built"
        )
    inputs = by_name(model, inputs)
    given = _specs_of_batch(inputs)
    if not getattr(model, "inputs", None):
        if inputs is None:
            raise ValueError(
                "The inputs of the model must be known, as those of Sequential and Functional "
                "models are: give a batch, `inputs=...`. "
                f"Received: model={model.name!r} of class {type(model).__name__}"
            )
        return given
    # `input` of a Sequential model is there only after it was called.
    known = model.inputs[0] if isinstance(model, keras.Sequential) else model.input
    specs = tf.nest.map_structure(_spec, known)
    if isinstance(model, keras.Sequential) and not _is_stateful(model):
        # It may know the size of the batch that it was built with, and takes any.
        specs = tf.TensorSpec((None, *specs.shape[1:]), specs.dtype, specs.name)
    _check(model, specs, given)
    return specs


def by_name(model, inputs):
    """`inputs` in the order of a model's inputs, if they are a dictionary by the names of these."""
    names = [tensor.name for tensor in getattr(model, "inputs", None) or []]
    if not isinstance(inputs, dict) or isinstance(getattr(model, "input", None), dict):
        return inputs
    if not names or set(names) != set(inputs):
        return inputs
    flat = [inputs[name] for name in names]
    return tf.nest.pack_sequence_as(model.input, flat)


def concrete(model, inputs=None, batch_size=1):
    """The inputs of a model as `signature` gives them, but every dimension is known.

    Args:
        model, inputs: As in `signature`.
        batch_size: Integer. The first dimension, if the model does not say what it must be.

    Raises:
        ValueError: As in `signature`, and if another dimension is unknown.
    """
    inputs = by_name(model, inputs)
    specs = signature(model, inputs)
    given = specs if inputs is None else _specs_of_batch(inputs)

    def known(spec, given):
        shape = tuple(given.shape)
        if None in shape[1:]:
            raise ValueError(
                "The input dimensions of the model must be known, but for the batch size: give a "
                f"batch, `inputs=...`. Received: input {spec.name!r} of shape {shape}"
            )
        first = (spec.shape[0] or batch_size,) if shape else ()
        return tf.TensorSpec((*first, *shape[1:]), spec.dtype, spec.name)

    flat = map(known, tf.nest.flatten(specs), tf.nest.flatten(given))
    return tf.nest.pack_sequence_as(specs, list(flat))


def batch_of(model, inputs=None, batch_size=8):
    """A batch to try a model on: `inputs` if these are arrays, else random numbers.

    Random integers are 0 or 1, and so are the random numbers when they are cut to integers: they
    are in the range of any embedding. Random strings are "0" or "1".

    Raises:
        ValueError: As in `concrete`, and if `inputs` are of other types, or without an example.
    """
    inputs = by_name(model, inputs)
    specs = concrete(model, inputs, batch_size)
    if inputs is not None and not any(
        isinstance(x, tf.TensorSpec) for x in tf.nest.flatten(inputs)
    ):
        flat = zip(tf.nest.flatten(inputs), tf.nest.flatten(specs), strict=True)
        tensors = [_tensor(array, spec) for array, spec in flat]
        if any(tensor.shape[:1] == [0] for tensor in tensors):
            shapes = [tuple(tensor.shape) for tensor in tensors]
            raise ValueError(
                f"`inputs` must have an example at least. Received: arrays of shapes {shapes}"
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
    """Raises a `ValueError` if an array is not of the shape that its `tf.TensorSpec` says."""
    for spec, tensor in zip(tf.nest.flatten(specs), tf.nest.flatten(batch), strict=True):
        if not spec.shape.is_compatible_with(tensor.shape):
            raise ValueError(
                "`inputs` must be of the shapes that the model knows. Received: an array of shape "
                f"{tuple(tensor.shape)} as {spec.name!r}, whose shape is {tuple(spec.shape)}"
            )


def _spec(tensor):
    # A Keras name may hold blanks; those of TensorFlow's arguments may not.
    return tf.TensorSpec(tensor.shape, tensor.dtype, re.sub(r"\W", "_", tensor.name))


def _specs_of_batch(inputs):
    if inputs is None:
        return None
    flat = [_spec_of_batch(path, batch) for path, batch in keras.tree.flatten_with_path(inputs)]
    # As they were flattened: the keys of an `OrderedDict` stay in their order, not so in `tf.nest`.
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
        # As Keras does with numbers of NumPy.
        dtype = keras.config.floatx() if batch.dtype == tf.float64 else batch.dtype
        batch = tf.TensorSpec(batch.shape, dtype)
    shape = (None, *batch.shape[1:]) if batch.shape.rank else batch.shape
    return tf.TensorSpec(shape, batch.dtype, batch.name or name)


def _tensor(array, spec):
    tensor = tf.convert_to_tensor(array)
    if (tensor.dtype == tf.string) != (spec.dtype == tf.string):
        raise ValueError(
            "`inputs` must be strings where the model takes strings, else numbers. Received: "
            f"{tensor.dtype.name} as {spec.name!r}, whose type is {spec.dtype.name}"
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
