"""Runs SavedModels and `.keras` files in a new Python process, as all artifacts.

A file with the user's own classes or operations can be loaded only where these are known. If it
cannot be loaded in the new process, it is run in the process that wrote it, and the report says so.
"""

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
    notes = ()
    try:
        outputs, latencies = runtime.run_batch(format, path, specs, batch, batch_sizes)
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
