"""Writes models as ONNX files, with the exporter of Keras."""

import contextlib
import importlib
import importlib.util
import io
import warnings

import keras
import numpy as np
import tensorflow as tf

from rigl_tf.artifacts import runtime
from rigl_tf.artifacts.comparison import in_a_line

REASON = "ONNX files hold dense matrices, and onnxruntime multiplies them"
ADVICE = (
    'It is no faster than dense: `format="litert"` or "web" run some sparse kernels, '
    'execution="csr" runs Dense and convolutions.'
)


def save(model, path, specs):
    """Writes an ONNX file.

    Raises:
        ImportError: If `tf2onnx` or `onnx` is not installed.
        ValueError: If the model cannot be expressed.
    """
    missing = [name for name in ("tf2onnx", "onnx") if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            f'`format="onnx"` needs tf2onnx and onnx: `pip install {" ".join(missing)}`'
        )
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # `tf2onnx` warns of its own code.
            model.export(path, format="onnx", input_signature=[specs], verbose=False)
            _write_constants(model, path, specs)
            # The exporter writes unknown operations with their TensorFlow names. This finds them.
            importlib.import_module("onnx").checker.check_model(str(path))
    except OSError:
        raise
    except Exception as error:  # The exporter raises errors of many classes.
        raise ValueError(
            "The exporter of ONNX must know every operation of the model. Received: "
            f"model={model.name!r} ({in_a_line(error)})"
        ) from error


def _write_constants(model, path, specs):
    """Writes the values of constants into the file.

    The exporter turns constants that are not variables, such as those of a `Normalization`, into
    inputs of the network. Here they are found by their names in a trace of the model.
    """
    onnx = importlib.import_module("onnx")
    function = tf.function(model, input_signature=[specs], autograph=False)
    traced = function.get_concrete_function()
    names = [tensor.name for tensor in traced.inputs]
    captured = traced.captured_inputs
    constants = dict(zip(names[len(names) - len(captured) :], captured, strict=True))
    file = onnx.load(path)
    inputs = [each for each in file.graph.input if each.name not in constants]
    if len(inputs) == len(file.graph.input):
        return
    for each in file.graph.input:
        if each.name in constants:
            value = np.asarray(constants[each.name])
            file.graph.initializer.append(onnx.numpy_helper.from_array(value, each.name))
    del file.graph.input[:]
    file.graph.input.extend(inputs)
    onnx.save(file, path)


def run(path, specs, batch, expected, batch_sizes=()):
    """Runs a file with onnxruntime.

    Returns:
        The outputs in the structure of `expected`, a list of `Latency`s, and a tuple of notes. The
        outputs are `None` if onnxruntime is not installed.
    """
    if importlib.util.find_spec("onnxruntime") is None:
        note = "It was not run, as onnxruntime is not installed: `pip install onnxruntime`."
        return None, [], (note,)
    outputs, latencies = runtime.run_batch("onnx", path, specs, batch, batch_sizes)
    flat = [outputs[str(number)] for number in range(len(outputs))]
    return keras.tree.pack_sequence_as(expected, flat), latencies, ()
