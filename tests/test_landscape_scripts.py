"""Runs the scripts on the landscape and on the input pixels: a few steps, small data."""

import numpy as np
import pytest
from running import rows_of, run

from scripts import input_pixels, landscape


def numbers(text):
    return [float(number) for number in text.split()]


def test_landscape(mnist_dir, tmp_path, capsys, monkeypatch):
    # Seven epochs of 20 steps: masks are updated once, at step 100.
    arguments = [f"--data_dir={mnist_dir}", f"--output_dir={tmp_path}", "--epochs=7", "--seeds=3"]
    run(landscape, *arguments)
    assert capsys.readouterr().out.startswith("1 runs to do, about 4 minutes")
    (row,) = rows_of(tmp_path / "landscape.csv")
    losses = {name: numbers(row[name]) for name in (*landscape._PATHS, *landscape._TRAININGS)}
    for path in landscape._PATHS:
        assert len(losses[path]) == 21
        assert losses[path][0] == pytest.approx(losses["pruning"][-1], abs=1e-5)
        assert losses[path][-1] == pytest.approx(losses["static"][-1], abs=1e-5)
    for name in landscape._TRAININGS:
        assert len(losses[name]) == 8
        assert losses[name][-1] < 2.3
    for name in ("static again", "rigl from static"):
        assert losses[name][0] == losses["static"][-1]
    # Each curve is trained to be lower than the line.
    for path in landscape._CURVES:
        assert np.mean(losses[path]) < np.mean(losses["straight line"])

    page = (tmp_path / "landscape.md").read_text()
    assert f"| static again | {losses['static again'][-1]:.3f} ± 0.000 |" in page
    assert f"| straight line | {max(losses['straight line']):.3f} ± 0.000 |" in page
    assert (tmp_path / "landscape.png").stat().st_size > 1000

    # No seed is repeated.
    monkeypatch.setattr(landscape, "run_seed", lambda *_, **__: pytest.fail("repeated"))
    run(landscape, *arguments)
    assert capsys.readouterr().out.startswith("0 runs to do")
    assert (tmp_path / "landscape.md").read_text() == page


def test_the_verdicts_of_the_landscape():
    def row(line, curve, dense, again, rigl):
        paths = dict(zip(landscape._PATHS, (line, curve, curve, dense), strict=True))
        trainings = {"static": "9 2", "pruning": "9 0", "static again": again}
        return {**paths, **trainings, "rigl from static": rigl}

    one = row("0 3 2", "0 1 2", "0 0 2", "2 1.5", "2 0.5")
    two = row("0 2.5 2", "0 2.1 2", "0 2.5 2", "2 0.9", "2 1.1")
    text = "\n".join(landscape._verdicts([one, two]))
    assert "straight line | confirmed (2 of 2 seeds)" in text
    assert "quadratic, in the union | confirmed in part (1 of 2 seeds)" in text
    assert "dense space | confirmed in part (1 of 2 seeds)" in text
    assert "stays | confirmed in part (1 of 2 seeds)" in text
    assert "pruned loss | confirmed in part (1 of 2 seeds)" in text
    text = "\n".join(landscape._verdicts([one]))
    assert "quadratic, in the union | not confirmed (0 of 1 seeds)" in text
    assert landscape.rise([1.0, 4.0, 3.0]) == 1.0
    assert landscape.rise([1.0, 2.0, 3.0]) == 0.0


def test_input_pixels(mnist_dir, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(input_pixels, "_METHODS", ("rigl",))
    arguments = [f"--data_dir={mnist_dir}", f"--output_dir={tmp_path}", "--epochs=7", "--seeds=3"]
    run(input_pixels, *arguments)
    assert capsys.readouterr().out.startswith("1 runs to do")
    rows = rows_of(tmp_path / "input_pixels.csv")
    assert [row["method"] for row in rows] == ["rigl"]
    inside = {28 * y + x for y in range(4, 24) for x in range(4, 24)}
    page = (tmp_path / "input_pixels.md").read_text()
    for row in rows:
        # 0, 1, 7 // 4 = 1, 7 // 2 = 3 and all 7 epochs
        images = [numbers(text) for text in row["pixels"].split("/")]
        assert len(images) == 4
        at_border, without = numbers(row["at_border"]), numbers(row["without"])
        assert len(at_border) == len(without) == 8
        for epoch, image in zip((0, 1, 3, 7), images, strict=True):
            assert len(image) == 784
            assert sum(image) == 784 * 300 - int(0.99 * 784 * 300)
            outside = sum(count for pixel, count in enumerate(image) if pixel not in inside)
            assert at_border[epoch] == pytest.approx(outside / 2352, abs=1e-4)
            assert without[epoch] == image.count(0)
        # The masks change once, at step 100 of 140.
        assert images[0] == images[2] != images[3]
        cells = f"| {100 * at_border[0]:.1f} ± 0.0 % | {100 * at_border[1]:.1f} ± 0.0 % |"
        assert f"{row['method']}: connections at the border {cells}" in page
    assert (tmp_path / "input_pixels.png").stat().st_size > 1000

    monkeypatch.setattr(input_pixels, "train", lambda *_, **__: pytest.fail("repeated"))
    run(input_pixels, *arguments)
    assert capsys.readouterr().out.startswith("0 runs to do")
    assert (tmp_path / "input_pixels.md").read_text() == page
