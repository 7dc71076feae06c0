"""The protocol `greedy`: a few steps on small data, and what its page says."""

import numpy as np
import pytest
from running import run_protocol

import models
import rigl_tf
from scripts.common import tables
from scripts.lottery import greedy
from scripts.lottery.pages import greedy as page_of_greedy

pytestmark = pytest.mark.usefixtures("without_xla")

CASE = "mnist_lenet_300_100"
SMALL = ("--max_examples=300", "--seeds=0")


def test_greedy(mnist_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(greedy, "SIZES", {"lenet_300_100": (2, 6)})
    monkeypatch.setattr(greedy, "METHODS", ("local", "random"))
    monkeypatch.setattr(greedy, "NUM_EXAMPLES", 100)
    monkeypatch.setattr(greedy, "CASES", {CASE: greedy.CASES[CASE]})
    rows, page = run_protocol(greedy, mnist_dir, tmp_path, *SMALL)
    assert [(row["method"], row["num_units"]) for row in rows] == [
        (method, size) for method in greedy.METHODS for size in ("6", "2")
    ]
    of = {(row["method"], row["num_units"]): row for row in rows}
    for method, objective in (
        ("local", "local"),
        *(("random", objective) for objective in greedy.OBJECTIVES),
    ):
        # What the selection says and what we measure of its result are the same.
        curve = dict(tables.from_text(of[method, "6"][f"{objective}_curve"]))
        assert [*curve] == [1, 2, 3, 4, 5, 6]
        for size in ("2", "6"):
            measured = float(of[method, size][f"{objective}_discrepancy"])
            assert curve[int(size)] == pytest.approx(measured, rel=1e-3)
    row = of["random", "2"]
    cells = " → ".join(f"{float(row[c]):.2f}" for c in ("accuracy", "fine_tuned_accuracy"))
    assert f"| random | {cells} | " in page
    claim = "Greedy units are below random ones, local imitation"
    assert f"| {claim} | undecided (0 of 2 confirmed, 0 contradicted) |" in page
    fit = page_of_greedy.fits(tables.from_text(of["local", "6"]["local_curve"]))
    assert f"| {CASE} | local | local | {fit['exponential']:.3f} |" in page


@pytest.mark.parametrize("imitate", greedy.OBJECTIVES)
def test_discrepancy_of_filters_beside_a_shortcut(imitate):
    model = models.resnet20((8, 8, 3), width=0.25)
    place = greedy.PLACES["resnet20"]
    inputs = np.random.default_rng(0).normal(size=(30, 8, 8, 3)).astype("float32")
    measure = greedy.Discrepancy(model, place, inputs)
    assert measure.num_units == 16
    assert measure(np.full(16, 1 / 16)) == {"local": 0.0, "global": 0.0}
    assert measure(np.zeros(16))["local"] == 1.0
    assert 0 < measure(np.zeros(16))["global"] < 1  # what goes past the filters is left
    selection = rigl_tf.lottery.select_units(model, place.layer, inputs, 5, imitate=imitate)
    shares = np.zeros(16)
    shares[selection.units] = selection.weights
    # What the selection says and what we measure of its result are the same.
    expected = selection.discrepancies[-1] / measure.norms[imitate]
    assert measure(shares)[imitate] == pytest.approx(expected, rel=1e-3)


def test_fits():
    counts = range(1, 20)
    exponential = page_of_greedy.fits([(n, 3 * np.exp(-0.25 * n)) for n in counts])
    assert exponential["exponential"] == pytest.approx(1)
    assert exponential["rate"] == pytest.approx(0.25)
    assert exponential["power"] < 0.95
    power = page_of_greedy.fits([(n, 3 / n**2) for n in counts])
    assert power["power"] == pytest.approx(1)
    assert power["exponent"] == pytest.approx(2)
    assert power["exponential"] < 0.95
    # Half of the slope is missing: 1 - (1 - 1 / 2) ** 2.
    assert power["1/n"] == pytest.approx(0.75)
    assert page_of_greedy.fits([(1, 0.5), (2, 0.25), (3, 0.0)]) is None


def _greedy_row(seed, method, discrepancy, accuracy):
    size = min(greedy.SIZES["lenet_300_100"])
    row = {"case": CASE, "seed": seed, "method": method, "num_units": size}
    return row | {"local_discrepancy": discrepancy, "fine_tuned_accuracy": accuracy}


def test_verdicts_of_greedy_selection():
    """Of logarithms at each size, and of accuracies beside the better rival of each seed."""
    rows = []
    for seed, factor in enumerate((0.5, 0.4, 0.45)):
        rows += [_greedy_row(seed, "local", factor, 90.0 + seed)]
        rows += [_greedy_row(seed, greedy.RANDOM, 1.0, 89.0 + seed)]
        rows += [_greedy_row(seed, greedy.LARGEST, 0.5 if seed else 0.3, 90.0)]
    below = page_of_greedy._compare(rows, "local", greedy.RANDOM)
    assert below == "confirmed (1 of 1 confirmed, 0 contradicted)"
    below = page_of_greedy._compare(rows, "local", greedy.LARGEST)
    assert below == "undecided (0 of 1 confirmed, 0 contradicted)"
    assert page_of_greedy._compare(rows, "global", greedy.RANDOM) == "not run"
    # 0, 1 and 1 point above: a mean of 0.67, a deviation of 0.58, and t(2) = 4.30.
    assert page_of_greedy._is_most_accurate(rows) == "undecided (+0.67 ± 1.43)"
