"""What is in `results/`: pages whose commands exist, and plots that are small."""

import collections
import importlib
import pathlib
import re

import pytest

from scripts.common import experiments, plots, provenance
from scripts.common.rows import Rows
from scripts.rigl import index

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


# Tables whose rows are of several revisions, or of none: they are still to be made anew.
_OF_OLDER_CODE = {
    "cifar10_resnet20",
    "lottery_connectivity",
    "lottery_correlation",
    "lottery_gradient_flow",
    "lottery_sanity",
    "lottery_tickets",
}


def codes_of(path):
    """`{table: codes of its rows}`: of older rows, which have none, the revisions."""
    found = collections.defaultdict(set)
    for row in Rows(path, ()).rows:
        if row.get("revision"):
            clean = provenance.is_clean(row["revision"])
            code = row.get("code") or row["revision"]
            found[experiments.table_of(row)].add(code if clean else "not committed")
    return found


def test_the_rows_of_a_table_are_of_one_committed_code():
    wrong = set()
    for path in RESULTS.glob("*.csv"):
        for codes in codes_of(path).values():
            if len(codes) > 1 or "not committed" in codes:
                wrong.add(path.stem)
    assert wrong == _OF_OLDER_CODE


def test_the_claims_on_top_of_the_index_are_those_of_the_rows():
    page = (RESULTS / "README.md").read_text()
    table = page.partition(index.BEGIN)[2].partition(index.END)[0]
    assert table.strip().splitlines() == index.lines(RESULTS)


def test_the_index_is_written_between_its_marks(tmp_path):
    page = tmp_path / "README.md"
    page.write_text(f"before\n{index.BEGIN}\nold\n{index.END}\nafter\n")
    index.write(page, ["| new |"])
    assert page.read_text() == f"before\n{index.BEGIN}\n\n| new |\n\n{index.END}\nafter\n"
    page.write_text("no marks")
    with pytest.raises(ValueError, match="must have the marks"):
        index.write(page, [])
    assert page.read_text() == "no marks"


def test_verdicts_of_a_claim_in_words():
    at = {0.8: ("undecided", ""), 0.9: ("confirmed", ""), 0.98: ("confirmed", "")}
    assert index._verdicts(at) == "undecided at 80 %; confirmed at 90 and 98 %"
    assert index._verdicts({0.9: ("confirmed", "")}) == "confirmed"
    assert index._verdicts({}) == "not run"
