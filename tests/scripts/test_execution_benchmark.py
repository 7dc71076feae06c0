"""The benchmark of CSR: its processes, its programs and its pages, with tiny networks."""

import sys

import keras
import numpy as np
import pytest
from absl import app
from running import cells_of, given, rows_of, run

from rigl_tf.execution import engine
from scripts.benchmark import (
    crossover,
    execution,
    execution_page,
    keras_programs,
    layer_programs,
    network_programs,
    networks,
    serving,
    time_to_accuracy,
    truly_sparse,
    workers,
)
from scripts.common import tables

CASE = {"sparsity": 0.9, "width": 20, "batch": 4}


# Processes.


def program(body):
    """The command of a process, whose `start` has this body."""
    lines = ["from scripts.benchmark import serving", "def start():", *body]
    return [sys.executable, "-c", "\n".join([*lines, "serving.serve(start)"])]


SLEEPING = [
    " import time",
    " print('to stdout, as libraries do')",
    " def make(sparsity, width, batch):",
    "  if width == 13: raise ValueError('no 13')",
    "  step = lambda: time.sleep(1e-4 * (2 - sparsity) * width)",
    "  return serving.Model(step, lambda: None)",
    " return make, 'sleep 1.0'",
]


def test_worker():
    worker = workers.Worker(program(SLEEPING))
    worker.wait_until_ready()
    assert worker.versions == "sleep 1.0"
    assert worker.ask(make=CASE)["seconds"] >= 0.0022
    assert 0.0022 <= worker.ask(time=CASE, steps=3)["seconds"] < 1
    assert 0.0022 <= worker.ask(update=CASE)["seconds"] < 1
    assert worker.ask(peak=True)["peak_mb"] >= worker.peak_mb > 1
    with pytest.raises(workers.Missing, match=r"ValueError: no 13"):
        worker.ask(make={**CASE, "width": 13})
    assert worker.ask(forget=True) == {}
    with pytest.raises(workers.Missing, match="KeyError"):
        worker.ask(time=CASE, steps=1)
    worker.close()


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (["/none/python"], "/none/python does not start: No such file"),
        (program([" import none_such"]), "ModuleNotFoundError: No module named 'none_such'"),
        (program([" raise SystemExit('no more')"]), "ended with exit code 1 no more"),
    ],
)
def test_worker_that_does_not_start(command, reason):
    worker = workers.Worker(command)
    with pytest.raises(workers.Missing, match=reason):
        worker.wait_until_ready()
    worker.close()


def test_worker_that_ends():
    worker = workers.Worker(program([" return lambda **case: exit(5), ''"]))
    worker.wait_until_ready()
    for _ in range(2):
        with pytest.raises(workers.Missing, match="exit code 5"):
            worker.ask(make=CASE)
    worker.close()


# The programs of Keras.


@pytest.mark.parametrize("name", ["dense", "csr"])
def test_keras_program(name, monkeypatch):
    models = []
    step_of = keras_programs.step_of

    def spy(model, x, y):
        models.append(model)
        return step_of(model, x, y)

    monkeypatch.setattr(keras_programs, "step_of", spy)
    make, versions = keras_programs.start(name)
    assert f"keras {keras.__version__}" in versions
    answers = serving.Program(make)
    assert answers.answer({"make": CASE})["seconds"] > 0
    (model,) = models
    steps = int(model.optimizer.iterations)
    assert answers.answer({"time": CASE, "steps": 3})["seconds"] > 0
    assert int(model.optimizer.iterations) == steps + 4
    update = answers.answer({"update": CASE})["seconds"]
    if name.startswith("dense"):
        assert update is None
        assert model.count_params() == 784 * 20 + 2 * 20 * 20 + 20 * 10 + 70
        return
    assert update > 0
    # An ordinary step and an update, which trains nothing.
    assert int(model.optimizer.iterations) == steps + 5
    assert int(model.optimizer.num_skipped_updates) == 0
    active = [layer.layer.kernel.constraint.num_active for layer in model.layers[:3]]
    assert active == [1568, 40, 40]
    assert {layer.layer.kernel.constraint.execution for layer in model.layers[:3]} == {
        "csr" if name == "csr" else "masked"
    }
    assert type(model.layers[3]) is keras.layers.Dense


@pytest.mark.parametrize("name", keras_programs.PROGRAMS)
def test_how_a_program_is_compiled(name, monkeypatch):
    compiled = []
    monkeypatch.setattr(keras_programs, "step_of", lambda model, x, y: compiled.append(model))
    keras_programs.make(name, 0.5, 4, 2)
    assert compiled[0].jit_compile == name.endswith("xla")


def tiny(input_shape, num_classes):
    layers = [keras.layers.Conv2D(8, 3), keras.layers.Conv2D(70, 3), keras.layers.Flatten()]
    dense = [keras.layers.Dense(140), keras.layers.Dense(num_classes)]
    return keras.Sequential([keras.Input(input_shape), *layers, *dense])


@pytest.mark.parametrize("name", ["dense", "auto"])
def test_network_program(name, monkeypatch):
    monkeypatch.setitem(network_programs.NETWORKS, "tiny", tiny)
    make, _ = network_programs.start(name)
    case = {"network": "tiny", "distribution": "uniform", "sparsity": 0.9, "pixels": 8, "batch": 2}
    answers = serving.Program(make)
    facts = answers.answer({"make": case})["facts"]
    # The first of four kernels has no zeros. Of 303,274 weights 301,840 are in the others.
    counts = facts["num_csr"], facts["num_masked"]
    in_csr = (3, 1) if engine.is_native() else (0, 4)
    assert counts == ((0, 0) if name == "dense" else in_csr)
    assert facts["share_csr"] == (0.995 if counts[0] else 0)
    update = answers.answer({"update": case})["seconds"]
    assert update is None if name == "dense" else update > 0


@pytest.mark.parametrize(
    ("layer", "choice"),
    [
        ("Dense 512 x 256", "csr"),
        ("Dense 256 x 256", "masked"),
        ("Dense 8192 x 16", "masked"),
        ("Conv 1x1, 128 to 128, 28 pixels", "csr"),
        ("Conv 3x3, 64 to 16, 28 pixels", "masked"),
    ],
)
def test_layer_program(layer, choice):
    make, _ = layer_programs.start("csr")
    answers = serving.Program(make)
    case = {"layer": layer, "sparsity": 0.9, "batch": 1}
    facts = answers.answer({"make": case})["facts"]
    assert facts["auto"] == (choice if engine.is_native() else "masked")
    assert facts["state_mb"] > 0
    assert answers.answer({"update": case})["seconds"] > 0


def test_crossover(monkeypatch, tmp_path):
    body = [
        " import time",
        " import sys",
        " is_csr = sys.argv[-1] == 'csr'",
        " def make(layer, sparsity, batch):",
        "  if batch == 16: raise ValueError('too many')",
        "  is_small = layer == 'Dense 256 x 256'",
        "  slowness = {True: 3, False: 1}[is_csr == is_small]",
        "  model = serving.Model(lambda: time.sleep(1e-3 * slowness))",
        "  model.facts = {'auto': 'masked' if is_small else 'csr'}",
        "  return model",
        " return make, 'sleep 1.0'",
    ]
    monkeypatch.setattr(crossover, "_command", lambda name: [*program(body), name])
    layers = ("Dense 256 x 256", "Dense 512 x 256", "Conv 1x1, 96 to 96, 28 pixels")
    arguments = [f"--layer={layer}" for layer in layers]
    arguments += ["--sparsities=0.9", "--batches=1,16", "--image_batches=8", "--rounds=3"]
    run(crossover, *arguments, "--block_ms=1", f"--output_dir={tmp_path}")
    page = (tmp_path / "crossover.md").read_text()
    small, large, image = (cells_of(page, layer, "90%") for layer in layers)
    assert small[0] == "masks"
    assert float(small[1].split()[0]) < 0.6
    assert large[0] == image[0] == "CSR"
    assert float(large[1].split()[0]) > 1.5 < float(image[1].split()[0])
    assert "chooses CSR in 2 of 3 cases. In 0 of them CSR is slower than masks" in page
    assert "Of the 1 cases that stay masked, CSR would be faster in 0." in page
    assert "Not measured: csr, Dense 512 x 256 0.9. ValueError: too many" in page
    run(crossover, *arguments, f"--output_dir={tmp_path}", "--only_report")
    assert (tmp_path / "crossover.md").read_text().splitlines()[:-1] == page.splitlines()[:-1]


def test_networks(monkeypatch, tmp_path):
    body = [
        " import time",
        " def make(network, distribution, sparsity, pixels, batch):",
        "  if sparsity > 0.94: raise ValueError('too sparse')",
        "  model = serving.Model(lambda: time.sleep(1e-3 * (2 - sparsity) * batch), lambda: None)",
        "  model.facts = {'num_csr': 3, 'num_masked': 1, 'share_csr': 0.5}",
        "  return model",
        " return make, 'sleep 1.0'",
    ]
    monkeypatch.setattr(networks, "_command", lambda name: program(body))
    arguments = ["--networks=resnet50", "--distributions=uniform", "--batch=4", "--block_ms=1"]
    run(networks, *arguments, "--rounds=3", f"--output_dir={tmp_path}")
    page = (tmp_path / "networks.md").read_text()
    cells = cells_of(page, "ResNet-50", "uniform, 90%")
    assert cells[:2] == ["3 of 4", "50%"]
    rows = {row["program"]: row for row in rows_of(tmp_path / "networks.csv") if row["ms"]}
    medians = {
        name: np.median([float(ms) for ms in row["ms"].split()]) for name, row in rows.items()
    }
    assert sorted(medians) == ["auto", "dense", "dense_xla", "masked"]
    assert float(cells[2]) == pytest.approx(medians["auto"], abs=0.6)
    dense = min(medians["dense"], medians["dense_xla"])
    assert float(cells[3].split()[0]) == pytest.approx(dense, abs=0.6)
    assert cells[5] in ("1.3 reached", "1.3 missed")
    assert float(cells[6].split()[0]) == pytest.approx(medians["masked"] / medians["auto"], abs=0.2)
    assert "Not measured: auto, resnet50 uniform 0.95. ValueError: too sparse" in page
    run(networks, *arguments, f"--output_dir={tmp_path}", "--only_report")
    assert (tmp_path / "networks.md").read_text().splitlines()[:-1] == page.splitlines()[:-1]


# The page.


@pytest.fixture
def commands(monkeypatch):
    """Programs that sleep in the place of the true ones; torch is not there."""
    made = {name: program(SLEEPING) for name in execution.PROGRAMS}
    made["torch"] = program([" import none_such"])
    monkeypatch.setattr(execution, "command", made.get)


def test_execution(commands, tmp_path):
    arguments = ["--width=8", "--widths=13,16", "--batches=2", "--sparsities=0.5", "--batch=4"]
    arguments += ["--programs=dense,csr,torch,sparselab", f"--output_dir={tmp_path}"]
    run(execution, *arguments, "--rounds=2", "--block_ms=1")
    rows = rows_of(tmp_path / "execution.csv")
    measured = [
        (row["program"], row["sparsity"], row["width"], row["batch"]) for row in rows if row["ms"]
    ]
    csr = [("0.5", "8", "4"), ("0.9", "8", "4"), ("0.9", "16", "4"), ("0.9", "8", "2")]
    want = [("dense", "0.0", *size) for size in (("8", "4"), ("16", "4"), ("8", "2"))]
    want += [(name, *case) for name in ("csr", "sparselab") for case in csr]
    assert sorted(measured) == sorted(want)
    assert all(len(row["ms"].split()) == 2 for row in rows if row["ms"])
    peaks = [row["program"] for row in rows if row["peak_mb"]]
    assert sorted(peaks) == ["csr", "dense", "sparselab"]
    page = (tmp_path / "execution.md").read_text()
    assert "Not measured: torch, dense. ModuleNotFoundError: No module named 'none_such'" in page
    assert "Not measured: rigl_tf, RigL, CSR at 90%, width 13, batch 4. ValueError: no 13" in page
    assert (tmp_path / "execution.png").stat().st_size > 1000
    cells = cells_of(page.split("## By sparsity")[1], "90%")
    dense, ours = (
        np.array([float(ms) for ms in each["ms"].split()])
        for name, sparsity in (("dense", "0.0"), ("csr", "0.9"))
        for each in rows
        if (each["program"], each["sparsity"]) == (name, sparsity)
        if (each["width"], each["batch"]) == ("8", "4")
    )
    assert float(cells[0]) == pytest.approx(np.median(ours), abs=0.06)
    assert float(cells[1]) == pytest.approx(np.median(dense), abs=0.06)
    assert float(cells[4].split()[0]) == pytest.approx(np.median(dense / ours), abs=0.006)
    run(execution, *arguments, "--only_report")
    assert (tmp_path / "execution.md").read_text().splitlines()[:-1] == page.splitlines()[:-1]


def page_of(rows, directory):
    with given(execution._define_flags, "--sparsities=0.5,0.95,0.98"):
        group = execution.groups()[0]
    execution_page.write(directory, rows, group, 0.9, "the command")
    return (directory / "execution.md").read_text()


def row(name, sparsity, ms, update_ms="", width=2048, **columns):
    case = {"program": name, "sparsity": sparsity, "width": width, "batch": 128}
    return {**case, "ms": ms, "update_ms": update_ms, "missing": "", **columns}


def test_page_says_what_the_numbers_say(tmp_path):
    rows = [
        row("dense", 0.0, "80 80 80", peak_mb=500, imports_mb=300),
        row("dense_xla", 0.0, "60 90 60", state_mb=100.0),
        row("torch", 0.0, "60 60 60"),
        row("csr", 0.5, "120 60 120"),
        row("csr", 0.9, "20 15 30", "120 90 150", peak_mb=450, imports_mb=300, state_mb=20.0),
        row("csr", 0.95, 11),
        row("sparselab", 0.9, "30 30 30"),
    ]
    page = page_of(rows, tmp_path)
    # XLA has the lower median; round by round 3, 6 and 2 times as fast at 90 %.
    assert cells_of(page, "90%", "Keras dense") == ["3", "3.00 (2.50–4.50)", "reached"]
    assert cells_of(page, "90%", "torch, dense") == ["2.5", "3.00 (2.50–3.50)", "reached"]
    assert cells_of(page, "90%", "sparselab") == ["2", "1.50 (1.25–1.75)", "missed"]
    assert cells_of(page, "98%", "Keras dense") == ["8", "–", "not measured"]
    assert "Of 5 aims that were measured 4 are reached" in page
    assert "CSR is slower than Keras dense at 50%, width 2048, batch 128: 0.50 times" in page
    assert "No case that was measured is slower in CSR than with sparselab" in page
    assert "The lowest measured sparsity at which it pays is 90%." in page
    # An update of 120 ms in dense steps of 60; 1 + (6 - 1) / 100 of its own steps.
    _, _, update, in_dense, amortised, peak, own = cells_of(page, "rigl_tf, RigL, CSR")
    assert (update, in_dense, amortised) == ("120", "2.00 (1.50–2.25)", "1.050")
    assert (peak, own) == ("450", "150")
    assert "A mask update in CSR was to take 2 dense steps at most: reached." in page
    assert "The peak of CSR is 50 MB below that of dense Keras. Weights" in page
    assert "take 20 MB in CSR and 100 MB in dense Keras, 0.20 of it; the aim was 0.35." in page
    # 20 ms at 90 % and 11 ms at 95 % are 2 ms at 100 %.
    assert (
        "* 90%, than sparselab: a step of 15.0 ms would be needed. 2.0 ms do not depend on the "
        "sparsity, so 13.0 ms are left for products with active weights, which take 18.0 ms."
    ) in page
    assert page.splitlines()[-1] == "the command"


def test_what_does_not_depend_on_the_sparsity():
    assert execution_page.independent_ms({0.5: 90.0, 0.9: 14.0, 0.98: 6.0}) == pytest.approx(4)
    line = execution_page.reason("this", 3.0, 6.0, 4.0)
    assert line.endswith(
        "4.0 ms do not depend on the sparsity, so no products are quick enough; they take 2.0 ms."
    )


def test_networks_that_miss_an_aim():
    def measured(program, sparsity, ms):
        case = {"network": "resnet50", "distribution": "uniform", "pixels": 224, "batch": 8}
        return {"program": program, "sparsity": sparsity, "ms": ms, **case}

    rows = [measured("dense", 0.0, 90), measured("auto", 0.9, 60), measured("auto", 0.95, 56)]
    (line,) = networks._reasons(rows[2], rows, 50.0)
    assert "ResNet-50, uniform, 95%: a step of 50.0 ms would be needed. 52.0 ms do not" in line
    assert networks._reasons(rows[2], rows[2:], 50.0) == []


def test_a_mask_update_that_takes_too_long(tmp_path):
    page = page_of([row("dense", 0.0, 60), row("csr", 0.9, 20, 150)], tmp_path)
    assert "at most, 120 ms: missed." in page
    assert "(20 ms)" in page
    assert "a dense step (20 ms). The other 110 ms choose connections" in page


def test_page_of_nothing(tmp_path):
    rows = [{"program": "dense", "missing": "no keras", "sparsity": "", "width": "", "batch": ""}]
    page = page_of(rows, tmp_path)
    assert "Not measured: Keras, dense, graph mode. no keras" in page
    assert "Of 0 aims that were measured 0 are reached" in page


# Time to accuracy.


def test_time_to_accuracy(mnist_dir, tmp_path, monkeypatch):
    (mnist_dir / "mnist.npz").rename(mnist_dir / "fashion_mnist.npz")
    monkeypatch.setattr(time_to_accuracy, "dense_is_faster_with_xla", lambda width: False)
    arguments = [f"--data_dir={mnist_dir}", "--width=20", "--epochs=1", "--seeds=0"]
    arguments += ["--sparsities=0,0.9", "--update_frequency=3"]
    run(time_to_accuracy, *arguments, "--lengths=1,2", f"--output_dir={tmp_path}")
    dense, sparse, longer = rows_of(tmp_path / "time_to_accuracy.csv")
    kinds = [(each["sparsity"], each["epochs"]) for each in (dense, sparse, longer)]
    assert kinds == [("0.0", "1"), ("0.9", "1"), ("0.9", "2")]
    for each in (dense, sparse, longer):
        seconds, accuracies = np.transpose(tables.from_text(each["points"]))
        # 15 steps an epoch: after 3, 6, 9, 12 and 15
        assert len(seconds) == 5 * int(each["epochs"])
        assert (np.diff(seconds) > 0).all()
        assert accuracies[-1] == pytest.approx(float(each["accuracy"]))
    page = (tmp_path / "time_to_accuracy.md").read_text()
    assert cells_of(page, "dense")[0] == f"{float(dense['accuracy']):.2f}"
    assert (tmp_path / "time_to_accuracy.png").stat().st_size > 1000
    # The benchmark's page shows it too.
    shown = execution_page._time_to_accuracy(tmp_path)
    names = [line.split("|")[1].strip() for line in shown if line.startswith("| RigL")]
    assert names == ["RigL 90%, CSR", "RigL 90%, CSR, 2x"]

    # What was trained to compile the steps is undone: without that the accuracies are the same.
    fit = keras.Model.fit

    def fit_once(model, *arguments, callbacks=None, **settings):
        return fit(model, *arguments, callbacks=callbacks, **settings) if callbacks else None

    monkeypatch.setattr(keras.Model, "fit", fit_once)
    run(
        time_to_accuracy,
        *arguments,
        "--sparsities=0.9",
        "--lengths=1",
        f"--output_dir={tmp_path}/again",
    )
    (again,) = rows_of(tmp_path / "again" / "time_to_accuracy.csv")
    accuracies = [
        [point[1] for point in tables.from_text(each["points"])] for each in (sparse, again)
    ]
    assert accuracies[0] == accuracies[1]


def test_seconds_until():
    points = [(1.0, 50.0), (2.0, 80.0), (3.0, 70.0), (4.0, 90.0)]
    assert time_to_accuracy.seconds_until(points, 25.0) == 0.5
    assert time_to_accuracy.seconds_until(points, 65.0) == 1.5
    assert time_to_accuracy.seconds_until(points, 85.0) == 3.75
    assert time_to_accuracy.seconds_until(points, 91.0) is None


# Beside the program of Curci et al.

PUBLISHED = """
import sys
import numpy as np

assert sys.modules["utils.load_data"].load_fashion_mnist_data is None

class AlternatedLeftReLU:
    def __init__(self, slope):
        self.slope = slope

CrossEntropy, Softmax = "cross entropy", "softmax"

class SET_MLP:
    def __init__(self, dimensions, activations, epsilon):
        assert dimensions == (784, 12, 12, 12, 10), dimensions
        assert [each.slope for each in activations[:3]] == [-0.6, 0.6, -0.6]
        self.w = {1: type("Kernel", (), {"nnz": 30 + epsilon})}
        self.b = {1: np.zeros(12)}

    def fit(self, x, y_true, x_test, y_test, epochs, **settings):
        assert settings["zeta"] == 0.3 and settings["learning_rate"] == 0.01
        assert abs(x.mean()) < 1e-3 and y_true.sum(axis=1).min() == 1

    def predict(self, x, y):
        return 0.5, None
"""


def test_beside_the_program_of_curci_et_al(mnist_dir, tmp_path):
    (tmp_path / "set_mlp_sequential.py").write_text(PUBLISHED)
    settings = [f"--data_dir={mnist_dir}", "--dataset=mnist", f"--output_dir={tmp_path}"]
    settings += [f"--folder={tmp_path}", f"--python={sys.executable}", "--units=12", "--epochs=2"]
    run(truly_sparse, *settings, "--programs=curci")
    (row,) = rows_of(tmp_path / "truly_sparse.csv")
    assert (row["program"], row["weights"], row["accuracy"]) == ("curci", "62", "50.0")
    page = (tmp_path / "truly_sparse.md").read_text()
    assert "| SET, the program of Curci et al. | mnist, 3 x 12, 2 epochs | 62 | 50.00 |" in page
    with pytest.raises(app.UsageError, match="--folder must be a clone"):
        run(truly_sparse, *settings, f"--folder={tmp_path / 'none'}")
    with pytest.raises(app.UsageError, match=r"--python must be a Python.*Received: none\.py"):
        run(truly_sparse, *settings, "--python=none.py")


@pytest.mark.parametrize("is_sparse", [True, False])
def test_ours_beside_curci_et_al(is_sparse, tmp_path):
    generator = np.random.default_rng(0)
    sets = {f"x_{name}": generator.normal(size=(256, 60)) for name in ("train", "test")}
    sets |= {f"y_{name}": generator.integers(0, 3, 256) for name in ("train", "test")}
    np.savez(tmp_path / "data.npz", **sets)
    row = truly_sparse.train(str(tmp_path / "data.npz"), is_sparse, units=50, epochs=3, seed=0)
    # ε (60 + 50) and ε (50 + 50) active ones are 2,200 of 3,000 and 2,000 of 2,500.
    kernels = (2200 + 2 * 2000) if is_sparse else (3000 + 2 * 2500)
    assert row["weights"] == pytest.approx(kernels + 3 * 50 + 51 * 3, abs=3)
    assert 0 < row["accuracy"] < 100
