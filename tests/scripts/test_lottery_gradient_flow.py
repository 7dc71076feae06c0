"""The protocol `gradient_flow`: a few steps on small data, and what its page says."""

import statistics

import keras
import numpy as np
import pytest
from running import run_protocol

from scripts.common import classifiers, datasets, tables
from scripts.lottery import gradient_flow, networks, spectra
from scripts.lottery.pages import gradient_flow as page_of_flow

pytestmark = pytest.mark.usefixtures("without_xla")

CASE = "mnist_lenet_300_100"
SMALL = ("--max_examples=300", "--seeds=0")


@pytest.mark.slow
def test_gradient_flow(mnist_dir, tmp_path, monkeypatch):
    plan = gradient_flow.Plan(
        0.98, ("dense", "neuron"), 2, num_held_out=50, lanczos_steps=3, rewind=0.4
    )
    monkeypatch.setitem(gradient_flow.PLANS, "lenet_300_100", plan)
    monkeypatch.setattr(gradient_flow, "COEFFICIENTS", np.linspace(0, 1, 3))
    monkeypatch.setattr(page_of_flow, "_INSIDE", np.ones(3, bool))
    monkeypatch.setattr(gradient_flow, "SPECTRA", (("rigl", "dense"),))
    monkeypatch.setattr(gradient_flow, "CASES", {CASE: gradient_flow.CASES[CASE]})
    rows, page = run_protocol(gradient_flow, mnist_dir, tmp_path, *SMALL)
    kinds = [(row["network"], row["init"]) for row in rows]
    assert kinds == [
        *(("static", init) for init in ("dense", "neuron")),
        *(("rigl", init) for init in ("dense", "neuron")),
        ("pruned", "dense"),
        ("ticket", "dense"),
        ("rewound", "dense"),
        *(("scratch", init) for init in ("dense", "neuron")),
    ]
    of = dict(zip(kinds, rows, strict=True))
    # 3 steps; mask updates at each but the first.
    norms = tables.from_text(of["rigl", "dense"]["norms"])
    assert [step for step, _ in norms] == [0, 1, 2]
    updates = tables.from_text(of["rigl", "dense"]["updates"])
    assert [(step, before) for step, before, _ in updates] == norms[1:]
    assert not of["static", "dense"]["updates"]
    # The same masks and weights at first, so the same norm.
    assert tables.from_text(of["static", "dense"]["norms"])[0] == norms[0]
    # On the line to the pruned network the ends are these two.
    for name in ("ticket", "rewound", "scratch"):
        errors = [float(error) for error in of[name, "dense"]["errors_to_pruned"].split()]
        ends = [100 - float(of[key]["accuracy"]) for key in ((name, "dense"), ("pruned", "dense"))]
        assert [errors[0], errors[-1]] == pytest.approx(ends, abs=0.01)
    cosines = {name: float(of[name, "dense"]["start_cosine"]) for name in ("ticket", "rewound")}
    assert 0.8 < cosines["ticket"] < cosines["rewound"] < 1
    # It goes on from the first step.
    assert [step for step, _ in tables.from_text(of["rewound", "dense"]["norms"])] == [1, 2]
    assert abs(float(of["scratch", "dense"]["start_cosine"])) < 0.1
    assert 0 < float(of["ticket", "dense"]["disagreement"]) < 1
    points = [point for row in rows for point in gradient_flow.POINTS if row[f"spectrum_{point}"]]
    assert points == list(gradient_flow.POINTS)
    smallest, largest, *shares = map(float, of["rigl", "dense"]["spectrum_end"].split())
    assert smallest < largest
    assert sum(shares) == pytest.approx(1, abs=0.02)

    mean = statistics.mean(
        norm for _, norm in tables.from_text(of["static", "neuron"]["norms"])[1:]
    )
    accuracy = float(of["static", "neuron"]["accuracy"])
    assert f"| static, neuron | {accuracy:.2f} | " in page
    assert f" | {mean:.3f} | – | – |" in page
    aware, static = (float(of["static", init]["accuracy"]) for init in ("neuron", "dense"))
    says = f"undecided ({aware - static:+.2f}, one seed)"
    assert f"| … and static training with it is more accurate | {says} |" in page


def test_the_numbers_of_the_gradient_flow_page():
    row = {"norms": "0:9 1:1 2:3", "updates": "1:2:3 2:4:4"}
    assert page_of_flow.start_norm(row) == 9
    assert page_of_flow.mean_norm(row) == 2
    assert page_of_flow.changes(row) == [0.5, 0]
    # From -0.2 to 1.2: the ends of the line are the third and the third last.
    errors = [50, 50, 4, *[5] * 8, 9, 6, 50, 50]
    row = {"errors_to_pruned": " ".join(map(str, errors))}
    assert page_of_flow.barrier(row) == pytest.approx(9 - (4 + 0.9 * (6 - 4)))
    falls = [50, 50, *np.linspace(9, 4, 11), 50, 50]
    row = {"errors_to_pruned": " ".join(map(str, falls))}
    assert page_of_flow.barrier(row) == pytest.approx(0)
    num_bins = len(spectra.EDGES) - 1
    shares = [0.25, *[0] * (num_bins // 2 - 1), 0.5, *[0] * (num_bins // 2 - 1), 0.25]
    text = " ".join(map(str, (-1, 1, *shares)))
    assert spectra.from_text(text).negative_share == 0.25


def test_only_exact_spectra_tell_what_is_below_zero():
    num_bins = len(spectra.EDGES) - 1
    text = " ".join(map(str, (-1, 1, 0.25, *[0] * (num_bins - 2), 0.75)))
    row = {"network": "static", "init": "dense"}
    row |= {f"spectrum_{point}": "" for point in gradient_flow.POINTS} | {"spectrum_end": text}
    rows = [row | {"case": case} for case in ("mnist_lenet5", "mnist_lenet_300_100")]
    lines = page_of_flow._spectrum_section(rows)
    assert "| mnist_lenet5 | static, dense | end | -1 | 1 | 25.0 |" in lines
    assert "| mnist_lenet_300_100 | static, dense | end | -1 | 1 | – |" in lines


def test_normalisations_have_the_statistics_of_the_data(monkeypatch):
    """Not those that come with the weights, which fit nothing between two solutions."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(5.0, 2.0, (200, 4)).astype("float32"), np.arange(200, dtype="int32") % 3
    data = datasets.Dataset(x, y, x, y, 3, "numbers")
    monkeypatch.setattr(networks, "data_of", lambda case: data)
    layers = [keras.layers.BatchNormalization(), keras.layers.Dense(3)]
    model = keras.Sequential([keras.Input((4,)), *layers])
    classifiers.compile_classifier(model, keras.optimizers.SGD(), False, 1)
    case = networks.CASES["mnist_lenet5"]  # batches of 100, exact Hessians

    variance = (x[:100].var(0) + x[100:].var(0)) / 2 + layers[0].epsilon
    logits = (x - x.mean(0)) / np.sqrt(variance) @ layers[1].kernel.numpy()
    expected = 100 * np.mean(logits.argmax(axis=1) != y)
    assert networks.error_between(case, model) == pytest.approx(expected, abs=0.01)

    weights = model.get_weights()
    others = [*weights[:2], weights[2] + 7, weights[3] * 9, *weights[4:]]
    assert gradient_flow.spectrum(case, model, weights) == gradient_flow.spectrum(
        case, model, others
    )
