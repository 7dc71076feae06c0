"""What is in `results/`: pages whose commands exist, and plots that are small."""

import importlib
import pathlib
import re

import pytest

from scripts.common import plots

ROOT = pathlib.Path(__file__).parents[2]
RESULTS = ROOT / "results"


def modules():
    """The modules that README, site and pages of results run."""
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *RESULTS.glob("*.md")]
    found = [re.findall(r"python -m (scripts[\w.]*)", page.read_text()) for page in pages]
    return sorted({name for names in found for name in names})


@pytest.mark.parametrize("name", modules())
def test_commands_on_pages_exist(name):
    module = importlib.import_module(name)
    if hasattr(module, "__path__"):
        module = importlib.import_module(f"{name}.__main__")
    assert callable(module.main)
    assert f"python -m {name}" in module.__doc__


def test_every_plot_is_small():
    sizes = {path.name: path.stat().st_size for path in RESULTS.glob("*.png")}
    assert len(sizes) >= 10
    assert {name: size for name, size in sizes.items() if size > plots.MAX_BYTES} == {}
