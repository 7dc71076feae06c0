"""Runs that are killed or cannot be written, and the script that kills them."""

import os
import pathlib
import resource
import shutil

import keras
import numpy as np
import pytest
from running import rows_of
from running import run as run_script

from scripts.checks import faults, run_files
from scripts.train import runs, train


@pytest.fixture(scope="module")
def data_path(tmp_path_factory):
    generator = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("data") / "noise.npz"
    arrays = {f"x_{split}": generator.uniform(size=(40, 4, 4)) for split in ("train", "test")}
    arrays |= {f"y_{split}": np.arange(40) % 2 for split in ("train", "test")}
    np.savez(path, **arrays)
    return path


@pytest.fixture(scope="module")
def run(data_path, tmp_path_factory):
    """A finished run of two epochs of 4 steps."""
    directory = tmp_path_factory.mktemp("runs") / "run"
    assert train.run(directory, given=small(data_path)) == 0
    return directory


def small(data_path):
    quick = {"epochs": 2, "batch_size": 10, "update_frequency": 3, "jit_compile": False}
    return {"dataset": str(data_path), **quick}


def test_a_run_on_a_full_disk(data_path, run, tmp_path, no_space, capsys):
    directory = tmp_path / "run"
    (limit,) = [path.stat().st_size for path in run.glob("checkpoint-*")]
    no_space(limit - 1000)
    assert train.run(directory, given=small(data_path)) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("train.py: ")
    assert "cannot be written" in message
    assert f"{directory / 'checkpoint-0001.keras'}" in message
    assert sorted(path.name for path in directory.iterdir()) == ["config.json", "metrics.csv"]
    no_space(resource.getrlimit(resource.RLIMIT_FSIZE)[1])
    assert train.run(directory, resume=True) == 0
    assert run_files.differences(directory, run) == []


@pytest.fixture
def copy(run, tmp_path):
    return pathlib.Path(shutil.copytree(run, tmp_path / "copy"))


def test_damaged_metrics(copy, capsys):
    (copy / "report.json").unlink()
    model = keras.saving.load_model(copy / "checkpoint-0002.keras")
    path = copy / "metrics.csv"
    whole = path.read_bytes()
    header, first, second = whole.splitlines(keepends=True)
    for damaged in (
        b"",
        header,
        header + first,
        whole[:-1],
        whole[: whole.rindex(b",")] + b"\n",
        header + second + first,
        header + first + second.replace(b",", b",,", 1),
        header + first + second.replace(b".", b"\x00\xff", 1),
        b"\x89" * 500,
    ):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"a whole row for each of the 2 finished .* delete"):
            runs.RunDirectory(copy).restore(model, steps_per_epoch=4)
        assert path.read_bytes() == damaged
    assert train.run(copy, resume=True) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("train.py: metrics.csv must have a whole row")
    assert "delete checkpoint-0002.keras" in message
    path.write_bytes(whole)
    assert runs.RunDirectory(copy).restore(model, steps_per_epoch=4) == 2


# The script that kills runs.


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def test_broken_files_are_found(copy):
    assert run_files.broken_files(copy) == []
    for path in copy.glob("*.*"):
        truncate(path)
    truncate(copy / "export" / "variables" / "variables.index")
    broken = run_files.broken_files(copy)
    assert [text.split(":")[0] for text in broken] == sorted(path.name for path in copy.iterdir())


def test_files_that_contradict_others_are_found(copy):
    (copy / "checkpoint-0002.keras").rename(copy / "checkpoint-0001.keras")
    (copy / "tmp1234").touch()
    (copy / ".tmp-model.keras").touch()
    broken = run_files.broken_files(copy)
    assert [text.split(":")[0] for text in broken] == ["checkpoint-0001.keras", "tmp1234"]
    assert "its optimizer is at step 8" in broken[0]


def test_differences_are_found(run, copy):
    assert run_files.differences(run, copy) == []
    path = copy / "metrics.csv"
    path.write_bytes(path.read_bytes().replace(b"1", b"2", 1))
    assert run_files.differences(run, copy) == ["metrics.csv"]
    model = keras.saving.load_model(copy / "model.keras")
    model.layers[-1].layer.bias.assign_add([1e-7, 0.0])
    model.save(copy / "model.keras")
    (one, two) = run_files.differences(run, copy)
    assert {one.split("/")[0], two.split("/")[0]} == {"metrics.csv", "model.keras"}
    (copy / ".export-1234").mkdir()
    assert ".export-1234" in run_files.differences(run, copy)[0]


@pytest.mark.parametrize(
    ("names", "want"),
    [
        (["config.json"], "before the first checkpoint"),
        (["metrics.csv", ".tmp-checkpoint-0001.keras"], "writing checkpoint"),
        (["checkpoint-0001.keras"], "mask update"),
        (["checkpoint-0001.keras", ".tmp-metrics.csv"], "writing metrics, report or config"),
        (["checkpoint-0004.keras"], "training"),
        (["checkpoint-0006.keras", ".tmp-model.keras"], "writing model.keras"),
        (["model.keras", ".export-1234"], "writing export"),
        (["model.keras", "export"], "before or after the export"),
    ],
)
def test_what_was_hit(names, want, tmp_path):
    for name in names:
        (tmp_path / name).touch()
    assert faults.moment(tmp_path, 1, before={}) == want
    before = faults.state(tmp_path)
    assert faults.moment(tmp_path, 1, before) == "resumed, nothing written yet"


def test_faults(data_path, tmp_path, monkeypatch):
    settings = ("--epochs=2", "--batch_size=10", "--nojit_compile", f"--dataset={data_path}")
    monkeypatch.setattr(faults, "_EPOCHS", 2)
    monkeypatch.setattr(faults, "_SETTINGS", settings)
    monkeypatch.setattr(faults, "AIMS", ("several",))
    run_script(faults, "--num_tries=1", "--seed=3", f"--output_dir={tmp_path}")
    (row,) = rows_of(tmp_path / "faults.csv")
    assert row["moments"].count("; ") == 2
    assert (row["identical"], row["half_written"]) == ("1", "0")
    lines = (tmp_path / "faults.md").read_text().splitlines()
    assert any(line.startswith("| several | 1 | 3 | 1 | 0 |") for line in lines)
    assert "| all | 1 | 3 | 1 | 0 |  |" in lines
