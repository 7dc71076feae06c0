"""Runs an artifact on arrays, and measures how long this takes.

`python run_artifact.py DIRECTORY` reads `request.json` and `inputs.npz` in this directory, and for
a `.keras` file also `structure.pickle` and `objects.pickle`. It writes `outputs.npz` and
`seconds.json`. If several artifacts are measured, their calls take turns, so that the load of the
machine is the same for all.
"""

import functools
import importlib
import json
import pathlib
import pickle
import sys
import time
from typing import Any

import numpy as np


def litert(path):
    """Returns a function that takes and returns a dictionary `{name: array}`."""
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(model_path=path).get_signature_runner("serving_default")
    # The converter leaves out inputs on which no output depends.
    known = set(runner.get_input_details())
    return lambda arrays: runner(**{name: arrays[name] for name in arrays if name in known})


def onnx(path):
    """Like `litert`. The names of the outputs are their numbers."""
    session = importlib.import_module("onnxruntime").InferenceSession(
        path, providers=["CPUExecutionProvider"]
    )
    names = [each.name for each in session.get_inputs()]

    def run(arrays):
        if not set(names) <= set(arrays):  # The exporter numbers nested inputs.
            arrays = dict(zip(names, arrays.values(), strict=True))
        outputs = session.run(None, {name: arrays[name] for name in names})
        return {str(number): output for number, output in enumerate(outputs)}

    return run


def saved_model(path):
    """Like `litert`. It calls the default signature."""
    import tensorflow as tf

    artifact = tf.saved_model.load(path)
    function = artifact.signatures["serving_default"]
    specs = function.structured_input_signature[1]

    def run(arrays, artifact=artifact):  # This keeps the variables alive.
        tensors = {name: as_tensor(arrays[name], specs[name].dtype) for name in specs}
        return {name: as_array(output) for name, output in function(**tensors).items()}

    return run


def keras(path, structure, objects=None):
    """Like `onnx`. The model is called with its inputs in the structure of `structure`.

    `objects` are the classes and functions in the file that Keras does not know.
    """
    import keras

    model = keras.saving.load_model(path, custom_objects=objects)

    def run(arrays):
        inputs = keras.tree.map_structure(lambda name: as_tensor(arrays[name]), structure)
        outputs = keras.tree.flatten(model(inputs, training=False))
        return {str(number): as_array(output) for number, output in enumerate(outputs)}

    return run


def as_tensor(array, dtype=None):
    """Converts an array to a tensor, of the type `dtype` if it is given."""
    import tensorflow as tf

    tensor = tf.convert_to_tensor(array)
    return tensor if dtype is None else tf.cast(tensor, dtype)


def as_array(tensor):
    """Converts a tensor to an array that NumPy can save: bfloat16 becomes float32."""
    import tensorflow as tf

    return np.asarray(tf.cast(tensor, tf.float32) if tensor.dtype == tf.bfloat16 else tensor)


def in_batches(function, arrays, size):
    """The outputs for all examples, from calls with `size` examples each."""
    if size is None:
        return function(arrays)
    number = max(len(array) for array in arrays.values() if array.ndim)
    parts = []
    for start in range(0, number, size):
        part = {
            name: array[np.arange(start, start + size) % number] if array.ndim else array
            for name, array in arrays.items()
        }
        parts.append({name: np.array(output) for name, output in function(part).items()})
    return {name: np.concatenate([part[name] for part in parts])[:number] for name in parts[0]}


def repeated(arrays, size):
    """Repeats the examples until there are `size` of them."""
    return {
        name: array[np.arange(size) % len(array)] if array.ndim else array
        for name, array in arrays.items()
    }


def seconds_of(functions, arrays, limit):
    """Measures the seconds of calls of each function. The functions take turns.

    Each function is called once without measuring, and then 3 to 200 times, for `limit` seconds. If
    this would take longer, `None` is returned.
    """
    start = time.perf_counter()
    for function in functions:
        function(arrays)
    if 4 * (time.perf_counter() - start) > limit:
        return None
    seconds = [[] for _ in functions]
    while len(seconds[0]) < 3 or (time.perf_counter() - start < limit and len(seconds[0]) < 200):
        for function, measured in zip(functions, seconds, strict=True):
            before = time.perf_counter()
            function(arrays)
            measured.append(time.perf_counter() - before)
    return seconds


def main(directory):
    request = json.loads((directory / "request.json").read_text())
    with np.load(directory / "inputs.npz", allow_pickle=True) as file:  # Strings are objects.
        arrays = {key[1:]: file[key] for key in file}
    load = {"litert": litert, "onnx": onnx, "saved_model": saved_model}.get(request["runtime"])
    if load is None:
        sys.path.extend(each for each in request["python_path"] if each not in sys.path)
        structure, objects = (
            pickle.loads(file.read_bytes()) if file.exists() else None
            for file in (directory / "structure.pickle", directory / "objects.pickle")
        )
        load = functools.partial(keras, structure=structure, objects=objects)
    outputs = in_batches(load(request["paths"][0]), arrays, request["size"])
    # With a first letter of ours, an array may have the name of an argument of `savez`.
    named: Any = {f"_{name}": outputs[name] for name in outputs}
    np.savez(directory / "outputs.npz", **named)
    seconds = {}
    for size in request["batch_sizes"]:
        # New ones, whose buffers have this size from the start.
        functions = [load(path) for path in request["paths"]]
        try:
            seconds[size] = seconds_of(functions, repeated(arrays, size), request["limit"])
        except Exception:  # Not every model takes batches of this size.
            break
        if seconds[size] is None:
            break
    (directory / "seconds.json").write_text(json.dumps(seconds))


def forbid_keras():
    """Lets TensorFlow start without Keras, and all that Keras imports, a third sooner.

    A SavedModel is of TensorFlow alone, so this is also a part of its check.
    """
    nothing: Any = None
    sys.modules["keras"] = nothing


if __name__ == "__main__":
    _directory = pathlib.Path(sys.argv[1])
    if json.loads((_directory / "request.json").read_text())["runtime"] == "saved_model":
        forbid_keras()
    main(_directory)
