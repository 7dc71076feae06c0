"""Sparse kernels: where layers, which hold them, and optimizers, which change them, meet.

The variable of a sparse kernel has a `SparseKernel` as its constraint. Keras applies constraints
after every optimizer step, also under `tf.distribute`, so any Keras optimizer keeps a sparse kernel
sparse; and whoever holds the variable finds the mask.
"""

import collections
import contextlib
import gc
import math
import pathlib
import re
from collections.abc import Mapping

import keras
import numpy as np
import tensorflow as tf

from rigl_tf import structures


class MaskVariables(keras.layers.Layer):
    """Holds the mask variables of a layer's kernels, as a layer of its own.

    Keras loads it after the kernels. A file of a dense model has no masks: they stay as they are.
    In any case the kernels are masked then.
    """

    def __init__(self, name="masks"):
        super().__init__(name=name, dtype="float32")
        # Out of Keras's sight: the kernels are weights of another layer.
        vars(self).update(by_kernel={}, _variables_of_kernels={})
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
        self._variables_of_kernels[name] = kernel
        return mask

    def remove(self, name):
        """Forgets the mask variable of a kernel that is stored in another way."""
        with cheap_deletions():
            delattr(self, f"_{self.by_kernel.pop(name).name}")
        del self._variables_of_kernels[name]

    def kernels(self):
        """`{name: SparseKernel}` of the kernels with a mask variable here."""
        return {name: kernel_of(each) for name, each in self._variables_of_kernels.items()}

    def have_lost(self, weights):
        """Whether a kernel with a mask is none of these weights."""
        held = {id(weight) for weight in weights}
        return any(id(each) not in held for each in self._variables_of_kernels.values())

    def load_own_variables(self, store):
        if store.keys() and not self.by_kernel:
            raise ValueError(
                "The file has masks, and this model has none, as its kernels are CSR: load it into "
                "a masked model, and use `rigl_tf.with_execution(model, 'csr')` then. "
                f"Received: masks of {len(store.keys())} kernels"
            )
        if store.keys():
            self._check_structures(store)
            super().load_own_variables(store)
        for kernel in self.kernels().values():
            kernel.zero_inactive()

    def _check_structures(self, store):
        for index, kernel in enumerate(self.kernels().values()):
            mask = np.asarray(store[str(index)]) if str(index) in store else None
            if mask is not None and mask.shape == kernel.shape:  # else Keras tells
                kernel.units.check(mask.astype(bool), kernel.path)


@contextlib.contextmanager
def cheap_deletions():
    """Spares the search for garbage that Keras makes each time a layer loses a weight."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


class SparseKernel(keras.constraints.Constraint):
    """A kernel of which some connections are inactive, and zero: all that others know of it.

    It is the constraint of the variable that is trained. How a kernel is stored is said by the
    subclasses: `MaskedKernel` here, and `rigl_tf.execution.csr.CSRKernel`.

    Args:
        variable: The `keras.Variable` that an optimizer trains.
        settle: Function to call before training starts, or `None`: it decides on a mask that is
            still open.

    Attributes:
        execution: String, how layers compute with it: `"masked"` or `"csr"`.
        constraint: The user's own constraint of the variable, or `None`. It is applied first.
        mask_variables: The variables that say which connections are active.
        watchers: Boolean variables of optimizers, which become `True` when the mask is set.
    """

    execution = None
    mask_variables = ()

    def __init__(self, variable, settle=None):
        self.variable = variable
        self.constraint = variable.constraint
        self.settle = settle
        self.watchers = []
        self._units = None

    @property
    def units(self):
        """What is dropped and grown together, the `rigl_tf.structures.Units` of this kernel."""
        return self._units or structures.Units(self.shape)

    @property
    def path(self):
        return self.variable.path

    @property
    def shape(self):
        """The shape of the dense kernel, a tuple."""
        return tuple(self.variable.shape)

    @property
    def size(self):
        """Number of connections, active or not."""
        return math.prod(self.shape)

    @property
    def num_active(self):
        """Number of active connections, an integer."""
        raise NotImplementedError

    @property
    def mask(self):
        """The mask, a boolean array."""
        raise NotImplementedError

    def numpy(self):
        """The dense kernel as an array."""
        raise NotImplementedError

    def assign(self, weights):
        """Sets the weights of the active connections, as an array or tensor of all; at once."""
        raise NotImplementedError

    def set_mask(self, mask):
        """Sets the mask, and zeroes what it makes inactive; at once."""
        raise NotImplementedError

    def zero_inactive(self):
        """Sets inactive connections to zero that other code has written into; at once."""

    def _constrained(self, kernel):
        return kernel if self.constraint is None else self.constraint(kernel)

    def _tell_watchers(self):
        for watcher in self.watchers:
            watcher.assign(True)


class MaskedKernel(SparseKernel):
    """A kernel that is stored with its zeros, and has a mask beside it.

    As the constraint of its variable it keeps the inactive connections at zero.

    Args:
        variable: The `keras.Variable` that the layer computes with, of any shape.
        kernel_mask: Boolean `keras.Variable` of the same shape, `True` where active.
        settle: As in `SparseKernel`.
        units: The `rigl_tf.structures.Units`, or `None` for single weights.
    """

    execution = "masked"

    def __init__(self, variable, kernel_mask, settle=None, units=None):
        super().__init__(variable, settle)
        self._units = units
        self.kernel_mask = kernel_mask
        self.mask_variables = (kernel_mask,)

    @property
    def num_active(self):
        with tf.init_scope():
            return int(np.count_nonzero(self.mask))

    @property
    def mask(self):
        return np.asarray(self.kernel_mask, dtype=bool)

    def numpy(self):
        """The weights, those of inactive connections too, as an array."""
        return self.variable.numpy()

    def assign(self, weights):
        with tf.init_scope():
            self.variable.assign(masked(weights, self.kernel_mask))

    def set_mask(self, mask):
        with tf.init_scope():
            self.kernel_mask.assign(mask)
            self.zero_inactive()
            self._tell_watchers()

    def zero_inactive(self):
        self.assign(self.variable)

    def __call__(self, kernel):
        return masked(self._constrained(kernel), self.kernel_mask)

    # Inside a graph, on one replica: `local` is its copy of the variable, and of the mask.

    def replace(self, local, new_mask, values):
        """Makes `new_mask` the mask: what it drops becomes zero, what it grows is in `values`.

        Returns:
            Boolean tensor, the connections that were dropped or grown.
        """
        kernel, mask = local
        changed = tf.math.logical_xor(mask, new_mask)
        weights = masked(tf.where(changed, values, kernel), new_mask)
        if self.constraint is not None:
            weights = self._constrained(weights)
        self.put(local, new_mask, weights)
        return changed

    def put(self, local, new_mask, weights):
        """Makes `new_mask` the mask, and `weights` those of its active connections."""
        kernel, mask = local
        kernel.assign(masked(weights, new_mask))
        mask.assign(new_mask)


def masked(values, kernel_mask):
    """`values` where the mask is `True`, else exactly zero, whatever stands there (NaN too)."""
    values = tf.convert_to_tensor(values)
    return tf.where(tf.convert_to_tensor(kernel_mask), values, tf.zeros([], values.dtype))


def link(variable, kernel_mask, settle=None, units=None):
    """Makes a variable that of a sparse kernel; for the arguments see `MaskedKernel`."""
    variable.constraint = MaskedKernel(variable, kernel_mask, settle, units)


def unlink(variable):
    """Makes the variable of a sparse kernel that of a dense one again."""
    variable.constraint = variable.constraint.constraint


def kernel_of(variable):
    """The `SparseKernel` of a variable, `None` if it has no mask."""
    constraint = getattr(variable, "constraint", None)
    return constraint if isinstance(constraint, SparseKernel) else None


def mask_of(variable):
    """The mask variable of a masked kernel's variable, `None` for any other variable."""
    kernel = kernel_of(variable)
    return kernel.kernel_mask if isinstance(kernel, MaskedKernel) else None


def settle(kernels):
    """Decides on the masks that are still open, as some layers of the model were never built."""
    for kernel in kernels:
        if kernel.settle is not None:
            kernel.settle()


def strategy_of(variable):
    """The `tf.distribute.Strategy` under which a Keras variable was made."""
    return getattr(variable.value, "distribute_strategy", None) or tf.distribute.get_strategy()


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
    """The identities of the variables that say what is active in a model or layer."""
    kernels = kernels_of(model).values()
    return {id(variable) for kernel in kernels for variable in kernel.mask_variables}


def without_masks(model, variables):
    """Those of a model's variables that are no masks, in their order."""
    own = own_masks(model)
    return [variable for variable in variables if id(variable) not in own]


def kernels_of(model):
    """The `SparseKernel`s of a model or layer, as `{path: kernel}` in the order of its weights.

    The layers of a sparse model are layers of others, too, such as the one that it was made of: in
    a model that does not hold their masks, they are dense.
    """
    weights = model.weights
    own = {id(weight) for weight in weights}
    kernels = [kernel_of(weight) for weight in weights]
    return by_path(
        kernel
        for kernel in kernels
        if kernel is not None and all(id(each) in own for each in kernel.mask_variables)
    )


def sparse_kernels(model):
    """The variables of the sparse kernels of a model or layer, as `kernels_of`."""
    return {path: kernel.variable for path, kernel in kernels_of(model).items()}


def get_masks(model):
    """The masks of a sparse model.

    Args:
        model: A `keras.Model` or layer.

    Returns:
        Dictionary `{kernel path: mask}`, each mask a boolean array of the kernel's shape, `True`
        where the connection is active. Empty if no kernel is sparse. Where layers of different
        models in the model have the same name, so that paths are equal, the second is `path#2`.
    """
    return {path: kernel.mask for path, kernel in kernels_of(model).items()}


def set_masks(model, masks):
    """Sets masks, and zeroes the connections that they make inactive.

    Connections that become active start at zero. Kernels without an entry in `masks` keep theirs.
    An optimizer's slots stay as they are: a connection that was trained before, taken away and
    given back, goes on with what is left of its momentum.

    Other code can write into inactive connections. Optimizers zero them in their next step; in a
    `fit` without XLA, those of `rigl_tf` do so in its first step, every 100 steps, at mask updates,
    and when it ends. `set_masks(model, get_masks(model))` does it at once;
    `rigl_tf.sparsity_summary` tells of such weights.

    Args:
        model: A sparse `keras.Model` or layer.
        masks: Dictionary `{kernel path: mask}` as from `get_masks`. A mask has the kernel's shape
            and holds booleans, or numbers that are 0 or 1. Masks of another model of the same
            architecture, whose paths are others (as those of a loaded model may be), are taken in
            their order, if there is one for each kernel and all shapes agree.

    Raises:
        ValueError: If a path is not a sparse kernel of the model, or a mask has another shape or
            other values, or breaks the structure of its kernel. Nothing is changed then.
    """
    kernels = kernels_of(model)
    for path, mask in check_masks(model, masks).items():
        kernels[path].set_mask(mask)


def check_masks(model, masks):
    """`masks` as boolean arrays by the paths of the model's kernels.

    Raises:
        ValueError: Unless they fit; see `set_masks`.
    """
    masks, kernels = as_booleans(masks), kernels_of(model)
    if _is_renamed(masks, kernels):
        masks = dict(zip(kernels, masks.values(), strict=True))
    for path, mask in masks.items():
        if path not in kernels:
            raise ValueError(
                f"A mask's key must be the path of a sparse kernel of the model: {sorted(kernels)}."
                f" Received: {path!r}"
            )
        shape = kernels[path].shape
        if mask.shape != shape:
            raise ValueError(
                f"The mask of {path!r} must have the kernel's shape {shape}. "
                f"Received: shape={mask.shape}"
            )
        kernels[path].units.check(mask, path)
    return masks


def _is_renamed(masks, kernels):
    """Whether masks are those of the same kernels by other names: Keras numbers layers anew."""
    shapes = [kernel.shape for kernel in kernels.values()]
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
    dense = without_masks(layer, variables)
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
    for kernel in kernels_of(layer).values():
        kernel.zero_inactive()


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
