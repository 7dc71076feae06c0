"""The link between a kernel and its mask.

A sparse kernel carries its mask in its constraint. Keras applies constraints after every optimizer
step, also under `tf.distribute`, so any Keras optimizer keeps a sparse kernel sparse; and whoever
holds the kernel finds the mask. Layers and optimizers meet here and nowhere else.
"""

import collections
import pathlib
import re
from collections.abc import Mapping

import keras
import numpy as np
import tensorflow as tf


class MaskVariables(keras.layers.Layer):
    """Holds the mask variables of a layer's kernels, as a layer of its own.

    Keras loads it after the kernels. A file of a dense model has no masks: they stay as they are.
    In any case the kernels are masked then.
    """

    def __init__(self, name="masks"):
        super().__init__(name=name, dtype="float32")
        # Out of Keras's sight: the kernels are weights of another layer.
        vars(self).update(by_kernel={}, _kernels=[])
        self.built = True

    def add(self, name, kernel, initializer):
        """A new mask variable for the kernel of this name."""
        *outer, layer_name, _ = ["", *kernel.path.split("/")]
        with keras.name_scope(layer_name or self.name, override_parent="/".join(outer)):
            mask = self.add_weight(
                shape=kernel.shape,
                dtype="bool",
                initializer=initializer,
                trainable=False,
                name=f"{name.replace('/', '_')}_mask",
            )
        # `tf.train.Checkpoint` finds variables that are attributes, not those in a dictionary.
        setattr(self, f"_{mask.name}", mask)
        self.by_kernel[name] = mask
        self._kernels.append(kernel)
        return mask

    def have_lost(self, weights):
        """Whether a kernel with a mask is none of these weights."""
        held = {id(weight) for weight in weights}
        return any(id(kernel) not in held for kernel in self._kernels)

    def load_own_variables(self, store):
        if store.keys():
            super().load_own_variables(store)
        for kernel in self._kernels:
            apply_mask(kernel)


class MaskConstraint(keras.constraints.Constraint):
    """Keeps the inactive connections of a kernel at zero.

    Args:
        kernel_mask: Boolean `keras.Variable` of the kernel's shape, `True` where active.
        constraint: The user's own constraint of this kernel, or `None`. It is applied first.
        settle: Function to call before training starts, or `None`: it decides on a mask that is
            still open.

    Attributes:
        watchers: Boolean variables of optimizers, which become `True` when the mask is set.
    """

    def __init__(self, kernel_mask, constraint=None, settle=None):
        self.kernel_mask = kernel_mask
        self.constraint = constraint
        self.settle = settle
        self.watchers = []

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


def unlink(kernel):
    """Makes a sparse kernel a dense one again."""
    kernel.constraint = kernel.constraint.constraint


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
        for watcher in kernel.constraint.watchers:
            watcher.assign(True)


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


def own_masks(model):
    """The identities of the mask variables of a model or layer."""
    return {id(mask_of(kernel)) for kernel in sparse_kernels(model).values()}


def sparse_kernels(model):
    """The sparse kernels of a model or layer, as `{path: kernel}` in the order of its weights.

    The layers of a sparse model are layers of others, too, such as the one that it was made of: in
    a model that does not hold their masks, they are dense.
    """
    own = {id(weight) for weight in model.weights}
    return by_path(weight for weight in model.weights if id(mask_of(weight)) in own)


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
    In the next step of an optimizer of `rigl_tf`, the slots of what is inactive start again, its
    momentum say.

    Other code can write into inactive connections. An optimizer of Keras zeroes them in its next
    step, one of `rigl_tf` in the first step of a `fit`, every 100 steps, at mask updates, and when
    `fit` ends. `set_masks(model, get_masks(model))` does it at once; `rigl_tf.sparsity_summary`
    tells of such weights.

    Args:
        model: A sparse `keras.Model` or layer.
        masks: Dictionary `{kernel path: mask}` as from `get_masks`. A mask has the kernel's shape
            and holds booleans, or numbers that are 0 or 1. Masks of another model of the same
            architecture, whose paths are others (as those of a loaded model may be), are taken in
            their order, if there is one for each kernel and all shapes agree.

    Raises:
        ValueError: If a path is not a sparse kernel of the model, or a mask has another shape or
            other values. Nothing is changed then.
    """
    kernels = sparse_kernels(model)
    for path, mask in check_masks(model, masks).items():
        assign(kernels[path], mask)


def check_masks(model, masks):
    """`masks` as boolean arrays by the paths of the model's kernels.

    Raises:
        ValueError: Unless they fit; see `set_masks`.
    """
    masks, kernels = as_booleans(masks), sparse_kernels(model)
    if _is_renamed(masks, kernels):
        return dict(zip(kernels, masks.values(), strict=True))
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


def _is_renamed(masks, kernels):
    """Whether masks are those of the same kernels by other names: Keras numbers layers anew."""
    shapes = [tuple(kernel.shape) for kernel in kernels.values()]
    if masks.keys() <= kernels.keys() or [mask.shape for mask in masks.values()] != shapes:
        return False
    plain, others = ([re.sub(r"_\d+", "", path) for path in paths] for paths in (masks, kernels))
    return not masks.keys() & kernels.keys() or plain == others


def save_masks(model, path):
    """Writes the masks of a sparse model into a file, for `load_masks`.

    Args:
        model: A sparse `keras.Model` or layer.
        path: Where to write, a file that ends with `.npz`. An earlier one is replaced.

    Raises:
        ValueError: If `path` has another ending, or the model has no sparse kernel.
    """
    path, masks = _npz(path), get_masks(model)
    if not masks:
        raise ValueError(
            "`save_masks` needs a built sparse model: make one with `rigl_tf.sparsify`. "
            f"Received: model={model.name!r}, without sparse kernels"
        )
    # Names by number: two paths may differ in more than the names of files can.
    arrays = {f"mask_{index}": mask for index, mask in enumerate(masks.values())}
    np.savez_compressed(path, paths=np.array(list(masks)), **arrays)


def load_masks(model, path):
    """Sets the masks that `save_masks` wrote, as `set_masks` does.

    Args:
        model: A sparse `keras.Model` or layer of the same architecture.
        path: The file.

    Raises:
        ValueError: If the file is none of `save_masks`, or its masks do not fit the model.
    """
    with np.load(_npz(path)) as file:
        if "paths" not in file:
            raise ValueError(
                f"`path` must be a file of `rigl_tf.save_masks`. Received: path={str(path)!r}"
            )
        masks = {str(each): file[f"mask_{index}"] for index, each in enumerate(file["paths"])}
    set_masks(model, masks)


def _npz(path):
    path = pathlib.Path(path)
    if path.suffix != ".npz":
        raise ValueError(f"`path` must end with '.npz'. Received: path={str(path)!r}")
    return path


def set_weights(layer, weights):
    """As `layer.set_weights` of Keras, but the masks may be left out, and the kernels are masked.

    Args:
        layer: A sparse `keras.Model` or layer.
        weights: List of arrays: those of `layer.get_weights()`, or of the dense layer.

    Raises:
        ValueError: If their number is neither, or a shape is another. Nothing is changed then.
    """
    variables = layer.weights
    masks = own_masks(layer)
    dense = [variable for variable in variables if id(variable) not in masks]
    chosen = dense if len(weights) == len(dense) else variables
    if len(weights) != len(chosen):
        raise ValueError(
            f"`weights` must be the {len(variables)} weights of {layer.name!r}, or the "
            f"{len(dense)} without the masks. Received: {len(weights)} arrays"
        )
    for variable, value in zip(chosen, weights, strict=True):
        if tuple(variable.shape) != np.shape(value):
            raise ValueError(
                f"The array for {variable.path!r} must have its shape {tuple(variable.shape)}. "
                f"Received: shape={np.shape(value)}"
            )
    for variable, value in zip(chosen, weights, strict=True):
        variable.assign(value)
    for kernel in sparse_kernels(layer).values():
        apply_mask(kernel)


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
