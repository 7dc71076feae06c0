"""The lottery protocols on gradient flow and on greedy selection: a few steps, small data."""

import statistics

import keras
import numpy as np
import pytest
from running import rows_of, run

import models
import rigl_tf
from scripts import datasets, experiments, lottery
from scripts.protocols import (
    gradient_flow,
    gradient_flow_claims,
    gradient_flow_page,
    greedy,
    greedy_page,
    networks,
    pages,
    spectra,
)

_CASE = "mnist_lenet_300_100"


def run_protocol(protocol, data_dir, output_dir, monkeypatch, *arguments):
    networks._load.cache_clear()
    monkeypatch.setattr(protocol, "CASES", {_CASE: protocol.CASES[_CASE]})
    name = protocol.__name__.rsplit(".", 1)[-1]
    directories = f"--data_dir={data_dir}", f"--output_dir={output_dir}"
    run(lottery, f"--protocol={name}", *directories, "--seeds=0", "--epochs=1", *arguments)
    page = (output_dir / f"{protocol.NAME}.md").read_text()
    assert (output_dir / f"{protocol.NAME}.png").stat().st_size > 1000
    return rows_of(output_dir / f"{protocol.NAME}.csv"), page


# Gradient flow.


@pytest.mark.slow
def test_gradient_flow(mnist_dir, tmp_path, monkeypatch):
    plan = gradient_flow.Plan(
        0.98, ("dense", "neuron"), 2, num_held_out=50, lanczos_steps=3, rewind=0.4
    )
    monkeypatch.setitem(gradient_flow.PLANS, "lenet_300_100", plan)
    monkeypatch.setattr(gradient_flow, "COEFFICIENTS", np.linspace(0, 1, 3))
    monkeypatch.setattr(gradient_flow_claims, "_INSIDE", np.ones(3, bool))
    monkeypatch.setattr(gradient_flow, "SPECTRA", (("rigl", "dense"),))
    rows, page = run_protocol(gradient_flow, mnist_dir, tmp_path, monkeypatch, "--max_examples=300")
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
    norms = pages.from_text(of["rigl", "dense"]["norms"])
    assert [step for step, _ in norms] == [0, 1, 2]
    updates = pages.from_text(of["rigl", "dense"]["updates"])
    assert [(step, before) for step, before, _ in updates] == norms[1:]
    assert not of["static", "dense"]["updates"]
    # The same masks and weights at first, so the same norm.
    assert pages.from_text(of["static", "dense"]["norms"])[0] == norms[0]
    # On the line to the pruned network the ends are these two.
    for name in ("ticket", "rewound", "scratch"):
        errors = [float(error) for error in of[name, "dense"]["errors_to_pruned"].split()]
        ends = [100 - float(of[key]["accuracy"]) for key in ((name, "dense"), ("pruned", "dense"))]
        assert [errors[0], errors[-1]] == pytest.approx(ends, abs=0.01)
    cosines = {name: float(of[name, "dense"]["start_cosine"]) for name in ("ticket", "rewound")}
    assert 0.8 < cosines["ticket"] < cosines["rewound"] < 1
    # It goes on from the first step.
    assert [step for step, _ in pages.from_text(of["rewound", "dense"]["norms"])] == [1, 2]
    assert abs(float(of["scratch", "dense"]["start_cosine"])) < 0.1
    assert 0 < float(of["ticket", "dense"]["disagreement"]) < 1
    points = [point for row in rows for point in gradient_flow.POINTS if row[f"spectrum_{point}"]]
    assert points == list(gradient_flow.POINTS)
    smallest, largest, *shares = map(float, of["rigl", "dense"]["spectrum_end"].split())
    assert smallest < largest
    assert sum(shares) == pytest.approx(1, abs=0.02)

    mean = statistics.mean(norm for _, norm in pages.from_text(of["static", "neuron"]["norms"])[1:])
    accuracy = float(of["static", "neuron"]["accuracy"])
    assert f"| static, neuron | {accuracy:.2f} | " in page
    assert f" | {mean:.3f} | – | – |" in page
    aware, static = (float(of["static", init]["accuracy"]) for init in ("neuron", "dense"))
    says = "confirmed (1 of 1)" if aware > static else "not confirmed (0 of 1)"
    assert f"| … and static training with it is more accurate | {says} |" in page


def test_the_numbers_of_the_gradient_flow_page():
    row = {"norms": "0:9 1:1 2:3", "updates": "1:2:3 2:4:4"}
    assert gradient_flow_claims.start_norm(row) == 9
    assert gradient_flow_claims.mean_norm(row) == 2
    assert gradient_flow_claims.changes(row) == [0.5, 0]
    # From -0.2 to 1.2: the ends of the line are the third and the third last.
    errors = [50, 50, 4, *[5] * 8, 9, 6, 50, 50]
    row = {"errors_to_pruned": " ".join(map(str, errors))}
    assert gradient_flow_claims.barrier(row) == pytest.approx(9 - (4 + 0.9 * (6 - 4)))
    falls = [50, 50, *np.linspace(9, 4, 11), 50, 50]
    row = {"errors_to_pruned": " ".join(map(str, falls))}
    assert gradient_flow_claims.barrier(row) == pytest.approx(0)
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
    lines = gradient_flow_page._spectrum_section(rows)
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
    experiments.compile_classifier(model, keras.optimizers.SGD(), False, 1)
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


# Greedy selection.


def test_greedy(mnist_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(greedy, "SIZES", {"lenet_300_100": (2, 6)})
    monkeypatch.setattr(greedy, "METHODS", ("local", "random"))
    monkeypatch.setattr(greedy, "NUM_EXAMPLES", 100)
    rows, page = run_protocol(greedy, mnist_dir, tmp_path, monkeypatch, "--max_examples=300")
    assert [(row["method"], row["num_units"]) for row in rows] == [
        (method, size) for method in greedy.METHODS for size in ("6", "2")
    ]
    of = {(row["method"], row["num_units"]): row for row in rows}
    for method, objective in (
        ("local", "local"),
        *(("random", objective) for objective in greedy.OBJECTIVES),
    ):
        # What the selection says and what we measure of its result are the same.
        curve = dict(pages.from_text(of[method, "6"][f"{objective}_curve"]))
        assert [*curve] == [1, 2, 3, 4, 5, 6]
        for size in ("2", "6"):
            measured = float(of[method, size][f"{objective}_discrepancy"])
            assert curve[int(size)] == pytest.approx(measured, rel=1e-3)
    row = of["random", "2"]
    cells = " → ".join(f"{float(row[c]):.2f}" for c in ("accuracy", "fine_tuned_accuracy"))
    assert f"| random | {cells} | " in page
    below = [
        float(of["local", size]["local_discrepancy"])
        < float(of["random", size]["local_discrepancy"])
        for size in ("2", "6")
    ]
    claim = "Greedy units are below random ones, local imitation"
    assert f"| {claim} | {pages.tally(below)} |" in page
    fit = greedy_page.fits(pages.from_text(of["local", "6"]["local_curve"]))
    assert f"| {_CASE} | local | local | {fit['exponential']:.3f} |" in page


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
    exponential = greedy_page.fits([(n, 3 * np.exp(-0.25 * n)) for n in counts])
    assert exponential["exponential"] == pytest.approx(1)
    assert exponential["rate"] == pytest.approx(0.25)
    assert exponential["power"] < 0.95
    power = greedy_page.fits([(n, 3 / n**2) for n in counts])
    assert power["power"] == pytest.approx(1)
    assert power["exponent"] == pytest.approx(2)
    assert power["exponential"] < 0.95
    # Half of the slope is missing: 1 - (1 - 1 / 2) ** 2.
    assert power["1/n"] == pytest.approx(0.75)
    assert greedy_page.fits([(1, 0.5), (2, 0.25), (3, 0.0)]) is None


# What pages share.


@pytest.mark.parametrize(
    ("outcomes", "says"),
    [
        ([True, True], "confirmed (2 of 2)"),
        ([False], "not confirmed (0 of 1)"),
        ([True, False], "confirmed in part (1 of 2)"),
        ([], "not run"),
    ],
)
def test_tally(outcomes, says):
    assert pages.tally(outcomes) == says


@pytest.mark.parametrize(
    ("holds", "says"),
    [(np.True_, "confirmed (+1)"), (0, "not confirmed (+1)"), (None, "not testable here (+1)")],
)
def test_verdict(holds, says):
    assert pages.verdict(holds, "+1") == says


def test_spread():
    assert pages.spread([1.0, "", 3.0], 1) == "2.0 ± 1.4"
    assert pages.spread([1.0, 3.0], sign="+") == "+2.00 ± 1.41"
    assert pages.spread([2.0]) == "2.00"
    assert pages.spread([]) == pages.spread([""]) == "–"


def test_series_in_a_column():
    pairs = [(0.0, 1.5), (6000.0, 1e-7)]
    assert pages.to_text(pairs) == "0:1.5 6000:1e-07"
    assert pages.from_text(pages.to_text(pairs)) == pairs
