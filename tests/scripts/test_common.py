"""What the scripts share: rows, tables, plots, provenance; runs, and how they are trained."""

import csv
import doctest
import itertools
import math
import os
import re
import sys
import types

import keras
import numpy as np
import pytest
import tensorflow as tf
from absl import app, flags
from absl.testing import flagsaver
from running import given

import rigl_tf
from scripts.common import (
    claims,
    classifiers,
    costs,
    datasets,
    entry,
    experiments,
    methods,
    plots,
    provenance,
    styles,
    tables,
)
from scripts.common.rows import Rows

KEY = ("method", "sparsity", "seed")


def row(method="rigl", sparsity=0.9, seed=0, accuracy=97.5):
    return {"method": method, "sparsity": sparsity, "seed": seed, "accuracy": accuracy}


def test_rows_are_there_again(tmp_path):
    path = tmp_path / "rows.csv"
    first = Rows(path, KEY)
    assert first.rows == []
    assert not path.exists()
    first.add(row())
    assert Rows(path, KEY).rows == [row()]
    first.add(row("dense", 0.0, 2, 98.25))
    again = Rows(path, KEY)
    assert again.rows == first.rows == [row(), row("dense", 0.0, 2, 98.25)]
    assert [type(value) for value in again.rows[1].values()] == [str, float, int, float]
    again.add(row(seed=1))
    assert [run["seed"] for run in Rows(path, KEY).rows] == [0, 2, 1]


def test_a_run_is_known_by_its_key(tmp_path):
    rows = Rows(tmp_path / "rows.csv", KEY)
    assert row() not in rows
    rows.add(row())
    for known in (rows, Rows(tmp_path / "rows.csv", KEY)):
        assert row(accuracy=0) in known
        assert {"method": "rigl", "sparsity": 0.9, "seed": 0} in known
        for other in (row("set"), row(sparsity=0.95), row(seed=1)):
            assert other not in known


def test_columns_that_came_or_went(tmp_path):
    """A row of an older script has no `loss`, and one of a newer script no `accuracy`."""
    path = tmp_path / "rows.csv"
    Rows(path, KEY).add(row())
    newer = {"method": "rigl", "sparsity": 0.9, "seed": 1, "loss": 0.25}
    rows = Rows(path, KEY)
    assert newer not in rows
    rows.add(newer)
    again = Rows(path, KEY)
    assert again.rows == [{**row(), "loss": ""}, {**newer, "accuracy": ""}]
    assert row() in again
    assert newer in again
    with_another_key = Rows(path, (*KEY, "epochs"))
    assert {**newer, "epochs": 1} not in with_another_key


def test_text_with_commas_and_quotes(tmp_path):
    path = tmp_path / "rows.csv"
    Rows(path, KEY).add(row(method='RigL, "fast"'))
    assert Rows(path, KEY).rows[0]["method"] == 'RigL, "fast"'


@pytest.mark.parametrize("name", ["replace", "writerows"])
def test_a_write_that_fails_leaves_the_rows(name, tmp_path, monkeypatch):
    path = tmp_path / "rows.csv"
    rows = Rows(path, KEY)
    rows.add(row())
    before = path.read_bytes()

    def fail(*_):
        raise OSError(28, "No space left on device")

    if name == "replace":
        monkeypatch.setattr(os, "replace", fail)
    else:
        monkeypatch.setattr(csv.DictWriter, "writerows", fail)
    with pytest.raises(OSError, match="No space left"):
        rows.add(row(seed=1))
    assert path.read_bytes() == before
    monkeypatch.undo()
    rows = Rows(path, KEY)
    assert row(seed=1) not in rows
    rows.add(row(seed=1))
    assert [entry.name for entry in tmp_path.iterdir()] == ["rows.csv"]


ROWS = [
    row("dense", 0.0, 0, 98.0),
    row("rigl", 0.9, 0, 97.0),
    row("rigl", 0.9, 1, 98.0),
    row("rigl", 0.9, 2, 99.0),
    row("rigl", 0.95, 0, 96.125),
    row("set", 0.95, 0, 90.0),
    row("set", 0.95, 1, 92.0),
]


def test_means():
    assert tables.means(ROWS, "method", "sparsity", "accuracy") == {
        ("dense", 0.0): (98.0, 0.0, 1),
        ("rigl", 0.9): (98.0, 1.0, 3),
        ("rigl", 0.95): (96.125, 0.0, 1),
        ("set", 0.95): (91.0, pytest.approx(math.sqrt(2)), 2),
    }


def test_examples():
    result = doctest.testmod(tables)
    assert (result.failed, result.attempted) == (0, 1)


def test_mean_table():
    table = tables.mean_table(
        ROWS, "method", "sparsity", "accuracy", ["dense", "static", "set", "rigl"]
    )
    assert table == (
        "| method | sparsity 0 | sparsity 0.9 | sparsity 0.95 |\n"
        "| --- | --- | --- | --- |\n"
        "| dense | 98.00 | – | – |\n"
        "| set | – | – | 91.00 ± 1.41 |\n"
        "| rigl | – | 98.00 ± 1.00 | 96.12 |"
    )


def test_series_in_a_column():
    pairs = [(0.0, 1.5), (6000.0, 1e-7)]
    assert tables.to_text(pairs) == "0:1.5 6000:1e-07"
    assert tables.from_text(tables.to_text(pairs)) == pairs


def test_a_bar_or_a_line_does_not_end_the_cell_of_a_table():
    lines = tables.table(["a|b", "c"], [[1, "two\nlines"]])
    assert lines == [r"| a\|b | c |", "| --- | --- |", "| 1 | two lines |"]


def test_plot_means(tmp_path):
    path = tmp_path / "plot.png"
    plots.plot_means(
        ROWS,
        "method",
        "sparsity",
        "accuracy",
        path,
        ["dense", "set", "static", "rigl"],
        title="Accuracy over sparsity",
        xlabel="sparsity",
        ylabel="accuracy (%)",
    )
    image = keras.utils.img_to_array(keras.utils.load_img(path))
    assert image.shape == (750, 1200, 3)
    colours = {tuple(colour) for colour in image.reshape(-1, 3).astype(int)}
    look = styles.of(["set", "rigl", "static"])
    assert rgb(look["set"]) in colours
    assert rgb(look["rigl"]) in colours
    assert rgb(look["static"]) not in colours  # it has no row


def rgb(style):
    return tuple(int(style["color"][i : i + 2], 16) for i in (1, 3, 5))


# How the three kinds of colour blindness see linear red, green and blue (Machado et al., 2009).
VISIONS = {
    "usual": np.eye(3),
    "protanopia": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    "deuteranopia": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
    "tritanopia": [[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]],
}


def seen(style, vision):
    linear = (np.array(rgb(style)) / 255) ** 2.2
    return np.clip(np.array(VISIONS[vision]) @ linear, 0, 1) ** (1 / 2.2)


def test_each_method_has_a_style_that_can_be_told_from_all_others():
    look = styles.of(methods.METHODS)
    assert len(look) == len(methods.METHODS) >= 12
    for one, other in itertools.combinations(look.values(), 2):
        assert one["marker"] != other["marker"]
        assert (one["color"], one["linestyle"]) != (other["color"], other["linestyle"])
        if one["linestyle"] == other["linestyle"]:
            for vision in VISIONS:
                distance = np.linalg.norm(seen(one, vision) - seen(other, vision))
                assert distance > 0.15, (one, other, vision)


def test_a_method_has_the_same_style_in_every_plot():
    rigl = styles.of(["rigl"])["rigl"]
    assert styles.of(["shuffled", "pruning", "rigl 2x", "rigl"])["rigl"] == rigl
    assert styles.of(["RigL"])["RigL"] == rigl
    assert styles.of(["small dense"])["small dense"] == styles.of(["small_dense"])["small_dense"]
    # The first kind of a method that is not there itself.
    assert styles.of(["rigl, neuron", "rigl, layer"])["rigl, neuron"] == rigl


@pytest.mark.parametrize(
    "names",
    [
        ["rigl", "rigl 2x", "rigl 5x", "rigl (erk)", "static again", "static", "set"],
        ["random, ERK", "random, cubic", "random, linear", "SNIP", "GraSP", "LT", "hybrid"],
        ["local", "local, no repetition", "global", "global, no repetition", "random"],
        [f"line {number}" for number in range(20)],
        [*methods.METHODS, "a new one", "another"],
    ],
)
def test_kinds_and_other_names_have_styles_of_their_own(names):
    look = styles.of(names)
    assert list(look) == names
    assert len({tuple(sorted(style.items())) for style in look.values()}) == len(names)
    for name, style in look.items():
        family = name.partition(" ")[0]
        if family in look:
            assert style["color"] == look[family]["color"]
    others = [style["color"] for name, style in look.items() if name in ("hybrid", "global")]
    assert not set(others) & {look[name]["color"] for name in ("GraSP", "random") if name in look}


def test_labels_are_those_of_the_papers():
    names = ["rigl", "small_dense", "small dense", "rigl 5x", "rigl (erk)", "rigl, neuron", "a b"]
    assert list(map(styles.label, names)) == [
        "RigL",
        "Small-Dense",
        "Small-Dense",
        "RigL 5×",
        "RigL (ERK)",
        "RigL, neuron",
        "a b",
    ]


def test_error_bars_stand_beside_each_other():
    for number in (1, 2, 7, 14):
        shifts = np.array(plots.apart(number))
        assert len(shifts) == number
        assert abs(shifts.mean()) < 1e-6
        assert number == 1 or (np.diff(shifts) > 0.02).all()
        assert shifts[-1] - shifts[0] <= 0.3 + 1e-6  # far from the next x


def noise(path, size):
    """A figure that does not compress."""
    with plots.figure(path, figsize=(size, size)) as axes:
        axes.imshow(np.random.default_rng(0).random((100 * size, 100 * size)), aspect="auto")
        axes.set_position([0, 0, 1, 1])


def test_a_large_plot_becomes_small(tmp_path):
    noise(tmp_path / "plot.png", 5)
    assert 1000 < (tmp_path / "plot.png").stat().st_size <= plots.MAX_BYTES
    image = keras.utils.img_to_array(keras.utils.load_img(tmp_path / "plot.png"))
    assert len(np.unique(image.reshape(-1, 3), axis=0)) <= 64


def test_a_plot_that_cannot_become_small_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "MAX_BYTES", 1000)
    with pytest.raises(ValueError, match=r"1,000 bytes at most\. Received: .*plot\.png"):
        noise(tmp_path / "plot.png", 2)
    assert not (tmp_path / "plot.png").exists()


def test_versions(tmp_path, monkeypatch):
    versions = provenance.versions()
    assert versions["keras"] == keras.__version__
    assert versions["tensorflow"] == tf.__version__
    assert set(versions) == {"python", "tensorflow", "keras", "numpy", "revision", "machine"}
    flags = ["--epochs=2", "--data_dir=somewhere", "--output_dir=elsewhere"]
    monkeypatch.setattr("sys.argv", ["demo.py", *flags])
    line = provenance.line("scripts.demo")
    assert line.startswith("`python -m scripts.demo --epochs=2 --data_dir=DATA` (python ")
    assert f"keras {keras.__version__}" in line
    assert "\n" not in line


def test_revision(monkeypatch):
    assert provenance.git_revision()
    assert " " not in provenance.git_revision()
    assert re.fullmatch(r"code-[0-9a-f]{10}", provenance.code())
    monkeypatch.setenv("PATH", "")
    assert provenance.git_revision() == provenance.code() == "unknown"


# How they are trained.


def test_shift_and_flip():
    # Each pixel holds its own row and column, plus one: what is shifted in is 0.
    rows, columns = np.meshgrid(np.arange(1, 9), np.arange(1, 9), indexing="ij")
    image = np.stack([rows, columns], -1).astype("float32")
    images = tf.constant(np.repeat(image[None], 200, axis=0))
    shifted = classifiers.shift_and_flip(images, (3, 4)).numpy()
    again = classifiers.shift_and_flip(images, (3, 4)).numpy()
    np.testing.assert_array_equal(shifted, again)
    assert (classifiers.shift_and_flip(images, (3, 5)).numpy() != shifted).any()
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
            for a, b in classifiers.batches(x, x + 1, 5, 2, s)
        ]
        for s in (0, 1)
    )
    assert len(first) == 4
    for epoch in (first[:2], first[2:]):
        assert sorted(value for inputs, _ in epoch for value in inputs) == x.tolist()
    assert all(targets == [value + 1 for value in inputs] for inputs, targets in first)
    assert first != second
    assert first[:2] != first[2:]
    later = classifiers.batches(x, x + 1, 5, 2, 0, first_epoch=1)
    assert [a.numpy().tolist() for a, _ in later] == [inputs for inputs, _ in first[2:]]


@pytest.fixture
def experiment_flags(tmp_path):
    """The flags of an experiment, with an output directory of their own."""
    with given(lambda: experiments.define_flags(epochs=1), f"--output_dir={tmp_path}/out") as them:
        yield them


def test_runs_are_done_once_and_in_parts(experiment_flags, capsys):
    wanted = [{"seed": seed} for seed in range(5)]
    done = []

    def do(run):
        done.append(run["seed"])
        return {"accuracy": 10 * run["seed"]}

    experiment_flags.part = "1/2"
    experiments.run_all(experiments.store("e", ("seed",)), wanted, do, lambda run: 60)
    assert done == [1, 3]
    assert capsys.readouterr().out.startswith("2 runs to do, about 2 minutes")
    experiment_flags.part = "0/1"
    experiment_flags.only_report = True
    experiments.run_all(experiments.store("e", ("seed",)), wanted, do, lambda run: 60)
    assert done == [1, 3]
    experiment_flags.only_report = False
    rows = experiments.store("e", ("seed",))
    experiment_flags.part = "0/2"  # the same runs as if the others were not done
    experiments.run_all(rows, wanted, do, lambda run: 60)
    assert done == [1, 3, 0, 2, 4]
    assert [(row["seed"], row["accuracy"]) for row in rows.rows] == [(s, 10 * s) for s in done]


def test_a_run_that_another_process_has_done_is_not_repeated(experiment_flags):
    rows, others = (experiments.store("e", ("seed",)) for _ in range(2))
    done = []

    def do(run):
        done.append(run["seed"])
        if run["seed"] == 0:
            others.add({"seed": 1})
        return {}

    experiments.run_all(rows, [{"seed": seed} for seed in range(3)], do, lambda run: 1)
    assert done == [0, 2]
    assert [row["seed"] for row in rows.rows] == [1, 0, 2]


MADE_BY = {"revision": "git-1a2b3c4", "code": "code-1"}


@pytest.mark.parametrize("revision", ["git-1a2b3c4+changes", "git-unknown"])
def test_code_that_is_not_committed_adds_no_row(tmp_path, revision):
    rows = Rows(tmp_path / "rows.csv", ("seed",))
    with pytest.raises(app.UsageError, match=r"commit the changes first\. .*--allow_dirty"):
        experiments.check_code(rows, [{"seed": 0}], {**MADE_BY, "revision": revision})


def test_rows_of_a_table_are_of_one_code(tmp_path):
    rows = Rows(tmp_path / "rows.csv", ("dataset", "seed"))
    rows.add({"dataset": "mnist", "seed": 0, "revision": "git-0", "code": "code-0"})
    rows.add({"dataset": "cifar10", "seed": 0, **MADE_BY})
    with pytest.raises(app.UsageError, match="rows of other code, of git-0; all rows of a table"):
        experiments.check_code(rows, [{"dataset": "mnist", "seed": 1}], MADE_BY)
    experiments.check_code(rows, [{"dataset": "cifar10", "seed": 1}], MADE_BY)
    # Another commit of the same code, as one that adds results.
    later = {**MADE_BY, "revision": "git-2"}
    experiments.check_code(rows, [{"dataset": "cifar10", "seed": 1}], later)


def test_runs_are_refused_before_they_begin(experiment_flags, monkeypatch):
    monkeypatch.setattr(provenance, "git_revision", lambda: "1a2b3c4+changes")
    experiment_flags.allow_dirty = False
    rows = experiments.store("e", ("seed",))
    with pytest.raises(app.UsageError, match="commit the changes first"):
        experiments.run_all(rows, [{"seed": 0}], lambda run: pytest.fail("run"), lambda run: 1)
    assert rows.rows == []
    experiment_flags.only_report = True
    experiments.run_all(rows, [{"seed": 0}], lambda run: pytest.fail("run"), lambda run: 1)


@pytest.mark.parametrize(
    ("differences", "margin", "expected"),
    [
        ([], None, "not run"),
        ([1.0], None, "undecided"),
        ([0.5, 0.6, 0.7], None, "confirmed"),
        ([-0.5, -0.6, -0.7], None, "contradicted"),
        ([-0.5, 0.6, 0.7], None, "undecided"),
        # 0.2 ± 0.25: above 0 it is not, but within half a point.
        ([0.1, 0.2, 0.3], None, "undecided"),
        ([0.1, 0.2, 0.3], 0.5, "confirmed"),
        ([0.1, 0.2, 0.3], 0.4, "undecided"),
        ([0.9, 1.0, 1.1], 0.5, "contradicted"),
        ([-0.9, -1.0, -1.1], 0.5, "contradicted"),
    ],
)
def test_verdicts(differences, margin, expected):
    assert claims.verdict(differences, margin) == expected


def test_intervals_of_a_mean_and_of_one_more_value():
    mean, half = claims.interval([1.0, 2.0, 4.0])
    # t of 2 degrees of freedom at 97.5 %: 4.3027; the standard deviation is 1.5275.
    assert (mean, half) == pytest.approx((7 / 3, 4.3027 * 1.5275 / 3**0.5), rel=1e-4)
    _, wider = claims.prediction_interval([1.0, 2.0, 4.0])
    assert wider == pytest.approx(4.3027 * 1.5275 * (1 + 1 / 3) ** 0.5, rel=1e-4)


def test_differences_are_those_of_the_seeds_that_both_have():
    values = {"rigl": {0: 5.0, 1: 7.0, 2: 9.0}, "set": {2: 8.0, 1: 4.0, 3: 0.0}}
    assert claims.differences(values, "rigl", "set") == [3.0, 1.0]
    assert claims.differences(values, "rigl", "static") == []


def test_processes_add_rows_to_the_same_file(tmp_path):
    first, second = (Rows(tmp_path / "rows.csv", ("seed",)) for _ in range(2))
    first.add({"seed": 0})
    second.add({"seed": 1})
    first.add({"seed": 2})
    assert [row["seed"] for row in first.rows] == [0, 1, 2]


@pytest.mark.parametrize("part", ["2/2", "12/3", "0/0", "1", "a/b", "-1/2"])
def test_a_part_that_is_none_is_refused(experiment_flags, part):
    with pytest.raises(flags.IllegalFlagValueError, match="--part must be like 1/3"):
        experiment_flags.part = part


@flagsaver.flagsaver
def test_arguments_without_dashes_are_refused(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["script", "epochs=3"])
    with pytest.raises(SystemExit, match="1"):
        entry.run(lambda _: pytest.fail("it ran"))
    assert "like --name=value. Received: epochs=3" in capsys.readouterr().err


def test_no_whole_batch(experiment_flags):
    data = type("Data", (), {"x_train": np.zeros((9, 2))})
    with pytest.raises(ValueError, match=r"a batch of 10 at least\. Received: 9 training"):
        classifiers.steps_per_epoch(data, 10)


def _noise():
    generator = np.random.default_rng(0)
    arrays = [generator.normal(size=(20, 3)), np.arange(20) % 2]
    return datasets.Dataset(*arrays, *arrays, 2, "noise")


def test_parts_of_a_training_make_the_whole():
    data = _noise()
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    start = model.get_weights()
    classifiers.fit(model, keras.optimizers.SGD(0.1), data, 5, epochs=2, seed=0)
    whole = model.get_weights()
    model.set_weights(start)
    for steps in ((0, 3), (3, 8)):
        arguments = {"seed": 0, "steps": steps, "steps_per_execution": 2}
        classifiers.fit(model, keras.optimizers.SGD(0.1), data, 5, epochs=2, **arguments)
    for part, weight in zip(model.get_weights(), whole, strict=True):
        np.testing.assert_allclose(part, weight, rtol=1e-6)


def test_a_network_is_compiled_once_and_its_optimizer_begins_anew():
    data = _noise()
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="dense")])
    start = model.get_weights()

    def trained(rate=0.1):
        model.set_weights(start)
        optimizer = keras.optimizers.SGD(rate, momentum=0.9)
        classifiers.fit(model, optimizer, data, 5, epochs=2, seed=0)
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


# What a training costs.


def chain():
    inputs = keras.Input((10,))
    hidden = keras.layers.Dense(20, "relu", name="dense_1")(inputs)
    hidden = keras.layers.Dense(6, "relu", name="dense_2")(hidden)
    return keras.Model(inputs, keras.layers.Dense(5, name="classifier")(hidden))


def test_training_flops_by_hand():
    sparse = rigl_tf.sparsify(chain(), 0.8, "erdos_renyi")
    cost = rigl_tf.flops.count(sparse)
    f, d = cost.flops, cost.dense_flops
    moving = (3 * f * 100 + 2 * f + d) / 101
    # Pruning from step 300, every 150 steps: p = 0, 1/3, 2/3, and 1 from step 750 on.
    ramp = (150 * (1 - (2 / 3) ** 3) + 150 * (1 - (1 / 3) ** 3) + 250) / 1000
    expected = {
        "static": 3000 * f,
        "set": 3000 * f,
        "rigl": 750 * moving + 250 * 3 * f,
        "rigl_inverted": 750 * moving + 250 * 3 * f,
        "snfs": 1000 * (2 * f + d),
        "snfs_redistributed": 1000 * (2 * f + d),
        "dnw": 1000 * (2 * f + d),
        "pruning": 3000 * (d - (d - f) * ramp),
    }
    for method, flops in expected.items():
        frequency = 150 if method == "pruning" else 100
        found = costs.training_flops(sparse, method, 1000, 750, frequency)
        assert found == pytest.approx(flops), method
    assert costs.training_flops(chain(), "dense", 10, 7, 1) == 30 * d


def test_training_bytes_are_weights_momentum_and_gradients():
    dense = chain()
    sgd = keras.optimizers.SGD(momentum=0.9)
    dense.compile(sgd, "mse")
    sgd.build(dense.trainable_variables)
    scalars = costs.training_bytes(dense) - 3 * 4 * dense.count_params()
    assert 0 < scalars <= 16  # iterations and learning rate


def test_live_units_that_never_fire():
    model = rigl_tf.sparsify(chain(), 0.0)
    kernel, bias = np.ones((10, 20)), np.zeros(20)
    bias[3:7], bias[10] = -100, 1
    model.get_layer("dense_1").set_weights([kernel, bias])
    model.get_layer("dense_2").set_weights([np.ones((20, 6)), np.zeros(6)])
    masks = rigl_tf.get_masks(model)
    masks["dense_1/kernel"][:, 5:] = False  # so five units of the first layer are alive
    masks["dense_2/kernel"][:, 4:] = False
    rigl_tf.set_masks(model, masks)
    # Those without an input have a constant output, which is no life.
    assert costs.units(model, np.ones((3, 10))) == ([10, 5, 4], [3, 4])


def test_the_first_epoch_is_not_timed(monkeypatch):
    times = costs.StepTime()
    assert times.milliseconds(10) is None
    ends = iter([100.0, 101.0, 104.0, 105.0])
    monkeypatch.setattr(costs.time, "perf_counter", lambda: next(ends))
    for epoch in range(4):
        times.on_epoch_end(epoch)
    assert times.milliseconds(10) == 100


def test_help_shows_percent_signs(monkeypatch):
    main = types.SimpleNamespace(__doc__="A network at 75 % sparsity, 90 %.")
    monkeypatch.setitem(sys.modules, "__main__", main)
    monkeypatch.setattr(app, "run", lambda function: None)
    entry.run(lambda argv: 0)
    assert main.__doc__ % () == "A network at 75 % sparsity, 90 %."
