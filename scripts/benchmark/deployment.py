"""Compares ways to deploy a network: sparse, in blocks, with fewer channels, or in int8.

    python -m scripts.benchmark.deployment --data_dir=DATA

It trains four networks: LeNet-300-100 on MNIST, a DS-CNN on synthetic keywords, MobileNet-v1 of
half width on digits, and a small MLP on a table. Each is trained dense, with 90 % unstructured
zeros, with 90 % zeros in blocks of four inputs, with half of the channels, and in int8. Each is
written with `rigl_tf.export(..., format="litert")`. Then the files are measured: accuracy, bytes,
and the time of one example, by LiteRT in Python and by LiteRT.js in headless Chromium. (`make
test-web` installs what the browser needs. Without it these cells are empty.) Each file takes turns
with a file of the dense network. It takes about 12 minutes on two cores. Finished runs are rows of
`results/deployment.csv` and are never repeated. Delete a row to measure it again, for example after
a browser was installed.
"""

import functools
import os
import pathlib
import tempfile

import keras
import numpy as np
from absl import flags

import rigl_tf
from rigl_tf.artifacts import kernels, litert, web
from rigl_tf.inputs import concrete, signature
from scripts.benchmark import deployment_page
from scripts.benchmark.deployment_cases import (
    KEEP,
    NETWORKS,
    NUM_REPRESENTATIVE,
    SPARSITY,
    STRUCTURES,
    VARIANTS,
)
from scripts.common import browser, classifiers, entry, experiments

_NAME = "deployment"
_KEY = ("network", "variant", "seed", "epochs", "examples")
# The allowed difference between LiteRT.js and LiteRT, as a share of the largest output.
_TOLERANCE, _INT8_TOLERANCE = 1e-3, 0.05

FLAGS = flags.FLAGS


class _Bench:
    """Does all runs of one network.

    Args:
        network: A `deployment_cases.Network`.
        data: Its `Dataset`.
        directory: `pathlib.Path` of a directory for files.
    """

    def __init__(self, network, data, directory):
        self.network, self.data, self.directory = network, data, directory
        self._trained = {}

    def do(self, run):
        """Does a run. Returns the columns of its row."""
        keras.utils.set_random_seed(run["seed"])
        variant = run["variant"]
        model = self._model(run)
        is_int8, is_sparse = variant == "int8", variant in STRUCTURES
        quantize = "int8" if is_int8 else None
        representative = self.data.x_train[:NUM_REPRESENTATIVE] if is_int8 else None
        path = self.directory / f"{variant}.tflite"
        report = rigl_tf.export(
            model,
            path,
            "litert",
            quantize=quantize,
            representative_data=representative,
            sparse_storage=is_sparse,
            check=not is_int8,  # The effect of rounding is measured by the accuracy.
            measure=False,
        )
        logits, latencies = litert.run(
            path, signature(model), self.data.x_test, np.zeros(1), self._beside, (1,)
        )
        row = {
            "accuracy": round(100 * np.mean(np.argmax(logits, axis=-1) == self.data.y_test), 3),
            "test_examples": len(self.data.y_test),
            "active": report.num_active,
            "weights": report.num_weights,
            "bytes": report.file_bytes,
            "compressed_bytes": report.compressed_bytes,
            "kernels": len(report.kernels),
            "native": _num_native(each.kernel for each in report.kernels),
            "native_in_browser": _num_native(each.in_browser for each in report.kernels),
        }
        for latency in latencies:
            row |= _times("python", latency.sparse, latency.dense)
        if not browser.missing():
            file = _of_one_example(model, is_sparse, quantize, representative)
            example, logits = self.data.x_test[:1], logits[:1]
            report = _in_browser(model, file, self._beside_in_browser, example, logits)
            _check(report, (_INT8_TOLERANCE if is_int8 else _TOLERANCE) * np.abs(logits).max(), run)
            row |= _times("browser", *map(_ends, ("sparse", "dense"), 2 * [report]))
        return {**row, "load": round(os.getloadavg()[0], 1)}

    def _model(self, run):
        if run["variant"] in STRUCTURES:
            return self._sparse(run, STRUCTURES[run["variant"]])
        if run["seed"] not in self._trained:
            self._trained[run["seed"]] = self._fitted(run, self.network.build(self.data))
        dense = self._trained[run["seed"]]
        if run["variant"] != "channels":
            return dense
        return self._fitted(run, rigl_tf.compact(dense, keep=KEEP), fine_tuning=True)

    def _sparse(self, run, structure):
        model = self.network.build(self.data)
        names = [each.name for each in model.layers if each.name.startswith(self.network.sparse)]
        sparsity = dict.fromkeys(names, SPARSITY)
        model = rigl_tf.sparsify(model, sparsity, structure=structure, seed=run["seed"])
        return self._fitted(run, model, is_sparse=True)

    def _fitted(self, run, model, is_sparse=False, fine_tuning=False):
        """Trains the model, and returns it."""
        network, seed = self.network, run["seed"]
        epochs = max(1, run["epochs"] // 2) if fine_tuning else run["epochs"]
        num_steps = epochs * classifiers.steps_per_epoch(self.data, network.batch_size)
        learning_rate = network.learning_rate / (3 if fine_tuning else 1)
        schedule = keras.optimizers.schedules.CosineDecay(learning_rate, num_steps)
        optimizer = keras.optimizers.Adam(schedule)
        if is_sparse:
            end_step = max(2, 3 * num_steps // 4)
            frequency = min(network.update_frequency, end_step - 1)
            optimizer = rigl_tf.RigL(optimizer, end_step, update_frequency=frequency, seed=seed)
        size = network.batch_size
        classifiers.fit(model, optimizer, self.data, size, epochs, seed, jit_compile=False)
        return model

    # Each file is measured beside this one. The values of weights do not change its time.

    @functools.cached_property
    def _untrained(self):
        return self.network.build(self.data)

    @functools.cached_property
    def _beside(self):
        path = self.directory / "beside.tflite"
        rigl_tf.export(self._untrained, path, "litert", sparse_storage=False, measure=False)
        return path

    @functools.cached_property
    def _beside_in_browser(self):
        return _of_one_example(self._untrained)


def _num_native(reported):
    return sum(each == kernels.NATIVE for each in reported)


def _of_one_example(model, is_sparse=False, quantize=None, representative=None):
    """The bytes of a file that takes batches of one example, as LiteRT.js needs it."""
    storage = "sparse" if is_sparse else "dense"
    files, _ = litert.convert(model, concrete(model), (storage,), quantize, representative)
    return files[0]


def _in_browser(model, file, beside, example, logits):
    """Measures a file and the dense file in headless Chromium, in turns. Both are bytes."""
    with tempfile.TemporaryDirectory() as directory:
        folder = pathlib.Path(directory)
        web.write(folder, model.name, concrete(model), example, logits, ())
        # The page looks for files of these names.
        (folder / "sparse.tflite").write_bytes(file)
        (folder / "dense.tflite").write_bytes(beside)
        return browser.run(folder)


def _check(report, tolerance, run):
    (difference,) = report["differences"]
    if not difference["sparse"] <= tolerance:
        raise RuntimeError(f"The outputs of {run} differ in the browser: {difference}")


def _ends(kind, report):
    return [report["latencies"][kind][name] for name in ("median", "least", "most")]


def _times(where, own, dense):
    """The columns of a row with times; `own` and `dense` are (median, smallest, largest)."""
    names = ("ms", "least_ms", "most_ms")
    row = {f"{where}_{name}": round(each, 4) for name, each in zip(names, own, strict=True)}
    return {**row, f"{where}_dense_ms": round(dense[0], 4)}


def _define_flags():
    experiments.define_flags(epochs=None, seeds=("0",))
    flags.DEFINE_list("networks", list(NETWORKS), "Networks to run.")
    flags.DEFINE_list("variants", list(VARIANTS), "What to make of them.")
    for flag, known in (("networks", NETWORKS), ("variants", VARIANTS)):
        flags.register_validator(
            flag,
            lambda names, known=known: set(names) <= set(known),
            f"--{flag} must be of {', '.join(known)}",
        )


def main(_):
    rows = experiments.store(_NAME, _KEY)
    names = [] if FLAGS.only_report else FLAGS.networks
    data = {name: NETWORKS[name].load() for name in names}
    wanted = [
        {
            "network": name,
            "variant": variant,
            "seed": int(seed),
            "epochs": FLAGS.epochs or NETWORKS[name].epochs,
            "examples": len(data[name].x_train),
        }
        for name in names
        for seed in FLAGS.seeds
        for variant in FLAGS.variants
    ]
    if browser.missing():
        print(f"No times in the browser: {browser.missing()}", flush=True)
    with tempfile.TemporaryDirectory() as directory:
        benches = {}
        for name in names:
            (pathlib.Path(directory) / name).mkdir()
            benches[name] = _Bench(NETWORKS[name], data[name], pathlib.Path(directory) / name)
        experiments.run_all(
            rows,
            wanted,
            lambda run: benches[run["network"]].do(run),
            lambda run: NETWORKS[run["network"]].seconds,
        )
    experiments.write_page(_NAME, deployment_page.page(rows.rows), "scripts.benchmark.deployment")


if __name__ == "__main__":
    _define_flags()
    entry.run(main)
