"""Writes a folder with a web page that runs a model, dense and sparse, in a browser."""

import base64
import dataclasses
import json
import pathlib
import shutil

import keras
import numpy as np
import tensorflow as tf

from rigl_tf.artifacts import saved_model

SERVER = "serve.py"
_PAGE = pathlib.Path(__file__).with_name("web_page")
_TYPES = ("float32", "int32", "int8", "uint8")
# The allowed difference between outputs of LiteRT.js and of the model, as a share of the largest.
_TOLERANCE = 1e-3


def check_types(specs):
    """Raises a `ValueError` for inputs of a type that the page cannot create."""
    for spec in tf.nest.flatten(specs):
        if spec.dtype.name not in _TYPES:
            raise ValueError(
                f'`format="web"` takes inputs of the types {list(_TYPES)}. '
                f"Received: input {spec.name!r} of type {spec.dtype.name}"
            )


def write(path, name, specs, batch, expected, reports):
    """Writes all files of the folder except the two `.tflite` files.

    Args:
        path: The folder.
        name: Name of the model.
        specs: Structure of `tf.TensorSpec`s of the inputs. All dimensions are known.
        batch: Examples. The page runs the first of them.
        expected: The outputs of the model on `batch`.
        reports: `KernelReport`s, which the page shows.
    """
    for file in sorted(_PAGE.iterdir()):
        if file.is_file() and not file.name.startswith("_"):
            shutil.copy(file, path / file.name)
    flat = zip(tf.nest.flatten(specs), tf.nest.flatten(batch), strict=True)
    inputs = [_array(spec.name, _of_size(array, spec.shape)) for spec, array in flat]
    size = next((spec.shape[0] for spec in tf.nest.flatten(specs) if spec.shape.rank), 1)
    names = saved_model.output_names(expected)
    arrays = [np.asarray(array)[:size] for array in keras.tree.flatten(expected)]
    page = {
        "name": name,
        "tolerance": _TOLERANCE,
        "inputs": inputs,
        "outputs": [_array(*pair) for pair in zip(names, arrays, strict=True)],
        "kernels": [dataclasses.asdict(each) for each in reports],
    }
    (path / "model.json").write_text(json.dumps(page))


def _of_size(array, shape):
    array = np.asarray(array)
    return array[np.arange(shape[0]) % len(array)] if array.ndim else array


def _array(name, array):
    data = np.ascontiguousarray(array).astype(np.asarray(array).dtype.newbyteorder("<"))
    return {
        "name": name,
        "shape": list(np.shape(array)),
        "dtype": str(np.asarray(array).dtype),
        "data": base64.b64encode(data.tobytes()).decode(),
    }
