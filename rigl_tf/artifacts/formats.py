"""The formats of `rigl_tf.export`: how a file of each format is written and run."""

import dataclasses
import pathlib

import numpy as np
import tensorflow as tf

from rigl_tf import masks
from rigl_tf.artifacts import (
    kernels,
    layouts,
    litert,
    litert_file,
    onnx,
    saved_model,
    tensorflow_files,
    web,
)
from rigl_tf.inputs import concrete, signature
from rigl_tf.walk import all_layers

# From this speed-up on, a file counts as faster than dense. Smaller ones may be noise.
_FASTER = 1.05


@dataclasses.dataclass(frozen=True)
class Job:
    """A model to export, and the settings. The others are arguments of `rigl_tf.export`.

    Attributes:
        model: The model with masked kernels.
        plain: The same model without masks.
        inputs: The argument of `rigl_tf.export`.
        batch: The batch on which outputs are compared.
        expected: The outputs of the model on `batch`.
        kernels: Dictionary `{path: array}` of the sparse kernels.
        path: Where the artifact is written.
        directory: A temporary directory for other files.
    """

    model: object
    plain: object
    inputs: object
    batch: object
    expected: object
    kernels: dict
    path: pathlib.Path
    directory: pathlib.Path
    quantize: str | None = None
    representative_data: object = None
    sparse_storage: bool = True
    measure: bool = True

    @property
    def batch_sizes(self):
        return (1, 32) if self.measure else ()


@dataclasses.dataclass(frozen=True)
class Artifact:
    """An artifact that was written.

    Attributes:
        outputs: The outputs of the artifact.
        path: The file or directory whose size is reported.
        dense: A file with the same weights stored dense, or `None`.
        tolerance: The difference of outputs that is allowed because numbers were rounded on
            purpose, as a share of the largest output.
        kernels, latencies, notes: See `ExportReport`.
    """

    outputs: object
    path: pathlib.Path
    dense: pathlib.Path | None = None
    tolerance: float = 0.0
    kernels: tuple = ()
    latencies: tuple = ()
    notes: tuple = ()


def write_saved_model(job):
    saved_model.save(job.model, job.path, signature(job.model, job.inputs))
    return _run_by_tensorflow("saved_model", job)


def write_keras(job):
    job.plain.save(job.path)
    return _run_by_tensorflow("keras", job)


def _run_by_tensorflow(format, job):
    specs = signature(job.model, job.inputs)
    outputs, latencies, notes = tensorflow_files.run(
        format, job.path, specs, job.batch, job.expected, job.batch_sizes
    )
    reports = kernels.report_dense(job.kernels, tensorflow_files.REASON, tensorflow_files.ADVICE)
    return Artifact(outputs, job.path, None, 0.0, reports, tuple(latencies), notes)


def write_litert(job):
    _check_numbers(job, "litert")
    _check_stateless(job, "litert")
    _check_precision(job, "litert", ("float16", "bfloat16"))
    specs = _specs_of_one_size(job)
    storages = ("sparse", "dense") if job.sparse_storage else ("dense",)
    files, made_with = litert.convert(
        job.model, specs, storages, job.quantize, job.representative_data
    )
    job.path.write_bytes(files[0])
    dense = job.directory / "dense.tflite" if job.sparse_storage else None
    if dense:
        dense.write_bytes(files[1])
    operations = litert_file.read(files[0])
    name = layouts.namer(job.model, operations)
    litert.check_storage(operations, job.quantize, name)
    outputs, latencies = litert.run(
        job.path,
        made_with,
        job.batch,
        job.expected,
        dense,
        job.batch_sizes,
    )
    reports = kernels.report_litert(job.kernels, operations, name)
    notes = () if made_with is specs else ("It takes batches of one example only.",)
    is_native = any(each.kernel == kernels.NATIVE for each in reports)
    if is_native and latencies and all(each.speedup < _FASTER for each in latencies):
        notes += (
            "Measured here the file is no faster than dense, though sparse kernels run: the other "
            "layers take the time, or the kernels are too small.",
        )
    tolerance = litert.TOLERANCES[job.quantize]
    return Artifact(outputs, job.path, dense, tolerance, reports, tuple(latencies), notes)


def write_onnx(job):
    _check_numbers(job, "onnx")
    _check_stateless(job, "onnx")
    _check_precision(job, "onnx", ("bfloat16",))
    specs = _specs_of_one_size(job)
    onnx.save(job.plain, job.path, specs)
    outputs, latencies, notes = onnx.run(job.path, specs, job.batch, job.expected, job.batch_sizes)
    reports = kernels.report_dense(job.kernels, onnx.REASON, onnx.ADVICE)
    return Artifact(outputs, job.path, None, 0.0, reports, tuple(latencies), notes)


def write_web(job):
    _check_numbers(job, "web")
    _check_stateless(job, "web")
    _check_precision(job, "web", ("float16", "bfloat16"))
    specs = concrete(job.model, job.inputs)
    web.check_types(specs)
    job.path.mkdir()
    files, specs = litert.convert(job.model, specs)
    sparse, dense = job.path / "sparse.tflite", job.path / "dense.tflite"
    for path, content in zip((sparse, dense), files, strict=True):
        path.write_bytes(content)
    operations = litert_file.read(files[0])
    name = layouts.namer(job.model, operations)
    reports = kernels.report_litert(job.kernels, operations, name)
    outputs, latencies = litert.run(sparse, specs, job.batch, job.expected, dense, job.batch_sizes)
    web.write(job.path, job.model.name, specs, job.batch, job.expected, reports)
    notes = (f"See it: `python {web.SERVER}` in that folder (it needs npm, once).",)
    return Artifact(outputs, sparse, dense, 0.0, reports, tuple(latencies), notes)


def _specs_of_one_size(job):
    """Specs of the inputs, in which all dimensions except the first are known."""
    known = concrete(job.model, job.inputs)
    given = signature(job.model, job.inputs)

    def fixed(known, given):
        shape = (given.shape[0], *known.shape[1:]) if known.shape.rank else known.shape
        return tf.TensorSpec(shape, known.dtype, known.name)

    return tf.nest.map_structure(fixed, known, given)


def _check_numbers(job, format):
    """Raises a `ValueError` for models with inputs or outputs of text."""
    for tensor in (*tf.nest.flatten(job.batch), *tf.nest.flatten(job.expected)):
        if tensor.dtype == tf.string:
            raise ValueError(
                f"`format={format!r}` must be of a model of numbers: put what reads or writes text "
                f"in front of it, or behind it. Received: model={job.model.name!r}"
            )


def _check_precision(job, format, refused):
    """Raises a `ValueError` if a layer computes in one of the types `refused`."""
    for layer in all_layers(job.model):
        if layer.compute_dtype in refused:
            raise ValueError(
                f"`format={format!r}` must be of a model that computes in float32: make it again "
                "without mixed precision, and copy the weights. "
                f"Received: layer {layer.name!r} in {layer.compute_dtype}"
            )


def _check_stateless(job, format):
    """Raises a `ValueError` if a layer keeps a state from one call to the next."""
    for layer in all_layers(job.model):
        if getattr(layer, "stateful", False):
            raise ValueError(
                f"`format={format!r}` keeps no state from one call to the next: make the model "
                "again with `stateful=False`, and copy the weights, or use "
                f'`format="saved_model"`. Received: layer {layer.name!r} with `stateful=True`'
            )


def sparse_arrays(model):
    """The sparse kernels, as `{path: array}`.

    In a model with masks, these are the kernels with inactive connections. In one without masks,
    these are the weights with at least two dimensions of which more than a half is zero.
    """
    kernels = masks.kernels_of(model)
    if kernels:
        return {
            path: kernel.numpy()
            for path, kernel in kernels.items()
            if kernel.num_active < kernel.size
        }
    arrays = {weight.path: weight.numpy() for weight in model.weights if len(weight.shape) > 1}
    return {
        path: array for path, array in arrays.items() if 2 * np.count_nonzero(array) < array.size
    }
