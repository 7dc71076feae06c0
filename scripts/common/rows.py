"""Finished runs as rows of a CSV file."""

import contextlib
import csv
import fcntl
import os


class Rows:
    """Finished runs in a CSV file. The columns in `key` identify a run.

    `add` writes a row to the disk before it returns, so a script can be stopped at any time.
    Several processes may add rows to the same file. Only some rows may have a column, for example
    rows of an older version of the script. The column is then kept, and empty in the other rows.

    Args:
        path: `pathlib.Path` of the CSV file. It need not exist.
        key: Names of the columns that identify a run.
    """

    def __init__(self, path, key):
        self.path = path
        self.key = key
        self.rows = self._read()

    def _read(self):
        if not self.path.exists():
            return []
        with self.path.open(newline="") as file:
            return [
                {name: _number(value) for name, value in row.items()}
                for row in csv.DictReader(file)
            ]

    def __contains__(self, run):
        return any(all(row.get(name) == run[name] for name in self.key) for row in self.rows)

    def refresh(self):
        """Reads the rows again, with those that other processes have added."""
        self.rows = self._read()

    def add(self, row):
        """Appends one row. The file is written again and renamed, so it is never half-written."""
        with _locked(self.path.parent):
            self.rows = [*self._read(), row]
            temporary = self.path.with_suffix(".tmp")
            with temporary.open("w", newline="") as file:
                names = dict.fromkeys(name for each in (row, *self.rows) for name in each)
                writer = csv.DictWriter(file, list(names), lineterminator="\n")
                writer.writeheader()
                writer.writerows(self.rows)
            os.replace(temporary, self.path)


@contextlib.contextmanager
def _locked(directory):
    """Holds a lock, for which other processes wait."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _number(text):
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
