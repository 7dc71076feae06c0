"""Ways to compute: with the operations in C++ or without, with fewer threads, narrower vectors."""

import ctypes

import pytest

from rigl_tf.execution import engine


@pytest.fixture(params=["1", "0"], ids=["native", "tensorflow"])
def either(request, monkeypatch):
    """Both ways to compute: the operations in C++, and TensorFlow's own."""
    monkeypatch.setenv("RIGL_TF_NATIVE", request.param)
    if request.param == "1" and engine._compiler() is None:
        pytest.skip("There is no C++ compiler.")
    assert engine.is_native() == (request.param == "1")


@pytest.fixture
def native(monkeypatch):
    """The operations in C++ are there."""
    monkeypatch.setenv("RIGL_TF_NATIVE", "1")
    if not engine.is_native():
        pytest.skip("There is no C++ compiler.")


@pytest.fixture
def limits(native):
    """Sets how many threads work, and how many floats a vector has."""
    library = ctypes.CDLL(str(engine._library()))
    yield lambda threads=0, lanes=0: library.RiglSetLimits(threads, lanes)
    library.RiglSetLimits(0, 0)
