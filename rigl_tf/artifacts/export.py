"""Export: the pruned model as a file that is checked and measured."""

import dataclasses
import math
import pathlib
import re
import tempfile
import warnings
import zlib

import keras
import numpy as np
import rich.table
import tensorflow as tf

from rigl_tf import flops
from rigl_tf.checks import check_choice
from rigl_tf.inputs import batch_of, check_shapes, signature
from rigl_tf.layers.summary import as_text, num_outside
from rigl_tf.masks import own_masks, without_masks
from rigl_tf.transforms.execution import as_masked
from rigl_tf.transforms.sparsify import strip
from rigl_tf.walk import all_layers

_FORMATS = ("saved_model", "keras")
# Relative to the largest output: compiled differently, float32 sums differ in the last digits.
_TOLERANCE = 1e-4
# Outputs that cancel out differ by more. The model itself may differ by this many times less
# between eager execution and a graph.
_NUM_OWN_DIFFERENCES = 10
# In a lower precision it is this many times the distance from 1 to the next number: a graph leaves
# out roundings between operations.
_NUM_ROUNDINGS = 4
_EPSILONS = {"bfloat16": 2.0**-7, "float16": 2.0**-10}


@dataclasses.dataclass(frozen=True)
class ExportReport:
    """What `rigl_tf.export` wrote; `print` shows it as a table.

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
            those of the model, on `inputs` or on random ones. Equal infinities do not differ.
        not_counted: Dictionary `{path of a kernel: why its FLOPs cannot be counted}`.
        outside: Dictionary `{path of a kernel: number of weights that are not zero outside of its
            mask}`, of the kernels with such weights.
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
    outside: dict = dataclasses.field(default_factory=dict)

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
        if self.outside:
            table.add_row("not zero outside of the masks", f"{sum(self.outside.values()):,}")
        table.add_row("bytes on disk", f"{self.file_bytes:,}")
        table.add_row("bytes compressed", f"{self.compressed_bytes:,}")
        table.add_row("bytes as values and bit mask", f"{self.sparse_bytes:,}")
        table.add_row("largest output difference", f"{self.max_difference:.2g}")
        return as_text(table)


def export(model, path, format="saved_model", inputs=None, check=True):
    """Writes the pruned model, runs what was written, and compares.

    The model is traced as it is and nothing in it is changed, so every model that can be called can
    be exported. The weights are those that it predicts with: if some are not zero outside of the
    masks, as an average written into the kernels can be, the report says so and a warning, too.

    The artifact holds plain Keras layers or plain TensorFlow, so `rigl_tf` is not needed to load
    it. It is written beside `path` and renamed when it is complete and its outputs are right; what
    was at `path` before stays until then.

    Outputs are right if each differs by 1e-4 of the largest of its tensor at most; if layers
    compute in float16 by 0.0039, in bfloat16 by 0.031: four times the precision of these types. (Or
    by ten times of what the model itself differs by between eager execution and a graph, where its
    numbers cancel out.) What was measured is in the report.

    Args:
        model: A built `keras.Model`, sparse or dense, without LoRA.
        path: Where to write, on this machine: a directory for `"saved_model"`, a file that ends
            with `.keras` for `"keras"`. Missing parents are made. An earlier export is replaced.
        format: `"saved_model"` or `"keras"`.
        inputs: A batch of arrays as the model is called with, to compare the outputs on. It is
            needed only where the model does not know the shapes of its inputs: if it is
            subclassed, or takes sequences or images of any size. A SavedModel takes inputs of the
            shapes that the model knows, dimensions of any size included; one of a subclassed model
            takes batches of any size of what `inputs` holds. Its default signature names nested
            outputs by their path, as `x_0`.
        check: Whether the artifact is run and its outputs are compared. `False` is for models that
            are random at inference.

    Returns:
        An `ExportReport`; `print` it.

    Raises:
        ValueError: If an argument is wrong, something that is no export is at `path`, the inputs
            of the model are neither known nor given, it has LoRA enabled, or its outputs are NaN.
        OSError: If `path` cannot be written.
        RuntimeError: If the outputs of the artifact are not those of the model. Nothing is left
            at `path` that was not there before.
    """
    path = pathlib.Path(path)
    _check(path, format)
    plain = strip(model)  # it shares the weights; and says what is wrong with the model
    specs, batch = signature(model, inputs), batch_of(model, inputs)
    if format == "saved_model":
        check_shapes(specs, batch)
    expected = _outputs(model, batch)
    model = as_masked(model)
    cost = flops.estimate(model, inputs)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".export-") as directory:
        written = pathlib.Path(directory, path.name)
        if format == "keras":
            plain.save(written)
        else:
            _save_model(model, written, specs)
        difference = _checked(model, batch, expected, _run(written, batch, format), check)
        file_bytes, compressed_bytes = _measure(written)
        _replace(written, path)
    outside = num_outside(model)
    if outside:
        warnings.warn(
            f"The exported model {model.name!r} has weights that are not zero outside of the masks "
            f"of its kernels: {outside}. Averages that are written into kernels do that: "
            "`rigl_tf.set_masks(model, rigl_tf.get_masks(model))` takes them out.",
            stacklevel=2,
        )
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
        outside=outside,
    )


def _check(path, format):
    check_choice(_FORMATS, format=format)
    if path.name in ("", "..") or re.match(r"\w[\w+.-]+:/", str(path)):
        raise ValueError(
            "`path` must name a file or directory on this machine, and be no address. "
            f"Received: path={str(path)!r}"
        )
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


def _outputs(model, batch):
    """What the model itself computes; a `ValueError` if it cannot, or if these are NaN."""
    try:
        # A stateful layer of the model keeps its state.
        with keras.StatelessScope():
            outputs = model(batch, training=False)
    except (TypeError, ValueError, tf.errors.InvalidArgumentError) as error:
        shapes = tf.nest.map_structure(lambda tensor: tuple(tensor.shape), batch)
        raise ValueError(
            "`inputs` must be a batch that the model can be called on. Received: "
            f"model={model.name!r} and arrays of shapes {shapes} ({_in_a_line(error)})"
        ) from error
    if any(np.isnan(numbers).any() for numbers in _numbers(outputs)):
        raise ValueError(
            "The outputs of the model must not be NaN, which cannot be compared: mend its weights, "
            f"or give other `inputs`. Received: model={model.name!r} with NaN in its outputs"
        )
    return outputs


def _save_model(model, path, specs):
    """Writes a SavedModel with a `serve` endpoint, also the default signature.

    `model.export` would write every weight twice: as a Keras variable, and as the TensorFlow
    variable inside.
    """

    @tf.function(input_signature=[specs], autograph=False)
    def serve(inputs):
        return model(inputs, training=False)

    @tf.function(input_signature=[specs], autograph=False)
    def serve_flat(inputs):
        outputs = serve(inputs)
        start = () if isinstance(outputs, dict) else ("output",)
        paths = keras.tree.flatten_with_path(outputs)
        return {"_".join(map(str, (*start, *path))): output for path, output in paths}

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
    # A signature names its outputs, and takes no structures in these.
    is_flat = not tf.nest.is_nested(outputs) or not any(map(tf.nest.is_nested, parts))
    try:
        tf.saved_model.save(module, str(path), signatures=serve if is_flat else serve_flat)
    except tf.errors.OpError as error:  # What TensorFlow makes of an OSError.
        raise OSError(
            f"The SavedModel cannot be written. Received: path={str(path)!r} ({error.message})"
        ) from error
    except AssertionError as error:  # What it makes of a variable that it does not find.
        raise ValueError(
            "All that a model uses must be in its layers, its random seeds too: give them a "
            f"`keras.random.SeedGenerator`. Received: model={model.name!r} ({_in_a_line(error)})"
        ) from error


def _resources(layer):
    """What a layer holds beside its weights: lookup tables, states, variables of TensorFlow."""
    for value in _flat(list(vars(layer).values())):
        is_tensorflow = isinstance(value, (tf.Variable, tf.Module))
        if isinstance(value, keras.Variable) or is_tensorflow or hasattr(value, "resource_handle"):
            yield value


def _flat(value):
    """The values in lists, tuples, sets and dictionaries, whose keys may be of any kind."""
    if isinstance(value, dict):
        value = list(value.values())
    if not isinstance(value, (list, tuple, set)):
        return [value]
    return [inner for each in value for inner in _flat(each)]


def _run(path, batch, format):
    """The outputs of the artifact."""
    if format == "keras":
        return _load(path)(batch, training=False)
    artifact = tf.saved_model.load(str(path))
    return artifact.serve(batch)


def _checked(model, batch, expected, outputs, check):
    """The largest difference of the artifact's outputs; a `RuntimeError` if one is too large."""
    differences = _differences(outputs, expected)
    largest = float(np.max(differences))
    if check and not _are_within(differences, _tolerances(model, expected)):
        own = _own_differences(model, batch, expected)
        if not _are_within(differences, [_NUM_OWN_DIFFERENCES * each for each in own]):
            raise _error(model, batch, expected, largest)
    return largest


def _are_within(differences, tolerances):
    return all(each <= most for each, most in zip(differences, tolerances, strict=True))


def _own_differences(model, batch, expected):
    """By how much the outputs of the model differ between eager execution and a graph."""

    @tf.function(autograph=False)
    def infer(batch):
        with keras.StatelessScope():
            return model(batch, training=False)

    differences = _differences(infer(batch), expected)
    # What changes from call to call is no matter of rounding.
    again = _differences(_outputs(model, batch), expected)
    return [0.0 if twice else once for once, twice in zip(differences, again, strict=True)]


def _differences(outputs, expected):
    """The largest difference of each of the outputs, NaN if one is NaN."""
    pairs = zip(tf.nest.flatten(outputs), tf.nest.flatten(expected), strict=True)
    return [float(_difference_of_one(*pair)) for pair in pairs]


def _difference_of_one(output, expected):
    if expected.dtype == tf.string:
        return 0.0 if bool(tf.reduce_all(output == expected)) else math.inf
    output, expected = np.asarray(output, "float64"), np.asarray(expected, "float64")
    difference = np.zeros_like(expected)
    # Equal infinities have no difference that could be computed.
    np.subtract(output, expected, out=difference, where=output != expected)
    return np.abs(difference).max(initial=0.0)


def _numbers(outputs):
    return [np.asarray(x, "float64") for x in tf.nest.flatten(outputs) if x.dtype != tf.string]


def _largest(output):
    """The largest finite number of an output, 0 for strings."""
    numbers = _numbers(output)
    return max((np.abs(x[np.isfinite(x)]).max(initial=0.0) for x in numbers), default=0.0)


def _tolerances(model, expected):
    """By how much each of the outputs may differ."""
    epsilon = max(_EPSILONS.get(layer.compute_dtype, 0.0) for layer in all_layers(model))
    relative = max(_TOLERANCE, _NUM_ROUNDINGS * epsilon)
    return [relative * _largest(output) for output in tf.nest.flatten(expected)]


def _error(model, batch, expected, difference):
    """What to raise for wrong outputs; it says so if the model is to blame."""
    message = (
        "The outputs of the exported model are not those of the model, so it was thrown away. "
        f"Received: largest difference {difference:.3g} between outputs up to "
        f"{_largest(expected):.3g}"
    )
    with keras.StatelessScope():
        once, again = model(batch, training=False), model(batch, training=False)
    differences = _differences(again, once)
    own = max(differences)
    if not _are_within(differences, _tolerances(model, expected)):
        message += (
            f"; and {own:.3g} between two calls of the model itself: it is not deterministic, "
            "draw random numbers by a `keras.random.SeedGenerator` of the layer, or leave out the "
            "comparison by `check=False`"
        )
    return RuntimeError(message)


def _in_a_line(error):
    plain = re.sub(r"\x1b\[\d*m", "", str(error))  # Keras writes in bold.
    return " ".join(plain.split())[:200]


def _load(path):
    try:
        return keras.saving.load_model(path)
    except TypeError as error:
        raise ValueError(
            "A `.keras` file can be loaded if Keras knows all classes in it: decorate yours with "
            '`keras.saving.register_keras_serializable()`, or use `format="saved_model"`. '
            f"Received: {_in_a_line(error)}"
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
