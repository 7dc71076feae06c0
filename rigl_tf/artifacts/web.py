"""Writes a folder with a web page that runs a model, dense and sparse, in the reader's browser."""

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
# What LiteRT.js may differ by, as a share of the largest output.
_TOLERANCE = 1e-3


def check_types(specs):
    """Raises a `ValueError` for inputs of types that a page cannot make."""
    for spec in tf.nest.flatten(specs):
        if spec.dtype.name not in _TYPES:
            raise ValueError(
                f'`format="web"` takes inputs of the types {list(_TYPES)}. '
                f"Received: input {spec.name!r} of type {spec.dtype.name}"
            )


def write(path, name, specs, batch, expected, reports):
    """Writes all of the folder but the two `.tflite` files.

    Args:
        path: The folder.
        name: Of the model.
        specs: Of the inputs; every dimension is known.
        batch, expected: Examples, and the outputs of the model. The page runs the first.
        reports: `KernelReport`s, shown on the page.
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
