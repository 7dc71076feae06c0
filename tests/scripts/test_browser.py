"""The benchmark in the browser on a tiny network, where there is a Chromium."""

import pytest
from running import needs_browser, rows_of, run

from scripts.benchmark import browser as benchmark
from scripts.benchmark import deployment


@needs_browser
@pytest.mark.filterwarnings("ignore:.*the sparsity is a share of these:UserWarning")
def test_benchmark(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "_CHANNELS", (32, 64))
    monkeypatch.setattr(benchmark, "_STRIDES", (1, 2))
    run(
        benchmark,
        "--sparsities=0.9",
        "--epochs=1",
        "--size=16",
        "--variants=60 % zeros",
        f"--output_dir={tmp_path}",
    )
    trained, variant = rows_of(tmp_path / "browser.csv")
    assert (trained["network"], trained["foreseen"]) == ("mobilenet", "2 of 2")
    assert (variant["network"], variant["foreseen"]) == ("60 % zeros", "0 of 3")
    assert float(trained["accuracy"]) > 0
    text = (tmp_path / "browser.md").read_text()
    assert "| 90% |" in text
    assert "| 60 % zeros | 60% | 0 of 3 |" in text
    assert (tmp_path / "browser.png").stat().st_size > 10_000


@needs_browser
def test_deployment(tmp_path):
    run(
        deployment,
        "--networks=mlp",
        "--variants=block,int8",
        "--epochs=1",
        f"--output_dir={tmp_path}",
    )
    for each in rows_of(tmp_path / "deployment.csv"):
        # These take less than what a page without isolation can measure.
        assert 0 < float(each["browser_least_ms"]) <= float(each["browser_ms"])
        assert float(each["browser_dense_ms"]) > 0
    assert "A dash: not measured" not in (tmp_path / "deployment.md").read_text()


def row(**settings):
    settings = {"network": "mobilenet", "sparsity": 0.9, "accuracy": 98.0, **settings}
    times = {
        f"{kind}_{name}": 10.0 if kind == "dense" else 5.0
        for kind in ("dense", "sparse")
        for name in ("ms", "least_ms", "most_ms", "bytes", "gzip_bytes")
    }
    return {"foreseen": "3 of 3", "speedup": 2.0, "change": "", **times, **settings}


def test_the_page_counts_what_was_foreseen(monkeypatch):
    class Flags:
        size, dataset, epochs = 96, "digits", 4

    monkeypatch.setattr(benchmark, "FLAGS", Flags)
    rows = [
        row(),
        row(network="right"),
        row(network="wrong", foreseen="0 of 3", change="stride 1"),
        row(network="right, too", foreseen="0 of 3", sparse_least_ms=9.0),
    ]
    text = benchmark.page(rows, 98.0, 2.0)
    assert "2 of 3." in text
    times = "10.0 (10.0–10.0) | 5.0 (5.0–5.0) | 2.00"
    assert f"| wrong | 90% | 0 of 3 | {times} | no | stride 1 |" in text
