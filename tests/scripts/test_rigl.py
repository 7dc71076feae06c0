"""Each experiment of the RigL paper for a few steps on small data."""

import collections
import dataclasses
import functools
import gzip
import itertools
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from absl import app
from running import cells_of, given, rows_of, run

import models
import rigl_tf
from models import resnet_cifar
from scripts.common import datasets, experiments, methods, tables
from scripts.rigl import (
    ablations,
    big_sparse,
    compression,
    input_pixels,
    landscape,
    language,
    live_units,
    methods_claims,
    methods_page,
    methods_table,
    small_dense,
    structures,
)

pytestmark = pytest.mark.usefixtures("without_xla")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)
    for name, shape, size in (("mnist", (28, 28), 200), ("cifar10", (32, 32, 3), 128)):
        arrays = {}
        for split, count in (("train", size), ("test", 20)):
            arrays[f"x_{split}"] = generator.integers(0, 256, (count, *shape)).astype("uint8")
            arrays[f"y_{split}"] = generator.integers(0, 10, count).astype("uint8")
        np.savez(path / f"{name}.npz", **arrays)
    text = b"to be or not to be, that is the question. " * 600
    (path / "text.txt.gz").write_bytes(gzip.compress(text))
    return path


def resnet4(input_shape, l2):
    """The first convolution of ResNet-20, the block that halves the image, and the classifier."""
    inputs = keras.Input(input_shape)
    x = resnet_cifar._conv_batch_norm(inputs, 4, 1, l2, "conv_1")
    x = keras.layers.ReLU()(x)
    x = resnet_cifar._block(x, 8, 2, l2, "stage2_block1")
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, resnet_cifar.classifier(10, l2)(x))


def test_methods_on_cifar10(data_dir, tmp_path, monkeypatch):
    monkeypatch.setitem(models.BUILDERS, "resnet20", resnet4)
    setting = methods_table.SETTINGS["cifar10"]
    soon = dataclasses.replace(setting, update_frequency=2)
    monkeypatch.setitem(methods_table.SETTINGS, "cifar10", soon)
    arguments = ["--dataset=cifar10", f"--data_dir={data_dir}", f"--output_dir={tmp_path}"]
    chosen = ["--epochs=3", "--methods=static,rigl (erk)", "--sparsities=0.9"]
    run(methods_table, *arguments, *chosen)
    rows = rows_of(tmp_path / "cifar10_resnet20.csv")
    assert [row["method"] for row in rows] == ["static", "rigl (erk)"]
    assert all(float(row["loss"]) > 0 for row in rows)
    page = (tmp_path / "cifar10_resnet20.md").read_text()
    assert f"| static | {float(rows[0]['accuracy']):.2f} |" in page
    assert "Not run yet" not in page
    assert "What a training costs" not in page  # beside the dense network, which is not there
    assert (tmp_path / "cifar10_resnet20.png").stat().st_size > 1000


def test_small_dense_has_the_widths_that_were_found_best(mnist_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(small_dense, "SPARSITIES", (0.99,))
    output_dir = tmp_path / "out"
    same = [f"--data_dir={mnist_dir}", f"--output_dir={output_dir}", "--epochs=1"]
    only = [*same, "--methods=small_dense", "--sparsities=0.99", "--seeds=0", "--multipliers=1"]
    with pytest.raises(ValueError, match="run it before, with the same --dataset"):
        run(methods_table, *only)
    run(small_dense, *same, "--seeds=5")
    rows = rows_of(output_dir / "small_dense.csv")
    assert {(row["first"], row["second"]) for row in rows} == {
        ("3", "24"),
        ("2", "91"),
        ("1", "170"),
    }
    assert all(int(row["weights"]) <= 2664 for row in rows)
    first, second, accuracy = max(
        ((row["first"], row["second"], float(row["held_out"])) for row in rows),
        key=lambda row: row[2],
    )
    page = (output_dir / "small_dense.md").read_text()
    assert f"| 0.99 | 784-{first}-{second}-10 | **{accuracy:.2f}** |" in page
    built = []
    monkeypatch.setattr(
        models, "build", lambda name, **given: built.append(given) or models.lenet_300_100(**given)
    )
    run(methods_table, *only)
    assert [given["units"] for given in built] == [(int(first), int(second))]


@pytest.mark.parametrize("sparsity", [0.8, 0.9, 0.95, 0.98, 0.99])
def test_candidates_of_small_dense_use_up_the_weights(sparsity):
    most = small_dense.num_active(sparsity)
    assert most == pytest.approx(266_200 * (1 - sparsity), abs=3)
    found = small_dense.candidates(most)
    sizes = [784 * first + first * second + 10 * second for first, second in found]
    assert len(found) >= 3
    assert all(
        most - (first + 10) < size <= most for size, (first, _) in zip(sizes, found, strict=True)
    )
    assert max(first for first, _ in found) == (most - 10) // 785


def test_live_units(mnist_dir, tmp_path):
    output_dir = tmp_path / "out"
    chosen = ["sometimes random"]
    settings = {
        name: dataclasses.replace(live_units.SETTINGS[name], arguments={"update_frequency": 10})
        for name in chosen
    }
    arguments = [f"--data_dir={mnist_dir}", f"--output_dir={output_dir}", "--epochs=2"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(live_units, "SETTINGS", settings)
        run(live_units, *arguments, "--seeds=1", f"--settings={','.join(chosen)}")
        with pytest.raises(app.UsageError, match="--settings must be some of sometimes random"):
            run(live_units, *arguments, "--settings=DNW")
    rows = rows_of(output_dir / "live_units.csv")
    assert [row["setting"] for row in rows] == chosen
    for row in rows:
        assert 0 < int(row["firing_1"]) <= int(row["live_1"]) <= 300
        assert 0 < int(row["firing_2"]) <= int(row["live_2"]) <= 100
    page = (output_dir / "live_units.md").read_text()
    assert "## MNIST, 2 epochs" in page
    assert cells_of(page, "sometimes random")[-2:] == ["not run (–)"] * 2
    assert (output_dir / "live_units.png").stat().st_size > 1000


def test_settings_are_compared_with_rigl_and_with_set():
    counts = {"dataset": "mnist", "pixels": 700, "live_1": 130, "live_2": 60, "firing_1": 128}
    rows = [
        {"setting": name, "seed": seed, "accuracy": accuracy + 0.1 * seed, "firing_2": 50, **counts}
        for name, accuracy in (("RigL", 97.0), ("SET", 97.5), ("drop 0.1", 96.0))
        for seed in (0, 1, 2)
    ]
    table = "\n".join(live_units._table(rows))
    assert cells_of(table, "RigL")[1:] == [
        "97.10 ± 0.10",
        "700",
        "130",
        "128",
        "60",
        "50",
        "",
        "contradicted (-0.50 ± 0.00)",
    ]
    assert cells_of(table, "drop 0.1")[-2:] == [
        "contradicted (-1.00 ± 0.00)",
        "contradicted (-1.50 ± 0.00)",
    ]


def test_growth_that_is_sometimes_random():
    optimizer = live_units.SometimesRandom("sgd", end_step=101)
    kernel = keras.Variable(np.zeros((4, 4)))
    gradient = tf.constant(-np.arange(16.0).reshape(4, 4), "float32")
    optimizer.random_uniform = lambda kernel: tf.fill((4, 4), 0.3)
    np.testing.assert_array_equal(optimizer.grow_scores(kernel, None, gradient), -gradient)
    optimizer.random_uniform = lambda kernel: tf.fill((4, 4), 0.1)
    assert np.all(optimizer.grow_scores(kernel, None, gradient) == np.float32(0.1))


def _table(accuracies, seeds=(0, 1, 2)):
    """Rows of a table of methods: `{(method, epochs): mean accuracy}`, all at 90 %."""
    return [
        {
            "method": method,
            "sparsity": 0.9 * (method != "dense"),
            "seed": seed,
            "epochs": epochs,
            "accuracy": accuracy + 0.01 * seed * (seed + epochs % 3),
            "gflops": 2.0 * epochs if method == "dense" else 0.5 * epochs,
            "kilobytes": 40.0 if method == "dense" else 10.0,
            "step_ms": "",
            "live": "7-5-3" if method != "dense" else "",
            "firing": "4-2" if method != "dense" else "",
            "examples": 9,
        }
        for (method, epochs), accuracy in accuracies.items()
        for seed in seeds
    ]


def test_the_page_of_methods_has_costs_units_and_claims(tmp_path):
    rows = _table(
        {("dense", 10): 98, ("rigl", 10): 97, ("rigl", 50): 98, ("set", 10): 96, ("dnw", 10): 99}
    )
    with given(methods_table._define_flags, f"--output_dir={tmp_path}"):
        methods_page.write(methods_table.SETTINGS["mnist"], "page", rows, [{"method": "snip"}] * 3)
    page = (tmp_path / "page.md").read_text()
    assert cells_of(page, "rigl 5x")[1].startswith("98.0")
    assert "| dnw * | – | 99.0" in page
    assert "Dnw: dense weights and dense gradient in every step." in page
    # 0.5 of 2 GFLOPs for each epoch; no step was timed.
    assert "| rigl | 0.250 · 0.25 · nan |" in page
    assert "| rigl 5x | 1.250 · 0.25 · nan |" in page
    assert "| rigl | 7 · 5 · 4 · 3 · 2 |" in page
    source, *cells = cells_of(page, "RigL is better than SET")
    assert source == "Evci et al. 2020, figure 2 and table 4"
    assert "confirmed<br>+1.00 ± 0.00" in cells
    assert "Not run yet are 3 of the runs: snip 3." in page
    assert "They were fixed after these runs" in page  # which do not name their code
    assert 'set, rigl_inverted, rigl: trained with `execution="csr"`' in page
    assert (tmp_path / "page.png").exists()
    assert (tmp_path / "page_cost.png").exists()


def test_costs_of_a_table_without_csr_kernels(tmp_path):
    rows = _table({("dense", 30): 70, ("rigl", 30): 65})
    rows = [{**row, "live": "", "code": "code-1"} for row in rows]
    with given(methods_table._define_flags, f"--output_dir={tmp_path}"):
        methods_page.write(methods_table.SETTINGS["cifar10_small"], "page", rows, [])
    page = (tmp_path / "page.md").read_text()
    assert "All kernels are masked" in page
    assert "csr" not in page
    assert "They were fixed before the runs" in page


def test_what_is_trained_longer_has_fewer_seeds():
    with given(methods_table._define_flags, "--dataset=cifar10_small"):
        wanted = methods_table._wanted(methods_table._given(), 50_000)
    counts = collections.Counter((run["method"], run["epochs"]) for run in wanted)
    assert len(wanted) == 2 * 3 * 5 + 2 * 3 + 2 * 3
    assert counts["rigl (erk)", 30] == counts["static", 30] == 5
    assert counts["rigl (erk)", 150] == counts["set (erk)", 150] == 3
    assert counts["dense", 30] == counts["pruning", 30] == 3
    claimed = {
        series for claim in methods_claims.ON_CIFAR10 for series in (claim.first, claim.second)
    }
    assert {(name, times * 30) for name, times in claimed} == counts.keys()


def test_images_made_smaller():
    x = np.arange(2 * 4 * 6 * 3.0).reshape(2, 4, 6, 3)
    data = datasets.pooled(datasets.Dataset(x, [0, 1], x[:1], [0], 2, "small"), 2)
    assert data.x_train.shape == (2, 2, 3, 3)
    assert data.x_test.shape == (1, 2, 3, 3)
    np.testing.assert_allclose(data.x_train[1, 0, 2], x[1, :2, 4:].mean(axis=(0, 1)))


def test_methods_that_a_table_does_not_have(data_dir, tmp_path):
    arguments = ["--dataset=cifar10", f"--data_dir={data_dir}", f"--output_dir={tmp_path}"]
    with pytest.raises(app.UsageError, match=r"--methods must be some of dense, .*Received: dnw"):
        run(methods_table, *arguments, "--methods=dense,dnw")


def test_compression(data_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(compression, "_L2", (1e-4,))
    monkeypatch.setattr(compression, "_UPDATE_FREQUENCY", 1)  # one update, in four steps
    few = dict(itertools.islice(compression.METHODS.items(), 2))
    monkeypatch.setattr(compression, "METHODS", few)
    run(
        compression,
        f"--data_dir={data_dir}",
        f"--output_dir={tmp_path}",
        "--epochs=2",
        "--seeds=1",
    )
    first, second = rows_of(tmp_path / "compression.csv")
    assert (first["method"], second["method"]) == ("RigL", "RigL+")
    widths = [int(width) for width in first["architecture"].split("-")]
    pixels = compression._from_text(first["pixels"])
    assert len(pixels) == widths[0]
    # RigL+ starts from what RigL left, so it is no larger.
    left = [int(width) for width in second["architecture"].split("-")]
    assert all(small <= large for small, large in zip(left, widths, strict=True))
    assert {*compression._from_text(second["pixels"])} <= {*pixels}
    # 2352 + 3270 + 1000 connections at most, two FLOPs each.
    assert float(first["kflops"]) <= 13.25
    assert (
        f"| RigL+ | L2 0.0002, seed 1 | {second['architecture']} |"
        in (tmp_path / "compression.md").read_text()
    )


def test_structures(data_dir, tmp_path, monkeypatch):
    for name, network in structures.NETWORKS.items():
        often = dataclasses.replace(network, update_frequency=1)
        monkeypatch.setitem(structures.NETWORKS, name, often)
    monkeypatch.setitem(models.BUILDERS, "resnet20", resnet4)
    arguments = [f"--data_dir={data_dir}", f"--output_dir={tmp_path}", "--seeds=0"]
    run(structures, *arguments, "--epochs=3", "--sparsities=0.75")
    run(structures, *arguments, "--epochs=3", "--sparsities=0.9", "--methods=rigl")
    chosen = ["--dataset=cifar10", "--epochs=6", "--methods=rigl", "--structures=Block,NM"]
    run(structures, *arguments, *chosen, "--sparsities=0.75,0.8")
    rows = rows_of(tmp_path / "structures.csv")
    assert [row["structure"] for row in rows if row["dataset"] == "cifar10"] == [
        "NM(1, 4)",
        "Block((4, 1))",
    ]
    mnist = [row for row in rows if row["dataset"] == "mnist"]
    # Four structures at 90 %; at 75 % N of M, and the unstructured network beside it.
    assert collections.Counter(row["method"] for row in mnist) == {"rigl": 4 + 2, "pruning": 2}
    assert all(abs(float(row["reached"]) - float(row["sparsity"])) < 0.01 for row in mnist)
    page = (tmp_path / "structures.md").read_text()
    assert "## MNIST, LeNet-300-100" in page
    assert "## CIFAR-10 at 16 x 16 pixels, ResNet-20" in page
    assert "Not run yet" not in page
    assert (tmp_path / "structures_mnist.png").stat().st_size > 1000
    with pytest.raises(app.UsageError, match="--structures must be beginnings of"):
        run(structures, *arguments, "--structures=Rows")


def test_big_sparse(data_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(big_sparse, "WIDTHS", {0.1: (1, 2)})
    monkeypatch.setattr(big_sparse, "_UPDATE_FREQUENCY", 1)
    arguments = [f"--data_dir={data_dir}", f"--output_dir={tmp_path}", "--seeds=0,1"]
    run(big_sparse, *arguments, "--epochs=3")
    rows = rows_of(tmp_path / "big_sparse.csv")
    assert [row["times"] for row in rows] == ["1", "2"] * 2
    assert all(abs(int(row["weights"]) - 23_920) <= 3 for row in rows)
    page = (tmp_path / "big_sparse.md").read_text()
    assert "| 30-10, dense | 0.0 % | 23,920 | 47.8 |" in page
    assert "| 60-20, RigL | 50.6 % |" in page
    assert re.search(r"2 times as wide, is better than the dense 30-10 \| \w+ \([+-]", page)
    assert (tmp_path / "big_sparse.png").stat().st_size > 1000


def test_the_claims_of_big_sparse():
    gains = {1: [98.0, 98.1, 98.2], 2: [98.0, 98.0, 98.1], 4: [98.4, 98.5, 98.7]}
    rows = [
        {"width": 1.0, "times": times, "seed": seed, "accuracy": accuracy}
        for times, accuracies in gains.items()
        for seed, accuracy in enumerate(accuracies)
    ]
    found = big_sparse.judged(rows)
    claim = "Big-Sparse, 4 times as wide, is better than the dense 300-100"
    assert found[claim] == "confirmed (+0.43 ± 0.14)"
    assert list(found.values())[1] == "not run"


def test_which_of_the_published_numbers_are_hit():
    rows = [
        {
            "method": "RigL",
            "l2": 1e-4,
            "kflops": 12.6 + 0.1 * seed,
            "bytes": 32_000 + seed,
            "error_best": 1.4 + 0.1 * seed,
            "error_last": 1.5,
        }
        for seed in (-1, 1)
    ]
    rows[0]["error_last"] = 1.6
    table = "\n".join(compression._against_the_paper(rows))
    # One more value: t(1) = 12.706 for 95 %, times the deviation and the root of 1 + 1/2.
    half = 12.706 * 0.1 * 2**0.5 * 1.5**0.5
    assert f"| RigL | kflops | 12.6 | 12.60 ± {half:.2f} | inside |" in table
    assert "| RigL | bytes | 31,914 | 32,000 ± 22 | outside |" in table
    assert f"| RigL | error_best | 1.44 | 1.40 ± {half:.2f} | inside |" in table
    assert "RigL+ |" not in table
    assert compression._against_the_paper(rows[:1]) == []


def _ablation_rows(study, accuracies):
    return [
        {"study": study, "setting": setting, "seed": seed, "accuracy": accuracy}
        for setting, of_seeds in accuracies.items()
        for seed, accuracy in enumerate(of_seeds)
    ]


@pytest.mark.parametrize(
    ("tickets", "says", "gain"),
    [
        ([95.0, 95.2], "confirmed", "+1.50 ± 1.27"),
        ([98.0, 98.2], "contradicted", "-1.50 ± 1.27"),
        ([95.0, 97.0], "undecided", "+0.60 ± 10.16"),
        ([95.0], "undecided", "+1.40, one seed"),
    ],
)
def test_claims_of_the_ablations(tickets, says, gain):
    static, rigl = "lottery masks and weights, static", "random masks, RigL"
    # t(1) = 12.71 for 95 %, and half of the difference of two values.
    accuracies = {static: tickets, rigl: [96.4, 96.8]}
    lines = ablations._claims(_ablation_rows("lottery", accuracies))
    claim = "RigL from random masks is better than static training of a ticket"
    assert f"| {claim} | {says} ({rigl} less {static}: {gain}) |" in lines
    assert "| ERK is the best distribution for all methods | not run |" in lines


def test_claims_of_the_ablations_about_several_settings():
    """All must be confirmed; each pair of schedules is one, and each start."""
    accuracies = {name: [96.0, 96.1] for name in ablations.STUDIES["schedule"][1]}
    accuracies |= {"inverse power 1": [96.2, 96.3], "constant": [90.0, 99.0]}
    rows = _ablation_rows("schedule", accuracies)
    starts = {name: [96.0, 96.1] for name in ablations.STUDIES["grow_init"][1]}
    rows += _ablation_rows("grow_init", starts | {"random normal": [97.0, 97.1]})
    # A ticket that is 0.2 points better is less than half a point better.
    lottery = {"random masks, RigL": [96.0, 96.1], "lottery masks and weights, RigL": [96.2, 96.3]}
    rows += _ablation_rows("lottery", lottery)
    lines = "\n".join(ablations._claims(rows))
    gain = "random masks, RigL less lottery masks and weights, RigL: -0.20 ± 0.00"
    assert f"| RigL gains less than half a point from a ticket | confirmed ({gain}) |" in lines
    assert "by less than half a point | confirmed (cosine less inverse power 1: -0.20" in lines
    start = "better than zero by half a point | contradicted (zeros less the best other, random"
    assert f"{start} normal: -1.00 ± 0.00)" in lines


@pytest.fixture
def experiment_flags(data_dir, tmp_path):
    define = functools.partial(experiments.define_flags, epochs=1)
    with given(define, f"--data_dir={data_dir}", f"--output_dir={tmp_path}/out") as them:
        yield them


def test_rigl_plus_needs_rigl(experiment_flags):
    run = {"method": "RigL+", "seed": 0, "l2": 1e-4, "epochs": 1, "examples": 200}
    with pytest.raises(ValueError, match="run RigL before, and share runs by --seeds"):
        compression._run(experiments.store("c", compression._KEY), experiments.load("mnist"), run)


def test_live_pixels_as_text():
    pixels = np.array([0, 9, 783])
    np.testing.assert_array_equal(compression._from_text(compression._to_text(pixels, 784)), pixels)


def updating_every(steps):
    """`methods.wrap_optimizer` with another `update_frequency`."""
    wrap = methods.wrap_optimizer
    return lambda *args, **arguments: wrap(*args, **{**arguments, "update_frequency": steps})


def test_ablations(data_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(methods, "wrap_optimizer", updating_every(2))
    chosen = {
        "update": ["every 50, 0.5"],
        "update_set": ["every 50, 0.5"],
        "update_snfs": [],
        "momentum": ["momentum 0.99"],
        "restart": ["static_reinit", "set"],
        "schedule": ["learning rate"],
        "grow_init": ["random normal"],
        "lottery": ["lottery masks and weights, RigL"],
        "distribution": ["rigl, erdos_renyi"],
    }
    for study, (title, settings, share) in ablations.STUDIES.items():
        assert {*chosen[study]} <= {*settings}
        monkeypatch.setitem(ablations.STUDIES, study, (title, chosen[study], share))
    monkeypatch.setitem(
        ablations.STUDIES, "schedule", ("schedule", ["cosine", "learning rate"], 1.0)
    )
    run(
        ablations,
        f"--data_dir={data_dir}",
        f"--output_dir={tmp_path}",
        "--epochs=4",
        "--seeds=0",
    )
    rows = rows_of(tmp_path / "ablations.csv")
    assert [row["study"] for row in rows] == [
        "update",
        "update_set",
        "momentum",
        "restart",
        "restart",
        "schedule",
        "schedule",
        "grow_init",
        "lottery",
        "distribution",
    ]
    assert rows[-1]["epochs"] == "2"
    page = (tmp_path / "ablations.md").read_text()
    assert f"| 50 | – | – | {float(rows[0]['accuracy']):.2f} |" in page
    assert f"| random normal | {float(rows[7]['accuracy']):.2f} |" in page
    assert f"| momentum 0.99 | {float(rows[2]['accuracy']):.2f} |" in page
    assert "is better: undecided (set less static_reinit: " in page
    assert "Runs that are still to be done" not in page


def test_a_lottery_ticket_starts_at_its_first_weights(experiment_flags, monkeypatch):
    data = experiments.load("mnist")
    seen = []
    monkeypatch.setattr(
        ablations,
        "_train",
        lambda data, model, method, *_, **__: seen.append(
            (method, model.get_weights(), rigl_tf.get_masks(model))
        ),
    )
    setting = {"setting": "lottery masks and weights, static", "seed": 0, "epochs": 1}
    keras.utils.set_random_seed(0)
    ablations._from_ticket(data, setting)
    (first, start, _), (second, weights, masks) = seen
    assert (first, second) == ("pruning", "static")
    kernels = [weight for weight in start if weight.dtype == "float32" and weight.ndim == 2]
    rewound = [weight for weight in weights if weight.dtype == "float32" and weight.ndim == 2]
    for kernel, new, mask in zip(kernels, rewound, masks.values(), strict=True):
        np.testing.assert_array_equal(new, np.where(mask, kernel, 0))


def test_language(data_dir, tmp_path):
    run(
        language,
        f"--data_dir={data_dir}",
        f"--output_dir={tmp_path}",
        "--text=text.txt.gz",
        "--epochs=1",
        "--width=0.02",
        "--methods=rigl,pruning",
    )
    rows = rows_of(tmp_path / "language.csv")
    assert [(row["method"], row["steps"]) for row in rows] == [("rigl", "50"), ("pruning", "50")]
    # 50 steps are enough to see that 17 of 256 characters occur.
    assert all(0 < float(row["bits"]) < 8 for row in rows)
    assert "| rigl | 50 |" in (tmp_path / "language.md").read_text()


def test_sequences():
    inputs, targets = language.sequences(np.arange(32 * 64 + 5))
    assert inputs.shape == targets.shape == (32, 64)
    np.testing.assert_array_equal(targets, inputs + 1)
    with pytest.raises(ValueError, match=r"32 sequences of 64 characters\. Received: 2048"):
        language.sequences(np.arange(32 * 64))


def test_no_text(tmp_path):
    with pytest.raises(ValueError, match="--text must be a file in --data_dir"):
        language.load_text(tmp_path / "text.txt")


def test_methods_on_mnist(mnist_dir, tmp_path, capsys, monkeypatch):
    output_dir = tmp_path / "out"
    arguments = [
        f"--data_dir={mnist_dir}",
        f"--output_dir={output_dir}",
        "--epochs=7",  # 140 steps; the first mask update is at step 100
        "--sparsities=0.9",
        "--seeds=3",
        "--multipliers=1",
    ]
    run(methods_table, *arguments, "--methods=dense,rigl")
    assert capsys.readouterr().out.startswith("2 runs to do")
    csv_file, table, plot = (
        output_dir / f"mnist_lenet_300_100.{suffix}" for suffix in ("csv", "md", "png")
    )
    rows = rows_of(csv_file)
    known = [(row["method"], row["sparsity"], row["seed"], row["epochs"]) for row in rows]
    assert known == [("dense", "0.0", "3", "7"), ("rigl", "0.9", "3", "7")]
    assert all(float(row["accuracy"]) > 50 for row in rows)
    dense, rigl = (f"{float(row['accuracy']):.2f}" for row in rows)
    lines = table.read_text().splitlines()
    assert f"| dense | {dense} | – |" in lines
    assert f"| rigl | – | {rigl} |" in lines
    assert "over seeds [3]" in table.read_text()
    assert plot.stat().st_size > 1000

    # No run is repeated; what is missing is added; the report is made anew.
    before = csv_file.read_bytes()
    table.unlink()
    monkeypatch.setattr(methods_table, "train", lambda *_, **__: pytest.fail("repeated"))
    run(methods_table, *arguments, "--methods=dense,rigl")
    assert capsys.readouterr().out.startswith("0 runs to do")
    assert csv_file.read_bytes() == before
    assert f"| dense | {dense} | – |" in table.read_text().splitlines()

    trained = []
    monkeypatch.setattr(
        methods_table,
        "train",
        lambda _, data, run: trained.append((len(data.x_train), run)) or {"accuracy": 42},
    )
    run(methods_table, *arguments, "--methods=dense,set", "--max_examples=150")
    settings = {"seed": 3, "epochs": 7, "examples": 150}
    dense, sparse = {"method": "dense", "sparsity": 0.0}, {"method": "set", "sparsity": 0.9}
    # With fewer examples it is another run, so the dense one is not taken for done.
    assert trained == [(150, {**dense, **settings}), (150, {**sparse, **settings})]
    assert rows_of(csv_file)[:2] == rows
    assert "| set | – | 42.00 |" in table.read_text()


def numbers(text):
    return [float(number) for number in text.split()]


def test_landscape(mnist_dir, tmp_path, capsys, monkeypatch):
    # Seven epochs of 20 steps: masks are updated once, at step 100.
    arguments = [f"--data_dir={mnist_dir}", f"--output_dir={tmp_path}", "--epochs=7", "--seeds=3"]
    run(landscape, *arguments)
    assert capsys.readouterr().out.startswith("1 runs to do, about 4 minutes")
    (row,) = rows_of(tmp_path / "landscape.csv")
    losses = {name: numbers(row[name]) for name in (*landscape._PATHS, *landscape._TRAININGS)}
    for path in landscape._PATHS:
        assert len(losses[path]) == 21
        assert losses[path][0] == pytest.approx(losses["pruning"][-1], abs=1e-5)
        assert losses[path][-1] == pytest.approx(losses["static"][-1], abs=1e-5)
    for name in landscape._TRAININGS:
        assert len(losses[name]) == 8
        assert losses[name][-1] < 2.3
    for name in ("static again", "rigl from static"):
        assert losses[name][0] == losses["static"][-1]
    # Each curve is trained to be lower than the line.
    for path in landscape._CURVES:
        assert np.mean(losses[path]) < np.mean(losses["straight line"])

    page = (tmp_path / "landscape.md").read_text()
    assert f"| static again | {losses['static again'][-1]:.3f} ± 0.000 |" in page
    assert f"| straight line | {max(losses['straight line']):.3f} ± 0.000 |" in page
    assert (tmp_path / "landscape.png").stat().st_size > 1000

    # No seed is repeated.
    monkeypatch.setattr(landscape, "run_seed", lambda *_, **__: pytest.fail("repeated"))
    run(landscape, *arguments)
    assert capsys.readouterr().out.startswith("0 runs to do")
    assert (tmp_path / "landscape.md").read_text() == page


def _as_table(found):
    return "\n".join(tables.table(["claim", "here"], found.items()))


def test_the_verdicts_of_the_landscape():
    def row(line, curve, dense, again, rigl):
        paths = dict(zip(landscape._PATHS, (line, curve, curve, dense), strict=True))
        trainings = {"static": "9 2", "pruning": "9 0", "static again": again}
        return {**paths, **trainings, "rigl from static": rigl}

    one = row("0 3 2", "0 1 2", "0 0 2", "2 1.5", "2 0.5")
    two = row("0 2.5 2", "0 2.1 2", "0 2.5 2", "2 0.9", "2 1.1")
    text = _as_table(landscape.judged([one, two]))
    # Rises of 1 and 0.5, of which 0.01 is none; t(1) = 12.706 for 95 %.
    assert "straight line | undecided (+0.740 ± 3.177)" in text
    text = _as_table(landscape.judged([one, one]))
    assert "straight line | confirmed (+0.990 ± 0.000)" in text
    assert "quadratic, in the union | contradicted (-0.010 ± 0.000)" in text
    assert "dense space | confirmed (+0.010 ± 0.000)" in text
    # The middle is at 1: it ends at 1.5, and RigL at 0.5.
    assert "stays | confirmed (+0.500 ± 0.000)" in text
    assert "pruned loss | confirmed (+0.500 ± 0.000)" in text
    text = _as_table(landscape.judged([one]))
    assert "straight line | undecided (+0.990, one seed)" in text
    assert landscape.rise([1.0, 4.0, 3.0]) == 1.0
    assert landscape.rise([1.0, 2.0, 3.0]) == 0.0


def test_input_pixels(mnist_dir, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(input_pixels, "_METHODS", ("rigl",))
    arguments = [f"--data_dir={mnist_dir}", f"--output_dir={tmp_path}", "--epochs=7", "--seeds=3"]
    run(input_pixels, *arguments)
    assert capsys.readouterr().out.startswith("1 runs to do")
    rows = rows_of(tmp_path / "input_pixels.csv")
    assert [row["method"] for row in rows] == ["rigl"]
    inside = {28 * y + x for y in range(4, 24) for x in range(4, 24)}
    page = (tmp_path / "input_pixels.md").read_text()
    for row in rows:
        # 0, 1, 7 // 4 = 1, 7 // 2 = 3 and all 7 epochs
        images = [numbers(text) for text in row["pixels"].split("/")]
        assert len(images) == 4
        at_border, without = numbers(row["at_border"]), numbers(row["without"])
        assert len(at_border) == len(without) == 8
        for epoch, image in zip((0, 1, 3, 7), images, strict=True):
            assert len(image) == 784
            assert sum(image) == 784 * 300 - int(0.99 * 784 * 300)
            outside = sum(count for pixel, count in enumerate(image) if pixel not in inside)
            assert at_border[epoch] == pytest.approx(outside / 2352, abs=1e-4)
            assert without[epoch] == image.count(0)
        # The masks change once, at step 100 of 140.
        assert images[0] == images[2] != images[3]
        cells = f"| {100 * at_border[0]:.1f} ± 0.0 % | {100 * at_border[1]:.1f} ± 0.0 % |"
        assert f"{row['method']}: connections at the border {cells}" in page
    assert (tmp_path / "input_pixels.png").stat().st_size > 1000

    monkeypatch.setattr(input_pixels, "train", lambda *_, **__: pytest.fail("repeated"))
    run(input_pixels, *arguments)
    assert capsys.readouterr().out.startswith("0 runs to do")
    assert (tmp_path / "input_pixels.md").read_text() == page
