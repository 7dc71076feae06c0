"""Sparse kernels and their masks: the common ground of layers (which hold them) and optimizers.

The variable of a sparse kernel has a `SparseKernel` as its constraint. Keras applies constraints
after every optimizer step, also under `tf.distribute`. So any Keras optimizer keeps a sparse kernel
sparse, and code that has the variable can find its mask.
"""

import collections
import contextlib
import gc
import itertools
import math
import os
import pathlib
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from rigl_tf import structures
from rigl_tf._types import Masks

# What NumPy raises for a file that is no `.npz` file, holds pickles, or has other arrays.
_OTHER_FILE = (AttributeError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile)


# Names that Keras gives to variables without one.
_NUMBERED = re.compile(r"(keras_)?variable(_\d+)?")


class _Entry(NamedTuple):
    """A mask variable, its kernel, and the attribute that holds it."""

    mask: keras.Variable
    kernel: keras.Variable
    attribute: str


class MaskVariables(keras.layers.Layer):
    """Holds the mask variables of a layer's kernels, in a separate layer.

    Keras loads this layer after the kernels. A file of a dense model has no masks; then the masks
    stay as they are. In both cases the masks are applied to the kernels after loading.
    """

    only_stores = True  # for `rigl_tf.walk`: other layers compute

    def __init__(self, name="masks"):
        super().__init__(name=name, dtype="float32")
        # Set in this way, Keras does not track it: the kernels are weights of another layer.
        self.__dict__["_entries"] = {}
        self.built = True

    @property
    def by_kernel(self):
        """`{kernel name: mask variable}`."""
        return {name: entry.mask for name, entry in self._entries.items()}

    def add(self, name, kernel, initializer):
        """Creates a mask variable for a kernel; if its name is taken, `#2`, `#3`, ... is added."""
        *outer, layer_name, _ = ["", *kernel.path.split("/")]
        with keras.name_scope(layer_name or self.name, override_parent="/".join(outer)):
            mask = self.add_weight(
                shape=kernel.shape,
                dtype="bool",
                initializer=initializer,
                trainable=False,
                name=f"{name.replace('/', '_')}_mask",
            )
        names = itertools.chain([name], (f"{name}#{n}" for n in itertools.count(2)))
        self._attach(next(each for each in names if each not in self._entries), mask, kernel)
        return mask

    def _attach(self, name, mask, kernel):
        """Makes a mask an attribute, where `tf.train.Checkpoint` finds it, and not in dictionaries.

        A checkpoint goes by the names of attributes. Names of layers inside and of variables may be
        others in another process, because Keras numbers them; then the order is what stays.
        """
        attribute = f"_{name}_mask"
        if not name.isidentifier() or _NUMBERED.fullmatch(name):
            free = (f"_mask_{index}" for index in itertools.count())
            attribute = next(each for each in free if not hasattr(self, each))
        setattr(self, attribute, mask)
        self._entries[name] = _Entry(mask, kernel, attribute)

    def remove(self, name):
        """Removes the mask variable of a kernel that is no longer masked."""
        with cheap_deletions():
            delattr(self, self._entries.pop(name).attribute)

    def sort(self, names):
        """Puts the mask variables in this order; files and lists of weights have no names."""
        with cheap_deletions():
            entries = [(name, self._entries.pop(name)) for name in names]
            for _, entry in entries:
                delattr(self, entry.attribute)
            for name, entry in entries:
                self._attach(name, entry.mask, entry.kernel)

    def separate(self):
        """Call on a shallow copy: from now on it shares no dictionary with the original."""
        self.__dict__["_entries"] = dict(self._entries)

    def kernels(self):
        """`{name: SparseKernel}` for the kernels with a mask variable in this layer."""
        return {name: kernel_of(entry.kernel) for name, entry in self._entries.items()}

    def have_lost(self, weights):
        """Whether a kernel with a mask is not one of these weights."""
        held = {id(weight) for weight in weights}
        return any(id(entry.kernel) not in held for entry in self._entries.values())

    def quantize(self, *args, **kwargs):
        if self.by_kernel:
            return super().quantize(*args, **kwargs)
        # Keras calls this for each layer without layers inside, and warns with the message.
        raise NotImplementedError(
            "`quantize` leaves CSR kernels as they are: use `rigl_tf.strip` on the model before "
            "that."
        )

    def load_own_variables(self, store):
        if store.keys() and not self.by_kernel:
            raise ValueError(
                "The file has masks, but this model has none, because its kernels are CSR: load it "
                "into a masked model, then use `rigl_tf.with_execution(model, 'csr')`. "
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
            if mask is not None and mask.shape == kernel.shape:  # else Keras raises an error
                kernel.units.check(mask.astype(bool), kernel.path)


@contextlib.contextmanager
def cheap_deletions():
    """Makes the garbage collection cheap that Keras runs each time a weight is deleted."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


class SparseKernel(keras.constraints.Constraint):
    """A kernel with inactive connections, which are zero: the interface for all other modules.

    It is the constraint of the variable that is trained. The subclasses store kernels in different
    ways: `MaskedKernel` in this module, and `rigl_tf.execution.csr.CSRKernel`.

    Args:
        variable: The `keras.Variable` that an optimizer trains.
        settle: `None`, or a function that is called before training starts, and decides on the mask
            if this is not done yet.

    Attributes:
        execution: String, how layers compute with it: `"masked"` or `"csr"`.
        constraint: The user's own constraint of the variable, or `None`. It is applied first.
        mask_variables: The variables that say which connections are active.
        watchers: Boolean variables of optimizers, which become `True` when the mask is set.
    """

    execution: str
    mask_variables = ()

    def __init__(self, variable: keras.Variable, settle: Callable[[], Any] | None = None) -> None:
        self.variable = variable
        self.constraint = variable.constraint
        self.settle = settle
        self.watchers = []
        self._units = None

    @property
    def units(self) -> structures.Units:
        """The `rigl_tf.structures.Units` of this kernel: what is dropped and grown together."""
        return self._units or structures.Units(self.shape)

    @property
    def path(self) -> str:
        """The path of the kernel, a string."""
        return self.variable.path

    @property
    def name(self) -> str:
        """The name of the variable, a string."""
        return self.variable.name

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the dense kernel, a tuple."""
        return tuple(self.variable.shape)

    @property
    def size(self) -> int:
        """Number of connections, active or not."""
        return math.prod(self.shape)

    @property
    def num_active(self) -> int:
        """Number of active connections, an integer."""
        raise NotImplementedError

    @property
    def mask(self) -> np.ndarray:
        """The mask, a boolean array."""
        raise NotImplementedError

    def numpy(self) -> np.ndarray:
        """The dense kernel as an array."""
        raise NotImplementedError

    def dense(self, values: Any) -> tf.Tensor:
        """Puts numbers for the weights of `variable`, such as gradients, in their places.

        Args:
            values: Array or tensor of the shape of `variable`.

        Returns:
            Tensor of the kernel's shape, zero where nothing is stored.
        """
        raise NotImplementedError

    def is_active(self) -> tf.Tensor:
        """Which weights of `variable` are active, a boolean tensor of its shape."""
        raise NotImplementedError

    def split(self, gradient: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor | None]:
        """Separates active and inactive connections.

        Args:
            gradient: Tensor of the shape of `variable`.

        Returns:
            The gradient of the active and that of the inactive connections, with zeros elsewhere.
            The second is `None` if the kernel's backward pass does not compute it.
        """
        raise NotImplementedError

    def num_outside(self) -> int:
        """Number of inactive connections with a weight that is not zero, from other code."""
        return 0

    def counts(self, axes: Any) -> tuple[np.ndarray, np.ndarray]:
        """How many active connections each input and each unit has.

        Args:
            axes: The `rigl_tf.layers.axes.Axes` of the kernel in its layer.

        Returns:
            For the inputs an array of shape `(*positions, number of inputs)`, with the positions of
            a convolution's window; for the units an array of one dimension.
        """
        raise NotImplementedError

    def assign(self, weights: Any) -> None:
        """Sets the weights of the active connections, also while a graph is traced.

        Args:
            weights: Array or tensor of the kernel's shape; inactive connections are ignored.
        """
        raise NotImplementedError

    def set_mask(self, mask: np.ndarray) -> None:
        """Sets the mask, and sets inactive connections to zero, also while a graph is traced.

        Args:
            mask: Boolean array of the kernel's shape.
        """
        raise NotImplementedError

    def zero_inactive(self) -> None:
        """Sets inactive connections to zero, in case other code has changed them."""

    def check_given(self, arrays: Mapping[int, Any]) -> None:
        """Raises a `ValueError` if the arrays for `mask_variables` are no valid mask (or places).

        Args:
            arrays: `{id: array}` for variables that shall be set, such as `mask_variables`.
        """

    def _constrained(self, kernel):
        return kernel if self.constraint is None else self.constraint(kernel)

    def _tell_watchers(self):
        for watcher in self.watchers:
            watcher.assign(True)


class MaskedKernel(SparseKernel):
    """A kernel that is stored as a dense variable with zeros, and a mask variable.

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
        """The weights as an array, including those of inactive connections."""
        return self.variable.numpy()

    def dense(self, values):
        return tf.convert_to_tensor(values)

    def is_active(self):
        return tf.convert_to_tensor(self.kernel_mask)

    def split(self, gradient):
        active = masked(gradient, self.kernel_mask)
        return active, gradient - active

    def num_outside(self):
        return int(np.count_nonzero(self.numpy()[~self.mask]))

    def counts(self, axes):
        return counts_of(self.mask, axes)

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

    def check_given(self, arrays):
        mask = np.asarray(arrays.get(id(self.kernel_mask), False))
        if mask.dtype == bool:
            return
        # Up to rounding. An average of masks is the mask of all their connections.
        is_average = np.all((mask >= -1e-6) & (mask <= 1 + 1e-6))
        if not is_average and not np.allclose(mask[mask != 0], mask.max()):
            raise ValueError(
                f"The mask of {self.path!r} must be booleans, an average of these, or a multiple. "
                f"Received: numbers from {mask.min():g} to {mask.max():g}"
            )

    def __call__(self, kernel):
        settle([self])  # an optimizer of Keras does not tell that training starts
        return masked(self._constrained(kernel), self.kernel_mask)

    # For use inside a graph, on one replica: `local` is its copy of the variable and of the mask.

    def replace(self, local, new_mask, values, restarted=None):
        """Sets a new mask: dropped connections become zero, grown ones take their values.

        Args:
            local: Pair of the kernel and its mask on this replica.
            new_mask: Boolean tensor of the kernel's shape.
            values: Tensor, the first values of grown connections.
            restarted: Boolean tensor of the kernel's shape, the connections that stay active and
                take these values, too; or `None`.

        Returns:
            Boolean tensor, the connections that were dropped, grown or restarted.
        """
        kernel, mask = local
        changed = tf.math.logical_xor(mask, new_mask)
        if restarted is not None:
            changed |= restarted
        weights = masked(tf.where(changed, values, kernel), new_mask)
        if self.constraint is not None:
            weights = self._constrained(weights)
        self.put(local, new_mask, weights)
        return changed

    def put(self, local, new_mask, weights):
        """Sets a new mask and the weights of its active connections."""
        kernel, mask = local
        kernel.assign(masked(weights, new_mask))
        mask.assign(new_mask)


def masked(values, kernel_mask):
    """`values` where the mask is `True`, and exactly zero elsewhere, even for NaN."""
    values = tf.convert_to_tensor(values)
    return tf.where(tf.convert_to_tensor(kernel_mask), values, tf.zeros([], values.dtype))


def counts_of(mask: np.ndarray, axes: Any) -> tuple[np.ndarray, np.ndarray]:
    """How many connections each input and each unit has in a mask; see `SparseKernel.counts`."""
    outputs = tuple(axis % mask.ndim for axis in axes.outputs)
    others = tuple(axis for axis in range(mask.ndim) if axis not in outputs)
    of_inputs = by_input(np.count_nonzero(mask, axis=outputs), mask.shape, axes)
    return of_inputs, np.count_nonzero(mask, axis=others).reshape(-1)


def by_input(counts: np.ndarray, shape: tuple[int, ...], axes: Any) -> np.ndarray:
    """Puts positions first and makes the inputs one axis.

    Args:
        counts: Array with a number for each entry of the axes that are not outputs, in their order.
        shape: The shape of the kernel.
        axes: See `SparseKernel.counts`.

    Returns:
        Array of shape `(*positions, number of inputs)`.
    """
    outputs, inputs = ({axis % len(shape) for axis in each} for each in (axes.outputs, axes.inputs))
    others = [axis for axis in range(len(shape)) if axis not in outputs]
    positions = [axis for axis in others if axis not in inputs]
    order = positions + [axis for axis in others if axis in inputs]
    counts = counts.reshape([shape[axis] for axis in others])
    counts = counts.transpose([others.index(axis) for axis in order])
    num_inputs = math.prod(shape[axis] for axis in others if axis in inputs)
    return counts.reshape(*(shape[axis] for axis in positions), num_inputs)


def link(variable, kernel_mask, settle=None, units=None):
    """Makes a variable a sparse kernel; for the arguments see `MaskedKernel`."""
    variable.constraint = MaskedKernel(variable, kernel_mask, settle, units)


def unlink(variable):
    """Makes the variable of a sparse kernel dense again."""
    variable.constraint = variable.constraint.constraint


def kernel_of(variable: Any) -> Any:
    """The `SparseKernel` of a variable, or `None` if the variable is not a sparse kernel."""
    constraint = getattr(variable, "constraint", None)
    return constraint if isinstance(constraint, SparseKernel) else None


def mask_of(variable: Any) -> Any:
    """The mask variable of a masked kernel, or `None` for any other variable."""
    kernel = kernel_of(variable)
    return kernel.kernel_mask if isinstance(kernel, MaskedKernel) else None


def check_sparse(
    model: keras.layers.Layer, caller: str, by: str = "`rigl_tf.sparsify`"
) -> "dict[str, SparseKernel]":
    """The `kernels_of` a model; a `ValueError` if there are none, which the `caller` needs.

    Args:
        model: A `keras.Model` or layer; anything else has no kernels.
        caller: String, the beginning of the error message.
        by: String, what to make a sparse model with.
    """
    is_model = isinstance(model, keras.layers.Layer)
    kernels = kernels_of(model) if is_model else {}
    if not kernels:
        raise ValueError(
            f"{caller} needs a built sparse model: make one with {by}. "
            f"Received: model={model.name if is_model else model!r}, without sparse kernels"
        )
    return kernels


def check_masked(model: keras.layers.Layer, caller: str) -> None:
    """Raises a `ValueError` if a model has CSR kernels, which the `caller` cannot take."""
    paths = [path for path, kernel in kernels_of(model).items() if kernel.execution == "csr"]
    if paths:
        raise ValueError(
            f"{caller} needs masked kernels: use `rigl_tf.with_execution(model, 'masked')` first. "
            f"Received: model={model.name!r} with CSR kernels {paths}"
        )


def settle(kernels):
    """Decides on masks that wait for layers of the model that were never built."""
    for kernel in kernels:
        if kernel.settle is not None:
            kernel.settle()


def strategy_of(variable):
    """The `tf.distribute.Strategy` under which a Keras variable was made."""
    return getattr(variable.value, "distribute_strategy", None) or tf.distribute.get_strategy()


def by_path(kernels):
    """`{path: kernel}` in the given order.

    Paths are equal if nested models have layers with the same name. Then `#2`, `#3`, ... is added
    to all but the first of them. Dense kernels, which are given as variables, come after the sparse
    ones in this count, so that a sparse kernel has the same path without them.
    """
    kernels = list(kernels)
    number = collections.Counter()
    paths = {}
    for kernel in sorted(kernels, key=lambda each: not isinstance(each, SparseKernel)):
        number[kernel.path] += 1
        n = number[kernel.path]
        paths[id(kernel)] = kernel.path if n == 1 else f"{kernel.path}#{n}"
    return {paths[id(kernel)]: kernel for kernel in kernels}


def own_masks(model):
    """The ids of the variables of a model or layer that say which connections are active."""
    kernels = kernels_of(model).values()
    return {id(variable) for kernel in kernels for variable in kernel.mask_variables}


def without_masks(model, variables):
    """The variables of a model without its masks, in their order."""
    own = own_masks(model)
    return [variable for variable in variables if id(variable) not in own]


def kernels_of(model: keras.layers.Layer) -> "dict[str, SparseKernel]":
    """The `SparseKernel`s of a model or layer, as `{path: kernel}` in the order of its weights.

    A sparse model shares its layers with other models, such as the dense model that it was made of.
    In a model that does not contain their masks, the kernels count as dense.
    """
    weights = model.weights
    own = {id(weight) for weight in weights}
    kernels = [kernel_of(weight) for weight in weights]
    return by_path(
        kernel
        for kernel in kernels
        if kernel is not None and all(id(each) in own for each in kernel.mask_variables)
    )


def sparse_kernels(model: keras.layers.Layer) -> dict[str, keras.Variable]:
    """The variables of the sparse kernels of a model or layer, as `kernels_of`."""
    return {path: kernel.variable for path, kernel in kernels_of(model).items()}


def get_masks(model: keras.layers.Layer) -> Masks:
    """Returns the masks of a sparse model.

    Args:
        model: A `keras.Model` or layer.

    Returns:
        Dictionary `{kernel path: mask}`. A mask is a boolean array of the kernel's shape, `True`
        where a connection is active. The dictionary is empty if no kernel is sparse. If nested
        models have layers with the same name, their paths are equal; then the second path is
        written `path#2`.

    Example:

    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
    >>> [int(mask.sum()) for mask in get_masks(rigl_tf.sparsify(model, 0.75)).values()]
    [8]
    """
    return {path: kernel.mask for path, kernel in kernels_of(model).items()}


def set_masks(model: keras.layers.Layer, masks: Mapping[str, Any]) -> None:
    """Sets the masks of a sparse model, and sets inactive connections to zero.

    Connections that become active start at zero. Kernels without an entry in `masks` keep their
    mask. The slots of an optimizer are not changed: if a connection is removed and added again
    later, it continues with its old momentum. But CSR kernels have slots of active connections
    only: there it starts anew, and the slots of Keras's own optimizers do not follow their
    connections (a warning says so), so compile the model again if you train with one.

    Other code can write values into inactive connections. Optimizers set them to zero again in
    their next step. (In `fit` without XLA, the optimizers of `rigl_tf` do this in the first step,
    every 100 steps, at mask updates and at the end.) `set_masks(model, get_masks(model))` does it
    at once, and `rigl_tf.sparsity_summary` lists such weights.

    Args:
        model: A sparse `keras.Model` or layer.
        masks: Dictionary `{kernel path: mask}`, as `get_masks` returns it. A mask has the kernel's
            shape, and contains booleans or the numbers 0 and 1. The masks of another model with the
            same architecture but different paths (for example a loaded model) are used in their
            order, if there is one for each kernel and all shapes fit.

    Raises:
        ValueError: If a path is not a sparse kernel of the model, or a mask has a wrong shape or
            other values, or does not fit the structure of its kernel. Then nothing is changed.

    Example:

    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, name="sum")])
    >>> model = rigl_tf.sparsify(model, 0.5)
    >>> set_masks(model, {path: [[1], [0]] for path in get_masks(model)})
    >>> [mask.tolist() for mask in get_masks(model).values()]
    [[[True], [False]]]
    """
    kernels = kernels_of(model)
    for path, mask in check_masks(model, masks).items():
        kernels[path].set_mask(mask)


def check_masks(model: keras.layers.Layer, masks: Mapping[str, Any]) -> Masks:
    """Returns `masks` as boolean arrays by the paths of the model's kernels.

    Raises:
        ValueError: If they do not fit the model; see `set_masks`.
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
    """Whether masks belong to the same kernels under other names, as Keras numbers its layers."""
    shapes = [kernel.shape for kernel in kernels.values()]
    if masks.keys() <= kernels.keys() or [mask.shape for mask in masks.values()] != shapes:
        return False
    plain, others = ([re.sub(r"_\d+", "", path) for path in paths] for paths in (masks, kernels))
    return not masks.keys() & kernels.keys() or plain == others


def save_masks(model: keras.layers.Layer, path: str | os.PathLike[str]) -> None:
    """Writes the masks of a sparse model to a file, for `load_masks`.

    Args:
        model: A sparse `keras.Model` or layer.
        path: Path of the file, which must end with `.npz`. An existing file is replaced.

    Raises:
        ValueError: If `path` has another ending, or the model has no sparse kernel.
    """
    path = _npz(path)
    check_sparse(model, "`save_masks`")
    masks = get_masks(model)
    # The arrays have numbers as names, because paths may contain characters that names may not.
    arrays: dict[str, Any] = {f"mask_{index}": mask for index, mask in enumerate(masks.values())}
    np.savez_compressed(path, paths=np.array(list(masks)), **arrays)


def load_masks(model: keras.layers.Layer, path: str | os.PathLike[str]) -> None:
    """Loads masks that `save_masks` has written, and sets them as `set_masks` does.

    Args:
        model: A sparse `keras.Model` or layer with the same architecture.
        path: Path of the file.

    Raises:
        ValueError: If the file was not written by `save_masks`, or its masks do not fit the model.
    """
    path = _npz(path)
    try:
        with open(path, "rb") as opened, np.load(opened) as file:
            masks = {str(each): file[f"mask_{index}"] for index, each in enumerate(file["paths"])}
    except _OTHER_FILE as error:
        raise ValueError(
            f"`path` must be a file of `rigl_tf.save_masks`. Received: path={str(path)!r}, "
            "something else"
        ) from error
    set_masks(model, masks)


def _npz(path):
    path = pathlib.Path(path)
    if path.suffix != ".npz":
        raise ValueError(f"`path` must end with '.npz'. Received: path={str(path)!r}")
    return path


def set_weights(layer: keras.layers.Layer, weights: Sequence[Any]) -> None:
    """Sets weights as `layer.set_weights` of Keras, with or without masks, and keeps the zeros.

    Args:
        layer: A sparse `keras.Model` or layer.
        weights: List of arrays: all that `layer.get_weights()` returns, or the same without masks,
            as of the dense layer. CSR kernels take their active values from dense ones.

    Raises:
        ValueError: If the number of arrays or a shape is wrong, or numbers that are none are given
            as masks or as places of a CSR kernel. Then nothing is changed.
    """
    variables = layer.weights
    dense = without_masks(layer, variables)
    kernels = {id(kernel.variable): kernel for kernel in kernels_of(layer).values()}
    if len(weights) == len(dense):
        chosen: list[Any] = [kernels.get(id(variable), variable) for variable in dense]
    else:
        chosen = variables
    if len(weights) != len(chosen):
        raise ValueError(
            f"`weights` must be the {len(variables)} weights of {layer.name!r}, or the "
            f"{len(dense)} without the masks, as of the dense model; a sparse model that they are "
            f"from must have the same `execution`. Received: {len(weights)} arrays"
        )
    for variable, value in zip(chosen, weights, strict=True):
        if tuple(variable.shape) != np.shape(value):
            raise ValueError(
                f"The array for {variable.path!r} must have its shape {tuple(variable.shape)}. "
                f"Received: shape={np.shape(value)}"
            )
    given = {id(variable): value for variable, value in zip(chosen, weights, strict=True)}
    for kernel in kernels.values():
        kernel.check_given(given)
    for variable, value in zip(chosen, weights, strict=True):
        variable.assign(value)
    for kernel in kernels.values():
        kernel.zero_inactive()


def as_booleans(masks: Mapping[str, Any]) -> Masks:
    """Returns `masks` as boolean arrays; raises a `ValueError` if they are not masks."""
    if not isinstance(masks, Mapping):
        raise ValueError(
            "`masks` must be a dictionary `{kernel path: mask}`. "
            f"Received: {type(masks).__name__}"
        )
    masks = {path: np.asarray(mask) for path, mask in masks.items()}
    for path, mask in masks.items():
        if mask.dtype != bool and not np.isin(mask, (0, 1)).all():
            values = (
                f", values from {mask.min()} to {mask.max()}" if mask.dtype.kind in "iuf" else ""
            )
            raise ValueError(
                f"The mask of {path!r} must hold booleans, or numbers that are 0 or 1. "
                f"Received: dtype={mask.dtype}{values}"
            )
    return {path: mask.astype(bool) for path, mask in masks.items()}
