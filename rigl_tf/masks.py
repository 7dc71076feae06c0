"""The link between a kernel and its mask.

A sparse kernel carries its mask in its constraint. Keras applies constraints after every optimizer
step, also under `tf.distribute`, so any Keras optimizer keeps a sparse kernel sparse; and whoever
holds the kernel finds the mask. Layers and optimizers meet here and nowhere else.
"""

import collections
from collections.abc import Mapping

import keras
import numpy as np
import tensorflow as tf


class MaskConstraint(keras.constraints.Constraint):
    """Keeps the inactive connections of a kernel at zero.

    Args:
        kernel_mask: Boolean `keras.Variable` of the kernel's shape, `True` where active.
        constraint: The user's own constraint of this kernel, or `None`. It is applied first.
        settle: Function to call before training starts, or `None`: it decides on a mask that is
            still open.
    """

    def __init__(self, kernel_mask, constraint=None, settle=None):
        self.kernel_mask = kernel_mask
        self.constraint = constraint
        self.settle = settle

    def __call__(self, kernel):
        if self.constraint is not None:
            kernel = self.constraint(kernel)
        return masked(kernel, self.kernel_mask)


def masked(values, kernel_mask):
    """`values` where the mask is `True`, else exactly zero, whatever stands there (NaN too)."""
    values = tf.convert_to_tensor(values)
    return tf.where(tf.convert_to_tensor(kernel_mask), values, tf.zeros([], values.dtype))


def link(kernel, kernel_mask, settle=None):
    """Makes `kernel` a sparse kernel with this mask; for `settle` see `MaskConstraint`."""
    kernel.constraint = MaskConstraint(kernel_mask, kernel.constraint, settle)


def settle(kernels):
    """Decides on the masks that are still open, as some layers of the model were never built."""
    for kernel in kernels:
        if mask_of(kernel) is not None and kernel.constraint.settle is not None:
            kernel.constraint.settle()


def mask_of(kernel):
    """The mask variable of a sparse kernel, `None` for any other variable."""
    constraint = getattr(kernel, "constraint", None)
    return constraint.kernel_mask if isinstance(constraint, MaskConstraint) else None


def strategy_of(variable):
    """The `tf.distribute.Strategy` under which a Keras variable was made."""
    return getattr(variable.value, "distribute_strategy", None) or tf.distribute.get_strategy()


def assign(kernel, mask):
    """Sets the mask of one kernel and zeroes what it makes inactive. Runs at once, eagerly."""
    with tf.init_scope():
        mask_of(kernel).assign(mask)
        apply_mask(kernel)


def apply_mask(kernel):
    """Sets the inactive connections of one sparse kernel to zero."""
    kernel.assign(masked(kernel, mask_of(kernel)))


def by_path(kernels):
    """`{path: kernel}` in the order given; of equal paths, the later ones get `#2`, `#3`, ...

    Paths are equal if models in a model have layers of the same name.
    """
    number = collections.Counter()
    result = {}
    for kernel in kernels:
        number[kernel.path] += 1
        n = number[kernel.path]
        result[kernel.path if n == 1 else f"{kernel.path}#{n}"] = kernel
    return result


def sparse_kernels(model):
    """The sparse kernels of a model or layer, as `{path: kernel}` in the order of its weights."""
    return by_path(weight for weight in model.weights if mask_of(weight) is not None)


def get_masks(model):
    """The masks of a sparse model.

    Args:
        model: A `keras.Model` or layer.

    Returns:
        Dictionary `{kernel path: mask}`, each mask a boolean array of the kernel's shape, `True`
        where the connection is active. Empty if no kernel is sparse. Where layers of different
        models in the model have the same name, so that paths are equal, the second is `path#2`.
    """
    return {
        path: np.asarray(mask_of(kernel), dtype=bool)
        for path, kernel in sparse_kernels(model).items()
    }


def set_masks(model, masks):
    """Sets masks, and zeroes the connections that they make inactive.

    Connections that become active start at zero. Kernels without an entry in `masks` keep theirs.
    An optimizer's slots stay as they are: a connection that was trained before, taken away and
    given back, goes on with what is left of its momentum.

    Other code can write into inactive connections, `model.set_weights` for one. What it writes
    counts until the next optimizer step, or until `set_masks(model, get_masks(model))`.

    Args:
        model: A sparse `keras.Model` or layer.
        masks: Dictionary `{kernel path: mask}` as from `get_masks`. A mask has the kernel's shape
            and holds booleans, or numbers that are 0 or 1.

    Raises:
        ValueError: If a path is not a sparse kernel of the model, or a mask has another shape or
            other values. Nothing is changed then.
    """
    kernels = sparse_kernels(model)
    for path, mask in check_masks(model, masks).items():
        assign(kernels[path], mask)


def check_masks(model, masks):
    """`masks` as boolean arrays; raises a `ValueError` unless they fit the model's kernels."""
    masks, kernels = as_booleans(masks), sparse_kernels(model)
    for path, mask in masks.items():
        if path not in kernels:
            raise ValueError(
                f"A mask's key must be the path of a sparse kernel of the model: {sorted(kernels)}."
                f" Received: {path!r}"
            )
        shape = tuple(kernels[path].shape)
        if mask.shape != shape:
            raise ValueError(
                f"The mask of {path!r} must have the kernel's shape {shape}. "
                f"Received: shape={mask.shape}"
            )
    return masks


def as_booleans(masks):
    """`masks` as boolean arrays; raises a `ValueError` unless they are masks."""
    if not isinstance(masks, Mapping):
        raise ValueError(
            "`masks` must be a dictionary `{kernel path: mask}`. "
            f"Received: {type(masks).__name__}"
        )
    masks = {path: np.asarray(mask) for path, mask in masks.items()}
    for path, mask in masks.items():
        if mask.dtype != bool and not np.isin(mask, (0, 1)).all():
            raise ValueError(
                f"The mask of {path!r} must hold booleans, or numbers that are 0 or 1. "
                f"Received: dtype={mask.dtype}, values from {mask.min()} to {mask.max()}"
            )
    return {path: mask.astype(bool) for path, mask in masks.items()}
