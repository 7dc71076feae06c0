"""Writes models as TensorFlow SavedModels in which each weight is stored once."""

import keras
import tensorflow as tf

from rigl_tf.artifacts.comparison import in_a_line
from rigl_tf.masks import own_masks, without_masks
from rigl_tf.walk import all_layers


def save(model, path, specs):
    """Writes a SavedModel with a `serve` endpoint, which is also the default signature.

    `model.export` would write every weight twice: as a Keras variable, and as the TensorFlow
    variable inside it.
    """

    @tf.function(input_signature=[specs], autograph=False)
    def serve(inputs):
        return model(inputs, training=False)

    @tf.function(input_signature=[specs], autograph=False)
    def serve_flat(inputs):
        outputs = serve(inputs)
        return dict(zip(output_names(outputs), keras.tree.flatten(outputs), strict=True))

    module = tf.Module()
    masks = own_masks(model)
    module.weights = [each.value for each in without_masks(model, model.variables)]
    held = [value for layer in all_layers(model) for value in _resources(layer)]
    module.resources = [
        each.value if isinstance(each, keras.Variable) else each
        for each in held
        if id(each) not in masks
    ]
    module.serve = serve
    outputs = serve.get_concrete_function().structured_outputs
    parts = outputs.values() if isinstance(outputs, dict) else outputs
    # The outputs of a signature have names, and cannot be nested.
    is_flat = not tf.nest.is_nested(outputs) or not any(map(tf.nest.is_nested, parts))
    try:
        tf.saved_model.save(module, str(path), signatures=serve if is_flat else serve_flat)
    except tf.errors.OpError as error:  # TensorFlow raises this instead of an OSError.
        raise OSError(
            f"The SavedModel cannot be written. Received: path={str(path)!r} ({error.message})"
        ) from error
    except AssertionError as error:  # TensorFlow raises this for a variable it does not find.
        raise ValueError(
            "All that a model uses must be in its layers, its random seeds too: give them a "
            f"`keras.random.SeedGenerator`. Received: model={model.name!r} ({in_a_line(error)})"
        ) from error


def output_names(outputs):
    """The names of a model's outputs in a signature, in the order of `keras.tree.flatten`."""
    if not tf.nest.is_nested(outputs):
        return ["output_0"]
    start = () if isinstance(outputs, dict) else ("output",)
    paths = keras.tree.flatten_with_path(outputs)
    return ["_".join(map(str, (*start, *path))) for path, _ in paths]


def _resources(layer):
    """Yields what a layer holds beside its weights, such as lookup tables, states, variables."""
    for name, attribute in list(vars(layer).items()):
        for value in _flat(attribute):
            if isinstance(value, keras.metrics.Metric):
                # In private attributes Keras has those of the training.
                yield from [] if name.startswith("_") else value.variables
                continue
            is_tensorflow = isinstance(value, (tf.Variable, tf.Module))
            is_variable = is_tensorflow or isinstance(value, keras.Variable)
            if is_variable or hasattr(value, "resource_handle"):
                yield value


def _flat(value):
    """The values inside nested lists, tuples, sets and dictionaries, as one list."""
    if isinstance(value, dict):
        value = list(value.values())
    if not isinstance(value, (list, tuple, set)):
        return [value]
    return [inner for each in value for inner in _flat(each)]
