"""The matrix of versions: which cells there are, what a run finds, what the page says."""

import pathlib
import platform
import sys

import pytest

from scripts.checks import matrix


def row(python="3.13.5", keras="3.12.1", **values):
    found = {"tensorflow": "2.21.0", "numpy": "2.4.0", "passed": 400, "failed": 0, "seconds": 300}
    return {"python": python, "keras": keras, **found, "revision": "git-1", **values}


def test_the_cells_are_those_that_can_be():
    assert matrix.cells_of("") == matrix.CELLS
    assert len(matrix.CELLS) == 7
    assert ("3.10", "3.15") not in matrix.CELLS
    assert matrix.cells_of("3.11:3.14,3.13:3.15") == [("3.11", "3.14"), ("3.13", "3.15")]
    for wrong in ("3.11", "3.11:3.12:3.13", "3.11:three", "3.11.2:3.12"):
        with pytest.raises(ValueError, match=r"must be like 3\.11:3\.12.*Received: " + wrong):
            matrix.cells_of(wrong)
    with pytest.raises(ValueError, match=r"has 3\.10:3\.15, but no release"):
        matrix.cells_of("3.10:3.15")


def test_the_suites_exist():
    assert all((matrix.ROOT / suite).exists() for suite in matrix.SUITES)


def test_the_last_run_of_a_cell_counts(tmp_path):
    path = tmp_path / "matrix.csv"
    assert matrix.read(path) == {}
    matrix.write(path, {("3.13", "3.12"): row(), ("3.10", "3.12"): row("3.10.4")})
    assert list(matrix.read(path)) == [("3.10", "3.12"), ("3.13", "3.12")]
    matrix.write(path, {**matrix.read(path), ("3.13", "3.12"): row(failed=2)})
    assert matrix.read(path)["3.13", "3.12"]["failed"] == "2"
    assert [each.name for each in tmp_path.iterdir()] == ["matrix.csv"]


def test_the_page_tells_what_passed_failed_and_was_not_run():
    rows = {("3.13", "3.12"): row(), ("3.13", "3.15"): row(keras="3.15.1", failed=2)}
    page = "\n".join(matrix.page(rows))
    assert "| Python | Keras 3.12 | Keras 3.15 |" in page
    assert "| 3.13 | 400 passed | 400 passed, **2 failed** |" in page
    assert "| 3.10 | not run | – |" in page
    assert "Not run: Python 3.10 with Keras 3.12, 3.11 with Keras 3.12" in page
    assert "| 3.13.5 | 3.15.1 | 2.21.0 |" in page


def test_the_saved_page_is_that_of_the_rows():
    results = matrix.ROOT / "results"
    lines = matrix.page(matrix.read(results / "matrix.csv"))
    assert (results / "matrix.md").read_text(encoding="utf-8") == "\n".join(lines) + "\n"


def test_a_python_that_is_not_there_is_told_of(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "results").mkdir()
    folders = [f"--folder={tmp_path / 'folder'}", f"--output_dir={tmp_path / 'results'}"]
    assert matrix.main(["--cells=3.99:3.15", *folders]) == 0
    assert "Python 3.99, Keras 3.15: not run, there is no python3.99" in capsys.readouterr().out
    page = (tmp_path / "results" / "matrix.md").read_text()
    assert "| 3.13 | not run | not run |" in page
    with pytest.raises(SystemExit):
        matrix.main(["--cells=new", *folders])
    assert "`--cells` must be like" in capsys.readouterr().err


def test_a_run_counts_the_tests(tmp_path, monkeypatch):
    asked = []
    versions = 'print("versions 3.13.5 3.15.1 2.21.0 2.4.6")'  # without importing them
    monkeypatch.setattr(matrix, "_VERSIONS", versions)
    monkeypatch.setattr(matrix, "install", lambda python, *what: asked.extend(what))
    tests = tmp_path / "test_some.py"
    tests.write_text(
        "import pytest\n"
        "def test_good():\n    pass\n"
        "def test_bad():\n    assert False\n"
        "def test_not_here():\n    pytest.skip()\n"
    )
    found = matrix.run(sys.executable, "3.15", tmp_path / "report.xml", [tests], processes="0")
    assert asked == ["keras>=3.15,<3.16"]
    assert (found["passed"], found["failed"]) == (1, 1)
    assert (found["python"], found["keras"], found["numpy"]) == ("3.13.5", "3.15.1", "2.4.6")
    assert set(found) == set(matrix.COLUMNS)
    nowhere = [pathlib.Path("no such test")]
    with pytest.raises(RuntimeError, match="exit code 4"):
        matrix.run(sys.executable, "3.15", tmp_path / "report.xml", nowhere, processes="0")


def test_the_interpreter_is_of_the_version(monkeypatch, tmp_path):
    assert matrix.interpreter(matrix.short(platform.python_version())) == sys.executable
    monkeypatch.setenv("PATH", str(tmp_path))
    assert matrix.interpreter("3.99") is None
    command = tmp_path / "python3.99"
    command.write_text("#!/bin/sh\nexit 127\n")
    command.chmod(0o755)
    assert matrix.interpreter("3.99") is None
    command.write_text("#!/bin/sh\nexit 0\n")
    assert matrix.interpreter("3.99") == str(command)


def test_uv_makes_the_environment_if_it_is_installed(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(matrix, "install", lambda python, *what: None)
    version = matrix.short(platform.python_version())
    assert [each[1:] for each in matrix.makers(version)] == [["-m", "venv", "--clear"]]
    assert matrix.makers("3.99") == []
    uv = tmp_path / "uv"
    uv.write_text(f"#!{sys.executable}\nimport pathlib, sys\npathlib.Path(sys.argv[-1]).mkdir()\n")
    uv.chmod(0o755)
    assert [each[0] for each in matrix.makers("3.99")] == ["uv"]
    python = matrix.environment("3.99", tmp_path)
    assert python == tmp_path / "3.99" / "bin" / "python"
    assert (tmp_path / "3.99" / "complete").exists()
    # It cannot get this Python: the next way is tried, and there is none.
    uv.write_text(f"#!{sys.executable}\nraise SystemExit(2)\n")
    assert matrix.environment("3.98", tmp_path) is None
