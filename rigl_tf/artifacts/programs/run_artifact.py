"""Runs LiteRT and ONNX files on arrays, and measures how long they take.

`python run_artifact.py DIRECTORY` reads `request.json` and `inputs.npz` there, and writes
`outputs.npz` and `seconds.json`. The files that are measured take turns, so that all of them see
the same machine.
"""

import json
import pathlib
import sys
import time
from typing import Any

import numpy as np


def litert(path):
    """A function from arrays by name to arrays by name."""
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(model_path=path).get_signature_runner("serving_default")
    # An input that the outputs do not depend on is not in the file.
    known = set(runner.get_input_details())
    return lambda arrays: runner(**{name: arrays[name] for name in arrays if name in known})


def onnx(path):
    """As `litert`. The outputs are numbered, in their order."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]

    def run(arrays):
        if not set(names) <= set(arrays):  # Those of nested inputs are numbered.
            arrays = dict(zip(names, arrays.values(), strict=True))
        outputs = session.run(None, {name: arrays[name] for name in names})
        return {str(number): output for number, output in enumerate(outputs)}

    return run


def in_batches(function, arrays, size):
    """The outputs for all examples, of calls with `size` of them."""
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
    """The examples again and again, until there are `size` of them."""
    return {
        name: array[np.arange(size) % len(array)] if array.ndim else array
        for name, array in arrays.items()
    }


def seconds_of(functions, arrays, limit):
    """Seconds of each function's calls, in turns; `None` if three turns take longer than `limit`.

    Each is called once before, and then at most 200 times.
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
    with np.load(directory / "inputs.npz") as file:
        arrays = {key[1:]: file[key] for key in file}
    load = {"litert": litert, "onnx": onnx}[request["runtime"]]
    outputs = in_batches(load(request["paths"][0]), arrays, request["size"])
    # With a first letter of ours, an array may have the name of an argument of `savez`.
    named: Any = {f"_{name}": outputs[name] for name in outputs}
    np.savez(directory / "outputs.npz", **named)
    seconds = {}
    for size in request["batch_sizes"]:
        # New ones, whose buffers have this size from the start.
        functions = [load(path) for path in request["paths"]]
        seconds[size] = seconds_of(functions, repeated(arrays, size), request["limit"])
        if seconds[size] is None:
            break
    (directory / "seconds.json").write_text(json.dumps(seconds))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
