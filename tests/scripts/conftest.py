"""Small data for the scripts."""

import functools
import pathlib

import keras
import pytest
from running import given, write_mnist

import models
from scripts.common import classifiers
from scripts.lottery import __main__ as lottery
from scripts.lottery import networks

# What a few steps on small data make `rigl_tf` and Keras say is not the point of any test here.
_EXPECTED = (
    "training ended after",
    "the sparsity is a share of these",
    "trains no weight from step",
    "does not have a `quantize` method",
    "cannot be log-scaled",  # of an error that is 0
)


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.is_relative_to(pathlib.Path(__file__).parent):
            for text in _EXPECTED:
                item.add_marker(pytest.mark.filterwarnings(f"ignore:.*{text}:UserWarning"))


@pytest.fixture(autouse=True)
def no_data_of_other_tests():
    networks._load.cache_clear()


@pytest.fixture(autouse=True)
def no_garbage_collections(monkeypatch):
    """A script collects garbage before each run, which takes seconds in a process of many tests."""
    clear_session = functools.partial(keras.backend.clear_session, free_memory=False)
    monkeypatch.setattr(keras.backend, "clear_session", clear_session)


@pytest.fixture
def without_xla(monkeypatch):
    """To compile a step of a tiny network takes longer than to train it."""
    compile_classifier = classifiers.compile_classifier

    def compile_without(model, optimizer, jit_compile, steps_per_execution):
        compile_classifier(model, optimizer, False, steps_per_execution)

    monkeypatch.setattr(classifiers, "compile_classifier", compile_without)


@pytest.fixture
def mnist_dir(tmp_path):
    """Data like MNIST: 2000 and 100 images, each class with another bright row."""
    write_mnist(tmp_path / "data", 2000, 100)
    return tmp_path / "data"


@pytest.fixture
def small_case(tmp_path, monkeypatch):
    """A case of one hidden layer, 31,760 weights; where its 200 images are, and where to write."""
    write_mnist(tmp_path / "data", 200, 50)
    monkeypatch.setitem(models.BUILDERS, "tiny", _tiny)
    case = networks.Case("tiny", "mnist", batch_size=20)
    return case, tmp_path / "data", tmp_path / "out"


def _tiny(input_shape, l2=0.0, width=1.0):
    hidden = keras.layers.Dense(max(1, round(40 * width)), activation="relu", name="hidden")
    layers = [keras.layers.Flatten(), hidden, keras.layers.Dense(10, name="logits")]
    return keras.Sequential([keras.Input(input_shape), *layers])


@pytest.fixture
def lottery_flags(small_case):
    """The flags of the lottery command, for pages of rows that are made up."""
    _, data_dir, output_dir = small_case
    directories = f"--data_dir={data_dir}", f"--output_dir={output_dir}"
    with given(lottery._define_flags, *directories, "--epochs=1", "--protocol=tickets") as them:
        yield them
