"""Runs artifacts in a new Python process, as users will run them, and measures their time."""

import dataclasses
import importlib.util
import json
import os
import pathlib
import pickle
import statistics
import subprocess
import sys
import tempfile

import numpy as np
import tensorflow as tf

from rigl_tf.artifacts.programs import run_artifact

# The time that is spent on measuring one batch size, in seconds.
_LIMIT = 0.7
_MODULES = {
    "litert": ("ai_edge_litert", "ai-edge-litert"),
    "onnx": ("onnxruntime", "onnxruntime"),
    "saved_model": ("tensorflow", "tensorflow"),
    "keras": ("keras", "keras"),
}
# Artifacts run on the CPU. The process that exports may have taken all memory of the GPU.
_ENVIRONMENT = {"CUDA_VISIBLE_DEVICES": "-1", "KERAS_BACKEND": "tensorflow"}


@dataclasses.dataclass(frozen=True)
class Latency:
    """The time of one call in milliseconds; sparse and dense are measured in turns.

    Attributes:
        batch_size: Integer, the number of examples in a call.
        sparse: Median, smallest and largest time of the artifact.
        dense: The same for the same weights stored dense, or `None` if the artifact is stored dense
            itself.
    """

    batch_size: int
    sparse: tuple[float, ...]
    dense: tuple[float, ...] | None

    @property
    def speedup(self) -> float:
        """The time of dense divided by that of sparse; 1 if there is no sparse one."""
        return self.dense[0] / self.sparse[0] if self.dense else 1.0

    def __str__(self):
        return " against dense ".join(
            f"{median:.3g} ms ({least:.3g}–{most:.3g})"
            for median, least, most in ((self.sparse, self.dense) if self.dense else (self.sparse,))
        )


def check_installed(runtime, why):
    """Raises an `ImportError` if the Python package of a runtime is not there."""
    module, package = _MODULES[runtime]
    if importlib.util.find_spec(module) is None:
        raise ImportError(f"{why} needs the package {package!r}: `pip install {package}`")


def run(
    runtime,
    path,
    arrays,
    dense=None,
    batch_sizes=(),
    size=None,
    structure=None,
    here=False,
    objects=b"",
):
    """Runs an artifact in a new process that imports only the runtime, not `rigl_tf`.

    Args:
        runtime: `"litert"`, `"onnx"`, `"saved_model"` or `"keras"`.
        path: The file or directory.
        arrays: The inputs, as a dictionary `{name: array}`.
        dense: Another file, whose time is measured in turns with the first one.
        batch_sizes: Numbers of examples with which calls are measured. Sizes that take too long, or
            that the model does not take, are left out.
        size: The number of examples in a batch, if the file takes only this one.
        structure: For `"keras"`: the names of the inputs, in the structure that the model takes.
        here: Boolean, whether to run it in this process instead. Its errors are then raised as they
            are.
        objects: For `"keras"`: a pickled dictionary `{registered name: class or function}`.

    Returns:
        The outputs, as a dictionary `{name: array}`, and a list of `Latency`.

    Raises:
        RuntimeError: If the runtime cannot load or run the artifact.
    """
    paths = [str(pathlib.Path(each).resolve()) for each in (path, dense) if each is not None]
    request = {
        "runtime": runtime,
        "paths": paths,
        "batch_sizes": list(batch_sizes),
        "size": size,
        "limit": _LIMIT,
        "python_path": [str(each) for each in sys.path] if runtime == "keras" else [],
    }
    with tempfile.TemporaryDirectory(prefix="rigl_tf-") as directory:
        directory = pathlib.Path(directory)
        (directory / "request.json").write_text(json.dumps(request))
        if structure is not None:
            (directory / "structure.pickle").write_bytes(pickle.dumps(structure))
        if objects and not here:
            (directory / "objects.pickle").write_bytes(objects)
        np.savez(directory / "inputs.npz", **{f"_{name}": arrays[name] for name in arrays})
        failure = run_artifact.main(directory) if here else _execute(directory)
        if failure:
            raise RuntimeError(
                f"The artifact cannot be run by {_MODULES[runtime][1]} in a fresh interpreter, so "
                f"it was thrown away. Received: {failure}"
            )
        with np.load(directory / "outputs.npz", allow_pickle=True) as file:
            outputs = {key[1:]: file[key] for key in file}
        seconds = json.loads((directory / "seconds.json").read_text())
    latencies = [_latency(int(size), each) for size, each in seconds.items() if each is not None]
    return outputs, latencies


def _execute(directory):
    """Runs the program on a directory. Returns its error message, or an empty string."""
    done = subprocess.run(
        [sys.executable, run_artifact.__file__, str(directory)],
        capture_output=True,
        text=True,
        env={**os.environ, **_ENVIRONMENT},
    )
    if not done.returncode:
        return ""
    lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
    return " ".join(lines[-1].split())[:300]


def run_batch(runtime, path, specs, batch, batch_sizes=(), dense=None, here=False, objects=b""):
    """Calls `run` with a batch of a model. Files of one batch size are measured with this size."""
    flat = list(zip(tf.nest.flatten(specs), tf.nest.flatten(batch), strict=True))
    arrays = {spec.name: run_artifact.as_array(tensor) for spec, tensor in flat}
    size = next((spec.shape[0] for spec, _ in flat if spec.shape.rank), None)
    if size is not None:
        batch_sizes = [size] if batch_sizes else []
    names = tf.nest.map_structure(lambda spec: spec.name, specs) if runtime == "keras" else None
    return run(runtime, path, arrays, dense, batch_sizes, size, names, here, objects)


def _latency(batch_size, seconds):
    both = [
        tuple(1000 * number for number in (statistics.median(each), min(each), max(each)))
        for each in seconds
    ]
    return Latency(batch_size, both[0], both[1] if len(both) > 1 else None)
