"""Runs a script as its command line does, on small data."""

import csv

import numpy as np
from absl import flags
from absl.testing import flagsaver


def run(script, *arguments):
    """Runs a script as its command line does. The flags are gone afterwards."""
    with flagsaver.flagsaver():
        script._define_flags()
        flags.FLAGS([script.__name__, *arguments])
        script.main([script.__name__])


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
