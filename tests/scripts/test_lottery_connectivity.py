"""The protocol `connectivity`: a few steps on small data, and what its page says."""

import dataclasses

import keras
import numpy as np
import pytest
from running import cells_of, line_of, page_of, run_protocol

from scripts.lottery import connectivity, networks
from scripts.lottery.pages import connectivity as connectivity_page

pytestmark = pytest.mark.usefixtures("without_xla")

CASE = "mnist_lenet_300_100"


def test_connectivity(small_case, monkeypatch):
    case, *directories = small_case
    settings = (("plain", 0), ("plain", 0.2), ("large batch", 0))
    case = dataclasses.replace(case, batch_size=10)
    plan = connectivity.Plan(case, settings, (0, 1), 0.8)
    monkeypatch.setattr(connectivity, "CASES", {CASE: plan})
    monkeypatch.setattr(connectivity, "_NUM_POINTS", 3)
    rows, page = run_protocol(connectivity, *directories, "--seeds=1")
    assert [(row["training"], row["rewind"], row["level"]) for row in rows] == [
        (name, str(share), level) for level in "01" for name, share in settings
    ]
    for row in rows:
        errors = [float(error) for error in row["errors"].split()]
        assert float(row["accuracy"]) == pytest.approx(100 - (errors[0] + errors[2]) / 2, abs=0.01)
        ends = (errors[0] + errors[2]) / 2
        assert float(row["barrier"]) == pytest.approx(max(errors) - ends, abs=0.01)
        assert 0 < float(row["angle"]) < 1
        assert (row["barrier_to_dense"] == "") == (row["level"] == "0")
        has_repelled = row["level"] == "1" and row["rewind"] == "0"
        assert (row["ticket_repelled"] != "") == has_repelled
        # The ends are the dense solution and the ticket as it was trained there.
        if has_repelled:
            last = float(row["errors_to_dense"].split()[-1])
            assert 100 - last == pytest.approx(float(row["ticket"]), abs=0.01)
    assert float(rows[3]["ticket_repelled_angle"]) > float(rows[3]["angle_to_dense"])
    # From the same weights, only the order of later steps differs: the angle is smaller.
    assert float(rows[1]["angle"]) < float(rows[0]["angle"])
    cells = cells_of(page, "plain", "20%", "80.0%")
    assert cells[:2] == [f"{float(rows[4][name]):.2f}" for name in ("accuracy", "barrier")]


@pytest.mark.usefixtures("lottery_flags")
def test_the_setting_of_maene():
    """Adam, from zero in each training, and another initializer."""
    case = dataclasses.replace(connectivity.CASES["mnist_lenet_maene"].case, network="tiny")
    limit = (6 / 784) ** 0.5
    training, found = connectivity.Training(case, "plain", 0.5), []
    for _ in range(2):
        model = networks.build(case, seed=1)
        kernel = model.layers[1].kernel.numpy()
        assert 0.95 * limit < np.max(np.abs(kernel)) <= limit
        training(model, seed=2, start=2, stop=5)
        assert type(model.optimizer) is keras.optimizers.Adam
        assert model.optimizer.iterations == 3
        assert model.optimizer.learning_rate == np.float32(1.2e-3)
        found.append(model.get_weights())
    for first, second in zip(*found, strict=True):
        np.testing.assert_array_equal(first, second)


def connectivity_row(each, barriers, drops):
    """Of a run; `{setting: value}` for those that are not 0."""
    setting = each["training"], each["rewind"]
    level = each["level"]
    barrier = barriers.get(setting, 0.0)
    return {
        **each,
        "sparsity": 1 - 0.5**level,
        "accuracy": 98.0 - (drops.get(setting, 0.0) if level else 0.0),
        "barrier": barrier,
        "angle": 0.4,
        "barrier_to_dense": "" if not level else barrier if level == 2 else 5.0,
        "angle_to_dense": "" if not level else 0.1 * level,
        "ticket": 97.0,
        "ticket_repelled": 95.5,
        "ticket_repelled_angle": 0.9,
        "reinitialised": 96.0,
        "reinitialised_repelled": 95.75,
    }


def test_page_of_connectivity(lottery_flags):
    def page_with(barriers, drops, other_drops=None):
        drops = drops, other_drops or drops
        rows = [
            connectivity_row(each, barriers, drops[seed])
            for seed in (0, 1)
            for each in connectivity.wanted(CASE, seed)
        ]
        page = page_of(connectivity, connectivity_page, rows)
        return lambda start: line_of(page, start)[-1]

    plain = "plain", 0
    cell = page_with({plain: 4.0, ("large batch", 0): 1.0}, {plain: 1.0, ("warm-up", 0): 0.1})
    assert cell("Frankle et al. | The dense") == "contradicted (-2.00 ± 0.00)"
    assert cell("Frankle et al. | From a later") == "confirmed (+4.00 ± 0.00)"
    # 3 levels of 5 settings; only the plain one from step 0 is not stable, nor does it match.
    matches = cell("Frankle et al. | A ticket")
    assert matches == "confirmed (15 of 15 confirmed, 0 contradicted)"
    assert cell("Frankle et al., Ma et al.") == "confirmed (+1.00 ± 0.00)"
    # The large batch, which gains less, counts; and of drops the warm-up.
    assert cell("Maene et al. | Large batches") == "confirmed (+3.00 ± 0.00)"
    assert cell("Maene et al. | With these") == "confirmed (+0.90 ± 0.00)"
    assert cell("Maene et al. | The ticket of") == "contradicted (-2.00 ± 0.00)"
    assert cell("Maene et al. | The sparsest") == "not testable here (nor is the medium one)"
    assert cell("Maene et al. | Tickets train") == "contradicted (-0.10 ± 0.00)"
    # 1.5 points, of which 0.2 are none; 0.25 of a reinitialised one.
    assert cell("Maene et al. | A ticket that") == "confirmed (+1.25 ± 0.00)"

    cell = page_with({}, {plain: 0.3})
    assert cell("Frankle et al. | The dense") == "confirmed (+2.00 ± 0.00)"
    none = "not testable here (of 15 none is clearly not stable)"
    assert cell("Frankle et al. | A ticket") == none
    assert cell("Maene et al. | Large batches") == "undecided (+0.00 ± 0.00)"
    assert cell("Maene et al. | The ticket of").startswith("confirmed")
    assert cell("Maene et al. | The sparsest") == "confirmed (+3.00 ± 0.00)"

    # t(1) = 12.71 for 95 %: 1.0 and -0.8, 0.9 on both sides of their mean.
    cell = page_with({}, {plain: 1.0}, {plain: -0.8})
    assert cell("Frankle et al., Ma et al.") == "undecided (+0.10 ± 11.44)"
