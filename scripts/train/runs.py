"""A run directory: the settings, the results, and the state to continue after a `kill -9`.

| file | content |
| --- | --- |
| `config.json` | settings, versions, git revision, data checksum, the command |
| `metrics.csv` | one row an epoch |
| `checkpoint-0007.keras` | model and optimizer after 7 epochs; only the last one is kept |
| `report.html` | a page to look at: curves, sparsity, costs (if matplotlib is installed) |
| `model.keras`, `export/`, `report.json` | the results; `report.json` is written last |

Everything is written under a temporary name and renamed when it is complete. The epoch of a
checkpoint is its name, so that one rename makes both valid; the row in `metrics.csv` comes first.
Nothing is synced to the disk: `kill -9` loses nothing that was written, a power failure can.
"""

import contextlib
import csv
import importlib.metadata
import io
import json
import os
import pathlib
import shutil
import sys
import uuid
import zipfile
import zlib

import numpy as np

from scripts.common import provenance

_CHECKPOINT = "checkpoint-{:04d}.keras"
_TEMPORARY = ".tmp-"


class RunDirectory:
    """The files of one training run.

    Args:
        path: Path of the directory. It is made by `create`.
    """

    def __init__(self, path):
        self.path = pathlib.Path(path).expanduser()
        self._rows = []

    @property
    def is_finished(self):
        return (self.path / "report.json").exists()

    def check_free(self):
        """Raises a `ValueError` if the path is a run directory, or not a directory."""
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"`output_dir` must be a directory. Received: {self.path}, a file")
        names = (
            "config.json",
            "metrics.csv",
            "model.keras",
            "export",
            "report.html",
            "report.json",
        )
        if any((self.path / name).exists() for name in names) or self._checkpoints():
            raise ValueError(
                "`output_dir` must not hold a run already: continue it with --resume or choose "
                f"another directory. Received: {self.path}"
            )

    def create(self, config):
        """Makes the directory, with `config` (a dictionary) in `config.json`."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.write_json("config.json", config)
        except OSError as error:
            raise ValueError(
                "`output_dir` must be a directory that can be made and written to. "
                f"Received: {self.path} ({error.__cause__ or error})"
            ) from error

    def read_config(self):
        """The entries of `describe` in `config.json`, without the command."""
        path = self.path / "config.json"
        if not path.is_file():
            raise ValueError(
                "--resume needs the directory of a run, with a config.json: start the run without "
                f"--resume. Received: output_dir={self.path}"
            )
        try:
            config = json.loads(path.read_text())
            return {name: dict(config[name]) for name in ("settings", "data", "versions")}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                "config.json must be as the run wrote it. "
                f"Received: {path} ({type(error).__name__}: {error})"
            ) from error

    def write_json(self, name, value):
        with self.replacing(name) as temporary:
            temporary.write_text(json.dumps(value, indent=2) + "\n")

    @contextlib.contextmanager
    def replacing(self, name):
        """Gives a temporary path to write to, and renames it to `name` at the end.

        Raises:
            OSError: If this fails. The temporary file is deleted then, and an earlier `name` stays.
        """
        stem, dot, suffix = name.partition(".")
        # The name is unique, in case another process uses this directory by mistake.
        temporary = self.path / f"{_TEMPORARY}{stem}-{uuid.uuid4().hex}{dot}{suffix}"
        try:
            yield temporary
            os.replace(temporary, self.path / name)
        except OSError as error:
            with contextlib.suppress(OSError):
                _remove(temporary)
            raise OSError(
                error.errno,
                "A file of the run cannot be written; make that possible (is the disk full?) and "
                f"continue with --resume. Received: {self.path / name} ({error})",
            ) from error

    def save_epoch(self, model, num_epochs, row):
        """Adds `row` to the metrics and replaces the checkpoint, after `num_epochs` epochs."""
        self._rows.append(row)
        self._write_metrics()
        last = self._checkpoints()
        with self.replacing(_CHECKPOINT.format(num_epochs)) as temporary:
            model.save(temporary)
        for path in last:
            path.unlink(missing_ok=True)

    def restore(self, model, steps_per_epoch):
        """Loads the last checkpoint into a compiled model, and its metrics into this object.

        Returns:
            The number of finished epochs; 0 if there is no checkpoint.

        Raises:
            ValueError: If the checkpoint is damaged or of another model, or `metrics.csv` does not
                belong to it.
        """
        for path in [*self.path.glob(f"{_TEMPORARY}*"), *self.path.glob(".export-*")]:
            _remove(path)
        checkpoints = self._checkpoints()
        num_epochs = _epochs_of(checkpoints[-1]) if checkpoints else 0
        if checkpoints:
            _load(model, checkpoints[-1], num_epochs * steps_per_epoch)
        for path in checkpoints[:-1]:
            path.unlink()
        self._rows = self._read_metrics(num_epochs) if num_epochs else []
        return num_epochs

    def _checkpoints(self):
        return sorted(self.path.glob("checkpoint-*.keras"), key=_epochs_of)

    def _read_metrics(self, num_epochs):
        """The rows of the finished epochs, every value a number."""
        path = self.path / "metrics.csv"
        try:
            # Bytes that are not text become strings that are not numbers.
            text = path.read_text(errors="replace")
            rows = list(csv.DictReader(io.StringIO(text)))[:num_epochs]
            for row in rows:
                list(map(float, row.values()))  # It raises for a value that is not a number.
            is_whole = text.endswith("\n") and [row["epoch"] for row in rows] == [
                str(epoch) for epoch in range(1, num_epochs + 1)
            ]
        except (OSError, ValueError, TypeError, KeyError, csv.Error):
            is_whole = False
        if not is_whole:
            raise ValueError(
                f"metrics.csv must have a whole row for each of the {num_epochs} finished epochs. "
                f"Received: {path}; delete {_CHECKPOINT.format(num_epochs)} to train from the "
                "first epoch"
            )
        return rows

    def _write_metrics(self):
        with self.replacing("metrics.csv") as temporary, temporary.open("w", newline="") as file:
            # Rows of another version of the script may have other columns.
            names = dict.fromkeys(name for row in self._rows for name in row)
            writer = csv.DictWriter(file, list(names), restval="nan", lineterminator="\n")
            writer.writeheader()
            writer.writerows(self._rows)


def check_same_settings(settings, given, names, may_differ):
    """Raises a `ValueError` if a setting in `given` differs from the setting of the run.

    Args:
        settings: Dictionary, the settings of the run.
        given: Dictionary, the settings that the user asks for now.
        names: Set of the names of all settings.
        may_differ: Names of settings that do not change the result.
    """
    if settings.keys() != names:
        raise ValueError(
            "config.json must have the settings of this version of the script. Received: "
            f"{sorted(settings.keys() ^ names)} in only one of them"
        )
    differing = [
        f"--{name}={value} (the run has {settings.get(name)})"
        for name, value in given.items()
        if name not in may_differ and settings.get(name) != value
    ]
    if differing:
        raise ValueError(
            "--resume continues a run with its own settings; leave them out, or start another run. "
            f"Received: {', '.join(differing)}"
        )


def describe(settings, data, command):
    """The content of `config.json`: everything that determines the result of a run."""
    checksum = 0
    for array in (data.x_train, data.y_train, data.x_test, data.y_test):
        checksum = zlib.crc32(np.ascontiguousarray(array), checksum)
    return {
        "settings": settings,
        "command": command,
        "data": {"train": len(data.x_train), "test": len(data.x_test), "crc32": checksum},
        "versions": {**provenance.versions(), "rigl_tf": _rigl_tf_version()},
    }


def check_same_circumstances(config, now):
    """Refuses other data. Warns of other versions, which may change the last digits."""
    if config["data"] != now["data"]:
        raise ValueError(
            "--resume needs the data that the run was started with. "
            f"Received: {now['data']} (the run has {config['data']})"
        )
    for name, version in now["versions"].items():
        earlier = config["versions"].get(name)
        if version != earlier:
            print(f"Note: {name} is {version}; the run was started with {earlier}", file=sys.stderr)


def _rigl_tf_version():
    try:
        return importlib.metadata.version("rigl_tf")
    except importlib.metadata.PackageNotFoundError:
        return "not installed: imported from the source tree"


def _load(model, path, step):
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"bad checksum of {damaged}")
        model.load_weights(path)
        # If Keras cannot restore an optimizer, it only warns. The step counter shows it.
        restored = int(getattr(model.optimizer, "step", model.optimizer.iterations).numpy())
        if restored != step:
            raise ValueError(f"the optimizer is at step {restored}, not {step}")
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(
            "The checkpoint must be undamaged and of this model: delete it, and --resume trains "
            "again from the first epoch, with the same result. "
            f"Received: {path} ({type(error).__name__}: {error})"
        ) from error


def _epochs_of(checkpoint):
    return int(checkpoint.stem.rpartition("-")[2])


def _remove(path):
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
