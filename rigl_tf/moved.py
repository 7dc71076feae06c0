"""Import paths of version 0.1 that moved: they work in 0.2, with a warning that names the new path.

To move a public module, add a line to `MOVED`; a line goes one version after the one that warned.
"""

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


class _Old(types.ModuleType):
    """A module that has moved; its names are those of where it is now."""

    def __getattr__(self, name):
        for new in MOVED[self.__name__] if not name.startswith("__") else ():
            module = importlib.import_module(new)
            if hasattr(module, name):
                return getattr(module, name)
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")


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
    sys.modules["rigl_tf"].__class__ = Package
