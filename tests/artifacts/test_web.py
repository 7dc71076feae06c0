"""Tests of `rigl_tf.export(..., format="web")`, in a headless Chromium where there is one."""

import base64
import json

import keras
import numpy as np
import pytest
from helpers import covers_part, numbers
from pages import mobile

import rigl_tf

layers = keras.layers
pytestmark = covers_part


def test_what_is_in_the_folder(tmp_path):
    model, x = mobile(), numbers((4, 32, 32, 3))
    report = rigl_tf.export(model, tmp_path / "page", "web", x, measure=False)
    assert sorted(path.name for path in (tmp_path / "page").iterdir()) == [
        "dense.tflite",
        "index.html",
        "model.json",
        "package.json",
        "serve.py",
        "sparse.tflite",
    ]
    assert report.file_bytes == (tmp_path / "page" / "sparse.tflite").stat().st_size
    assert report.dense_file_bytes == (tmp_path / "page" / "dense.tflite").stat().st_size
    assert report.max_difference < 1e-5
    package = json.loads((tmp_path / "page" / "package.json").read_text())
    assert package["dependencies"] == {"@litertjs/core": "2.5.3"}
    page = json.loads((tmp_path / "page" / "model.json").read_text())
    (given,), (expected,) = page["inputs"], page["outputs"]
    assert (given["name"], given["shape"], expected["shape"]) == ("image", [1, 32, 32, 3], [1, 3])
    decoded = np.frombuffer(base64.b64decode(given["data"]), "<f4").reshape(1, 32, 32, 3)
    np.testing.assert_array_equal(decoded, x[:1])
    decoded = np.frombuffer(base64.b64decode(expected["data"]), "<f4").reshape(1, 3)
    np.testing.assert_allclose(decoded, model(x[:1]), atol=1e-5)
    assert page["kernels"][0]["in_browser"] == "native sparse"
    # A second export replaces it.
    rigl_tf.export(model, tmp_path / "page", "web", measure=False)
    assert [path.name for path in tmp_path.iterdir()] == ["page"]


def test_a_folder_that_is_no_export_stays(tmp_path):
    (tmp_path / "page").mkdir()
    (tmp_path / "page" / "thesis.tex").write_text("precious")
    with pytest.raises(ValueError, match="new, or an earlier export"):
        rigl_tf.export(mobile(), tmp_path / "page", "web")
    assert [path.name for path in (tmp_path / "page").iterdir()] == ["thesis.tex"]


def test_types_that_a_page_cannot_make(tmp_path):
    inputs = keras.Input((2,), dtype="int64", name="ids")
    x = layers.Flatten()(layers.Embedding(5, 8)(inputs))
    model = rigl_tf.sparsify(keras.Model(inputs, layers.Dense(8)(x)), 0.5)
    with pytest.raises(ValueError, match=r"takes inputs of the types.*'ids' of type int64"):
        rigl_tf.export(model, tmp_path / "page", "web")
    assert not list(tmp_path.iterdir())
