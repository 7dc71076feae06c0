"""Import paths of the version before still work, and say where things are now."""

import importlib
import pathlib
import re
import sys
import warnings

import pytest

import rigl_tf
from rigl_tf import moved

# What could be imported from each module of version 0.1.
NAMES = {
    "rigl_tf.compact": ("compact", "live_units"),
    "rigl_tf.costs": ("Cost", "KernelCost", "ExportReport"),
    "rigl_tf.export": ("export",),
    "rigl_tf.optimizers.base": ("SparseOptimizer",),
    "rigl_tf.smart_ratio": ("smart_ratio",),
    "rigl_tf.sparsify": ("sparsify", "strip"),
    "rigl_tf.summary": ("SparsitySummary", "KernelSummary", "sparsity_summary"),
    "rigl_tf.wrapper": ("SparseWrapper",),
}


@pytest.fixture(autouse=True)
def not_imported_yet():
    """An old path warns when a process imports it first."""
    for old in moved.MOVED:
        sys.modules.pop(old, None)


def test_every_old_path_is_tested():
    assert set(NAMES) == set(moved.MOVED)


@pytest.mark.parametrize("old", NAMES)
def test_an_old_path_warns_where_it_is_imported_and_has_its_names(old):
    program = compile(f"from {old} import {', '.join(NAMES[old])}", "user.py", "exec")
    found = {}
    with pytest.warns(DeprecationWarning, match=re.escape(f"`{old}` has moved")) as told:
        exec(program, found)
    (warning,) = told
    assert warning.filename == "user.py"
    new = [importlib.import_module(each) for each in moved.MOVED[old]]
    assert all(f"`{each.__name__}`" in str(warning.message) for each in new)
    for name in NAMES[old]:
        assert any(getattr(each, name, None) is found[name] for each in new)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exec(program, {})  # told once


@pytest.mark.parametrize("old", NAMES)
def test_all_names_of_an_old_path_can_be_imported_with_a_star(old):
    found = {}
    with pytest.warns(DeprecationWarning, match=re.escape(f"`{old}` has moved")):
        exec(f"from {old} import *", found)
    module = importlib.import_module(old)
    for name in NAMES[old]:
        assert found[name] is getattr(module, name)
        assert name in dir(module)
    with pytest.raises(AttributeError, match="has no attribute '__path__'"):
        module.__path__  # noqa: B018


def test_a_name_that_moved_out_of_a_module_warns_where_it_is_imported():
    program = compile("from rigl_tf.optimizers.dynamic import StaticSparse", "user.py", "exec")
    found = {}
    told = r"`rigl_tf\.optimizers\.dynamic\.StaticSparse` has moved: .* from `rigl_tf\.optimizers`"
    with pytest.warns(DeprecationWarning, match=told) as warned:
        exec(program, found)
    assert {each.filename for each in warned} == {"user.py"}
    assert found["StaticSparse"] is rigl_tf.StaticSparse
    with pytest.raises(ImportError, match="cannot import name 'nothing'"):
        exec("from rigl_tf.optimizers.dynamic import nothing", {})


def test_functions_keep_their_names():
    """Python puts an imported module into its package, but a function stands there."""
    functions = rigl_tf.export, rigl_tf.compact, rigl_tf.sparsify
    for old in ("rigl_tf.export", "rigl_tf.compact", "rigl_tf.sparsify"):
        with pytest.warns(DeprecationWarning, match="has moved"):
            importlib.import_module(old)
    assert (rigl_tf.export, rigl_tf.compact, rigl_tf.sparsify) == functions
    with pytest.warns(DeprecationWarning, match="has moved"):
        importlib.import_module("rigl_tf.wrapper")
    assert rigl_tf.wrapper.SparseWrapper is rigl_tf.SparseWrapper


def test_what_never_was_is_not_found():
    with pytest.raises(ModuleNotFoundError, match=r"rigl_tf\.nothing"):
        importlib.import_module("rigl_tf.nothing")
    with (
        pytest.warns(DeprecationWarning, match="has moved"),
        pytest.raises(ImportError, match="cannot import name 'nothing'"),
    ):
        exec("from rigl_tf.wrapper import nothing", {})


def test_no_old_path_is_taken_by_a_module():
    """One that is would be found first, and the line in the table would do nothing."""
    root = pathlib.Path(rigl_tf.__file__).parents[1]
    for old in moved.MOVED:
        path = root / old.replace(".", "/")
        assert not path.with_suffix(".py").exists()
        assert not path.exists()
