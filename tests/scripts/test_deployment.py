"""`scripts.benchmark.deployment`: its rows and its page, on small data and without a browser."""

import numpy as np
import pytest
from absl import flags
from running import cells_of, given, rows_of, run

from scripts.benchmark import deployment, deployment_cases, deployment_page


@pytest.fixture(autouse=True)
def no_browser(monkeypatch):
    monkeypatch.setattr(deployment.chromium, "missing", lambda: "Chromium not installed")


def test_rows_and_page(tmp_path):
    arguments = ["--networks=mlp", "--epochs=2", f"--output_dir={tmp_path}"]
    run(deployment, *arguments, "--variants=dense,block,int8")
    first = rows_of(tmp_path / "deployment.csv")
    run(deployment, *arguments)
    rows = rows_of(tmp_path / "deployment.csv")
    assert rows[:3] == first  # what is done is not done again
    rows = {row["variant"]: row for row in rows}
    assert len(rows) == 5
    dense, sparse = int(rows["dense"]["weights"]), 30 * 128 + 128 * 2 + 128 + 128 + 2
    assert dense == sparse + 128 * 128
    assert int(rows["unstructured"]["active"]) == sparse + 128 * 128 - int(0.9 * 128 * 128)
    assert int(rows["channels"]["active"]) == 30 * 64 + 64 * 64 + 64 * 2 + 64 + 64 + 2
    sizes = {variant: int(row["bytes"]) for variant, row in rows.items()}
    assert max(sizes, key=sizes.get) == "dense"
    assert max(sizes.values()) > 4 * dense
    assert (rows["unstructured"]["native"], rows["block"]["native"]) == ("0", "1")
    for row in rows.values():
        assert float(row["accuracy"]) > 50
        assert 0 < float(row["python_least_ms"]) <= float(row["python_ms"])

    page = (tmp_path / "deployment.md").read_text()
    kernels = "unstructured 90%: 0 of 1 kernels, block 90%: 1 of 1 kernels"
    target = "a phone with ARM (not measured): kernels that skip zeros there"
    assert cells_of(page, target) == [kernels]
    assert cells_of(page, "a web page (LiteRT.js)") == ["–"]
    assert "A dash: not measured" in page
    assert f"{int(rows['int8']['bytes']):,} ({int(rows['int8']['compressed_bytes']):,})" in page
    assert cells_of(page, "MLP 128-128", "scikit-learn's breast cancer table")[0] == "400 and 169"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lenet_300_100", "ds_cnn", "mobilenet"])
def test_the_other_networks(name, tmp_path, mnist_dir):
    run(
        deployment,
        f"--networks={name}",
        "--epochs=1",
        "--max_examples=256",
        f"--data_dir={mnist_dir}",
        f"--output_dir={tmp_path}",
    )
    rows = {row["variant"]: row for row in rows_of(tmp_path / "deployment.csv")}
    assert len(rows) == 5
    dense = rows.pop("dense")
    assert all(int(row["bytes"]) < int(dense["bytes"]) for row in rows.values())
    assert float(rows["channels"]["python_ms"]) < float(dense["python_ms"])


def test_flags_that_are_wrong():
    wrong = pytest.raises(flags.IllegalFlagValueError, match="--networks must be of lenet_300_100")
    with wrong, given(deployment._define_flags, "--networks=mlp,lenet"):
        pass


def row(variant, accuracy=98.0, network="mlp", **settings):
    names = [f"{where}_{end}" for where in ("python", "browser") for end in _ENDS]
    sizes = {"bytes": 1000, "compressed_bytes": 900, "kernels": 1, "native": 0}
    numbers = {**dict.fromkeys(names, 1.0), **sizes, "native_in_browser": 1, "load": 1.0}
    run = {"network": network, "variant": variant, "seed": 0, "epochs": 5, "examples": 400}
    return {**run, "test_examples": 100, "accuracy": accuracy, **numbers, **settings}


_ENDS = ("ms", "least_ms", "most_ms", "dense_ms")


def test_what_is_chosen():
    page = "\n".join(
        deployment_page.page(
            [
                row("dense"),
                row("unstructured", accuracy=97.2, compressed_bytes=300, browser_ms=0.95),
                row("block", accuracy=97.0, python_ms=0.5, bytes=100),
                row("channels", accuracy=96.9, python_ms=0.1, browser_ms=0.1, bytes=90),
                row("int8", bytes=500, python_ms=0.9, browser_ms=0.02, browser_dense_ms=0.03),
            ]
        )
    )
    # Channels lose more than a point, so they stand in brackets. One step of a browser's clock is
    # no difference.
    x86, web = "an x86 server or PC (LiteRT)", "a web page (LiteRT.js)"
    channels = "(channels 50%: 10.0 times as fast, -1.1 points)"
    assert cells_of(page, x86) == [f"**block 90%: 2.0 times as fast, -1.0 points** {channels}"]
    assert cells_of(page, web) == [f"dense {channels}"]
    small = cells_of(page, "where the download must be small (compressed bytes)")
    assert small == ["**unstructured 90%: 3.0 times smaller, -0.8 points**"]
    # What is stored sparse is no choice here.
    (flash,) = cells_of(page, "a microcontroller (bytes of flash; time not measured)")
    assert flash.startswith("**int8: 2.0 times smaller, +0.0 points** (channels 50%: 11.1 times")


def test_seeds_are_averaged_and_short_runs_left_out():
    rows = [
        row("dense", accuracy=97.0, python_ms=1.0),
        row("dense", accuracy=98.0, python_ms=3.0, seed=1),
        row("dense", accuracy=10.0, examples=200),
        row("dense", network="lenet_300_100", browser_ms="", browser_dense_ms=""),
    ]
    page = "\n".join(deployment_page.page(rows))
    assert "Seeds [0, 1]" in page
    tables = [line for line in page.splitlines() if line.startswith("| MLP 128-128 |")]
    assert tables[1] == "| MLP 128-128 | 97.50 | – | – | – | – |"
    assert "| LeNet-300-100 | – | – | – | – | – |" in page
    assert cells_of(page, "a web page (LiteRT.js)") == ["–", "–"]


def test_keywords_differ_by_their_words():
    data = deployment_cases.keywords(600, 300)
    assert data.x_train.shape == (600, 49, 10, 1)
    assert (data.x_train.dtype, data.y_train.dtype, data.num_classes) == ("float32", "int32", 12)
    assert set(np.unique(data.y_test)) == set(range(12))
    # Made again, they are the same.
    np.testing.assert_array_equal(data.x_test, deployment_cases.keywords(600, 300).x_test)
