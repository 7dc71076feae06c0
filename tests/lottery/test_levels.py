"""Tests of `rigl_tf.lottery.levels`: files that several processes share."""

import numpy as np
import pytest

from rigl_tf.lottery.levels import Records, read, replace_file


def test_a_file_that_two_processes_write(tmp_path):
    """One begins, the other writes all of it meanwhile, then the first goes on."""
    path = tmp_path / "file"

    def slowly(file):
        file.write(b"slow")
        file.flush()
        replace_file(path, lambda other: other.write(b"fast"))
        assert path.read_bytes() == b"fast"
        file.write(b"ly")

    replace_file(path, slowly)
    assert path.read_bytes() == b"slowly"
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_leaves_nothing(tmp_path):
    def fail(file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        replace_file(tmp_path / "file", fail)
    assert not list(tmp_path.iterdir())


def test_all_go_on_with_what_the_first_has_finished(tmp_path):
    def record(number):
        return {"weights": [np.array([number])], "metrics": {"loss": number}}

    def slowly():
        Records(tmp_path, {"levels": 1}).once("level", lambda: record(1.0))
        return record(2.0)

    slow = Records(tmp_path, {"levels": 1}).once("level", slowly)
    assert slow["metrics"] == read(tmp_path / "level.npz")["metrics"] == {"loss": 1.0}
