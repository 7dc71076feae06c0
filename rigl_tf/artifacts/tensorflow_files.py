"""Runs SavedModels and `.keras` files in a new Python process, as all artifacts.

A `.keras` file can hold classes and functions of the user. They are sent to the new process: those
of a module are imported there, those of the program itself are copied by the package `cloudpickle`.
If a file cannot be loaded in the new process nevertheless, it is run in the process that wrote it,
and the report says so.
"""

import importlib
import importlib.util
import json
import zipfile

import keras

from rigl_tf.artifacts import runtime, saved_model
from rigl_tf.artifacts.comparison import in_a_line

REASON = "TensorFlow multiplies dense matrices, zeros included"
ADVICE = (
    'It is no faster than dense: `execution="csr"` runs Dense and convolutions sparse here, '
    '`format="litert"` or "web" on devices, and `compact` makes models with empty channels smaller.'
)


def run(format, path, specs, batch, expected, batch_sizes=()):
    """Runs an artifact.

    Args:
        format: `"saved_model"` or `"keras"`.
        path: The artifact.
        specs: Structure of `tf.TensorSpec`s of the inputs.
        batch: A batch of inputs in this structure.
        expected: Outputs of the model.
        batch_sizes: As in `runtime.run`.

    Returns:
        The outputs in the structure of `expected`, a list of `Latency`s, and a tuple of notes.

    Raises:
        ValueError: If Keras does not know a class even in this process.
        RuntimeError: If the artifact cannot be run.
    """
    notes, objects = (), b""
    if format == "keras" and (own := _own_objects(path)):
        notes, objects = (_note(own),), _pickled(own)
    try:
        outputs, latencies = runtime.run_batch(
            format, path, specs, batch, batch_sizes, objects=objects
        )
    except RuntimeError as error:
        outputs, latencies = _run_here(format, path, specs, batch, error)
        notes = (
            f"It could not be run in a fresh interpreter ({in_a_line(error)}): it was run in the "
            "process that wrote it. If it holds classes or operations of your own, these must be "
            "known wherever it is loaded.",
        )
    names = list(outputs) if format == "keras" else saved_model.output_names(expected)
    flat = [outputs[name] for name in names]
    return keras.tree.pack_sequence_as(expected, flat), latencies, notes


def _own_objects(path):
    """The classes and functions of the user that a `.keras` file holds, by their registered names.

    Those of this library are not among them: an artifact must not need it.
    """
    with zipfile.ZipFile(path) as file:
        config = file.read("config.json").decode()
    return {
        name: each
        for name, each in keras.saving.get_custom_objects().items()
        if json.dumps(name) in config and not _is_ours(each)
    }


def _is_ours(each):
    return str(getattr(each, "__module__", "")).split(".")[0] == "rigl_tf"


def _pickled(objects):
    """The objects as bytes, or no bytes if this fails: then the file says what it misses."""
    name = "cloudpickle" if importlib.util.find_spec("cloudpickle") else "pickle"
    try:
        return importlib.import_module(name).dumps(objects)
    except Exception:  # An object of any class may fail in its own way.
        return b""


def _note(objects):
    names = ", ".join(sorted(name.split(">")[-1] for name in objects))
    return (
        f"It holds classes or functions of your own ({names}): they must be known wherever it is "
        "loaded."
    )


def _run_here(format, path, specs, batch, error):
    try:
        return runtime.run_batch(format, path, specs, batch, here=True)
    except TypeError as unknown:
        if format != "keras":
            raise error from None
        raise ValueError(
            "A `.keras` file can be loaded if Keras knows all classes in it: decorate yours with "
            '`keras.saving.register_keras_serializable()`, or use `format="saved_model"`. '
            f"Received: {in_a_line(unknown)}"
        ) from unknown
    except Exception:  # It fails here, too. The first error tells more.
        raise error from None
