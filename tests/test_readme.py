"""Runs the Python blocks of README.md, and checks what it links to."""

import pathlib
import re

import numpy as np
import pytest
import tensorflow as tf
from helpers import covers_part, ends_early

import rigl_tf

pytestmark = pytest.mark.built_in_fit

ROOT = pathlib.Path(__file__).parent.parent
README = ROOT / "README.md"


@pytest.fixture(scope="module")
def text():
    assert README.is_file(), "README.md is missing"
    return README.read_text(encoding="utf-8")


def blocks(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def check_invariant(model):
    weights = {weight.path: weight.numpy() for weight in model.weights}
    masks = rigl_tf.get_masks(model)
    assert not all(mask.all() for mask in masks.values())
    for path, mask in masks.items():
        np.testing.assert_array_equal(weights[path], np.where(mask, weights[path], 0))


@ends_early
@covers_part
def test_the_python_blocks_run_in_order(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = blocks(text, "python")
    assert len(found) >= 2
    namespace = {"__name__": "readme"}
    for number, block in enumerate(found, 1):
        exec(compile(block, f"README.md, Python block {number}", "exec"), namespace)
        check_invariant(namespace["sparse"])
    exports = list(tmp_path.rglob("saved_model.pb"))
    assert exports
    assert tf.saved_model.load(str(exports[0].parent)).signatures["serving_default"]


def test_relative_links_exist(text):
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    links = re.findall(r"\]\(([^)\s]+)\)", prose)
    assert links
    missing = [
        link
        for link in links
        if not re.match(r"[a-z]+:|#", link) and not (ROOT / link.partition("#")[0]).exists()
    ]
    assert missing == []


def test_scripts_and_targets_exist(text):
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)|`make (\w+)", text, flags=re.MULTILINE):
        assert re.search(rf"^{''.join(target)}:", makefile, flags=re.MULTILINE)
    modules = re.findall(r"python -m (scripts[\w.]+)", text)
    assert modules
    for module in modules:
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), module
