"""Tests of `scripts.experiments`, and each experiment for a few steps on small data."""

import gzip

import keras
import numpy as np
import pytest
import tensorflow as tf
from absl import flags
from absl.testing import flagsaver
from running import rows_of, run

from scripts import (
    ablations,
    ablations_page,
    cifar_table,
    compression,
    datasets,
    experiments,
    language_table,
    methods,
    results,
)

# What the experiments share.


def test_shift_and_flip():
    # Each pixel holds its own row and column, plus one: what is shifted in is 0.
    rows, columns = np.meshgrid(np.arange(1, 9), np.arange(1, 9), indexing="ij")
    image = np.stack([rows, columns], -1).astype("float32")
    images = tf.constant(np.repeat(image[None], 200, axis=0))
    shifted = experiments.shift_and_flip(images, (3, 4)).numpy()
    again = experiments.shift_and_flip(images, (3, 4)).numpy()
    np.testing.assert_array_equal(shifted, again)
    assert (experiments.shift_and_flip(images, (3, 5)).numpy() != shifted).any()
    seen = set()
    for new in shifted:
        at = np.argwhere(new[..., 0] > 0)
        down = {int(new[r, c, 0]) - 1 - r for r, c in at}
        across = np.sign(np.diff(new[at[0][0], :, 1][new[at[0][0], :, 1] > 0]))
        assert len(down) == 1
        assert len({*across}) == 1
        is_flipped = across[0] < 0
        value = new[:, ::-1, 1] if is_flipped else new[..., 1]
        right = {int(value[r, c]) - 1 - c for r, c in np.argwhere(value > 0)}
        assert len(right) == 1
        assert abs(next(iter(down))) <= 4
        assert abs(next(iter(right))) <= 4
        seen.add((next(iter(down)), next(iter(right)), bool(is_flipped)))
    assert {each[2] for each in seen} == {True, False}
    assert {each[0] for each in seen} == set(range(-4, 5))


def test_batches_see_every_example_once_an_epoch():
    x = np.arange(10, dtype="float32")
    first, second = (
        [
            (a.numpy().tolist(), b.numpy().tolist())
            for a, b in experiments.batches(x, x + 1, 5, 2, s)
        ]
        for s in (0, 1)
    )
    assert len(first) == 4
    for epoch in (first[:2], first[2:]):
        assert sorted(value for inputs, _ in epoch for value in inputs) == x.tolist()
    assert all(targets == [value + 1 for value in inputs] for inputs, targets in first)
    assert first != second
    assert first[:2] != first[2:]
    later = experiments.batches(x, x + 1, 5, 2, 0, first_epoch=1)
    assert [a.numpy().tolist() for a, _ in later] == [inputs for inputs, _ in first[2:]]


@pytest.fixture
def given(tmp_path):
    """The flags of an experiment, with an output directory of their own."""
    with flagsaver.flagsaver():
        experiments.define_flags(epochs=1)
        flags.FLAGS(["test", f"--output_dir={tmp_path}/out"])
        yield flags.FLAGS


def test_runs_are_done_once_and_in_parts(given, capsys):
    wanted = [{"seed": seed} for seed in range(5)]
    done = []

    def do(run):
        done.append(run["seed"])
        return {"accuracy": 10 * run["seed"]}

    given.part = "1/2"
    experiments.run_all(experiments.store("e", ("seed",)), wanted, do, lambda run: 60)
    assert done == [1, 3]
    assert capsys.readouterr().out.startswith("2 runs to do, about 2 minutes")
    given.part = "0/1"
    given.only_report = True
    experiments.run_all(experiments.store("e", ("seed",)), wanted, do, lambda run: 60)
    assert done == [1, 3]
    given.only_report = False
    rows = experiments.store("e", ("seed",))
    experiments.run_all(rows, wanted, do, lambda run: 60)
    assert done == [1, 3, 0, 2, 4]
    assert [(row["seed"], row["accuracy"]) for row in rows.rows] == [(s, 10 * s) for s in done]


def test_processes_add_rows_to_the_same_file(tmp_path):
    first, second = (results.Rows(tmp_path / "rows.csv", ("seed",)) for _ in range(2))
    first.add({"seed": 0})
    second.add({"seed": 1})
    first.add({"seed": 2})
    assert [row["seed"] for row in first.rows] == [0, 1, 2]


@pytest.mark.parametrize("part", ["2/2", "12/3", "0/0", "1", "a/b", "-1/2"])
def test_a_part_that_is_none_is_refused(given, part):
    with pytest.raises(flags.IllegalFlagValueError, match="--part must be like 1/3"):
        given.part = part


def test_no_whole_batch(given):
    data = type("Data", (), {"x_train": np.zeros((9, 2))})
    with pytest.raises(ValueError, match=r"a batch of 10 at least\. Received: 9 training"):
        experiments.steps_per_epoch(data, 10)


def _noise():
    generator = np.random.default_rng(0)
    arrays = [generator.normal(size=(20, 3)), np.arange(20) % 2]
    return datasets.Dataset(*arrays, *arrays, 2, "noise")


def test_parts_of_a_training_make_the_whole():
    data = _noise()
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    start = model.get_weights()
    experiments.fit(model, keras.optimizers.SGD(0.1), data, 5, epochs=2, seed=0)
    whole = model.get_weights()
    model.set_weights(start)
    for steps in ((0, 3), (3, 8)):
        experiments.fit(model, keras.optimizers.SGD(0.1), data, 5, epochs=2, seed=0, steps=steps)
    for part, weight in zip(model.get_weights(), whole, strict=True):
        np.testing.assert_allclose(part, weight, rtol=1e-6)


def test_a_network_is_compiled_once_and_its_optimizer_begins_anew():
    data = _noise()
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="dense")])
    start = model.get_weights()

    def trained(rate=0.1):
        model.set_weights(start)
        optimizer = keras.optimizers.SGD(rate, momentum=0.9)
        experiments.fit(model, optimizer, data, 5, epochs=2, seed=0)
        return model.get_weights()[0], model.train_function

    first, step = trained()
    again, same_step = trained()
    np.testing.assert_array_equal(again, first)
    assert same_step is step
    faster, other_step = trained(rate=0.2)
    assert other_step is not step
    assert (faster != first).any()
    model.get_layer("dense").kernel.regularizer = keras.regularizers.L2(1.0)
    assert np.abs(trained(rate=0.2)[0]).sum() < np.abs(faster).sum()


# The experiments.


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


def test_cifar_table(data_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(cifar_table, "_UPDATE_FREQUENCY", 2)
    arguments = [f"--data_dir={data_dir}", f"--output_dir={tmp_path}", "--epochs=3"]
    chosen = ["--methods=static,rigl (erk)", "--sparsities=0.9"]
    run(cifar_table, *arguments, *chosen)
    rows = rows_of(tmp_path / "cifar10_resnet20.csv")
    assert [row["method"] for row in rows] == ["static", "rigl (erk)"]
    page = (tmp_path / "cifar10_resnet20.md").read_text()
    assert f"| static | {float(rows[0]['accuracy']):.2f} |" in page
    assert "Not run yet" not in page
    assert (tmp_path / "cifar10_resnet20.png").stat().st_size > 1000


def test_compression(data_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(compression, "_L2", (1e-4,))
    monkeypatch.setattr(compression, "_UPDATE_FREQUENCY", 1)  # one update, in four steps
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
        f"| RigL+ | L2 0.0001, seed 1 | {second['architecture']} |"
        in (tmp_path / "compression.md").read_text()
    )


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
    assert "| RigL | kflops | 12.6 | 12.60 | +0.0 | hit |" in table
    assert "| RigL | bytes | 31,914 | 32,000 | +60.8 | missed |" in table
    assert "| RigL | error_best | 1.44 | 1.40 | -0.3 | hit |" in table
    assert "RigL+ |" not in table
    assert compression._against_the_paper(rows[:1]) == []


@pytest.mark.parametrize(("ticket", "says"), [(95.0, "confirmed"), (98.0, "not confirmed")])
def test_claims_of_the_ablations(ticket, says):
    values = {
        ("lottery", "lottery masks and weights, static"): (ticket, 0.1, 3),
        ("lottery", "random masks, RigL"): (96.5, 0.1, 3),
    }
    lines = ablations_page._claims(values)
    claim = "RigL from random masks is better than static training of a ticket"
    assert f"| {claim} | {says} (96.50 ± 0.10 and {ticket:.2f} ± 0.10) |" in lines
    assert "| ERK is the best distribution for all methods | still to be run |" in lines


def test_rigl_plus_needs_rigl(data_dir, given):
    given.data_dir = str(data_dir)
    run = {"method": "RigL+", "seed": 0, "l2": 1e-4, "epochs": 1, "examples": 200}
    with pytest.raises(ValueError, match="run RigL before, and share runs by --seeds"):
        compression._run(experiments.store("c", compression._KEY), experiments.load("mnist"), run)


def test_live_pixels_as_text():
    pixels = np.array([0, 9, 783])
    np.testing.assert_array_equal(compression._from_text(compression._to_text(pixels, 784)), pixels)


def test_ablations(data_dir, tmp_path, monkeypatch):
    wrap = methods.wrap_optimizer

    def updating_soon(*args, **arguments):
        return wrap(*args, **{**arguments, "update_frequency": 2})

    monkeypatch.setattr(methods, "wrap_optimizer", updating_soon)
    chosen = {
        "update": ["every 50, 0.5"],
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
        "schedule",
        "schedule",
        "grow_init",
        "lottery",
        "distribution",
    ]
    assert rows[-1]["epochs"] == "2"
    page = (tmp_path / "ablations.md").read_text()
    assert f"| 50 | – | – | {float(rows[0]['accuracy']):.2f} |" in page
    assert f"| random normal | {float(rows[3]['accuracy']):.2f} |" in page


def test_a_lottery_ticket_starts_at_its_first_weights(data_dir, given, monkeypatch):
    given.data_dir = str(data_dir)
    data = experiments.load("mnist")
    seen = []
    monkeypatch.setattr(
        ablations,
        "_train",
        lambda data, model, method, *_, **__: seen.append(
            (method, model.get_weights(), ablations.rigl_tf.get_masks(model))
        ),
    )
    setting = {"setting": "lottery masks and weights, static", "seed": 0, "epochs": 1}
    ablations.keras.utils.set_random_seed(0)
    ablations._from_ticket(data, setting)
    (first, start, _), (second, weights, masks) = seen
    assert (first, second) == ("pruning", "static")
    kernels = [weight for weight in start if weight.dtype == "float32" and weight.ndim == 2]
    rewound = [weight for weight in weights if weight.dtype == "float32" and weight.ndim == 2]
    for kernel, new, mask in zip(kernels, rewound, masks.values(), strict=True):
        np.testing.assert_array_equal(new, np.where(mask, kernel, 0))


def test_language_table(data_dir, tmp_path):
    run(
        language_table,
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
    inputs, targets = language_table.sequences(np.arange(32 * 64 + 5))
    assert inputs.shape == targets.shape == (32, 64)
    np.testing.assert_array_equal(targets, inputs + 1)
    with pytest.raises(ValueError, match=r"32 sequences of 64 characters\. Received: 2048"):
        language_table.sequences(np.arange(32 * 64))


def test_no_text(tmp_path):
    with pytest.raises(ValueError, match="--text must be a file in --data_dir"):
        language_table.load_text(tmp_path / "text.txt")
