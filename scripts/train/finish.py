"""The end of a training run: saves and exports the model, and prints the results."""

import numpy as np
import rich
import rich.table
import tensorflow as tf

import rigl_tf


def finish(directory, settings, data, model, command=None):
    """Saves the model, exports it, writes a page, and prints the results and their paths.

    Args:
        directory: The `scripts.train.runs.RunDirectory`.
        settings: The `scripts.train.settings.Settings`.
        data: The `scripts.common.datasets.Dataset`.
        model: The trained `keras.Model`.
        command: String, the command that the page shows.
    """
    with directory.replacing("model.keras") as temporary:
        model.save(temporary)
    export_path = directory.path / "export"
    report = rigl_tf.export(model, export_path, format="saved_model")
    exported = tf.saved_model.load(str(export_path))
    accuracies = {
        "test_accuracy": _accuracy(lambda x: model(x, training=False), data),
        "exported_test_accuracy": _accuracy(exported.serve, data),
    }
    page = _write_page(directory, model, report, command)
    directory.write_json("report.json", {**accuracies, **report.to_dict()})
    _print_result(directory, settings, data, model, report, accuracies)
    print(page)


def _write_page(directory, model, export, command):
    """Writes the page about the run. Returns a sentence: its path, or why there is none."""
    metrics = directory.path / "metrics.csv"
    try:
        with directory.replacing("report.html") as temporary:
            rigl_tf.report(model, metrics, temporary, export=export, command=command)
    except ImportError as error:  # matplotlib is optional
        return f"There is no page on the run: {error}"
    return f"The page on the run is {directory.path / 'report.html'}"


def _accuracy(call, data):
    """Share of the test examples whose largest logit is that of their label."""
    num_right = 0
    for start in range(0, len(data.x_test), 1000):
        logits = np.asarray(call(tf.constant(data.x_test[start : start + 1000])))
        num_right += int((logits.argmax(axis=-1) == data.y_test[start : start + 1000]).sum())
    return num_right / len(data.y_test)


def _print_result(directory, settings, data, model, report, accuracies):
    print(rigl_tf.sparsity_summary(model))
    table = rich.table.Table(
        title=f"{settings.method}: {settings.model} on {data.name}", title_justify="left"
    )
    for name in ("", "all", "active"):
        table.add_column(name, justify="right" if name else "left")
    table.add_row("weights", f"{report.num_weights:,}", f"{report.num_active:,}")
    table.add_row("FLOPs per example", f"{report.dense_flops:,}", f"{report.flops:,}")
    table.add_row("bytes of the weights", f"{4 * report.num_weights:,}", f"{report.sparse_bytes:,}")
    table.add_section()
    table.add_row("test accuracy", "", f"{accuracies['test_accuracy']:.2%}")
    table.add_row("of the export", "", f"{accuracies['exported_test_accuracy']:.2%}")
    table.add_row("bytes of the export", "", f"{report.file_bytes:,}")
    table.add_row("compressed", "", f"{report.compressed_bytes:,}")
    rich.print(table)
    print(f"All files are in {directory.path}, the exported model in {report.path}")
