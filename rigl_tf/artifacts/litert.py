"""Writes models as LiteRT files. Sparse kernels are stored sparse, or everything is dense."""

import contextlib
import math
import os
import tempfile
import warnings

import keras
import numpy as np
import tensorflow as tf

from rigl_tf.artifacts import layouts, litert_file, runtime, saved_model
from rigl_tf.artifacts.comparison import in_a_line
from rigl_tf.masks import own_masks

SIGNATURE = "serving_default"
QUANTIZATIONS = ("float16", "dynamic_int8", "int8")
# The smallest normal float32 number. It is written in place of 0 while a file is converted.
_TINY = np.float32(2.0**-126)
# The differences that rounding may cause, as a share of the largest output.
TOLERANCES = {None: 0.0, "float16": 0.02, "dynamic_int8": 0.25, "int8": 0.25}


def convert(model, specs, storages=("sparse", "dense"), quantize=None, data=None):
    """Converts a model, once for each way to store its sparse kernels.

    For some layers, such as recurrent ones, LiteRT has no operations for batches of any size. Then
    the files take one example.

    Args:
        model: A built `keras.Model` with masked kernels.
        specs: Structure of `tf.TensorSpec`s. Only their first dimension may be unknown.
        storages: How sparse kernels are stored in each file: `"sparse"` or `"dense"`.
        quantize: `None`, `"float16"`, `"dynamic_int8"` or `"int8"`.
        data: For `"int8"`: a batch of typical inputs, in the structure of `specs`.

    Returns:
        List with the bytes of each file, and the specs that were used.

    Raises:
        ImportError: If `ai-edge-litert` is not installed.
        ValueError: If LiteRT cannot express the model.
    """
    runtime.check_installed("litert", "To read what the converter made, LiteRT")
    attempts = [specs]
    if any(spec.shape.rank and spec.shape[0] is None for spec in tf.nest.flatten(specs)):
        attempts.append(tf.nest.map_structure(_of_one_example, specs))
    failure = None
    for attempt in attempts:
        with tempfile.TemporaryDirectory(prefix="rigl_tf-") as directory:
            saved_model.save(model, directory, attempt)
            try:
                files = [_file(directory, each, attempt, quantize, data) for each in storages]
                if not quantize:
                    files = [_repaired(model, attempt, each) for each in files]
            except OSError:
                raise
            # The converter raises errors of many classes. Some messages contain a whole graph.
            except Exception as error:
                failure = failure or error
            else:
                return files, attempt
    raise ValueError(
        "The converter of LiteRT must know every operation of the model. Received: "
        f"model={model.name!r} ({in_a_line(failure)})"
    ) from failure


def misfits(operations):
    """The operations whose number of inputs is not a multiple of the size of their stored blocks.

    LiteRT reads such weights wrong. The converter stores weights in blocks whenever their zeros
    look like blocks, for example the zeros of units without inputs.
    """
    stored = [each for each in operations if each.weights is not None and each.weights.block]
    return [each for each in stored if each.weights.shape[-1] % each.weights.block]


def _repaired(model, specs, content):
    """The file, with its `misfits` stored dense."""
    operations = litert_file.read(content)
    wrong = misfits(operations)
    if not wrong:
        return content
    masks = own_masks(model)
    weights = [each for each in model.weights if len(each.shape) > 1 and id(each) not in masks]
    uses = layouts.matched({id(each): each.numpy() for each in weights}, operations)
    sizes = {math.prod(each.weights.shape) for each in wrong if each.weights is not None}
    weights = [
        each
        for each in weights
        if math.prod(each.shape) in sizes or any(use in wrong for use in uses[id(each)])
    ]
    arrays = [each.numpy() for each in weights]
    try:
        # The converter stores weights without zeros dense.
        for weight, array in zip(weights, arrays, strict=True):
            weight.assign(np.where(array == 0, _TINY, array))
        with tempfile.TemporaryDirectory(prefix="rigl_tf-") as directory:
            saved_model.save(model, directory, specs)
            content = _file(directory, "sparse", specs, None, None)
    finally:
        for weight, array in zip(weights, arrays, strict=True):
            weight.assign(array)
    return litert_file.replaced(content, _TINY, 0.0)


def _of_one_example(spec):
    shape = (1, *spec.shape[1:]) if spec.shape.rank else spec.shape
    return tf.TensorSpec(shape, spec.dtype, spec.name)


def _file(directory, storage, specs, quantize, data):
    """Converts a SavedModel. Returns the bytes of the LiteRT file."""
    converter = tf.lite.TFLiteConverter.from_saved_model(directory, signature_keys=[SIGNATURE])
    optimizations = [tf.lite.Optimize.EXPERIMENTAL_SPARSITY] if storage == "sparse" else []
    if quantize:
        optimizations.append(tf.lite.Optimize.DEFAULT)
    converter.optimizations = optimizations
    if quantize == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if quantize == "int8":
        converter.representative_dataset = lambda: _examples(specs, data)
    with _quiet():
        return converter.convert()


def _examples(specs, data):
    """Cuts the data into batches of the size in the specs, for the converter."""
    flat = list(zip(tf.nest.flatten(specs), tf.nest.flatten(data), strict=True))
    size = next((spec.shape[0] for spec, _ in flat if spec.shape.rank), None) or 1
    for start in range(0, min(len(array) for _, array in flat) - size + 1, size):
        yield {spec.name: np.asarray(array)[start : start + size] for spec, array in flat}


@contextlib.contextmanager
def _quiet():
    """Hides the warnings of the converter, and what it writes to the standard error stream."""
    with open(os.devnull, "w") as nowhere, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kept = os.dup(2)
        try:
            os.dup2(nowhere.fileno(), 2)
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def check_storage(operations, quantize, name):
    """Raises a `ValueError` for sparse storage that LiteRT is known to compute wrong.

    Args:
        operations: The operations of the file.
        quantize: As in `convert`.
        name: Function that returns the name of an operation's layer.
    """
    for each in operations:
        why = _known_fault(each, quantize) if each.weights is not None else ""
        if why:
            raise ValueError(
                f"`quantize={quantize!r}` must not meet sparse storage of {why}: export with "
                "`sparse_storage=False` (quantised and dense), or without `quantize` (float32 and "
                f"sparse). Received: layer {name(each)!r}"
            )


def _known_fault(use, quantize):
    dtype, block = use.weights.dtype, use.weights.block
    if block is None:
        return ""
    if misfits([use]):
        return (
            f"what looks like blocks of {block}, which do not divide its {use.weights.shape[-1]} "
            "inputs: LiteRT reads them wrong"
        )
    if dtype == np.float16 and block > 1:
        return "blocks, of which LiteRT computes NaN"
    if dtype == np.int8 and use.name == "FULLY_CONNECTED":
        if block == 16 and quantize == "dynamic_int8":
            return (
                "blocks of 16, of which LiteRT computes wrong outputs (with `quantize='int8'` and "
                "`representative_data` these are right)"
            )
        if block != 16:
            return "Dense kernels without blocks of 16 along the inputs, which LiteRT fails to load"
    return ""


def run(path, specs, batch, expected, dense=None, batch_sizes=()):
    """Runs a file. Returns its outputs in the structure of `expected`, and `Latency`s.

    If the file takes batches of one size only, the examples are split into such batches. For the
    arguments see `runtime.run`.
    """
    outputs, latencies = runtime.run_batch("litert", path, specs, batch, batch_sizes, dense)
    names = saved_model.output_names(expected)
    missing = [name for name in names if name not in outputs]
    if missing:
        raise RuntimeError(f"The artifact must have all outputs. Received: none named {missing}")
    return keras.tree.pack_sequence_as(expected, [outputs[name] for name in names]), latencies
