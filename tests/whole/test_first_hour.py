"""What a newcomer meets first: installing, importing, asking for help, the first program."""

import pathlib
import re

import pytest
from helpers import ROOT, python

import rigl_tf


def test_the_version_stands_in_one_place():
    assert re.fullmatch(r"\d+\.\d+\.\d+", rigl_tf.__version__)
    project = (ROOT / "pyproject.toml").read_text()
    assert 'dynamic = ["version"]' in project
    assert 'version = { attr = "rigl_tf.__version__" }' in project
    # A plain string, which the build reads without importing TensorFlow.
    assert f'__version__ = "{rigl_tf.__version__}"' in pathlib.Path(rigl_tf.__file__).read_text()


# Keras names its backend when it is imported; one that is not installed cannot be. So the name is
# exchanged after the import: all that `rigl_tf` goes by.
OTHER_BACKEND = """\
import sys, keras
keras.backend.backend = lambda: sys.argv[1]
import rigl_tf
"""


def test_other_backends_are_refused_in_a_sentence():
    done = python("-c", OTHER_BACKEND, "jax")
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == (
        "ImportError: `rigl_tf` works with the TensorFlow backend of Keras: set the environment "
        "variable KERAS_BACKEND=tensorflow before keras is imported. "
        "Received: keras.backend.backend()='jax'"
    )


# In a folder of its own: `make` installs the package in `.venv`, and scripts find it anywhere.
IMPORT = """\
import os, sys, keras, tensorflow as tf, warnings
def state():
    return (
        dict(os.environ), keras.config.floatx(), keras.config.dtype_policy().name,
        keras.backend.backend(), tf.executing_eagerly(), list(warnings.filters), list(sys.path),
    )
before, modules = state(), set(sys.modules)
import rigl_tf
assert state() == before
new = {name.partition(".")[0] for name in set(sys.modules) - modules}
assert not new & {"tf_keras", "tensorflow_model_optimization", "sklearn", "scripts", "models"}, new
print("imported", rigl_tf.__version__)
help(rigl_tf)
"""


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """What a program prints that imports the installed package and asks for help."""
    folder = tmp_path_factory.mktemp("anywhere")
    script = folder / "script.py"
    script.write_text(IMPORT)
    done = python(str(script), cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_package_is_installed_and_importing_it_changes_nothing_else(imported):
    assert imported.startswith(f"imported {rigl_tf.__version__}\n")


def test_dir_shows_the_public_names():
    names = [name for name in dir(rigl_tf) if not name.startswith("__")]
    assert names == sorted(rigl_tf.__all__)
    assert {"sparsify", "RigL", "export", "strip"} <= set(names)
    assert all(hasattr(rigl_tf, name) for name in dir(rigl_tf))
    # Those that are not shown can still be reached.
    assert rigl_tf.optimizers.RigL is rigl_tf.RigL


def test_help_shows_the_two_lines(imported):
    page = imported.partition("PACKAGE CONTENTS")[0]
    assert "rigl_tf.sparsify(model, sparsity=0.9)" in page
    assert "rigl_tf.RigL(" in page
    assert f"VERSION\n    {rigl_tf.__version__}" in imported


def test_the_first_program_of_the_site_runs_anywhere(tmp_path):
    """It needs nothing but the package, and its accuracy is one to be believed."""
    page = (ROOT / "docs" / "getting_started.md").read_text(encoding="utf-8")
    program = re.search(r"^```python\n(.*?)^```", page, flags=re.DOTALL | re.MULTILINE)[1]
    imports = set(re.findall(r"^(?:import|from) (\w+)", program, flags=re.MULTILINE))
    assert imports == {"keras", "numpy", "rigl_tf"}
    script = tmp_path / "first.py"
    script.write_text(program, encoding="utf-8")
    done = python(str(script), cwd=tmp_path, PYTHONPATH=str(ROOT), PYTHONIOENCODING="utf-8")
    assert done.returncode == 0, done.stderr
    best = float(re.search(r"(\d+) % is the best possible", program)[1]) / 100
    accuracies = [float(each) for each in re.findall(r"val_accuracy: ([\d.]+)", done.stdout)]
    assert len(accuracies) == 5
    # By chance one in ten is right. The best is an expectation, met on 500 pictures +- 1 %.
    assert 0.85 < accuracies[-1] < best + 0.03
    assert "are in sparse kernels" in done.stdout
    assert (tmp_path / "export" / "pictures").is_dir()
