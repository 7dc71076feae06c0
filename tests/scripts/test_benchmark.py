"""Runs the benchmark for a few steps of a tiny network."""

import keras
import numpy as np
import pytest
from running import run

from scripts.benchmark import training_step as benchmark


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
