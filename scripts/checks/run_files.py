"""Checks the files of training runs: that they are complete, and whether two runs are equal."""

import csv
import io
import json
import pathlib
import re
import warnings
import zipfile

import h5py
import keras
import numpy as np
import tensorflow as tf

import rigl_tf  # noqa: F401  The classes in the .keras files.

_TEMPORARY = (".tmp-", ".export-")


def temporaries(directory):
    """The names of the temporary files and directories in a run directory."""
    names = (path.name for path in pathlib.Path(directory).iterdir())
    return sorted(name for name in names if name.startswith(_TEMPORARY))


def last_checkpoint(directory):
    """The number of epochs after which the last checkpoint was written; 0 if there is none."""
    names = (path.name for path in pathlib.Path(directory).glob("checkpoint-*.keras"))
    return max((_epochs_of(name) for name in names), default=0)


def broken_files(directory):
    """Loads every file of a run that has its final name.

    Args:
        directory: Path of the run directory.

    Returns:
        List of strings, one for each file that cannot be loaded, does not belong to a run, or
        contradicts another file. Temporary files are ignored.
    """
    broken = []
    for path in sorted(pathlib.Path(directory).iterdir()):
        if path.name.startswith(_TEMPORARY):
            continue
        try:
            _load(path)
        except Exception as error:  # Readers raise many kinds of errors for damaged files.
            broken.append(f"{path.name}: {type(error).__name__}: {error}")
    return broken


def final_arrays(directory):
    """The results of a finished run, as `{file/name: array}`.

    These are the metrics; the weights, masks and optimizer state of the last checkpoint and of the
    final model; and the weights of the export.
    """
    directory = pathlib.Path(directory)
    metrics = np.frombuffer((directory / "metrics.csv").read_bytes(), np.uint8)
    arrays = {"metrics.csv": metrics}
    for path in directory.glob("*.keras"):
        with zipfile.ZipFile(path) as archive:
            weights = h5py.File(io.BytesIO(archive.read("model.weights.h5")))
        weights.visititems(
            lambda name, item, file=path.name: (
                arrays.update({f"{file}/{name}": item[()]}) if hasattr(item, "dtype") else None
            )
        )
    reader = tf.train.load_checkpoint(str(directory / "export" / "variables" / "variables"))
    for name in reader.get_variable_to_shape_map():
        if name != "_CHECKPOINTABLE_OBJECT_GRAPH":
            arrays[f"export/{name}"] = reader.get_tensor(name)
    return arrays


def differences(directory, other):
    """List of strings, one for each difference between two finished runs.

    These are compared: the names of the files; all of `final_arrays`, bit for bit; and the
    accuracies and counts in `report.json` (but not its paths, file sizes and times).
    """
    one, two = (sorted(p.name for p in pathlib.Path(d).iterdir()) for d in (directory, other))
    if one != two:
        return [f"files {one} and {two}"]
    ours, theirs = final_arrays(directory), final_arrays(other)
    names = sorted(ours.keys() ^ theirs.keys())
    names += [name for name in ours.keys() & theirs.keys() if not _equal(ours[name], theirs[name])]
    numbers = [_numbers(pathlib.Path(d, "report.json")) for d in (directory, other)]
    return names + ([] if numbers[0] == numbers[1] else [f"report.json: {numbers}"])


def _equal(array, other):
    array, other = np.asarray(array), np.asarray(other)
    same_kind = array.dtype == other.dtype and array.shape == other.shape
    return same_kind and array.tobytes() == other.tobytes()


def _numbers(path):
    report = json.loads(path.read_text())
    without = ("path", "file_bytes", "compressed_bytes", "latencies")
    return {name: value for name, value in report.items() if name not in without}


def _load(path):
    if path.suffix == ".json":
        json.loads(path.read_text())
    elif path.name == "metrics.csv":
        _load_metrics(path)
    elif path.suffix == ".keras":
        _load_model(path)
    elif path.name == "report.html":
        if not path.read_text(encoding="utf-8").endswith("</html>\n"):
            raise ValueError("cut off")
    elif path.name == "export":
        artifact = tf.saved_model.load(str(path))
        (inputs,) = artifact.signatures["serving_default"].structured_input_signature[1].values()
        artifact.serve(tf.zeros([1, *inputs.shape[1:]], inputs.dtype))
    else:
        raise ValueError("a run has no such file")


def _load_metrics(path):
    rows = list(csv.reader(io.StringIO(path.read_text())))
    epochs = [row[0] for row in rows[1:]]
    whole = path.read_bytes().endswith(b"\n") and all(len(row) == len(rows[0]) for row in rows)
    if not whole or epochs != [str(i + 1) for i in range(len(epochs))]:
        raise ValueError("cut off or out of order")
    if len(epochs) < last_checkpoint(path.parent):
        raise ValueError(f"{len(epochs)} rows, fewer than epochs in the checkpoint")


def _load_model(path):
    with zipfile.ZipFile(path) as archive:
        if archive.testzip() is not None:
            raise ValueError("bad checksum")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # Keras only warns of lost optimizer state.
        model = keras.saving.load_model(path)
    if path.name == "model.keras":
        return
    config = json.loads((path.parent / "config.json").read_text())
    steps_per_epoch = config["data"]["train"] // config["settings"]["batch_size"]
    step = int(getattr(model.optimizer, "step", model.optimizer.iterations))
    if step != _epochs_of(path.name) * steps_per_epoch:
        raise ValueError(f"its optimizer is at step {step}")


def _epochs_of(name):
    return int(re.fullmatch(r"checkpoint-(\d+)\.keras", name)[1])
