"""Trains a network that would be too large for this machine if it were dense.

    python -m scripts.benchmark.huge --data_dir=DATA

The network has four layers of 65,536 units. A kernel between two of them has 4.3 billion places. As
a dense array it would take 17 GB, and as much again for its gradient and for each slot. At 99.95 %
the active values and their places take 34 MB. RigL finds the largest of all 4.3 billion gradients,
tile by tile; SET draws random places. For comparison, a dense network with about as many weights is
trained. Each run is a process, so that its own peak memory is measured. A run takes about 15
minutes for each epoch on two cores. Finished runs are rows of `results/huge.csv` and are never
repeated. The page `results/huge.md` is made from all rows.
"""

import json
import math
import pathlib
import statistics
import subprocess
import sys
import time

import keras
import tensorflow as tf
from absl import flags

import rigl_tf
from scripts.common import datasets, entry, provenance, rows, tables

FLAGS = flags.FLAGS
_METHODS = ("rigl", "set", "dense")
_KEY = ("method", "dataset", "units", "layers", "sparsity", "epochs", "seed")
_BATCH_SIZE = 128
_CLASSES = 10


def _define_flags():
    flags.DEFINE_string("dataset", "fashion_mnist", "Name of a data set, or path of an .npz file.")
    flags.DEFINE_string("data_dir", None, "Directory with <dataset>.npz; else it is downloaded.")
    flags.DEFINE_list("methods", list(_METHODS), "Methods to train: rigl, set, dense.")
    flags.DEFINE_integer("units", 65_536, "Units of each hidden layer.", lower_bound=8)
    flags.DEFINE_integer("layers", 4, "Number of hidden layers.", lower_bound=1)
    flags.DEFINE_float(
        "sparsity", 0.9995, "Sparsity of the kernels between hidden layers.", 0.0, 1.0
    )
    flags.DEFINE_float("epochs", 1.0, "Epochs of training; it may be a fraction.", lower_bound=0.0)
    flags.DEFINE_integer("update_frequency", 100, "Steps from one mask update to the next.")
    flags.DEFINE_integer("seed", 0, "Seed of masks, weights and order of the data.")
    flags.DEFINE_string("output_dir", "results", "Directory for huge.csv and huge.md.")
    flags.DEFINE_string("part", None, "Only train this method, and print its row.")


def hidden(units, num_inputs, sparsity, seed):
    """A layer of ReLU units that is sparse from the start.

    The initial weights are scaled so that the inputs of a unit have the same variance as in a dense
    layer.
    """
    fan_in = max(1.0, num_inputs * (1 - sparsity))
    initializer = keras.initializers.RandomNormal(stddev=math.sqrt(2 / fan_in), seed=seed)
    dense = keras.layers.Dense(units, "relu", kernel_initializer=initializer)
    return rigl_tf.SparseWrapper(dense, sparsity, seed=seed, execution="csr")


def sparse_model(num_inputs, units, layers, sparsity, seed):
    """A network of sparse layers. Units of all layers have about the same number of inputs."""
    first = max(0.0, 1 - units * (1 - sparsity) / num_inputs)
    stack = [hidden(units, num_inputs, first, seed)]
    stack += [hidden(units, units, sparsity, seed + index) for index in range(1, layers)]
    outputs = rigl_tf.SparseWrapper(keras.layers.Dense(_CLASSES), 0.9, seed=seed, execution="csr")
    return keras.Sequential([keras.Input((num_inputs,)), *stack, outputs])


def dense_model(num_inputs, layers, num_weights):
    """A dense network with as many hidden layers, and about as many weights."""
    ends = num_inputs + _CLASSES
    squares = max(layers - 1, 1)
    units = (math.sqrt(ends**2 + 4 * squares * num_weights) - ends) / (2 * squares)
    stack = [
        keras.layers.Dense(max(1, round(units)), "relu", kernel_initializer="he_normal")
        for _ in range(layers)
    ]
    return keras.Sequential([keras.Input((num_inputs,)), *stack, keras.layers.Dense(_CLASSES)])


class Timer(keras.callbacks.Callback):
    """Measures the seconds of each step. Steps with mask updates are kept apart."""

    def __init__(self):
        super().__init__()
        self.steps, self.updates = [], []

    def on_train_batch_begin(self, batch, logs=None):
        optimizer = self.model.optimizer
        is_update = getattr(optimizer, "is_update_step", lambda step: False)
        self._times = self.updates if is_update(batch) else self.steps
        self._start = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        self._times.append(time.perf_counter() - self._start)


def train(method):
    """Does one run in this process. Returns its row."""
    data = datasets.load(FLAGS.dataset, FLAGS.data_dir)
    x_train, x_test = (each.reshape(len(each), -1) for each in (data.x_train, data.x_test))
    keras.utils.set_random_seed(FLAGS.seed)
    steps = max(2, round(FLAGS.epochs * len(x_train) / _BATCH_SIZE))
    inner = keras.optimizers.SGD(
        keras.optimizers.schedules.CosineDecay(0.02, steps), momentum=0.9, nesterov=True
    )
    shape = (x_train.shape[1], FLAGS.units, FLAGS.layers, FLAGS.sparsity, FLAGS.seed)
    start = time.perf_counter()
    if method == "dense":
        model, optimizer = dense_model(shape[0], FLAGS.layers, _num_active(*shape)), inner
    else:
        model = sparse_model(*shape)
        kind = {"rigl": rigl_tf.RigL, "set": rigl_tf.SET}[method]
        end_step = max(FLAGS.update_frequency + 1, round(0.9 * steps))
        optimizer = kind(inner, end_step=end_step, update_frequency=FLAGS.update_frequency)
    build_seconds = time.perf_counter() - start
    model.compile(
        optimizer,
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=False,
    )
    timer = Timer()
    model.fit(_batches(x_train, data.y_train), steps_per_epoch=steps, callbacks=[timer], verbose=2)
    _, accuracy = model.evaluate(x_test, data.y_test, batch_size=_BATCH_SIZE, verbose=0)
    summary = rigl_tf.sparsity_summary(model)
    return {
        **_run(method),
        "weights": summary.num_active,
        "dense_weights": summary.num_weights,
        "accuracy": round(100 * accuracy, 2),
        "steps": steps,
        "build_seconds": round(build_seconds, 1),
        "step_seconds": round(statistics.median(timer.steps[1:] or timer.steps), 4),
        "update_seconds": round(statistics.median(timer.updates), 2) if timer.updates else "",
        "peak_mb": _peak_megabytes(),
        "revision": provenance.git_revision(),
    }


def _batches(x, y):
    data = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(len(x), seed=FLAGS.seed).repeat()
    return data.batch(_BATCH_SIZE, drop_remainder=True)


def _num_active(num_inputs, units, layers, sparsity, seed):
    first = max(num_inputs * units * min(1.0, units * (1 - sparsity) / num_inputs), 1)
    return int(first + (layers - 1) * units**2 * (1 - sparsity) + 0.1 * units * _CLASSES)


def _peak_megabytes():
    """The peak memory of this process in megabytes."""
    status = pathlib.Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) // 1024


def _run(method):
    values = {name: getattr(FLAGS, name) for name in _KEY if name != "method"}
    return {"method": method, **values, "dataset": pathlib.Path(FLAGS.dataset).stem}


def _in_a_process(method):
    """Does a run in a new process. Returns its row."""
    command = [sys.executable, "-m", "scripts.benchmark.huge", *sys.argv[1:], f"--part={method}"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def page(finished):
    """The text of the page."""
    head = ["run", "active weights", "of", "test accuracy (%)", "steps", "build (s)", "step (s)"]
    head += ["mask update (s)", "peak memory (MB)"]
    lines = [
        [
            f"{row['method']}, {row['layers']} x {row['units']:,} units"
            if row["method"] != "dense"
            else f"dense, {row['layers']} layers",
            f"{row['weights']:,}",
            f"{row['dense_weights']:,}",
            row["accuracy"],
            row["steps"],
            row["build_seconds"],
            row["step_seconds"],
            row["update_seconds"] or "–",
            f"{row['peak_mb']:,}",
        ]
        for row in finished
    ]
    largest = max((row["units"] ** 2 for row in finished), default=0)
    return "\n".join(
        [
            "# What does not fit dense",
            "",
            f"Kernels of up to {largest:,} places, {4 * largest / 1e9:.1f} GB each as a dense "
            "float32 array, and as much again for a gradient and a momentum. They are stored as "
            'active values and places (`execution="csr"`), from the first step to the last. '
            "Batches of 128, SGD with momentum. The dense network has as many hidden layers and "
            "about as many weights. Peak memory is that of the whole process, data and TensorFlow "
            "included.",
            "",
            *tables.table(head, lines),
            "",
            "Curci et al., "
            "[Truly Sparse Neural Networks at Scale](https://arxiv.org/abs/2102.01732) (2021), "
            "train networks by SET on CPUs, with data and networks of their own. Their program and "
            "ours, on the same network: [truly_sparse.md](truly_sparse.md).",
            "",
            provenance.line("scripts.benchmark.huge"),
            "",
        ]
    )


def main(_):
    if FLAGS.part:
        print(json.dumps(train(FLAGS.part)))
        return
    output = pathlib.Path(FLAGS.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    finished = rows.Rows(output / "huge.csv", _KEY)
    for method in FLAGS.methods:
        if _run(method) not in finished:
            finished.add(_in_a_process(method))
    (output / "huge.md").write_text(page(finished.rows))
    print(page(finished.rows))


if __name__ == "__main__":
    _define_flags()
    entry.run(main)
