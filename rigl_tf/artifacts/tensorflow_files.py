"""SavedModels and `.keras` files are run in a fresh interpreter, as all artifacts are.

One that holds the user's own classes or operations can be loaded only where these are known. It is
run in the process that wrote it, then, and the report says so.
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
    """Outputs in the structure of `expected`, `Latency`s, and notes.

    Args:
        format: `"saved_model"` or `"keras"`.
        path: The artifact.
        specs, batch: Structure of the inputs, and a batch of them.
        expected: Outputs of the model.
        batch_sizes: As in `runtime.run`.

    Raises:
        ValueError: If Keras does not know a class, in this process either.
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
    except Exception:  # Here it fails of the same, or of what comes after it.
        raise error from None
