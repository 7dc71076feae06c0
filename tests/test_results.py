"""Tests of `scripts.results`: rows on disk, tables, plots, provenance."""

import csv
import math
import os

import keras
import pytest
import tensorflow as tf

from scripts import results

KEY = ("method", "sparsity", "seed")


def row(method="rigl", sparsity=0.9, seed=0, accuracy=97.5):
    return {"method": method, "sparsity": sparsity, "seed": seed, "accuracy": accuracy}


def test_rows_are_there_again(tmp_path):
    path = tmp_path / "rows.csv"
    first = results.Rows(path, KEY)
    assert first.rows == []
    assert not path.exists()
    first.add(row())
    assert results.Rows(path, KEY).rows == [row()]
    first.add(row("dense", 0.0, 2, 98.25))
    again = results.Rows(path, KEY)
    assert again.rows == first.rows == [row(), row("dense", 0.0, 2, 98.25)]
    assert [type(value) for value in again.rows[1].values()] == [str, float, int, float]
    again.add(row(seed=1))
    assert [run["seed"] for run in results.Rows(path, KEY).rows] == [0, 2, 1]


def test_a_run_is_known_by_its_key(tmp_path):
    rows = results.Rows(tmp_path / "rows.csv", KEY)
    assert row() not in rows
    rows.add(row())
    for known in (rows, results.Rows(tmp_path / "rows.csv", KEY)):
        assert row(accuracy=0) in known
        assert {"method": "rigl", "sparsity": 0.9, "seed": 0} in known
        for other in (row("set"), row(sparsity=0.95), row(seed=1)):
            assert other not in known


def test_columns_that_came_or_went(tmp_path):
    """A row of an older script has no `loss`, and one of a newer script no `accuracy`."""
    path = tmp_path / "rows.csv"
    results.Rows(path, KEY).add(row())
    newer = {"method": "rigl", "sparsity": 0.9, "seed": 1, "loss": 0.25}
    rows = results.Rows(path, KEY)
    assert newer not in rows
    rows.add(newer)
    again = results.Rows(path, KEY)
    assert again.rows == [{**row(), "loss": ""}, {**newer, "accuracy": ""}]
    assert row() in again
    assert newer in again
    with_another_key = results.Rows(path, (*KEY, "epochs"))
    assert {**newer, "epochs": 1} not in with_another_key


def test_text_with_commas_and_quotes(tmp_path):
    path = tmp_path / "rows.csv"
    results.Rows(path, KEY).add(row(method='RigL, "fast"'))
    assert results.Rows(path, KEY).rows[0]["method"] == 'RigL, "fast"'


@pytest.mark.parametrize("name", ["replace", "writerows"])
def test_a_write_that_fails_leaves_the_rows(name, tmp_path, monkeypatch):
    path = tmp_path / "rows.csv"
    rows = results.Rows(path, KEY)
    rows.add(row())
    before = path.read_bytes()

    def fail(*_):
        raise OSError(28, "No space left on device")

    if name == "replace":
        monkeypatch.setattr(os, "replace", fail)
    else:
        monkeypatch.setattr(csv.DictWriter, "writerows", fail)
    with pytest.raises(OSError, match="No space left"):
        rows.add(row(seed=1))
    assert path.read_bytes() == before
    monkeypatch.undo()
    rows = results.Rows(path, KEY)
    assert row(seed=1) not in rows
    rows.add(row(seed=1))
    assert [entry.name for entry in tmp_path.iterdir()] == ["rows.csv"]


ROWS = [
    row("dense", 0.0, 0, 98.0),
    row("rigl", 0.9, 0, 97.0),
    row("rigl", 0.9, 1, 98.0),
    row("rigl", 0.9, 2, 99.0),
    row("rigl", 0.95, 0, 96.125),
    row("set", 0.95, 0, 90.0),
    row("set", 0.95, 1, 92.0),
]


def test_means():
    assert results.means(ROWS, "method", "sparsity", "accuracy") == {
        ("dense", 0.0): (98.0, 0.0, 1),
        ("rigl", 0.9): (98.0, 1.0, 3),
        ("rigl", 0.95): (96.125, 0.0, 1),
        ("set", 0.95): (91.0, pytest.approx(math.sqrt(2)), 2),
    }


def test_mean_table():
    table = results.mean_table(
        ROWS, "method", "sparsity", "accuracy", ["dense", "static", "set", "rigl"]
    )
    assert table == (
        "| method | sparsity 0 | sparsity 0.9 | sparsity 0.95 |\n"
        "| --- | --- | --- | --- |\n"
        "| dense | 98.00 | – | – |\n"
        "| set | – | – | 91.00 ± 1.41 |\n"
        "| rigl | – | 98.00 ± 1.00 | 96.12 |"
    )


def test_plot_means(tmp_path):
    path = tmp_path / "plot.png"
    results.plot_means(
        ROWS,
        "method",
        "sparsity",
        "accuracy",
        path,
        ["dense", "set", "static", "rigl"],
        title="Accuracy over sparsity",
        xlabel="sparsity",
        ylabel="accuracy (%)",
    )
    image = keras.utils.img_to_array(keras.utils.load_img(path))
    assert image.shape == (675, 1050, 3)
    colours = {tuple(colour) for colour in image.reshape(-1, 3).astype(int)}
    assert (31, 119, 180) in colours  # The first line with error bars: set.
    assert (255, 127, 14) in colours  # The second: rigl.


def test_versions(tmp_path, monkeypatch):
    versions = results.versions()
    assert versions["keras"] == keras.__version__
    assert versions["tensorflow"] == tf.__version__
    assert set(versions) == {"python", "tensorflow", "keras", "numpy", "revision", "machine"}
    flags = ["--epochs=2", "--data_dir=somewhere", "--output_dir=elsewhere"]
    monkeypatch.setattr("sys.argv", ["demo.py", *flags])
    line = results.provenance("scripts.demo")
    assert line.startswith("`python -m scripts.demo --epochs=2 --data_dir=DATA` (python ")
    assert f"keras {keras.__version__}" in line
    assert "\n" not in line


def test_revision(monkeypatch):
    assert results.git_revision()
    assert " " not in results.git_revision()
    monkeypatch.setenv("PATH", "")
    assert results.git_revision() == "unknown"
