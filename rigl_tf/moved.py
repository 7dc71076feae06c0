"""Import paths of version 0.1 that moved: they work in 0.2, with a warning that names the new path.

To move a public module, add a line to `MOVED`; for a name out of a module that stays, add it to
`MOVED_NAMES`. A line goes one version after the one that warned.
"""

import functools
import importlib
import importlib.abc
import importlib.machinery
import sys
import types
import warnings

# Where the names of a module of 0.1 are now. They go in 0.3.
MOVED = {
    "rigl_tf.compact": ("rigl_tf.transforms",),
    "rigl_tf.costs": ("rigl_tf.flops", "rigl_tf.artifacts.report"),
    "rigl_tf.export": ("rigl_tf.artifacts",),
    "rigl_tf.optimizers.base": ("rigl_tf.optimizers",),
    "rigl_tf.smart_ratio": ("rigl_tf.distributions",),
    "rigl_tf.sparsify": ("rigl_tf.transforms",),
    "rigl_tf.summary": ("rigl_tf.layers.summary",),
    "rigl_tf.wrapper": ("rigl_tf.layers",),
}

# Where single names of a module of 0.1 are now. They go in 0.3.
MOVED_NAMES = {
    "rigl_tf.optimizers.dynamic": {"StaticSparse": "rigl_tf.optimizers"},
}


class _Old(types.ModuleType):
    """A module that has moved; its names are those of where it is now."""

    def __getattr__(self, name):
        for module in self._modules() if not name.startswith("__") else ():
            if hasattr(module, name):
                return getattr(module, name)
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")

    # `from ... import *` asks for it.
    @property
    def __all__(self):
        return sorted({name for module in self._modules() for name in _public(module)})

    def __dir__(self):
        return [*super().__dir__(), *self.__all__]

    def _modules(self):
        return [importlib.import_module(new) for new in MOVED[self.__name__]]


def _public(module):
    names = getattr(module, "__all__", None)
    return names or [name for name in vars(module) if not name.startswith("_")]


def _moved_name(module, name):
    """What a module that stays does when it is asked for a name that it does not have."""
    new = MOVED_NAMES[module].get(name)
    if new is None:
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    warnings.warn(
        f"`{module}.{name}` has moved: import it from `{new}`. This path goes in version 0.3.",
        DeprecationWarning,
        stacklevel=2,
    )
    return getattr(importlib.import_module(new), name)


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Asked by Python's import last, for what nothing else has found."""

    def find_spec(self, fullname, path=None, target=None):
        return importlib.machinery.ModuleSpec(fullname, self) if fullname in MOVED else None

    def create_module(self, spec):
        new = " and ".join(f"`{each}`" for each in MOVED[spec.name])
        # Level 2 is the importing line: frames of the import itself are not counted.
        warnings.warn(
            f"`{spec.name}` has moved: import its names from {new}. This path goes in version 0.3.",
            DeprecationWarning,
            stacklevel=2,
        )
        return _Old(spec.name)

    def exec_module(self, module):
        """There is nothing to run."""


class Package(types.ModuleType):
    """The class of the package `rigl_tf`: `rigl_tf.export` stays the function.

    Python's import of `rigl_tf.export` would put the old module in its place.
    """

    def __setattr__(self, name, value):
        if not (isinstance(value, _Old) and name in vars(self)):
            super().__setattr__(name, value)


def install():
    """Lets Python find the old paths, once in a process."""
    if not any(type(finder).__module__ == __name__ for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
    for module in MOVED_NAMES:
        # Python calls the `__getattr__` of a module for a name that is not in it.
        importlib.import_module(module).__dict__["__getattr__"] = functools.partial(
            _moved_name, module
        )
    sys.modules["rigl_tf"].__class__ = Package
