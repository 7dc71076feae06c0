"""Runs the demo for two epochs."""

import json

import numpy as np
import pytest
import tensorflow as tf
from absl import flags
from running import run

from scripts.demo import __main__ as demo
from scripts.demo import plain_tensorflow

pytestmark = pytest.mark.built_in_fit


def test_demo(tmp_path, capsys, monkeypatch):
    elsewhere = []
    run_elsewhere = demo.run_elsewhere

    def spy(*arguments):
        elsewhere.append(run_elsewhere(*arguments))
        return elsewhere[-1]

    monkeypatch.setattr(demo, "run_elsewhere", spy)
    run(demo, "--epochs=2", f"--output_dir={tmp_path}/out")
    (result,) = elsewhere
    assert result["knows_rigl_tf"] is False
    artifact = tf.saved_model.load(f"{tmp_path}/out/saved_model")
    data = np.load(tmp_path / "out" / "digits_test.npz")
    outputs = artifact.serve(data["inputs"]).numpy()
    np.testing.assert_allclose(outputs, data["expected"], atol=1e-4)
    kernels = [x.numpy() for x in artifact.weights if x.shape.rank == 2]
    assert [kernel.shape for kernel in kernels] == [(64, 300), (300, 100), (100, 10)]
    num_active = sum(np.count_nonzero(kernel) for kernel in kernels)
    accuracy = (outputs.argmax(axis=1) == data["labels"]).mean()
    assert result["accuracy"] == accuracy

    text = capsys.readouterr().out
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines()]
    table = {row[0]: row[1:] for row in cells if len(row) == 3}
    shown = table["of the SavedModel, plain TensorFlow"][1]
    assert shown == table["test accuracy"][1] == f"{accuracy:.2%}"
    # Of 50,200 kernel weights a tenth is active; the 410 biases are dense.
    assert table["active weights"][0] == f"{64 * 300 + 300 * 100 + 100 * 10 + 410:,}"
    shown = int(table["active weights"][1].replace(",", ""))
    assert num_active + 410 <= shown <= 5020 + 410 + 3
    assert float(table["FLOPs ratio"][1]) == pytest.approx(0.1, abs=0.001)
    assert f"{tmp_path}/out/saved_model" in text
    assert f"{tmp_path}/out/report.html" in text
    assert "Moves for each active connection: " in (tmp_path / "out" / "report.html").read_text()


def test_plain_tensorflow(tmp_path, capsys):
    module = tf.Module()
    module.kernel = tf.Variable(np.eye(3, dtype="float32"))

    @tf.function(input_signature=[tf.TensorSpec((None, 3))])
    def serve(inputs):
        return tf.matmul(inputs, module.kernel)

    tf.saved_model.save(module, str(tmp_path / "model"), signatures=serve)
    expected = np.eye(3)
    expected[1, 1] += 0.25
    arrays = {"inputs": np.eye(3, dtype="float32"), "labels": [0, 1, 1], "expected": expected}
    np.savez(tmp_path / "data.npz", **arrays)
    plain_tensorflow.main(str(tmp_path / "model"), str(tmp_path / "data.npz"))
    result = json.loads(capsys.readouterr().out)
    assert result == {"accuracy": 2 / 3, "max_difference": 0.25, "knows_rigl_tf": True}


def test_flags_are_gone_afterwards(tmp_path):
    before = set(flags.FLAGS)
    with pytest.raises(flags.IllegalFlagValueError):
        run(demo, "--epochs=0", f"--output_dir={tmp_path}")
    assert set(flags.FLAGS) == before
