"""Tests of `rigl_tf.report`: what is on the page, in a headless Chromium where there is one."""

import html
import math
import os
import re
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import covers_part, half, mlp, needs_chromium, numbers

import chromium
import rigl_tf
from rigl_tf.reports.kernels import as_image, kernels_of
from rigl_tf.reports.pictures import at_most, shortened

layers = keras.layers
pytestmark = covers_part


def text_of(path):
    """The words of a page, those beside pictures too."""
    page = path.read_text(encoding="utf-8")
    alts = " ".join(re.findall(r'alt="([^"]*)"', page))
    page = re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", page)) + alts)


def write(tmp_path, model, history=None, **arguments):
    return text_of(rigl_tf.report(model, history, tmp_path / "report.html", **arguments))


def lenet():
    inputs = keras.Input((12, 12), name="image")
    x = layers.Flatten()(inputs)
    x = layers.Dense(20, "relu", name="first")(x)
    model = keras.Model(inputs, layers.Dense(10, name="last")(x), name="lenet")
    return rigl_tf.sparsify(model, {"first": 0.9, "last": 0.5})


HISTORY = {
    "loss": [2.0, 1.5, 1.25],
    "val_loss": [2.5, 1.75, 1.5],
    "sparsity": [0.9, 0.9, 0.9],
    "moved": [120, 20, 4],
    "seconds_per_update": [math.nan, 0.25, 0.5],
    "moved/first/kernel": [100.0, 40.0, 4.0],
    "moved/last/kernel": [20.0, 0.0, 5.0],
    "all of it unknown": [math.nan] * 3,
}


def test_what_the_page_tells(tmp_path):
    model = lenet()
    text = write(tmp_path, model, HISTORY, command="python train.py --epochs=3")
    assert "loss over the epochs; at the end training 1.25, validation 1.5" in text
    assert "seconds per update over the epochs; at the end training 0.5" in text
    assert "unknown" not in text
    # 288 of 2880 connections, 100 of 200; 30 biases.
    assert "Sparsity of each kernel: first 90.0%, last 50.0%" in text
    assert "Moves for each active connection: first 0.50, last 0.25" in text
    assert "FLOPs for one example 6,160 776 0.126" in text
    assert "weights 3,110 418 0.134" in text
    assert f"bytes stored, values and a bit mask 12,440 {4 * 418 + 360 + 25:,}" in text
    # 3110 float32 weights, and a byte of a mask for each of 3080.
    assert "memory of the weights now, in bytes 12,440 15,520" in text
    assert "python train.py --epochs=3" in text
    assert f"Keras {keras.__version__}" in text
    counts = rigl_tf.get_masks(model)["first/kernel"].sum(axis=1)
    assert f"Active connections of each input pixel: {counts.min()} to {counts.max()}" in text
    mask = rigl_tf.get_masks(model)["first/kernel"]
    assert f"{(~mask.any(axis=1)).sum()} of 144" in text
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_dead_units(tmp_path):
    model = half(mlp(6, 8, 3, names=("one", "two")))
    mask = np.ones((6, 8), bool)
    mask[:, :3] = False
    mask[5] = False
    rigl_tf.set_masks(model, {"sequential/one/kernel": mask})
    text = write(tmp_path, model)
    assert "Units without an active connection: one 3 of 8, two 0 of 3" in text
    assert "3 of 8 1 of 6" in text
    live = rigl_tf.live_units(model)
    assert f"{sum(map(len, live[1:]))} units have a way from the inputs" in text


def test_an_export(tmp_path):
    model = lenet()
    report = rigl_tf.export(model, tmp_path / "lenet")
    text = write(tmp_path, model, export=[report])
    assert f"bytes on disk {report.file_bytes:,}" in text
    assert f"largest difference to the outputs of the model {report.max_difference:.2g}" in text
    assert report.latencies
    for latency in report.latencies:
        assert f"time of a call, {latency.batch_size} examples {latency}" in text
    assert report.kernels
    for each in report.kernels:
        assert f"{each.path} {each.sparsity:.1%} {each.structure} {each.kernel}" in text


def trained_csr():
    model = half(mlp(), execution="csr")
    model.compile(rigl_tf.SET("adam", end_step=4, update_frequency=2), "mse")
    logger = rigl_tf.callbacks.SparsityLogger()
    x, y = numbers((16, 6)), numbers((16, 3))
    return model, model.fit(x, y, batch_size=4, verbose=0, callbacks=[logger])


def test_a_csr_model_and_what_fit_returned(tmp_path):
    model, history = trained_csr()
    text = write(tmp_path, model, history)
    assert "Sparsity of each kernel: dense 50.0%, dense_1 50.0%" in text
    first = history.history["moved/sequential/dense/kernel"][0] / 24
    assert f"Moves for each active connection: dense {first:.2f}" in text
    assert "memory of the optimizer's state" in text
    (mask, _), (kernel, _) = rigl_tf.get_masks(model).values(), kernels_of(model)[0]
    np.testing.assert_array_equal(kernel.inputs, mask.sum(axis=1))


def subclassed():
    class Own(keras.Model):
        def __init__(self):
            super().__init__(name="own")
            self.one, self.two = layers.Dense(8), layers.Dense(3)

        def call(self, inputs):
            return self.two(self.one(inputs))

    model = half(Own())
    model(np.zeros((2, 6)))
    return model


def recurrent():
    inputs = keras.Input((None,), dtype="int32")
    x = layers.Embedding(200, 4, name="embedding")(inputs)
    model = keras.Model(inputs, layers.Dense(2)(layers.GRU(5, name="gru")(x)))
    return rigl_tf.sparsify(model, 0.5, sparse_layers=("embedding",))


def convolutions():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, name="conv")(inputs)
    x = layers.DepthwiseConv2D(3)(x)
    x = layers.Conv2DTranspose(4, 3)(x)
    x = layers.EinsumDense("abcd,de->abce", output_shape=(6, 6, 5))(x)
    return half(keras.Model(inputs, layers.Dense(3)(layers.GlobalMaxPooling2D()(x))))


def nested():
    inner = mlp(6, 8, 5, name="inner")
    return half(keras.Sequential([keras.Input((6,)), inner, layers.Dense(3)]))


def pruned():
    return rigl_tf.sparsify(mlp(), 0.0)


@pytest.mark.parametrize(
    "make", [subclassed, recurrent, convolutions, nested, pruned, lambda: rigl_tf.strip(lenet())]
)
def test_any_model(make, tmp_path):
    model = make()
    text = write(tmp_path, model)
    found, has_masks = kernels_of(model)
    if has_masks:
        active = [int(mask.sum()) for mask in rigl_tf.get_masks(model).values()]
        assert [each.num_active for each in found] == active
    assert len(found) >= 2
    assert all(int(each.inputs.sum()) == each.num_active for each in found)
    assert f"All {len(found)} sparse kernels" in text
    assert has_masks or "zeros are counted" in text


def test_flops_of_a_model_that_does_not_know_its_inputs(tmp_path):
    model = subclassed()
    assert "FLOPs and stored bytes are not counted: " in write(tmp_path, model)
    text = write(tmp_path, model, inputs=tf.TensorSpec((1, 6)))
    assert "FLOPs for one example 144 72 0.500" in text


def test_a_dense_model(tmp_path):
    text = write(tmp_path, mlp(), {"loss": [1.0]})
    assert "No kernel of this model is sparse." in text
    assert "FLOPs for one example 144 144 1.000" in text


def test_the_picture_of_the_inputs():
    model = lenet()
    mask = np.zeros((144, 20), bool)
    mask[25, :7] = True  # the second pixel of the third row
    rigl_tf.set_masks(model, {"first/kernel": mask})
    matrix, what = as_image(kernels_of(model)[0][0], model)
    assert what == "each input pixel"
    assert matrix.shape == (12, 12)
    assert matrix[2, 1] == 7 == matrix.sum()
    found, _ = kernels_of(convolutions())
    matrix, _ = as_image(found[0], None)
    assert matrix.shape == (9, 3)


def test_large_matrices_become_means():
    matrix = np.arange(512.0 * 3).reshape(512, 3)
    small = at_most(matrix)
    assert small.shape == (256, 3)
    np.testing.assert_array_equal(small[0], [1.5, 2.5, 3.5])


def test_labels_that_are_long():
    labels = [f"a_very_long_name_of_a_block_{n}_of_the_network" for n in range(12)]
    assert shortened(labels)[:2] == ["…0…", "…1…"]
    labels = ["x" * 30 + "_a_" + "y" * 30, "x" * 30 + "_b_" + "y" * 30, "z" * 70]
    assert len(set(shortened(labels))) == 3
    assert all(len(each) < 30 for each in shortened(labels))
    assert shortened(["dense"]) == ["dense"]


def test_names_are_text(tmp_path):
    """What looks like HTML, TeX or another script is written as it is."""
    model = half(mlp(6, 8, 3, names=("$x_1$ <b>", "日本\u202e")))
    path = rigl_tf.report(model, {"<script>": [1.0, 2.0]}, tmp_path / "r.html", command="a <b> & c")
    page = path.read_text()
    assert "<script>" not in page
    assert "<b>&" not in page
    assert "a &lt;b&gt; &amp; c" in page
    assert "$x_1$ <b>" in text_of(path)


@pytest.mark.parametrize("first", [0, 1])
def test_a_csv_file(tmp_path, first):
    (tmp_path / "log.csv").write_text(f"epoch,loss,other\n{first},2.0,\n{first + 1},1.0,nan\n")
    text = write(tmp_path, lenet(), str(tmp_path / "log.csv"))
    assert "loss over the epochs; at the end training 1" in text


def test_an_earlier_page_is_replaced_or_stays(tmp_path, monkeypatch):
    path = tmp_path / "new" / "report.html"
    rigl_tf.report(lenet(), path=path)
    before = path.read_bytes()

    def fail(*_):
        raise OSError("no space left")

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="no space"):
            rigl_tf.report(half(mlp()), path=path)
    assert path.read_bytes() == before
    assert [each.name for each in path.parent.iterdir()] == ["report.html"]
    rigl_tf.report(half(mlp()), path=path)
    assert path.read_bytes() != before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"path": "report.pdf"}, "must be a file that ends with '.html'"),
        ({"history": 3}, "`history` must be what `fit` returns"),
        ({"history": {"loss": 3.0}}, "`history` must be what `fit` returns"),
        ({"history": "missing.csv"}, "`history` must be what `fit` returns.*missing.csv"),
        ({"history": __file__}, "`history` must be what `fit` returns.*without numbers"),
        ({"export": "folder"}, "`export` must be what `rigl_tf.export` returned"),
        ({"export": ["folder"]}, "`export` must be what `rigl_tf.export` returned"),
    ],
)
def test_wrong_arguments(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        rigl_tf.report(lenet(), **arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "make", [lambda: "model", lambda: keras.Sequential([layers.Dense(3)]), lambda: layers.Dense(3)]
)
def test_wrong_models(make):
    with pytest.raises(ValueError, match=r"needs a built `keras\.Model`"):
        rigl_tf.report(make())


def test_without_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match="needs the package 'matplotlib': `pip install"):
        rigl_tf.report(lenet(), path=tmp_path / "report.html")
    assert not list(tmp_path.iterdir())


def many_layers():
    x = inputs = keras.Input((16,))
    for number in range(60):
        x = layers.Dense(16, name=f"a_rather_long_name_of_a_block_{number}_dense")(x)
    return rigl_tf.sparsify(keras.Model(inputs, x), 0.8)


def contrast(one, other):
    """The contrast of two colours, as WCAG 2 defines it; text needs 4.5."""

    def luminance(colour):
        parts = [float(part) / 255 for part in colour]
        parts = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@needs_chromium
@pytest.mark.parametrize("make", [lenet, many_layers])
def test_the_page_in_chromium(make, tmp_path):
    path = rigl_tf.report(make(), HISTORY, tmp_path / "report.html")
    seen = chromium.look(path, tmp_path)
    assert seen["errors"] == []
    assert set(seen["requests"]) == {path.as_uri()}
    assert [(v["width"], v["scheme"]) for v in seen["views"]] == [
        (400, "light"),
        (400, "dark"),
        (1400, "light"),
        (1400, "dark"),
    ]
    for view in seen["views"]:
        assert len(view["images"]) >= 6
        assert view["scrollWidth"] <= view["width"]
        assert view["fontSize"] >= 14
        ink, paper = (
            [int(part) for part in re.findall(r"\d+", view[key])] for key in ("color", "background")
        )
        assert contrast(ink, paper) > 7
        is_dark = view["scheme"] == "dark"
        assert (sum(paper) < 384) == is_dark
        for image, corner in zip(view["images"], view["papers"], strict=True):
            assert image["alt"]
            assert image["naturalWidth"] > 500
            # A picture is drawn for 422 pixels, with letters of 15: at 300 these have 11.
            assert 300 <= image["width"] <= 560
            assert (sum(corner) < 384) == is_dark
            assert contrast(ink, corner) > 7
