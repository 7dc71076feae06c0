"""The formats of `rigl_tf.export`: how each is written, and run."""

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

# How many times as fast as dense is faster than dense, as clocks vary.
_FASTER = 1.05


@dataclasses.dataclass(frozen=True)
class Job:
    """What is exported, and how; for the settings see `rigl_tf.export`.

    Attributes:
        model: It, with masked kernels.
        plain: The same without masks.
        inputs, batch: What was given, and what it is run on.
        expected: Its outputs on that.
        kernels: Dictionary `{path: array}` of its sparse kernels.
        path: Where to write.
        directory: For files that are not kept.
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
    """What was written.

    Attributes:
        outputs: What it computes.
        path: The file or directory whose size counts.
        dense: One with the same weights stored dense, or `None`.
        tolerance: Share of the largest output that it may differ by, as it was rounded on purpose.
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
            "Measured here it is no faster than dense, though sparse kernels run: the other layers "
            "take the time, or the kernels are too small.",
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
    """The inputs of the model; all dimensions are known but the first."""
    known = concrete(job.model, job.inputs)
    given = signature(job.model, job.inputs)

    def fixed(known, given):
        shape = (given.shape[0], *known.shape[1:]) if known.shape.rank else known.shape
        return tf.TensorSpec(shape, known.dtype, known.name)

    return tf.nest.map_structure(fixed, known, given)


def _check_numbers(job, format):
    """Raises a `ValueError` for models of text."""
    for tensor in (*tf.nest.flatten(job.batch), *tf.nest.flatten(job.expected)):
        if tensor.dtype == tf.string:
            raise ValueError(
                f"`format={format!r}` must be of a model of numbers: put what reads or writes text "
                f"in front of it, or behind it. Received: model={job.model.name!r}"
            )


def _check_precision(job, format, refused):
    """Raises a `ValueError` for models with layers that compute in a type that is refused."""
    for layer in all_layers(job.model):
        if layer.compute_dtype in refused:
            raise ValueError(
                f"`format={format!r}` must be of a model that computes in float32: make it again "
                "without mixed precision, and copy the weights. "
                f"Received: layer {layer.name!r} in {layer.compute_dtype}"
            )


def _check_stateless(job, format):
    """Raises a `ValueError` for layers that keep a state from one call to the next."""
    for layer in all_layers(job.model):
        if getattr(layer, "stateful", False):
            raise ValueError(
                f"`format={format!r}` keeps no state from one call to the next: make the model "
                "again with `stateful=False`, and copy the weights, or use "
                f'`format="saved_model"`. Received: layer {layer.name!r} with `stateful=True`'
            )


def sparse_arrays(model):
    """The kernels with zeros, as `{path: array}`.

    Those are the kernels with masks that are not all active; of a model without masks, the weights
    of two and more dimensions that are zero for more than a half.
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
