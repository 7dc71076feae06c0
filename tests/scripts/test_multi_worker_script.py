"""`scripts.train` on two worker processes of this machine, one of which is killed."""

import csv
import json
import signal
import time

import keras
import multi_worker_program as program
import numpy as np
import pytest
from helpers import logs_of, two_workers, wait_for

import rigl_tf
from scripts.train import train


def rows_of(directory):
    with (directory / "metrics.csv").open(newline="") as file:
        return [{name: float(x) for name, x in row.items()} for row in csv.DictReader(file)]


def wait_for_checkpoint(directory, processes, log_directory):
    deadline = time.monotonic() + 600
    while not list(directory.glob("checkpoint-*.keras")):
        assert all(process.poll() is None for process in processes), logs_of(log_directory)
        assert time.monotonic() < deadline
        time.sleep(0.005)


EPOCHS = 4
SETTINGS = {"epochs": EPOCHS, "batch_size": 64, "update_frequency": 7, "learning_rate": 0.02}


def start_run(log_directory, run_directory, *arguments):
    return two_workers(
        log_directory, "-m", "scripts.train", f"--output_dir={run_directory}", *arguments
    )


def kill_and_resume(tmp_path, victim):
    """Kills a worker after the first checkpoint, asserts that the other ends, and resumes."""
    directory = tmp_path / "run"
    flags = [f"--{name}={value}" for name, value in SETTINGS.items()]
    with start_run(tmp_path, directory, "--strategy=multi_worker", *flags) as processes:
        wait_for_checkpoint(directory, processes, tmp_path)
        processes[victim].send_signal(signal.SIGKILL)
        assert processes[1 - victim].wait(600) == 3
    assert "train.py: Another worker stopped" in logs_of(tmp_path)[1 - victim]
    assert not (directory / "report.json").exists()
    num_epochs = len(rows_of(directory))
    with start_run(tmp_path, directory, "--resume") as processes:
        codes, output = wait_for(processes, tmp_path)
    assert codes == [0, 0], output
    chief, other = logs_of(tmp_path)
    # The row of an epoch comes before its checkpoint, and may be the only one of the two.
    assert any(f"Epoch {epoch}/{EPOCHS}" in chief for epoch in (num_epochs, num_epochs + 1))
    assert f"Epoch 1/{EPOCHS}" not in chief
    assert "Epoch" not in other
    return directory


def test_the_script_resumes_after_a_worker_was_killed(tmp_path):
    directory = kill_and_resume(tmp_path, victim=1)
    report = json.loads((directory / "report.json").read_text())
    assert train.run(tmp_path / "alone", given={**SETTINGS, "jit_compile": False}) == 0
    got, want = rows_of(directory), rows_of(tmp_path / "alone")
    assert len(got) == EPOCHS
    for row, expected in zip(got, want, strict=True):
        assert row == pytest.approx(expected, rel=1e-3, abs=1e-3)
    alone = json.loads((tmp_path / "alone" / "report.json").read_text())
    assert report["num_active"] == alone["num_active"]
    assert report["exported_test_accuracy"] == report["test_accuracy"]
    # Nothing of the cluster is in what was saved.
    model = keras.saving.load_model(directory / "model.keras")
    assert rigl_tf.sparsity_summary(model).sparsity == pytest.approx(0.9, abs=1e-3)


@pytest.mark.slow
def test_the_resumed_run_is_bit_identical(tmp_path):
    (tmp_path / "killed").mkdir()
    killed = kill_and_resume(tmp_path / "killed", victim=0)
    whole = tmp_path / "whole"
    flags = [f"--{name}={value}" for name, value in SETTINGS.items()]
    with start_run(tmp_path, whole, "--strategy=multi_worker", *flags) as processes:
        codes, output = wait_for(processes, tmp_path)
    assert codes == [0, 0], output
    assert (killed / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()
    models = [keras.saving.load_model(path / "model.keras") for path in (killed, whole)]
    np.testing.assert_array_equal(*(program.state(model) for model in models))


@pytest.mark.slow
def test_what_the_chief_refuses_ends_the_other(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with start_run(tmp_path, tmp_path, "--strategy=multi_worker") as processes:
        codes, output = wait_for(processes, tmp_path)
    assert codes == [2, 3]
    assert "`output_dir` must not hold a run" in output[0]
    assert "Another worker stopped" in output[1]
