"""Tests of `scripts.compare`, on a run of `scripts.train` and others that are made from it."""

import json
import shutil
import warnings

import numpy as np
import pytest
from running import given

from scripts import compare
from scripts.common import plots
from scripts.train import train


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "one"
    labels = np.arange(40) % 3
    images = np.eye(4, dtype="float32")[labels][:, np.newaxis] * np.ones((1, 4, 1), "float32")
    data = directory.parent / "rows.npz"
    arrays = {"x_train": images, "y_train": labels, "x_test": images, "y_test": labels}
    np.savez(data, **arrays)
    quick = {"epochs": 2, "batch_size": 10, "update_frequency": 3, "jit_compile": False}
    assert train.run(directory, given={"dataset": str(data), **quick}) == 0
    return directory


def other(run, name, **settings):
    """A run with other settings, and other numbers."""
    directory = run.parent / name
    shutil.copytree(run, directory, dirs_exist_ok=True)
    config = json.loads((directory / "config.json").read_text())
    config["settings"] |= settings
    config["versions"]["keras"] = "3.12.0"
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "metrics.csv").write_text("epoch,loss,val_accuracy\n1,2.5,0.25\n2,1.5,0.75\n")
    return directory


def main(output_dir, *paths):
    with given(compare._define_flags, f"--output_dir={output_dir}"):
        return compare.main(["compare", *map(str, paths)])


def test_two_runs(run, tmp_path, capsys):
    two = other(run, "two", sparsity=0.5, seed=7)
    (two / "report.json").unlink()
    assert main(tmp_path / "out", run, two) == 0
    text = capsys.readouterr().out
    page = (tmp_path / "out" / "comparison.md").read_text()
    assert "| run | sparsity | seed | version of keras |" in page
    assert "| two | 0.5 | 7 | 3.12.0 |" in page
    assert "| one | 0.9 | 0 |" in page
    # The second was stopped before it was exported.
    assert "| two | 2 of 2 | 75.00% | 1.5 |  |  |  |  |  |" in page
    report = json.loads((run / "report.json").read_text())
    assert f"| {report['num_active']:,} | {report['flops_ratio']:.4g} |" in page
    assert (tmp_path / "out" / "comparison.png").stat().st_size > 10_000
    for word in ("version of keras", "75.00%", "comparison.png"):
        assert word in text


def test_runs_of_the_same_name_and_settings(run, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "a" / "one")
    assert main(tmp_path, run, tmp_path / "a" / "one") == 0
    assert "same settings, data and versions" in capsys.readouterr().out
    page = (tmp_path / "comparison.md").read_text()
    assert "Settings that differ" not in page
    assert "| a/one | 2 of 2 |" in page


def test_what_is_no_run(run, tmp_path, capsys):
    broken = other(run, "broken")
    (tmp_path / "empty").mkdir()

    def says(*paths):
        assert main(tmp_path / "out", *paths) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert not (tmp_path / "out").exists()
        return line

    assert "compare.py: Give two run directories or more" in says()
    assert f"Received: {run}" in says(run)
    assert "Give each run directory once" in says(run, run / ".." / run.name)
    assert f"with a config.json. Received: {tmp_path / 'empty'}" in says(run, tmp_path / "empty")
    for text, message in (
        ("{", "line 1"),
        ("[1]", r"it is no dictionary: [1]"),
        ('{"test_accuracy": "x"}', "test_accuracy is no number: 'x'"),
        ('{"num_active": [1]}', "num_active is no number: [1]"),
    ):
        (broken / "report.json").write_text(text)
        line = says(run, broken)
        assert f"report.json must be as the run wrote it. Received: {broken}" in line
        assert message in line
    for text in ("1,2.5,0.25\n2,1.5\n", "1,2.5,0.25\n2,1.5,0.7", "1,2.5,0.25\n2,1.5,x\n"):
        (broken / "metrics.csv").write_text("epoch,loss,val_accuracy\n" + text)
        line = says(run, broken)
        assert f"whole rows of numbers, as the run wrote it. Received: {broken}" in line
    (broken / "metrics.csv").write_text("epoch,loss\n")
    assert "must have a finished epoch in metrics.csv" in says(run, broken)
    (broken / "metrics.csv").unlink()
    assert "must have a finished epoch in metrics.csv" in says(run, broken)
    for text in ("{}", "[1]", '"x"', '{"settings": 1, "data": {}, "versions": {}}'):
        (broken / "config.json").write_text(text)
        line = says(run, broken)
        assert f"config.json must be as the run wrote it. Received: {broken}" in line


def test_a_number_that_is_not_known(run, tmp_path):
    two = other(run, "unknown")
    (two / "report.json").unlink()
    (two / "metrics.csv").write_text("epoch,loss,val_accuracy\n1,2.5,0.5\n2,nan,nan\n")
    assert main(tmp_path, run, two) == 0
    page = (tmp_path / "comparison.md").read_text()
    assert "| unknown | 2 of 2 |  | nan |" in page


def test_runs_without_the_curves_of_the_plot(run, tmp_path):
    paths = other(run, "bare_1"), other(run, "bare_2")
    for path in paths:
        (path / "metrics.csv").write_text("epoch,val_loss\n1,0.5\n")
    assert main(tmp_path, *paths) == 0


def test_names_are_text(run, tmp_path, capsys):
    names = ("_hidden", r"$\frac{$", "a|b", ":warning:", "[bold]x", "日本")
    paths = [other(run, f"names/{name}") for name in names]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        assert main(tmp_path, run, *paths) == 0
    text = capsys.readouterr().out
    assert [name for name in names if f" {name} " not in text] == []
    page = (tmp_path / "comparison.md").read_text()
    assert r"| a\|b | 2 of 2 |" in page
    assert (tmp_path / "comparison.png").exists()


@pytest.mark.parametrize("number", [2, 22, 45])
def test_the_legend_names_every_run_and_leaves_the_curves_their_height(
    number, run, tmp_path, monkeypatch
):
    seen = {}

    def look(figure, path):
        save(figure, path)
        (legend,), axes = figure.legends, figure.axes[-1]
        seen["names"] = [text.get_text().strip() for text in legend.get_texts()]
        seen["inches"] = axes.get_position().height * figure.get_figheight()
        box = legend.get_window_extent()
        seen["inside"] = box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1

    save = plots.save
    monkeypatch.setattr(plots, "save", look)
    found = {f"_{n}_{'x' * 90}": compare.Run(run) for n in range(number)}
    compare.plot(found, tmp_path / "plot.png")
    assert [name.strip("_…") for name in seen["names"]] == [str(n) for n in range(number)]
    assert seen["inches"] > 3
    assert seen["inside"]
