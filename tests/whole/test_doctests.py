"""Runs the examples in the docstrings of `rigl_tf` and `models`."""

import doctest
import importlib
import pkgutil

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import ends_early

import models
import rigl_tf

pytestmark = pytest.mark.built_in_fit


def modules_of(package):
    found = pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    return [package.__name__, *(module.name for module in found)]


MODULES = [*modules_of(rigl_tf), *modules_of(models)]


@ends_early  # examples are short
@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    # What a user has imported; a module's own names come from the module.
    public = {name: getattr(rigl_tf, name) for name in rigl_tf.__all__}
    names = {**public, "keras": keras, "np": np, "tf": tf, "rigl_tf": rigl_tf}
    module = importlib.import_module(name)
    result = doctest.testmod(module, extraglobs={**names, **vars(module)})
    assert result.failed == 0


def test_every_module_is_found_and_examples_are_run():
    assert {"rigl_tf.flops", "rigl_tf.optimizers.dynamic", "models.lenet"} <= set(MODULES)
    finder = doctest.DocTestFinder()
    counts = {
        name: sum(len(test.examples) for test in finder.find(importlib.import_module(name)))
        for name in MODULES
    }
    assert counts["rigl_tf.transforms.sparsify"] >= 3
    assert sum(counts.values()) >= 30
