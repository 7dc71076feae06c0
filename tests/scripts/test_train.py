"""Training runs: what they leave, stopped and resumed, and what is refused."""

import json
import os
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from absl import flags
from running import rows_of

import rigl_tf
from rigl_tf.reports import pictures
from scripts.checks import run_files
from scripts.common import datasets, methods
from scripts.train import __main__ as command_line
from scripts.train import runs, train


@pytest.fixture(scope="module")
def data_path(tmp_path_factory):
    """Three classes of 4x4 images, each brighter in other rows: 70 to train on, 20 to test."""
    generator = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("data") / "rows.npz"
    arrays = {}
    for split, size in (("train", 70), ("test", 20)):
        labels = generator.integers(0, 3, size)
        images = generator.uniform(0, 0.5, (size, 4, 4))
        images[np.arange(size), labels] += 0.5
        arrays |= {f"x_{split}": images.astype("float32"), f"y_{split}": labels}
    np.savez(path, **arrays)
    return path


def small(data_path, **settings):
    """Settings of a run of two epochs of 7 steps, updates of the masks at steps 3, 6 and 9."""
    quick = {"epochs": 2, "batch_size": 10, "update_frequency": 3, "jit_compile": False}
    return {"dataset": str(data_path), **quick, **settings}


def rows(directory):
    return rows_of(directory / "metrics.csv")


@pytest.fixture(autouse=True)
def empty_pictures(monkeypatch):
    """To draw the page of a run takes as long as the run. That of `uninterrupted` is a real one."""
    monkeypatch.setattr(pictures, "_png", lambda draw, height, theme: "")


@pytest.fixture(scope="module")
def uninterrupted(data_path, tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "uninterrupted"
    assert train.run(directory, given=small(data_path), command="the command") == 0
    return directory


# A run and what it leaves.


def test_arguments_without_dashes_are_refused(capsys):
    with pytest.raises(SystemExit) as refused:
        command_line._parse_flags(["train", "epochs=1"])
    assert refused.value.code == 2
    assert "must be like --epochs=10. Received: epochs=1" in capsys.readouterr().err


@pytest.mark.parametrize("method", methods.METHODS)
def test_each_method_trains_and_exports(method, data_path, tmp_path):
    chosen = {"epochs": 5, "batch_size": 5, "learning_rate": 0.05}
    given = small(data_path, method=method, sparsity=0.8, **chosen)
    assert train.run(tmp_path, given=given) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    # Kernels 16x300, 300x100 and 100x3 have 35,100 weights, and there are 403 biases.
    if method == "dense":
        assert report["num_active"] == report["num_weights"] == 35_503
    elif method == "small_dense":
        assert report["num_active"] == report["num_weights"] < 7_020 + 403
    else:
        # A fifth of each kernel's weights, rounded up: at most one more for each.
        assert 7_020 <= report["num_active"] - 403 <= 7_023
    is_sparse = method not in ("dense", "small_dense")
    first = 0 if method == "pruning" else 0.8 * is_sparse
    assert float(rows(tmp_path)[0]["sparsity"]) == pytest.approx(first, abs=1e-4)
    assert float(rows(tmp_path)[-1]["sparsity"]) == pytest.approx(0.8 * is_sparse, abs=1e-4)
    assert report["test_accuracy"] == report["exported_test_accuracy"] >= 0.8


def test_run_directory(uninterrupted, data_path):
    names = sorted(path.name for path in uninterrupted.iterdir())
    assert names == [
        "checkpoint-0002.keras",
        "config.json",
        "export",
        "metrics.csv",
        "model.keras",
        "report.html",
        "report.json",
    ]
    config = json.loads((uninterrupted / "config.json").read_text())
    assert config["settings"].keys() == train.NAMES
    assert config["settings"]["dataset"] == str(data_path)
    assert config["settings"]["sparsity"] == 0.9
    assert config["command"] == "the command"
    assert {"python", "tensorflow", "keras", "numpy", "rigl_tf", "revision"} <= set(
        config["versions"]
    )
    assert config["versions"]["keras"] == keras.__version__
    assert config["data"]["train"] == 70


def test_the_page_on_the_run(uninterrupted):
    page = (uninterrupted / "report.html").read_text()
    assert "the command" in page
    moved = sum(float(row["moved"]) for row in rows(uninterrupted))
    of_kernels = {
        name: sum(float(row[name]) for row in rows(uninterrupted))
        for name in rows(uninterrupted)[0]
        if name.startswith("moved/")
    }
    assert len(of_kernels) == 3
    assert sum(of_kernels.values()) == moved > 0
    model = keras.saving.load_model(uninterrupted / "model.keras")
    masks = rigl_tf.get_masks(model).values()
    for mask, number in zip(masks, of_kernels.values(), strict=True):
        assert f"{number / mask.sum():.2f}" in page
    assert "accuracy over the epochs" in page


def test_without_matplotlib(data_path, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert train.run(tmp_path, given=small(data_path, epochs=1)) == 0
    assert "There is no page on the run: `rigl_tf.report` needs" in capsys.readouterr().out
    assert not (tmp_path / "report.html").exists()
    assert (tmp_path / "report.json").exists()


def test_metrics_are_those_of_the_model(uninterrupted, data_path):
    first, last = rows(uninterrupted)
    assert (first["epoch"], last["epoch"]) == ("1", "2")
    model = keras.saving.load_model(uninterrupted / "model.keras")
    with np.load(data_path) as data:
        loss, accuracy = model.evaluate(data["x_test"][..., None], data["y_test"], verbose=0)
    assert float(last["val_loss"]) == pytest.approx(loss, rel=1e-5)
    assert float(last["val_accuracy"]) == pytest.approx(accuracy)
    report = json.loads((uninterrupted / "report.json").read_text())
    assert report["test_accuracy"] == pytest.approx(accuracy)
    # 14 steps of which 3 updated masks; the cosine 0.1 * (1 + cos(pi * 11 / 14)) / 2.
    assert int(model.optimizer.step) == 14
    assert int(model.optimizer.iterations) == 11
    assert float(last["learning_rate"]) == pytest.approx(0.05 * (1 + np.cos(np.pi * 11 / 14)))
    assert float(last["sparsity"]) == rigl_tf.sparsity_summary(model).sparsity


def test_exported_model_serves_the_same_logits(uninterrupted):
    model = keras.saving.load_model(uninterrupted / "model.keras")
    inputs = tf.random.stateless_normal((5, 4, 4, 1), (0, 0))
    exported = tf.saved_model.load(str(uninterrupted / "export"))
    np.testing.assert_allclose(exported.serve(inputs), model(inputs), atol=1e-5)


# The order of the examples.


def labels_of(data_path, first_epoch, **settings):
    settings = train.Settings(**small(data_path, epochs=4, **settings))
    data = datasets.load(settings.dataset)
    data = data._replace(y_train=np.arange(70, dtype="int32"))
    return [y.numpy().tolist() for _, y in train.batches(data, settings, first_epoch)]


def test_batches_are_a_function_of_seed_and_epoch(data_path):
    batches = labels_of(data_path, 0)
    assert batches[14:] == labels_of(data_path, 2)
    epochs = [np.concatenate(batches[i : i + 7]).tolist() for i in range(0, 28, 7)]
    assert all(sorted(epoch) == list(range(70)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert batches != labels_of(data_path, 0, seed=1)


def test_incomplete_batches_are_left_out_of_each_epoch(data_path):
    batches = labels_of(data_path, 0, batch_size=32)
    assert [len(batch) for batch in batches] == [32] * 8
    assert all(len({*batches[i], *batches[i + 1]}) == 64 for i in range(0, 8, 2))


# Stopped and resumed.


class Killed(BaseException):
    pass


def run_until(moment, name, tmp_path, given, monkeypatch):
    """A run that is killed before or after it renames a file to `name`."""
    rename = os.replace

    def replace(source, target):
        is_now = os.path.basename(target) == name
        if is_now and moment == "before":
            raise Killed
        rename(source, target)
        if is_now:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(runs.os, "replace", replace)
        with pytest.raises(Killed):
            train.run(tmp_path, given=given)


@pytest.mark.parametrize(
    ("moment", "name"),
    [
        ("after", "config.json"),
        ("before", "checkpoint-0002.keras"),
        ("after", "checkpoint-0001.keras"),
        ("before", "report.json"),
    ],
)
def test_resumed_run_equals_uninterrupted(
    moment, name, uninterrupted, data_path, tmp_path, monkeypatch
):
    run_until(moment, name, tmp_path, small(data_path), monkeypatch)
    assert train.run(tmp_path, resume=True) == 0
    assert run_files.differences(tmp_path, uninterrupted) == []
    assert not list(tmp_path.glob(".*"))


def test_two_processes_that_write_the_same_file(tmp_path):
    """One begins, the other writes all of it meanwhile, then the first goes on."""
    slow, fast = (runs.RunDirectory(tmp_path) for _ in range(2))
    with slow.replacing("metrics.csv") as path, path.open("w") as file:
        assert path.suffix == ".csv"
        file.write("slow")
        file.flush()
        with fast.replacing("metrics.csv") as other:
            other.write_text("fast")
        file.write("ly")
    assert (tmp_path / "metrics.csv").read_text() == "slowly"
    assert [each.name for each in tmp_path.iterdir()] == ["metrics.csv"]


def test_metrics_that_came_or_went(tmp_path):
    """A run that another version of the script began; what is not known is no number."""
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    run = runs.RunDirectory(tmp_path)
    model.optimizer.iterations.assign(1)
    run.save_epoch(model, 1, {"epoch": 1, "old": 0.5})
    resumed = runs.RunDirectory(tmp_path)
    assert resumed.restore(model, steps_per_epoch=1) == 1
    model.optimizer.iterations.assign(2)
    resumed.save_epoch(model, 2, {"epoch": 2, "new": 0.25})
    assert rows(tmp_path) == [
        {"epoch": "1", "old": "0.5", "new": "nan"},
        {"epoch": "2", "old": "nan", "new": "0.25"},
    ]
    assert runs.RunDirectory(tmp_path).restore(model, steps_per_epoch=1) == 2


def test_mirrored_run_is_that_of_one_replica_and_resumed(
    uninterrupted, data_path, tmp_path, monkeypatch
):
    given = small(data_path, strategy="mirrored")
    run_until("before", "checkpoint-0002.keras", tmp_path, given, monkeypatch)
    assert train.run(tmp_path, resume=True) == 0
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["versions"]["replicas"] == 2
    for row, want in zip(rows(tmp_path), rows(uninterrupted), strict=True):
        numbers = {name: float(value) for name, value in row.items()}
        assert numbers == pytest.approx({name: float(x) for name, x in want.items()}, rel=1e-4)
    models = [keras.saving.load_model(path / "model.keras") for path in (tmp_path, uninterrupted)]
    for mask, want in zip(*(rigl_tf.get_masks(model).values() for model in models), strict=True):
        np.testing.assert_array_equal(mask, want)


def test_csr_run_is_the_masked_one_and_resumed(uninterrupted, data_path, tmp_path, monkeypatch):
    given = small(data_path, execution="csr", jit_compile=None)
    run_until("before", "checkpoint-0002.keras", tmp_path, given, monkeypatch)
    assert train.run(tmp_path, resume=True) == 0
    settings = json.loads((tmp_path / "config.json").read_text())["settings"]
    assert (settings["execution"], settings["jit_compile"]) == ("csr", False)
    for row, want in zip(rows(tmp_path), rows(uninterrupted), strict=True):
        numbers = {name: float(value) for name, value in row.items()}
        assert numbers == pytest.approx({name: float(x) for name, x in want.items()}, rel=1e-4)
    csr, masked = (
        keras.saving.load_model(path / "model.keras") for path in (tmp_path, uninterrupted)
    )
    want = rigl_tf.get_masks(masked)
    wrappers = [layer for layer in csr.layers if isinstance(layer, rigl_tf.SparseWrapper)]
    for layer, mask in zip(wrappers, want.values(), strict=True):
        kernel = rigl_tf.masks.kernel_of(layer.layer.kernel)
        assert kernel.execution == ("masked" if mask.all() else "csr")
        np.testing.assert_array_equal(kernel.mask, mask)
    assert rigl_tf.get_masks(csr).keys() == want.keys()


def test_finished_run_is_left_alone(uninterrupted, capsys):
    before = {path: path.stat().st_mtime_ns for path in uninterrupted.rglob("*")}
    assert train.run(uninterrupted, resume=True) == 0
    assert "finished" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in uninterrupted.rglob("*")}


# Bad input: one sentence, exit code 2.


def assert_refused(capsys, output_dir, given, *words, resume=False):
    capsys.readouterr()
    assert train.run(output_dir, resume, given) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("train.py: ")
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({"method": "rigle"}, "method='rigle'"),
        ({"model": "lenet"}, "model='lenet'"),
        ({"model": "lenet5"}, "16 x 16"),
        ({"dataset": "mnits"}, "name='mnits'"),
        ({"distribution": "erc"}, "'erc'"),
        ({"sparsity": 1.0}, "sparsity=1.0"),
        ({"sparsity": -0.1, "method": "dense"}, "sparsity=-0.1"),
        ({"sparsity": float("nan")}, "sparsity=nan"),
        ({"epochs": 0}, "`epochs` must be at least 1"),
        ({"batch_size": 0}, "`batch_size`"),
        ({"batch_size": 71}, "batch_size=71"),
        ({"learning_rate": float("inf")}, "`learning_rate`"),
        ({"momentum": -0.1}, "`momentum`"),
        ({"l2": -1.0}, "`l2`"),
        ({"update_frequency": 0}, "`update_frequency`"),
        ({"drop_fraction": 1.5}, "`drop_fraction`"),
        ({"end_fraction": 0.0}, "`end_fraction` must be in (0, 1]"),
        ({"end_fraction": 1.1}, "`end_fraction` must be in (0, 1]"),
        ({"seed": -1}, "`seed`"),
        ({"execution": "cpu"}, "execution='cpu'"),
        ({"execution": "csr", "method": "dense"}, "method='dense'"),
        ({"execution": "csr", "method": "pruning"}, "method='pruning'"),
        ({"execution": "auto", "jit_compile": True}, "jit_compile=True"),
        ({"strategy": "tpu"}, "strategy='tpu'"),
        ({"strategy": "mirrored", "jit_compile": True}, "jit_compile=True"),
        ({"strategy": "multi_worker", "jit_compile": True}, "jit_compile=True"),
        (
            {"strategy": "mirrored", "batch_size": 7},
            "number of replicas, 2",
        ),
    ],
)
def test_bad_settings(given, word, data_path, tmp_path, capsys):
    assert_refused(capsys, tmp_path / "run", small(data_path, **given), word)
    assert not (tmp_path / "run").exists()


TF_CONFIG = {"cluster": {"worker": ["a:1", "b:2"]}, "task": {"type": "worker", "index": 0}}


@pytest.mark.parametrize(
    "config",
    [
        None,
        "{",
        "[]",
        json.dumps({**TF_CONFIG, "cluster": {"worker": "a:1"}}),
        json.dumps({**TF_CONFIG, "cluster": {"worker": ["a", "b"]}}),
        json.dumps({**TF_CONFIG, "cluster": {**TF_CONFIG["cluster"], "ps": ["c:3"]}}),
        json.dumps({**TF_CONFIG, "task": {"type": "worker", "index": 2}}),
        json.dumps({**TF_CONFIG, "task": {"type": "chief", "index": 0}}),
        json.dumps({"cluster": TF_CONFIG["cluster"]}),
    ],
)
def test_bad_tf_config(config, data_path, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    if config is not None:
        monkeypatch.setenv("TF_CONFIG", config)
    given = small(data_path, strategy="multi_worker")
    assert_refused(capsys, tmp_path / "run", given, "needs the environment variable TF_CONFIG")
    assert not (tmp_path / "run").exists()


def test_bad_data(tmp_path, capsys):
    missing, corrupt = tmp_path / "missing.npz", tmp_path / "corrupt.npz"
    corrupt.write_bytes(b"PK\x03\x04 not an archive")
    assert_refused(capsys, tmp_path / "run", {"dataset": str(missing)}, "missing.npz")
    assert_refused(capsys, tmp_path / "run", {"dataset": str(corrupt)}, "corrupt.npz", "undamaged")


def test_bad_output_dir(data_path, tmp_path, capsys):
    file = tmp_path / "file"
    file.write_text("mine")
    assert_refused(capsys, file, small(data_path), "must be a directory", str(file))
    assert_refused(capsys, file / "run", small(data_path), "`output_dir`", "Not a directory")
    assert file.read_text() == "mine"


def test_directory_that_holds_a_run(uninterrupted, data_path, capsys):
    before = {path: path.read_bytes() for path in uninterrupted.glob("*.*")}
    assert_refused(capsys, uninterrupted, small(data_path), "--resume", str(uninterrupted))
    assert before == {path: path.read_bytes() for path in uninterrupted.glob("*.*")}


def test_resume_without_a_run(tmp_path, capsys):
    assert_refused(capsys, tmp_path, {}, "config.json", resume=True)
    assert_refused(capsys, tmp_path / "none", {}, "config.json", resume=True)
    (tmp_path / "config.json").write_text('{"settings": {')
    assert_refused(capsys, tmp_path, {}, "as the run wrote it", resume=True)


def test_resume_with_other_settings(uninterrupted, capsys):
    given = {"epochs": 3, "sparsity": 0.9, "method": "set"}
    words = ("--epochs=3 (the run has 2)", "--method=set (the run has rigl)")
    assert_refused(capsys, uninterrupted, given, *words, resume=True)


@pytest.fixture
def stopped(uninterrupted, tmp_path):
    """A run that was stopped before it was exported."""
    for name in ("config.json", "metrics.csv", "checkpoint-0002.keras"):
        (tmp_path / name).write_bytes((uninterrupted / name).read_bytes())
    return tmp_path


def test_damaged_checkpoint(stopped, uninterrupted, capsys):
    path = stopped / "checkpoint-0002.keras"
    whole = path.read_bytes()
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    for damaged in (b"", whole[:1000], whole[:-1000], flipped):
        path.write_bytes(damaged)
        assert_refused(capsys, stopped, {}, "checkpoint-0002.keras", "delete it", resume=True)
    path.unlink()
    assert train.run(stopped, resume=True) == 0
    assert run_files.differences(stopped, uninterrupted) == []


def test_checkpoint_of_another_epoch(stopped, capsys):
    (stopped / "checkpoint-0002.keras").rename(stopped / "checkpoint-0001.keras")
    assert_refused(capsys, stopped, {}, "step 14, not 7", resume=True)


def test_resume_without_the_metrics(stopped, capsys):
    (stopped / "metrics.csv").unlink()
    assert_refused(capsys, stopped, {}, "metrics.csv", "checkpoint-0002.keras", resume=True)


def test_resume_with_other_data(stopped, data_path, tmp_path, capsys):
    with np.load(data_path) as data:
        arrays = dict(data)
    arrays["x_train"] = arrays["x_train"] + 0.001
    np.savez(tmp_path / "other.npz", **arrays)
    config = json.loads((stopped / "config.json").read_text())
    config["settings"]["dataset"] = str(tmp_path / "other.npz")
    (stopped / "config.json").write_text(json.dumps(config))
    assert_refused(capsys, stopped, {}, "needs the data", "crc32", resume=True)


def test_flags(monkeypatch, capsys):
    values = flags.FlagValues()
    monkeypatch.setattr(command_line, "FLAGS", values)
    command_line._define_flags()
    command_line._parse_flags(["train.py", "--sparsity=0.5", "--nojit_compile", "--resume"])
    given = {name for name in train.NAMES if values[name].present}
    assert given == {"sparsity", "jit_compile"}
    assert (values.sparsity, values.jit_compile, values.epochs) == (0.5, False, 30)
    with pytest.raises(SystemExit) as error:
        command_line._parse_flags(["train.py", "--sparsity=much"])
    assert error.value.code == 2
    assert "--sparsity=much" in capsys.readouterr().err
