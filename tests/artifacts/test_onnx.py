"""Tests of `rigl_tf.export(..., format="onnx")`. ONNX is optional: without it these are skipped."""

import importlib.util

import keras
import numpy as np
import pytest
from helpers import numbers

import rigl_tf
from rigl_tf.artifacts import onnx

layers = keras.layers


def sparse_mlp(name="x"):
    inputs = keras.Input((16,), name=name)
    outputs = layers.Dense(3, name="head")(layers.Dense(12, "relu", name="hidden")(inputs))
    return rigl_tf.sparsify(keras.Model(inputs, outputs), 0.8)


def has(*packages):
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"needs {missing}")


@has("onnx", "tf2onnx", "onnxruntime")
def test_it_predicts_what_the_model_predicts(tmp_path):
    import onnxruntime

    model = sparse_mlp()
    report = rigl_tf.export(model, tmp_path / "m.onnx", "onnx")
    assert report.max_difference < 1e-5
    assert [each.batch_size for each in report.latencies] == [1, 32]
    assert {each.kernel for each in report.kernels} == {"dense"}
    assert "onnxruntime" in report.kernels[0].reason
    session = onnxruntime.InferenceSession(report.path)
    x = numbers((5, 16))
    np.testing.assert_allclose(session.run(None, {"x": x})[0], model(x), atol=1e-5)
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


@has("onnx", "tf2onnx", "onnxruntime")
@pytest.mark.parametrize("structure", ["list", "dict"])
def test_several_inputs_and_outputs(structure, tmp_path):
    one, two = keras.Input((4,), name="one"), keras.Input((3,), name="two")
    x = layers.Concatenate()([two, one])
    first, second = layers.Dense(2)(x), layers.Dense(5)(x)
    inputs, outputs = [one, two], [first, second]
    if structure == "dict":
        inputs, outputs = {"two": two, "one": one}, {"q": first, "p": second}
    model = rigl_tf.sparsify(keras.Model(inputs, outputs), 0.5)
    report = rigl_tf.export(model, tmp_path / "m.onnx", "onnx", measure=False)
    assert report.max_difference < 1e-5


@has("onnx", "tf2onnx", "onnxruntime")
def test_constants_that_are_no_variables(tmp_path):
    normalization = layers.Normalization()
    normalization.adapt(numbers((20, 6)))
    model = rigl_tf.sparsify(
        keras.Sequential([keras.Input((6,)), normalization, layers.Dense(4)]), 0.5
    )
    report = rigl_tf.export(model, tmp_path / "m.onnx", "onnx", measure=False)
    assert 0 <= report.max_difference < 1e-5


def test_bfloat16_is_refused(tmp_path):
    model = keras.Sequential([keras.Input((6,)), layers.Dense(4, dtype="mixed_bfloat16")])
    with pytest.raises(ValueError, match=r"computes in float32.*in bfloat16"):
        rigl_tf.export(rigl_tf.sparsify(model, 0.5), tmp_path / "m.onnx", "onnx")


@has("onnx", "tf2onnx")
def test_what_onnx_cannot_express(tmp_path):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(4, "gelu")])
    with pytest.raises(ValueError, match=r"exporter of ONNX must know every operation.*Erfc"):
        rigl_tf.export(rigl_tf.sparsify(model, 0.5), tmp_path / "m.onnx", "onnx")
    assert not list(tmp_path.iterdir())


def test_without_the_exporter(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="needs tf2onnx and onnx: `pip install tf2onnx onnx`"):
        rigl_tf.export(sparse_mlp(), tmp_path / "m.onnx", "onnx")
    assert not list(tmp_path.iterdir())


@has("onnx", "tf2onnx")
def test_without_onnxruntime_it_says_that_it_was_not_run(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        onnx.importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else find(name)
    )
    report = rigl_tf.export(sparse_mlp(), tmp_path / "m.onnx", "onnx")
    assert "It was not run, as onnxruntime is not installed" in str(report)
    assert np.isnan(report.max_difference)
