"""`export`: writes the pruned model to a file, checks the file and measures it."""

import math
import os
import pathlib
import re
import tempfile
import warnings
import zlib
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from rigl_tf import flops
from rigl_tf.artifacts import formats, litert, structure
from rigl_tf.artifacts.comparison import checked, outputs_of
from rigl_tf.artifacts.report import ExportReport
from rigl_tf.checks import check_booleans, check_choice
from rigl_tf.inputs import batch_of, check_shapes, signature
from rigl_tf.layers.summary import num_outside
from rigl_tf.transforms.rebuild import as_masked
from rigl_tf.transforms.sparsify import check_built, strip

_WRITERS = {
    "saved_model": formats.write_saved_model,
    "keras": formats.write_keras,
    "litert": formats.write_litert,
    "onnx": formats.write_onnx,
    "web": formats.write_web,
}
_SUFFIXES = {"keras": ".keras", "litert": ".tflite", "onnx": ".onnx"}
# A directory with this file is an earlier export.
_CONTENTS = {"saved_model": "saved_model.pb", "web": "sparse.tflite"}
# A directory must not be named as if it were a file of a model.
_OF_FILES = (*_SUFFIXES.values(), ".h5", ".hdf5", ".pb")
_VALUE_BYTES = {None: 4, "float16": 2, "dynamic_int8": 1, "int8": 1}


def export(
    model: keras.Model,
    path: str | os.PathLike[str],
    format: str = "saved_model",
    inputs: Any = None,
    check: bool = True,
    *,
    quantize: str | None = None,
    representative_data: Any = None,
    sparse_storage: bool = True,
    measure: bool = True,
) -> ExportReport:
    """Writes the pruned model to a file, runs the file, and compares its outputs with the model's.

    The model is traced and not changed, so every model that can be called can be exported. The
    current weights are written. If some of them are not zero outside of the masks (for example
    because averages were copied to the kernels), there is a warning, and the report lists them.

    The artifact contains plain Keras layers or plain TensorFlow, so `rigl_tf` is not needed to load
    it. It is written under a temporary name, and moved to `path` when it is complete and its
    outputs are right. Until then, an earlier export at `path` is not touched.

    The outputs are right if they differ from those of the model by at most 1e-4 of the largest
    output. If layers compute in float16 the limit is 0.0039, in bfloat16 it is 0.031: four times
    the precision of these types. If large numbers cancel out in the model, the outputs may differ
    by ten times the difference between eager execution and a graph of the model itself. The report
    contains the difference.

    With `"litert"` sparse kernels are stored sparse. `"web"` is a folder with a page that runs the
    network dense and sparse in a browser, with LiteRT.js. Each artifact is run on the CPU in a new
    Python process without `rigl_tf`, and the report says what the runtime does with each sparse
    kernel. If a SavedModel or a `.keras` file cannot be loaded there, because it needs your own
    classes, it is run in this process, and the report says so.

    Args:
        model: A built `keras.Model`, sparse or dense, without LoRA adapters.
        path: Path on this machine: a directory for `"saved_model"` and `"web"`; a file that ends
            with `.keras`, `.tflite` or `.onnx` for `"keras"`, `"litert"` and `"onnx"`. Missing
            parent directories are created. An earlier export is replaced.
        format: String: `"saved_model"`, `"keras"`, `"litert"` (needs `ai-edge-litert`), `"onnx"`
            (needs `tf2onnx` and `onnx`; outputs are compared if `onnxruntime` is installed) or
            `"web"`.
        inputs: A batch of arrays, as the model is called with, on which outputs are compared. It is
            needed only if the model does not know the shapes of its inputs: if it is subclassed, or
            takes sequences or images of any size. A SavedModel takes inputs of all shapes that the
            model takes; for a subclassed model, batches of any size of examples like those in
            `inputs`. Its default signature names nested outputs by their path, such as `x_0`.
            `"litert"` and `"onnx"` take batches of any size of examples like those in `inputs`,
            `"web"` takes one example.
        check: Boolean, whether different outputs are an error. Use `False` for models that are
            random in inference.
        quantize: For `"litert"`: `None`, `"float16"`, `"dynamic_int8"` (weights) or `"int8"`
            (weights and activations). Then the outputs may differ by 2 % of the largest output,
            with int8 by 25 %.
        representative_data: For `"int8"`: a batch of typical inputs, from which the ranges of the
            activations are computed. Outputs are compared on it, unless `inputs` are given.
        sparse_storage: For `"litert"`: boolean, whether sparse kernels are stored sparse.
        measure: Boolean, whether the time of a call is measured, with batches of 1 and 32. If
            sparse kernels are stored sparse, it is measured in turns with the same weights stored
            dense. This takes at most two seconds; batches that need longer are left out.

    Returns:
        An `ExportReport`; `print` it.

    Raises:
        ValueError: If an argument is wrong; there is something at `path` that is not an export; the
            inputs of the model are neither known nor given; the model has LoRA adapters, or its
            outputs are NaN; the model cannot be written in this format, or has nothing to store
            sparse; or LiteRT is known to compute wrong outputs for this combination of sparse
            storage and `quantize`.
        ImportError: If the format needs a package that is not installed.
        OSError: If `path` cannot be written.
        RuntimeError: If the outputs of the artifact differ from those of the model. Then `path` is
            not changed.

    Example:

    >>> import tempfile
    >>> dense = keras.Sequential([keras.Input((784,)), keras.layers.Dense(10)])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     report = export(rigl_tf.sparsify(dense, 0.9), f"{folder}/model", measure=False)
    >>> report.num_active, report.max_difference < 1e-4
    (794, True)
    """
    path = pathlib.Path(path)
    _check(path, format)
    check_booleans(check=check, sparse_storage=sparse_storage, measure=measure)
    _check_storage(format, quantize, representative_data, sparse_storage)
    check_built(model, "export")
    masked = as_masked(model)
    plain = strip(masked)  # it shares the weights
    if representative_data is not None:
        representative_data = _representative(model, representative_data)
        if inputs is None:  # Random inputs may be out of the range of the data.
            inputs = representative_data
    specs, batch = signature(model, inputs), batch_of(model, inputs)
    if format != "keras":
        check_shapes(specs, batch)
    kernels = formats.sparse_arrays(masked)
    if not kernels and (format == "web" or (format == "litert" and sparse_storage)):
        other = ", or give `sparse_storage=False`" if format == "litert" else ""
        raise ValueError(
            f"`format={format!r}` needs a model with sparse kernels: make one with "
            f"`rigl_tf.sparsify`{other}. Received: model={model.name!r}, without zeros"
        )
    expected = outputs_of(model, batch)
    model = masked
    cost = flops.estimate(model, inputs)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".export-") as directory:
        directory = pathlib.Path(directory)
        written = directory / path.name
        job = formats.Job(
            model=model,
            plain=plain,
            inputs=inputs,
            batch=batch,
            expected=expected,
            kernels=kernels,
            path=written,
            directory=directory,
            quantize=quantize,
            representative_data=representative_data,
            sparse_storage=sparse_storage,
            measure=measure,
        )
        artifact = _WRITERS[format](job)
        difference = math.nan
        if artifact.outputs is not None:
            if check:
                _check_shapes_of_outputs(artifact.outputs, expected)
            difference = checked(
                model, batch, expected, artifact.outputs, check, artifact.tolerance
            )
        file_bytes, compressed_bytes = _measure(artifact.path)
        dense_bytes = _measure(artifact.dense) if artifact.dense else (None, None)
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
        quantize=quantize,
        dense_file_bytes=dense_bytes[0],
        dense_compressed_bytes=dense_bytes[1],
        bound_bytes=_bound(cost, _VALUE_BYTES[quantize]),
        kernels=artifact.kernels,
        latencies=artifact.latencies,
        notes=artifact.notes,
        not_counted=cost.unknown,
        outside=outside,
    )


def _check(path, format):
    check_choice(_WRITERS, format=format)
    if path.name in ("", "..") or re.match(r"\w[\w+.-]+:/", str(path)):
        raise ValueError(
            "`path` must name a file or directory on this machine, and be no address. "
            f"Received: path={str(path)!r}"
        )
    suffix = _SUFFIXES.get(format)
    if suffix and path.suffix != suffix:
        raise ValueError(f"`path` must end with {suffix!r}. Received: path={str(path)!r}")
    if not suffix and path.suffix in _OF_FILES:
        fitting = [name for name, ending in _SUFFIXES.items() if ending == path.suffix]
        other = f"give `format={fitting[0]!r}`" if fitting else "no format writes such a file"
        raise ValueError(
            f"`path` must not end with {path.suffix!r}, as `format={format!r}` writes a directory: "
            f"{other}, or change the name. Received: path={str(path)!r}, format={format!r}"
        )
    file = next((parent for parent in path.parents if parent.is_file()), None)
    if file is not None:
        raise NotADirectoryError(
            f"`path` must be in a directory. Received: path={str(path)!r}, where {file} is a file"
        )
    content = _CONTENTS.get(format)
    earlier = (path / content).is_file() if content else path.is_file()
    empty = path.is_dir() and not any(path.iterdir())
    if path.exists() and not earlier and not empty:
        formats_there = [name for name, file in _CONTENTS.items() if (path / file).is_file()]
        there = f"an export of `format={formats_there[0]!r}`" if formats_there else "something else"
        raise ValueError(
            "`path` must be new, or an earlier export of the same format, which is replaced. "
            f"Received: path={str(path)!r}, where {there} is, format={format!r}"
        )


def _check_shapes_of_outputs(outputs, expected):
    """Raises a `RuntimeError` if an output of the artifact has another shape than the model's."""
    shapes = [[tuple(np.shape(x)) for x in tf.nest.flatten(each)] for each in (outputs, expected)]
    if shapes[0] != shapes[1]:
        raise RuntimeError(
            "The outputs of the exported model must have the shapes of those of the model, so it "
            f"was thrown away. Received: shapes {shapes[0]}, and not {shapes[1]}"
        )


def _check_storage(format, quantize, representative_data, sparse_storage):
    if quantize is not None:
        check_choice(litert.QUANTIZATIONS, quantize=quantize)
    if format != "litert" and (quantize is not None or sparse_storage is not True):
        raise ValueError(
            '`quantize` and `sparse_storage` are for `format="litert"`. Received: '
            f"format={format!r}, quantize={quantize!r}, sparse_storage={sparse_storage!r}"
        )
    if (quantize == "int8") != (representative_data is not None):
        raise ValueError(
            "`representative_data`, a batch of typical inputs, must be given with "
            f'`quantize="int8"`, and only then. Received: quantize={quantize!r}, and '
            f"{'no data' if representative_data is None else 'data'}"
        )


def _representative(model, data):
    """`data` as a batch of the model's inputs."""
    try:
        batch = batch_of(model, data)
        check_shapes(signature(model, data), batch)
    except ValueError as error:
        message = str(error).replace("`inputs`", "`representative_data`")
        raise ValueError(message) from error
    return batch


def _bound(cost, value_bytes):
    sizes = [structure.bound_bytes(k.size, k.num_active, value_bytes) for k in cost.kernels]
    return sum(sizes) + 4 * cost.num_other_weights


def _measure(path):
    """Sizes in bytes of a file, or of all files in a directory: the size, and compressed."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    size = compressed = 0
    for file in files:
        content = file.read_bytes()
        size += len(content)
        compressed += len(zlib.compress(content, 6))
    return size, compressed


def _replace(written, path):
    """Moves the new artifact to `path`. An earlier directory is removed only after that."""
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
