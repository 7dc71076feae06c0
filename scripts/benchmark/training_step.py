"""Measures seconds per `fit` step of sparse training (RigL, 90 %), against dense training.

    python -m scripts.benchmark.training_step

Dense and sparse steps alternate in one process, so other programs on the machine slow down both.
The ratio is computed for each pair; the median and the interquartile range are reported. A mask
update is measured in the same way, against the dense steps around it. Peak memory is measured in a
separate process. It takes nine minutes on two cores without other work, and writes
`results/benchmark.md`.
"""

import pathlib
import subprocess
import sys
import time

import keras
import numpy as np
from absl import flags

import models
import rigl_tf
from scripts.benchmark import keras_programs
from scripts.common import entry, provenance

_SPARSITY = 0.9
_WARM_UP = 5
# The regular updates are so far apart that none happens: the benchmark asks for updates.
_UPDATE_FREQUENCY = 1_000_000

FLAGS = flags.FLAGS


def _define_flags():
    flags.DEFINE_list("networks", list(NETWORKS), "Networks to measure.")
    flags.DEFINE_integer("steps", 200, "Number of pairs of steps for each setting.", lower_bound=1)
    flags.DEFINE_integer("updates", 15, "Number of mask updates for each setting.", lower_bound=1)
    flags.DEFINE_string("output_dir", "results", "Where benchmark.md goes.")
    flags.DEFINE_enum("memory_of", None, ["dense", "sparse"], "Only print a peak memory in MB.")
    flags.DEFINE_bool("jit_compile", False, "With --memory_of: whether to use XLA.")


def mlp():
    """A network with the layers 784, 2048, 2048, 2048, 10."""
    hidden = [keras.layers.Dense(2048, activation="relu") for _ in range(3)]
    return keras.Sequential([keras.Input((784,)), *hidden, keras.layers.Dense(10)])


# Network: builder, input shape, batch size.
NETWORKS = {"mlp": (mlp, (784,), 128), "resnet20": (models.resnet20, (32, 32, 3), 64)}


def make(network, sparse, jit_compile):
    """A compiled model, and a function that runs one step of `fit` on the same batch."""
    builder, shape, batch_size = NETWORKS[network]
    keras.utils.set_random_seed(0)
    model = builder()
    optimizer = keras.optimizers.SGD(0.01, momentum=0.9)
    if sparse:
        model = rigl_tf.sparsify(model, _SPARSITY)
        optimizer = rigl_tf.RigL(
            optimizer, end_step=10**9, update_frequency=_UPDATE_FREQUENCY, drop_fraction=0.3
        )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, jit_compile=jit_compile)
    generator = np.random.default_rng(0)
    x = generator.normal(size=(batch_size, *shape)).astype("float32")
    y = generator.integers(0, 10, batch_size)
    run = keras_programs.step_of(model, x, y)

    def step():
        begin = time.perf_counter()
        run()
        return 1000 * (time.perf_counter() - begin)

    return model, step


def measure(network, jit_compile, num_steps, num_updates):
    """One row of the table, times in milliseconds."""
    _, dense_step = make(network, sparse=False, jit_compile=jit_compile)
    model, sparse_step = make(network, sparse=True, jit_compile=jit_compile)
    counter = model.optimizer.step
    counter.assign(_UPDATE_FREQUENCY)
    sparse_step()  # Compiles nothing new, but touches the memory of an update once.
    dense, sparse = [], []
    for _ in range(num_steps + _WARM_UP):
        dense.append(dense_step())
        sparse.append(sparse_step())
    dense, sparse = np.array(dense[_WARM_UP:]), np.array(sparse[_WARM_UP:])
    updates, ordinary = [], []
    for _ in range(num_updates):
        ordinary.append(np.median([sparse_step() for _ in range(3)]))
        counter.assign(_UPDATE_FREQUENCY)
        updates.append(sparse_step())
    assert int(model.optimizer.num_skipped_updates) == 0
    return {
        "network": network,
        "XLA": "yes" if jit_compile else "no",
        "dense step (ms)": f"{np.median(dense):.1f}",
        "sparse step (ms)": f"{np.median(sparse):.1f}",
        "ratio": _quartiles(sparse / dense),
        "mask update (ms)": f"{np.median(updates):.0f}",
        "update in sparse steps": _quartiles(np.array(updates) / np.array(ordinary)),
        "peak memory, dense (MB)": _peak_memory(network, "dense", jit_compile),
        "peak memory, sparse (MB)": _peak_memory(network, "sparse", jit_compile),
    }


def _quartiles(values):
    low, middle, high = np.percentile(values, [25, 50, 75])
    return f"{middle:.3f} ({low:.2f}–{high:.2f})"


def _peak_memory(network, kind, jit_compile):
    """Peak memory of a process that trains a few steps, one of them an update."""
    command = [sys.executable, "-m", "scripts.benchmark.training_step", f"--networks={network}"]
    command += [f"--memory_of={kind}", f"--jit_compile={jit_compile}"]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return output.splitlines()[-1]


def print_peak_memory(network, kind, jit_compile):
    """Prints the peak memory of this process in MB."""
    model, step = make(network, sparse=kind == "sparse", jit_compile=jit_compile)
    if kind == "sparse":
        model.optimizer.step.assign(_UPDATE_FREQUENCY)
    for _ in range(_WARM_UP):
        step()
    # Not `getrusage`: a new process inherits that peak from the one that started it.
    status = pathlib.Path("/proc/self/status").read_text()
    print(int(status.split("VmHWM:")[1].split()[0]) // 1024)


def main(_):
    if FLAGS.memory_of:
        print_peak_memory(FLAGS.networks[0], FLAGS.memory_of, FLAGS.jit_compile)
        return
    rows = []
    for network in FLAGS.networks:
        for jit_compile in (False, True):
            rows.append(measure(network, jit_compile, FLAGS.steps, FLAGS.updates))
            print(rows[-1], flush=True)
    lines = [
        "# Cost of a training step, sparse against dense",
        "",
        f"RigL at {_SPARSITY:.0%} (ERK), SGD with momentum; batch 128 (mlp: 784-2048-2048-2048-10) "
        f"and 64 (resnet20). {FLAGS.steps} pairs of alternating steps in one process: medians, and "
        "the median (quartiles) of the ratio of each pair. The time of a mask update is that of "
        "the whole step, forward and backward pass included.",
        "",
        "| " + " | ".join(rows[0]) + " |",
        "| --- |" + " ---: |" * (len(rows[0]) - 1),
        *("| " + " | ".join(row.values()) + " |" for row in rows),
        "",
        provenance.line("scripts.benchmark.training_step"),
    ]
    output_dir = pathlib.Path(FLAGS.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    (output_dir / "benchmark.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    _define_flags()
    entry.run(main)
