"""Numbers of an optimizer that may be changed at any time, between two calls of `fit` too.

A graph that was traced keeps the numbers that it saw. So it sees variables, and whoever sets the
attribute sets the variable. They are no state of the optimizer: a checkpoint does not hold them.
"""

from numbers import Real
from typing import Any

import keras
import tensorflow as tf

_DTYPES = {"begin_step": "int64", "end_step": "int64", "update_frequency": "int64"}


class Changeable:
    """An attribute of an optimizer, a number, that counts from when it is set on.

    A built optimizer is told by its method `_changed`, which may refuse it, and by `_collect` when
    it is done.
    """

    def __set_name__(self, owner, name):
        self._name = name

    def __get__(self, optimizer: Any, owner: Any = None) -> Any:
        if optimizer is None:
            return self
        try:
            return vars(optimizer)["_numbers"].values[self._name]
        except KeyError:
            raise AttributeError(self._name) from None  # not set yet

    def __set__(self, optimizer: Any, value: Any) -> None:
        numbers = vars(optimizer).setdefault("_numbers", Numbers())
        before = numbers.values.get(self._name)
        numbers.values[self._name] = value
        if not getattr(optimizer, "built", False) or value == before:
            return
        try:
            optimizer._changed(self._name, before)
        except ValueError:
            numbers.values[self._name] = before
            raise
        numbers.write(self._name)
        optimizer._collect()


class Numbers:
    """The values of an optimizer's `Changeable` attributes, and the variables that graphs see."""

    def __init__(self):
        self.values = {}
        self._variables = {}

    def build(self):
        """Creates the variables of those that are numbers."""
        for name, value in self.values.items():
            if isinstance(value, Real):
                self._variables[name] = keras.Variable(
                    keras.initializers.Constant(value),
                    shape=(),
                    dtype=_DTYPES.get(name, "float32"),
                    trainable=False,
                    aggregation="only_first_replica",
                    name=name,
                )

    def write(self, name):
        """Lets graphs see the value that was set."""
        with tf.init_scope():
            self._variables[name].assign(self.values[name])

    def tensor(self, name):
        """The number as a graph sees it; the value itself before the optimizer is built."""
        variable = self._variables.get(name)
        return self.values[name] if variable is None else tf.convert_to_tensor(variable)
