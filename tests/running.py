"""Runs a script as its command line does."""

import csv

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
