"""Export: the pruned model as a file that is checked and measured."""

import dataclasses
import io
import math
import pathlib
import tempfile
import zlib

import keras
import numpy as np
import rich.console
import rich.table
import tensorflow as tf

from rigl_tf import flops
from rigl_tf.checks import check_choice
from rigl_tf.inputs import batch_of, signature
from rigl_tf.layers import all_layers
from rigl_tf.sparsify import strip

_FORMATS = ("saved_model", "keras")
# Relative to outputs beyond 1: compiled differently, float32 sums differ in the last digits.
_TOLERANCE = 1e-4


@dataclasses.dataclass(frozen=True)
class ExportReport:
    """What was exported; `print` shows it as a table.

    Attributes:
        path: Where the artifact is.
        format: `"saved_model"` or `"keras"`.
        num_weights: Number of weights, zeros included.
        num_active: Number of weights that are not masked out.
        flops, dense_flops: FLOPs per sample, of the active connections and of all; `None` if they
            cannot be counted.
        file_bytes: Size of the artifact.
        compressed_bytes: Its size compressed (zlib), as when it is downloaded: zeros cost nothing.
        sparse_bytes: Size of the weights as active float32 values and a bit mask.
        max_difference: Largest absolute difference between the outputs of the loaded artifact and
            those of the model, on `inputs` or on random ones.
        not_counted: Dictionary `{path of a kernel: why its FLOPs cannot be counted}`.
    """

    path: str
    format: str
    num_weights: int
    num_active: int
    flops: int | None
    dense_flops: int | None
    file_bytes: int
    compressed_bytes: int
    sparse_bytes: int
    max_difference: float
    not_counted: dict = dataclasses.field(default_factory=dict)

    @property
    def sparsity(self):
        """Share of zeros among all weights."""
        return 1 - self.num_active / self.num_weights if self.num_weights else 0.0

    @property
    def flops_ratio(self):
        """FLOPs of the active connections as a share of all; 1 if there are none."""
        if self.not_counted:
            return None
        return self.flops / self.dense_flops if self.dense_flops else 1.0

    def to_dict(self):
        """All of it as a dictionary for JSON."""
        derived = {"sparsity": self.sparsity, "flops_ratio": self.flops_ratio}
        return {**dataclasses.asdict(self), **derived}

    def __str__(self):
        table = rich.table.Table(title=f"Exported to {self.path}", title_justify="left")
        table.add_column("")
        table.add_column("", justify="right")
        table.add_row("format", self.format)
        table.add_row("active weights", f"{self.num_active:,} of {self.num_weights:,}")
        table.add_row("sparsity of all weights", f"{self.sparsity:.2%}")
        if self.not_counted:
            table.add_row("FLOPs per sample", "not counted, see `not_counted`")
        else:
            table.add_row("FLOPs per sample", f"{self.flops:,} of {self.dense_flops:,}")
            table.add_row("FLOPs ratio", f"{self.flops_ratio:.3f}")
        table.add_row("bytes on disk", f"{self.file_bytes:,}")
        table.add_row("bytes compressed", f"{self.compressed_bytes:,}")
        table.add_row("bytes as values and bit mask", f"{self.sparse_bytes:,}")
        table.add_row("largest output difference", f"{self.max_difference:.2g}")
        console = rich.console.Console(file=io.StringIO(), width=100, markup=False, emoji=False)
        console.print(table)
        return console.file.getvalue().rstrip()


def export(model, path, format="saved_model", inputs=None):
    """Writes the pruned model, runs what was written, and compares.

    The artifact holds plain Keras layers or plain TensorFlow, so `rigl_tf` is not needed to load
    it. It is written beside `path` and renamed when it is complete and its outputs are right; what
    was at `path` before stays until then.

    Args:
        model: A built `keras.Model`, sparse or dense.
        path: Where to write: a directory for `"saved_model"`, a file that ends with `.keras` for
            `"keras"`. Missing parents are made. An earlier export is replaced.
        format: `"saved_model"` or `"keras"`.
        inputs: A batch of arrays as the model is called with, to compare the outputs on. It is
            needed only where the model does not know the shapes of its inputs: if it is
            subclassed, or takes sequences or images of any size. A SavedModel takes inputs of the
            shapes that the model knows, dimensions of any size included; one of a subclassed model
            takes batches of any size of what `inputs` holds.

    Returns:
        An `ExportReport`; `print` it.

    Raises:
        ValueError: If an argument is wrong, something that is no export is at `path`, or the
            inputs of the model are neither known nor given.
        OSError: If `path` cannot be written.
        RuntimeError: If the outputs of the artifact are not those of the model. Nothing is left
            at `path` that was not there before.
    """
    path = pathlib.Path(path)
    _check(model, path, format)
    stripped = strip(model)
    specs, batch = signature(model, inputs), batch_of(model, inputs)
    cost = flops.estimate(model, inputs)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".export-") as directory:
        written = pathlib.Path(directory, path.name)
        _write(stripped, written, format, specs)
        difference = _difference(model, batch, written, format)
        file_bytes, compressed_bytes = _measure(written)
        _replace(written, path)
    return ExportReport(
        path=str(path),
        format=format,
        num_weights=cost.num_weights,
        num_active=cost.num_active,
        flops=cost.flops,
        dense_flops=cost.dense_flops,
        file_bytes=file_bytes,
        compressed_bytes=compressed_bytes,
        sparse_bytes=cost.num_bytes,
        max_difference=difference,
        not_counted=cost.unknown,
    )


def _check(model, path, format):
    check_choice(_FORMATS, format=format)
    if format == "keras" and path.suffix != ".keras":
        raise ValueError(f"`path` must end with '.keras'. Received: path={str(path)!r}")
    file = next((parent for parent in path.parents if parent.is_file()), None)
    if file is not None:
        raise NotADirectoryError(
            f"`path` must be in a directory. Received: path={str(path)!r}, where {file} is a file"
        )
    earlier = (path / "saved_model.pb").is_file() if format == "saved_model" else path.is_file()
    empty = path.is_dir() and not any(path.iterdir())
    if path.exists() and not earlier and not empty:
        raise ValueError(
            "`path` must be new or an earlier export, which is replaced. "
            f"Received: path={str(path)!r}, where something else is"
        )


def _write(stripped, path, format, specs):
    if format == "keras":
        stripped.save(path)
    else:
        _save_model(stripped, path, specs)


def _save_model(model, path, specs):
    """Writes a SavedModel with a `serve` endpoint, also the default signature.

    `model.export` would write every weight twice: as a Keras variable, and as the TensorFlow
    variable inside.
    """

    @tf.function(input_signature=[specs], autograph=False)
    def serve(inputs):
        return model(inputs, training=False)

    module = tf.Module()
    module.weights = [variable.value for variable in model.variables]
    module.resources = [value for layer in all_layers(model) for value in _resources(layer)]
    module.serve = serve
    try:
        tf.saved_model.save(module, str(path), signatures=serve)
    except tf.errors.OpError as error:  # What TensorFlow makes of an OSError.
        raise OSError(
            f"The SavedModel cannot be written. Received: path={str(path)!r} ({error.message})"
        ) from error


def _resources(layer):
    """What a layer holds beside its weights: lookup tables, states, variables of TensorFlow."""
    for value in keras.tree.flatten(list(vars(layer).values())):
        if isinstance(value, keras.Variable):
            yield value.value
        elif isinstance(value, (tf.Variable, tf.Module)) or hasattr(value, "resource_handle"):
            yield value


def _difference(model, batch, path, format):
    """Runs the artifact; the largest difference to the model's outputs."""
    if format == "keras":
        outputs = _load(path)(batch, training=False)
    else:
        artifact = tf.saved_model.load(str(path))
        outputs = artifact.serve(batch)
    # A stateful layer of the model keeps its state.
    with keras.StatelessScope():
        expected = model(batch, training=False)
    pairs = zip(tf.nest.flatten(outputs), tf.nest.flatten(expected), strict=True)
    differences, sizes = zip(*(_compare(output, want) for output, want in pairs), strict=True)
    difference, largest = max(differences), max(sizes)
    if not difference <= _TOLERANCE * max(1.0, largest):
        raise RuntimeError(
            "The outputs of the exported model are not those of the model, so it was thrown away. "
            f"Received: largest difference {difference:.3g} between outputs up to {largest:.3g}"
        )
    return difference


def _compare(output, expected):
    """The largest difference between two outputs, and the largest number in the second."""
    if expected.dtype == tf.string:
        return (0.0 if bool(tf.reduce_all(output == expected)) else math.inf), 0.0
    expected = np.asarray(expected, "float64")
    difference = np.abs(np.asarray(output, "float64") - expected)
    return float(difference.max()), float(np.abs(expected).max())


def _load(path):
    try:
        return keras.saving.load_model(path)
    except TypeError as error:
        raise ValueError(
            "A `.keras` file can be loaded if Keras knows all classes in it: decorate yours with "
            '`keras.saving.register_keras_serializable()`, or use `format="saved_model"`. '
            f"Received: {' '.join(str(error).split())[:200]}"
        ) from error


def _measure(path):
    """Size in bytes of a file, or of all files in a directory: as it is, and compressed."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    size = compressed = 0
    for file in files:
        content = file.read_bytes()
        size += len(content)
        compressed += len(zlib.compress(content, 6))
    return size, compressed


def _replace(written, path):
    """Puts what was written at `path`; an earlier directory goes only once the new one is there."""
    if not path.is_dir():
        written.replace(path)
        return
    earlier = written.with_name(f"{path.name}.earlier")
    path.rename(earlier)
    try:
        written.rename(path)
    except OSError:
        earlier.rename(path)
        raise
