"""The demo: LeNet-300-100 on handwritten digits, 90 % sparse with RigL, and dense for comparison.

    make demo        (or: python -m scripts.demo)

It trains both networks and exports the sparse one as a pruned SavedModel. The export is loaded in
another process, which has only TensorFlow. It prints one table and writes an HTML page. It takes
about a minute on two cores and downloads nothing. Expect an accuracy of 98 % dense and 97 % sparse,
with a tenth of the weights and of the FLOPs.
"""

import json
import pathlib
import subprocess
import sys

import keras
import numpy as np
import rich.console
import rich.progress
import rich.table
from absl import flags, logging

import rigl_tf
from scripts.common import datasets, entry, methods

_SPARSITY = 0.9
_BATCH_SIZE = 32
_UPDATE_FREQUENCY = 20

FLAGS = flags.FLAGS


def _define_flags():
    flags.DEFINE_string("output_dir", "demo", "Directory for the exported model.")
    flags.DEFINE_integer("epochs", 60, "Epochs of each of the two models.", lower_bound=1)


class _ProgressBar(keras.callbacks.Callback):
    """One progress bar for all epochs."""

    def __init__(self, description):
        super().__init__()
        self._description = description
        self._progress = rich.progress.Progress(transient=False)

    def on_train_begin(self, logs=None):
        self._progress.start()
        self._task = self._progress.add_task(self._description, total=self.params["epochs"])

    def on_epoch_end(self, epoch, logs=None):
        self._progress.advance(self._task)

    def on_train_end(self, logs=None):
        self._progress.stop()


def train(method, dataset, epochs):
    """Trains `"dense"` or `"rigl"`; returns the model, its history and its test accuracy."""
    keras.utils.set_random_seed(0)
    shape = dataset.x_train.shape[1:]
    model = methods.build_model(method, "lenet_300_100", _SPARSITY, input_shape=shape)
    num_steps = len(dataset.x_train) // _BATCH_SIZE
    total_steps = epochs * num_steps
    learning_rate = keras.optimizers.schedules.CosineDecay(0.1, total_steps)
    inner = keras.optimizers.SGD(learning_rate, momentum=0.9)
    model.compile(
        methods.wrap_optimizer(
            method, inner, total_steps, _SPARSITY, update_frequency=_UPDATE_FREQUENCY
        ),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        # A divisor, with one update at most in an execution, so that each of them is seen.
        steps_per_execution=max(n for n in range(1, _UPDATE_FREQUENCY + 1) if not num_steps % n),
    )
    used = num_steps * _BATCH_SIZE
    name = "Dense training        " if method == "dense" else "Sparse training (RigL)"
    is_sparse = bool(rigl_tf.masks.kernels_of(model))
    history = model.fit(
        dataset.x_train[:used],
        dataset.y_train[:used],
        batch_size=_BATCH_SIZE,
        epochs=epochs,
        verbose=0,
        callbacks=[rigl_tf.callbacks.SparsityLogger()] * is_sparse + [_ProgressBar(name)],
    )
    scores = model.evaluate(dataset.x_test, dataset.y_test, verbose=0, return_dict=True)
    return model, history, scores["accuracy"]


def run_elsewhere(export_dir, dataset, expected):
    """Runs the export without `rigl_tf`. Returns its accuracy and largest difference."""
    data = export_dir.parent / "digits_test.npz"
    np.savez(data, inputs=dataset.x_test, labels=dataset.y_test, expected=expected)
    script = pathlib.Path(__file__).with_name("plain_tensorflow.py")
    command = [sys.executable, str(script), str(export_dir), str(data)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(output.splitlines()[-1])


def _print_table(summary, report, dense_accuracy, sparse_accuracy, elsewhere):
    table = rich.table.Table(title="LeNet-300-100 on digits", title_justify="left")
    for column in ("", "dense", "sparse (RigL)"):
        table.add_column(column, justify="left" if not column else "right")
    for kernel in summary.kernels:
        shape = "x".join(map(str, kernel.shape))
        table.add_row(f"sparsity of {kernel.path} ({shape})", "0 %", f"{kernel.sparsity:.1%}")
    table.add_section()
    table.add_row("test accuracy", f"{dense_accuracy:.2%}", f"{sparse_accuracy:.2%}")
    table.add_row("  of the SavedModel, plain TensorFlow", "", f"{elsewhere['accuracy']:.2%}")
    table.add_row("active weights", f"{report.num_weights:,}", f"{report.num_active:,}")
    dense_bytes = 4 * report.num_weights
    table.add_row(
        "bytes of weights (values and bit mask)", f"{dense_bytes:,}", f"{report.sparse_bytes:,}"
    )
    table.add_row("FLOPs for one image", f"{report.dense_flops:,}", f"{report.flops:,}")
    table.add_row("FLOPs ratio", "1", f"{report.flops_ratio:.3f}")
    table.add_row("SavedModel on disk, bytes", "", f"{report.file_bytes:,}")
    table.add_row("SavedModel compressed, bytes", "", f"{report.compressed_bytes:,}")
    difference = max(report.max_difference, elsewhere["max_difference"])
    table.add_row("largest output difference", "", f"{difference:.2g}")
    console = rich.console.Console(width=100)
    console.print(table)
    console.print(f"The pruned SavedModel is in {report.path}", soft_wrap=True)


def main(_):
    logging.set_verbosity(logging.WARNING)
    output_dir = pathlib.Path(FLAGS.output_dir)
    dataset = datasets.load("digits")
    _, _, dense_accuracy = train("dense", dataset, FLAGS.epochs)
    sparse, history, sparse_accuracy = train("rigl", dataset, FLAGS.epochs)
    print("Exporting, and loading the export in a plain TensorFlow process", flush=True)
    report = rigl_tf.export(sparse, output_dir / "saved_model")
    expected = sparse.predict(dataset.x_test, verbose=0)
    elsewhere = run_elsewhere(output_dir / "saved_model", dataset, expected)
    summary = rigl_tf.sparsity_summary(sparse)
    _print_table(summary, report, dense_accuracy, sparse_accuracy, elsewhere)
    try:
        page = rigl_tf.report(sparse, history, output_dir / "report.html", export=report)
        print(f"Look at it in a browser: {page}")
    except ImportError as error:  # matplotlib is optional
        print(error)


if __name__ == "__main__":
    _define_flags()
    entry.run(main)
