"""Runs the scripts with their flags: a few steps, small data. See also test_train.py."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from absl import flags
from running import rows_of, run

from scripts import benchmark, demo, mnist_table, plain_tensorflow

# The demo.


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


# The benchmark.


def tiny():
    return keras.Sequential([keras.Input((6,)), keras.layers.Dense(8), keras.layers.Dense(10)])


def test_benchmark(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "NETWORKS", {"tiny": (tiny, (6,), 4)})
    # A process of its own does not know the tiny network.
    monkeypatch.setattr(benchmark, "_peak_memory", lambda network, kind, jit_compile: "300")
    made = []
    make = benchmark.make

    def spy(*arguments, **settings):
        made.append(make(*arguments, **settings))
        return made[-1]

    monkeypatch.setattr(benchmark, "make", spy)
    run(benchmark, "--steps=2", "--updates=1", f"--output_dir={tmp_path}/out")
    text = (tmp_path / "out" / "benchmark.md").read_text()
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    assert rows[0][:4] == ["network", "XLA", "dense step (ms)", "sparse step (ms)"]
    assert [row[:2] for row in rows[2:]] == [["tiny", "no"], ["tiny", "yes"]]
    for row in rows[2:]:
        assert len(row) == len(rows[0]) == 9
        assert float(row[2]) > 0
        assert float(row[3]) > 0
        ratio, low, high = (
            float(x) for x in row[4].replace("(", "").strip(")").replace("–", " ").split()
        )
        assert 0 < low - 0.01 <= ratio <= high + 0.01
    assert "2 pairs of alternating steps" in text
    # Sparse: 1 of `fit`, 5 + 2 of the pairs, 3 before the update; 2 updates train no weight.
    trained = [int(model.optimizer.iterations) for model, _ in made]
    assert trained == [1 + 5 + 2, 1 + 5 + 2 + 3] * 2


def test_the_benchmark_decides_which_steps_are_updates(monkeypatch):
    monkeypatch.setattr(benchmark, "NETWORKS", {"tiny": (tiny, (6,), 4)})
    model, step = benchmark.make("tiny", sparse=True, jit_compile=False)
    kernel = model.layers[0].layer.kernel

    def mask():
        return model.layers[0].kernel_mask.numpy()

    before = mask()
    step()
    np.testing.assert_array_equal(mask(), before)
    model.optimizer.step.assign(benchmark._UPDATE_FREQUENCY)
    weights = kernel.numpy()
    step()
    assert (mask() != before).any()
    # An update replaces the gradient step.
    np.testing.assert_array_equal(kernel.numpy()[mask() & before], weights[mask() & before])


@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_peak_memory(kind, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "NETWORKS", {"tiny": (tiny, (6,), 4)})
    run(benchmark, "--networks=tiny", f"--memory_of={kind}")
    megabytes = int(capsys.readouterr().out.splitlines()[-1])
    assert 100 < megabytes < 100_000


# The MNIST table.


def test_mnist_table(mnist_dir, tmp_path, capsys, monkeypatch):
    output_dir = tmp_path / "out"
    arguments = [
        f"--data_dir={mnist_dir}",
        f"--output_dir={output_dir}",
        "--epochs=7",  # 140 steps; the first mask update is at step 100
        "--sparsities=0.9",
        "--seeds=3",
    ]
    run(mnist_table, *arguments, "--methods=dense,rigl")
    assert capsys.readouterr().out.startswith("2 runs to do")
    csv_file, table, plot = (
        output_dir / f"mnist_lenet_300_100.{suffix}" for suffix in ("csv", "md", "png")
    )
    rows = rows_of(csv_file)
    known = [(row["method"], row["sparsity"], row["seed"], row["epochs"]) for row in rows]
    assert known == [("dense", "0.0", "3", "7"), ("rigl", "0.9", "3", "7")]
    assert all(float(row["accuracy"]) > 50 for row in rows)
    dense, rigl = (f"{float(row['accuracy']):.2f}" for row in rows)
    lines = table.read_text().splitlines()
    assert f"| dense | {dense} | – |" in lines
    assert f"| rigl | – | {rigl} |" in lines
    assert "over seeds [3]" in table.read_text()
    assert plot.stat().st_size > 1000

    # No run is repeated; what is missing is added; the report is made anew.
    before = csv_file.read_bytes()
    table.unlink()
    monkeypatch.setattr(mnist_table, "train", lambda *_, **__: pytest.fail("repeated"))
    run(mnist_table, *arguments, "--methods=dense,rigl")
    assert capsys.readouterr().out.startswith("0 runs to do")
    assert csv_file.read_bytes() == before
    assert f"| dense | {dense} | – |" in table.read_text().splitlines()

    trained = []
    monkeypatch.setattr(
        mnist_table,
        "train",
        lambda data, run: trained.append((len(data.x_train), run)) or {"accuracy": 42},
    )
    run(mnist_table, *arguments, "--methods=dense,set", "--max_examples=150")
    settings = {"seed": 3, "epochs": 7, "examples": 150}
    dense, sparse = {"method": "dense", "sparsity": 0.0}, {"method": "set", "sparsity": 0.9}
    # With fewer examples it is another run, so the dense one is not taken for done.
    assert trained == [(150, {**dense, **settings}), (150, {**sparse, **settings})]
    assert csv_file.read_bytes().startswith(before)
    assert "| set | – | 42.00 |" in table.read_text()


def test_flags_are_gone_afterwards(tmp_path):
    before = set(flags.FLAGS)
    with pytest.raises(flags.IllegalFlagValueError):
        run(demo, "--epochs=0", f"--output_dir={tmp_path}")
    assert set(flags.FLAGS) == before
