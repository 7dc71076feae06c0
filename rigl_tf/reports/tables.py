"""The tables of a page, as lists of rows of strings: the costs of a model, and its origin."""

import importlib
import math
import os
import platform
import re
import shlex
import sys

import keras
import numpy as np
import tensorflow as tf

from rigl_tf import flops, masks
from rigl_tf.artifacts.report import ExportReport
from rigl_tf.flops.counting import Cost
from rigl_tf.transforms import live_units

_COLOUR = re.compile(r"\x1b\[[\d;]*m")  # as Keras writes it into errors, for terminals


def costs(model, inputs):
    """Rows that compare the costs with the dense model, and sentences on what is not known."""
    try:
        cost, sentences = flops.estimate(model, inputs), []
    except ValueError as error:
        cost = None
        sentences = [f"FLOPs and stored bytes are not counted: {_in_a_line(error)}"]
    rows = []
    if isinstance(cost, Cost):
        if cost.unknown:
            reasons = "; ".join(f"{path}: {why}" for path, why in cost.unknown.items())
            sentences.append(f"FLOPs are not counted: {reasons}.")
        else:
            rows.append(_row("FLOPs for one example", cost.dense_flops, cost.flops))
        rows += [
            _row("weights", cost.num_weights, cost.num_active),
            _row("bytes stored, values and a bit mask", cost.dense_bytes, cost.num_bytes),
            _row("bytes stored, values and positions", cost.dense_bytes, cost.num_bytes_indexed),
        ]
    dense, held = _memory(model)
    rows.append(_row("memory of the weights now, in bytes", dense, held))
    optimizer = getattr(model, "optimizer", None)
    if optimizer is not None and optimizer.built:
        state = sum(map(_num_bytes, optimizer.variables))
        rows.append(["memory of the optimizer's state now, in bytes", "", f"{state:,}", ""])
    return rows, sentences


def _row(name, dense, sparse):
    return [name, f"{dense:,}", f"{sparse:,}", f"{sparse / dense:.3f}" if dense else ""]


def _memory(model):
    """The bytes of the weights if all were dense, and the bytes that they take now."""
    kernels = {id(each.variable): each for each in masks.kernels_of(model).values()}
    own_masks = masks.own_masks(model)
    dense = held = 0
    for weight in model.weights:
        held += _num_bytes(weight)
        if id(weight) in own_masks:
            continue
        size = kernels[id(weight)].size if id(weight) in kernels else math.prod(weight.shape)
        dense += size * _item_bytes(weight)
    return dense, held


def _num_bytes(variable):
    return math.prod(variable.shape) * _item_bytes(variable)


def _item_bytes(variable):
    try:
        return tf.as_dtype(variable.dtype).size
    except TypeError:
        return 0  # a type that tensors do not have


def num_live(model):
    """The number of units that `rigl_tf.compact` would keep; `None` if it refuses this model."""
    try:
        _, *units = live_units(model)
    except (ValueError, RuntimeError):
        return None
    return sum(map(len, units))


def check_exports(export):
    """Returns `export` as a list. Raises a `ValueError` if an entry is not an `ExportReport`."""
    exports = [] if export is None else [export] if isinstance(export, ExportReport) else export
    if not isinstance(exports, (list, tuple)) or not all(
        isinstance(each, ExportReport) for each in exports
    ):
        raise ValueError(
            "`export` must be what `rigl_tf.export` returned, or a list of such. "
            f"Received: export={type(export).__name__}"
        )
    return list(exports)


def of_export(report):
    """The checks and sizes of an export."""
    rows = [
        ["format", ", ".join(filter(None, (report.format, report.quantize)))],
        ["path", report.path],
        ["largest difference to the outputs of the model", f"{report.max_difference:.2g}"],
        ["active weights", f"{report.num_active:,} of {report.num_weights:,}"],
        ["bytes on disk", _beside(report.file_bytes, report.dense_file_bytes)],
        ["bytes compressed", _beside(report.compressed_bytes, report.dense_compressed_bytes)],
    ]
    if report.outside:
        rows.append(["not zero outside of the masks", f"{sum(report.outside.values()):,}"])
    for latency in report.latencies:
        rows.append([f"time of a call, {latency.batch_size} examples", str(latency)])
    return rows


def of_export_kernels(report):
    """How the runtime of an export multiplies by each kernel."""
    return [
        [each.path, f"{each.sparsity:.1%}", each.structure, each.kernel, each.reason]
        for each in report.kernels
    ]


def _beside(number, dense):
    return f"{number:,}" if dense is None else f"{number:,} (dense: {dense:,})"


def origin(command):
    """The command, the versions of the packages, and the machine."""
    own = importlib.import_module("rigl_tf").__version__
    return [
        ["command", command or _command()],
        ["rigl_tf", own],
        ["Keras", keras.__version__],
        ["TensorFlow", tf.__version__],
        ["NumPy", np.__version__],
        ["Python", platform.python_version()],
        ["machine", f"{platform.system()}, {platform.machine()}, {os.cpu_count()} cores"],
    ]


def _command():
    program, *arguments = sys.orig_argv or ["python"]
    return shlex.join([os.path.basename(program), *arguments])


def _in_a_line(error):
    return " ".join(_COLOUR.sub("", str(error)).split())
