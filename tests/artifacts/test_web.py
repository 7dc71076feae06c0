"""Tests of `rigl_tf.export(..., format="web")`, in a headless Chromium where there is one."""

import base64
import json
import os

import keras
import numpy as np
import pytest
from helpers import covers_part, numbers

import rigl_tf
from scripts.common import browser

layers = keras.layers
pytestmark = covers_part


def mobile():
    inputs = keras.Input((32, 32, 3), name="image")
    x = layers.Conv2D(32, 3, strides=2, activation="relu")(layers.ZeroPadding2D(1)(inputs))
    x = layers.DepthwiseConv2D(3, padding="same")(x)
    x = layers.Conv2D(64, 1, activation="relu", name="pointwise")(x)
    x = layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, layers.Dense(3, name="head")(x), name="mobile")
    return rigl_tf.sparsify(model, {"pointwise": 0.9})


def several_inputs():
    one, two = keras.Input((4,), name="one"), keras.Input((), dtype="int32", name="two")
    x = layers.Concatenate()([one, layers.Embedding(5, 3)(two)])
    outputs = {"p": layers.Dense(20, "relu")(x), "q": layers.Dense(30)(x)}
    return rigl_tf.sparsify(keras.Model([one, two], outputs, name="several"), 0.8)


needs_browser = pytest.mark.skipif(
    bool(browser.missing()) and os.environ.get("RIGL_TF_WEB") != "required",
    reason=browser.missing() or "-",
)


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


@needs_browser
@pytest.mark.parametrize("make", [mobile, several_inputs])
def test_the_page_in_chromium(make, tmp_path):
    rigl_tf.export(make(), tmp_path / "page", "web", measure=False)
    report = browser.run(tmp_path / "page", tmp_path / "page.png")
    assert report["same"]
    assert report["bytes"]["sparse"] == (tmp_path / "page" / "sparse.tflite").stat().st_size
    assert report["rounds"] >= 5
    for latency in report["latencies"].values():
        assert 0 <= latency["least"] <= latency["median"] <= latency["most"]
    assert (tmp_path / "page.png").stat().st_size > 10_000


@needs_browser
def test_the_page_sees_other_outputs(tmp_path):
    rigl_tf.export(mobile(), tmp_path / "page", "web", measure=False)
    other = tmp_path / "page" / "model.json"
    page = json.loads(other.read_text())
    (output,) = page["outputs"]
    output["data"] = base64.b64encode(np.asarray([1, 2, 3], "<f4").tobytes()).decode()
    other.write_text(json.dumps(page))
    assert not browser.run(tmp_path / "page")["same"]


@needs_browser
def test_a_broken_page_is_told_of(tmp_path):
    rigl_tf.export(mobile(), tmp_path / "page", "web", measure=False)
    (tmp_path / "page" / "sparse.tflite").unlink()
    with pytest.raises(RuntimeError, match=r"The page has errors: .*sparse\.tflite: 404"):
        browser.run(tmp_path / "page")


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
