"""Attributes of an optimizer, numbers, that may be changed at any time, also between two `fit`s.

A traced graph keeps the numbers that it was traced with. So the graph reads variables, and setting
an attribute sets its variable. These variables are not part of the optimizer's state: they are not
saved in checkpoints.
"""

from numbers import Real
from typing import Any

import keras
import tensorflow as tf

_DTYPES = {"begin_step": "int64", "end_step": "int64", "update_frequency": "int64"}


class Changeable:
    """An attribute of an optimizer, a number, that has an effect as soon as it is set.

    If the optimizer is built, its method `_changed` is called first and may refuse the new value
    with a `ValueError`; after the change, `_collect` is called.
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
        numbers.num_changes += 1
        if not getattr(optimizer, "built", False) or value == before:
            return
        try:
            optimizer._changed(self._name, before)
        except ValueError:
            numbers.values[self._name] = before
            raise
        numbers.write(self._name)
        optimizer._collect()


def num_changes(optimizer: Any) -> int:
    """How many times a `Changeable` attribute of an optimizer was set."""
    numbers = vars(optimizer).get("_numbers")
    return 0 if numbers is None else numbers.num_changes


class Numbers:
    """The values of an optimizer's `Changeable` attributes, and the variables that graphs read."""

    def __init__(self):
        self.values = {}
        self.num_changes = 0
        self._variables = {}

    def build(self):
        """Creates a variable for each value that is a number."""
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
        """Copies the value of an attribute to its variable."""
        with tf.init_scope():
            self._variables[name].assign(self.values[name])

    def tensor(self, name):
        """The number as a tensor of its variable, or itself if the optimizer is not built yet."""
        variable = self._variables.get(name)
        return self.values[name] if variable is None else tf.convert_to_tensor(variable)
