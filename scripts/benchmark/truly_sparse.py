"""SET on one CPU core: ours in CSR beside the program that Curci et al. published.

    git clone https://github.com/SelimaC/large-scale-sparse-neural-networks curci
    python -m venv .venv-curci && .venv-curci/bin/pip install numba scipy "numpy<2.4"
    python -m scripts.benchmark.truly_sparse --folder=curci --data_dir=DATA

"Truly Sparse Neural Networks at Scale" (Curci, Mocanu and Pechenizkiy, 2021, arXiv 2102.01732)
trains by SET with the sparse matrices of SciPy, in part compiled by Numba. Both programs train the
network and the data of `set_mlp_sequential.py` there, with its settings: three hidden layers of
1,000 units with All-ReLU, Erdős–Rényi densities, dropout, and a mask update after each epoch that
drops 30 %. Each run is a process with one thread. They run one after the other, so that they do not
share the machine. Ten epochs of theirs take about three minutes. Finished runs are rows of
`results/truly_sparse.csv` and are never repeated; `results/truly_sparse.md` is made from all rows.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

from absl import app, flags

from scripts.common import entry, experiments, tables

FLAGS = flags.FLAGS
_KEY = ("program", "dataset", "units", "epochs", "examples", "seed")
_PROGRAMS = {
    "curci": "SET, the program of Curci et al.",
    "csr": 'SET, `execution="csr"`',
    "dense": "dense, Keras",
}
_SECONDS = {"curci": 16, "csr": 6, "dense": 14}  # of an epoch
_LAYERS, _EPSILON, _SLOPE, _BATCH_SIZE, _DROPOUT, _DROP_FRACTION = 3, 20, 0.6, 128, 0.3, 0.3
_OPTIMIZER = {"learning_rate": 0.01, "momentum": 0.9, "weight_decay": 0.0002}
_ONE_THREAD = (
    "OMP_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "TF_NUM_INTRAOP_THREADS",
    "TF_NUM_INTEROP_THREADS",
)


def _define_flags():
    experiments.define_flags(epochs=10, seeds=["0"])
    flags.DEFINE_string("dataset", "fashion_mnist", "Name of a data set, or path of an .npz file.")
    flags.DEFINE_string("folder", "curci", "Folder with the program of Curci et al.")
    flags.DEFINE_string("python", ".venv-curci/bin/python", "A Python with numba and scipy.")
    flags.DEFINE_list("programs", list(_PROGRAMS), f"What to run: {', '.join(_PROGRAMS)}.")
    flags.DEFINE_integer("units", 1000, "Units of each hidden layer.", lower_bound=8)
    flags.DEFINE_string("request", None, "Only do the run in this file, and print its row.")


def train(data, is_sparse, units, epochs, seed):
    """Trains the network with Keras, in CSR or dense. Returns what it found, as a dictionary."""
    import keras
    import numpy as np

    import rigl_tf

    with np.load(data) as file:
        x_train, y_train, x_test, y_test = (
            file[name] for name in ("x_train", "y_train", "x_test", "y_test")
        )
    keras.utils.set_random_seed(seed)
    stack, num_inputs = [], x_train.shape[1]
    for layer in range(_LAYERS):
        hidden = keras.layers.Dense(units, _all_relu(layer), kernel_initializer="he_uniform")
        sparsity = max(0.0, 1 - _EPSILON * (num_inputs + units) / (num_inputs * units))
        if is_sparse:
            hidden = rigl_tf.SparseWrapper(hidden, sparsity, seed=seed + layer, execution="csr")
        stack += [hidden, keras.layers.Dropout(_DROPOUT, seed=seed)]
        num_inputs = units
    outputs = keras.layers.Dense(int(y_train.max()) + 1)
    model = keras.Sequential([keras.Input(x_train.shape[1:]), *stack, outputs])
    optimizer = keras.optimizers.SGD(**_OPTIMIZER)
    if is_sparse:
        steps = -(-len(x_train) // _BATCH_SIZE)
        share = rigl_tf.schedules.ConstantDropFraction(_DROP_FRACTION)
        optimizer = rigl_tf.SET(
            optimizer, end_step=steps * epochs + 1, update_frequency=steps, drop_fraction=share
        )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=["accuracy"])
    before = time.perf_counter()
    model.fit(x_train, y_train, batch_size=_BATCH_SIZE, epochs=epochs, verbose=0)
    seconds = time.perf_counter() - before
    _, accuracy = model.evaluate(x_test, y_test, batch_size=_BATCH_SIZE, verbose=0)
    return {
        "weights": rigl_tf.sparsity_summary(model).num_active,
        "accuracy": round(100 * accuracy, 2),
        "epoch_seconds": round(seconds / epochs, 2),
    }


def _all_relu(layer):
    """The activation of Curci et al.: the slope on the left side has another sign in each layer."""
    import keras

    slope = -_SLOPE if layer % 2 == 0 else _SLOPE
    return lambda x: keras.ops.where(x > 0, x, slope * x)


def _write_data(path):
    """Writes the data as both take them: each input with mean 0 and deviation 1.

    Returns:
        The number of examples for training.
    """
    import numpy as np

    data = experiments.load(FLAGS.dataset)
    x_train, x_test = (each.reshape(len(each), -1) for each in (data.x_train, data.x_test))
    mean, deviation = x_train.mean(axis=0), x_train.std(axis=0)
    deviation[deviation == 0] = 1
    x_train, x_test = ((each - mean) / deviation for each in (x_train, x_test))
    np.savez(path, x_train=x_train, y_train=data.y_train, x_test=x_test, y_test=data.y_test)
    return len(x_train)


def _in_a_process(run, data):
    """Does a run in a new process with one thread. Returns the columns that it found."""
    request = {"data": str(data), **{name: run[name] for name in ("units", "epochs", "seed")}}
    if run["program"] == "curci":
        request |= {"folder": FLAGS.folder, "layers": _LAYERS, "epsilon": _EPSILON, **_OPTIMIZER}
        request |= {"slope": _SLOPE, "batch_size": _BATCH_SIZE}
        request |= {"dropoutrate": _DROPOUT, "zeta": _DROP_FRACTION}
        command = [FLAGS.python, str(pathlib.Path(__file__).with_name("curci_program.py"))]
    else:
        request["is_sparse"] = run["program"] == "csr"
        command = [sys.executable, "-m", "scripts.benchmark.truly_sparse", "--request"]
    path = data.with_name("request.json")
    path.write_text(json.dumps(request))
    environment = {**os.environ, **dict.fromkeys(_ONE_THREAD, "1")}
    done = subprocess.run([*command, str(path)], stdout=subprocess.PIPE, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"The run {run} ended with exit code {done.returncode}; why is above.")
    return json.loads(done.stdout.splitlines()[-1])


def page(finished):
    """The lines of the page."""
    finished = [{**row, "case": (row["dataset"], row["units"], row["epochs"])} for row in finished]
    accuracies = tables.means(finished, "program", "case", "accuracy")
    lines = []
    for program, case in sorted(
        accuracies, key=lambda key: (key[1], list(_PROGRAMS).index(key[0]))
    ):
        runs = [row for row in finished if (row["program"], row["case"]) == (program, case)]
        lines.append(
            [
                _PROGRAMS[program],
                f"{case[0]}, 3 x {case[1]:,}, {case[2]} epochs",
                f"{tables.middle(runs, 'weights'):,.0f}",
                tables.with_spread(accuracies[program, case]),
                f"{tables.middle(runs, 'epoch_seconds'):.3g}",
                len(runs),
            ]
        )
    head = ["program", "network", "weights", "test accuracy (%)", "seconds per epoch", "seeds"]
    return [
        "# Truly sparse training on a CPU: beside Curci et al.",
        "",
        "SET with one thread, by the program that Curci et al. published with "
        "[Truly Sparse Neural Networks at Scale](https://arxiv.org/abs/2102.01732) (2021; SciPy "
        "and Numba, float64), and by ours. Network, data and settings are those of their "
        "`set_mlp_sequential.py`: All-ReLU, Erdős–Rényi densities with ε = 20, a dense last layer, "
        "dropout 0.3, SGD with momentum, a mask update after each epoch. The seconds include what "
        "Numba and TensorFlow compile. Times and accuracies in the paper are of other machines, "
        "and are not repeated here.",
        "",
        *tables.table(head, lines),
    ]


def _check_program():
    """Raises a `UsageError` unless the program of Curci et al. is there, if it is to run."""
    if FLAGS.only_report or "curci" not in FLAGS.programs:
        return
    if not (pathlib.Path(FLAGS.folder) / "set_mlp_sequential.py").exists():
        raise app.UsageError(
            f"--folder must be a clone of the program of Curci et al. Received: {FLAGS.folder}"
        )
    if shutil.which(FLAGS.python) is None:
        raise app.UsageError(
            f"--python must be a Python with numba and scipy. Received: {FLAGS.python}"
        )


def main(_):
    if FLAGS.request:
        print(json.dumps(train(**json.loads(pathlib.Path(FLAGS.request).read_text()))))
        return
    _check_program()
    finished = experiments.store("truly_sparse", _KEY)
    with tempfile.TemporaryDirectory(prefix="rigl_tf-") as directory:
        data = pathlib.Path(directory) / "data.npz"
        same = {
            "dataset": pathlib.Path(FLAGS.dataset).stem,
            "units": FLAGS.units,
            "epochs": FLAGS.epochs,
            "examples": _write_data(data),
        }
        wanted = [
            {"program": program, **same, "seed": int(seed)}
            for seed in FLAGS.seeds
            for program in FLAGS.programs
        ]
        experiments.run_all(
            finished,
            wanted,
            lambda run: _in_a_process(run, data),
            lambda run: run["epochs"] * _SECONDS[run["program"]],
        )
    experiments.write_page("truly_sparse", page(finished.rows), "scripts.benchmark.truly_sparse")


if __name__ == "__main__":
    _define_flags()
    entry.run(main)
