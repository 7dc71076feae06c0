"""Graphs that kernels of the same kind share, so that large models are traced faster."""

import collections
import dataclasses

import tensorflow as tf


class Shared:
    """A function of a kernel's state and of tensors, which is traced once for each kind of kernel.

    A graph calls it for each kernel. So the time to trace a step does not grow with the number of
    layers, only with the number of their shapes.

    Args:
        function: Function `function(state, *tensors)`, with a `KernelState`. It may use what
            kernels of the same kind have in common, and `state.index`, which is then a tensor.
        states: The `KernelState` of each kernel that it will be called with.
        kind: Function `kind(state)` that returns what kernels that share a graph have in common.
            For `None`, a kernel has a graph of its own, in which `state.index` is an integer.
    """

    def __init__(self, function, states, kind):
        self._function = function
        self._kind = kind
        self._num_of_kind = collections.Counter(map(kind, states))
        self._traced = {}

    def __call__(self, state, *tensors):
        """The result of the function; the arguments after the state are tensors or `None`."""
        kind = self._kind(state)
        if tf.executing_eagerly() or kind is None or self._num_of_kind[kind] == 1:
            return self._function(state, *tensors)
        if kind not in self._traced:

            def call(index, *tensors):
                return self._function(dataclasses.replace(state, index=index), *tensors)

            self._traced[kind] = tf.function(
                call, autograph=False, experimental_attributes={"_noinline": True}
            )
        return self._traced[kind](tf.constant(state.index), *tensors)
