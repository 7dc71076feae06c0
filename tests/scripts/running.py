"""Runs a script as its command line does, on small data."""

import contextlib
import csv
import os
import pathlib

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

from scripts.common import browser
from scripts.lottery import __main__ as lottery
from scripts.lottery.pages import common

# `make test-web` has all that is needed.
needs_browser = pytest.mark.skipif(
    bool(browser.missing()) and os.environ.get("RIGL_TF_WEB") != "required",
    reason=browser.missing() or "-",
)


@contextlib.contextmanager
def given(define_flags, *arguments):
    """The flags that a script defines, with these arguments. They are gone afterwards."""
    with flagsaver.flagsaver():
        define_flags()
        # What is tested need not be committed.
        own = ["--allow_dirty"] if "allow_dirty" in flags.FLAGS else []
        flags.FLAGS(["test", *own, *arguments])
        yield flags.FLAGS


def run(script, *arguments):
    """Runs a script as its command line does."""
    with given(script._define_flags, *arguments):
        return script.main([script.__name__])


def run_protocol(protocol, data_dir, output_dir, *arguments):
    """Runs a protocol of `scripts.lottery` for one epoch. Returns its rows and its page."""
    name = protocol.__name__.rpartition(".")[2]
    directories = f"--data_dir={data_dir}", f"--output_dir={output_dir}"
    run(lottery, f"--protocol={name}", *directories, "--epochs=1", *arguments)
    assert (output_dir / f"{protocol.NAME}.png").stat().st_size > 1000
    page = (output_dir / f"{protocol.NAME}.md").read_text()
    return rows_of(output_dir / f"{protocol.NAME}.csv"), page


def page_of(protocol, page, rows):
    """The page that the command makes of these rows, with the flags as they are."""
    directory = pathlib.Path(flags.FLAGS.output_dir)
    directory.mkdir(exist_ok=True)
    common.write(protocol, page, list(rows))
    return (directory / f"{protocol.NAME}.md").read_text()


def rows_of(path):
    """The rows of a CSV file, as dictionaries of strings."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write_mnist(directory, num_train, num_test):
    """Writes data like MNIST: each class has another bright row."""
    generator = np.random.default_rng(0)
    arrays = {}
    for split, size in (("train", num_train), ("test", num_test)):
        labels = generator.integers(0, 10, size)
        images = generator.integers(0, 50, (size, 28, 28))
        images[np.arange(size), 2 * labels + 4] += 200
        arrays |= {f"x_{split}": images.astype("uint8"), f"y_{split}": labels.astype("uint8")}
    directory.mkdir()
    np.savez(directory / "mnist.npz", **arrays)


def cells_of(page, *names):
    """The cells after these ones, in the first line of a table that begins with them."""
    line, *_ = [each for each in page.splitlines() if each.startswith(f"| {' | '.join(names)} |")]
    return line.strip("| ").split(" | ")[len(names) :]


def line_of(page, start):
    """The cells of the first line of a table that starts so."""
    line, *_ = [each for each in page.splitlines() if each.startswith(f"| {start}")]
    return line.strip("| ").split(" | ")
