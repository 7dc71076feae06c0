"""Stores the kernels of a wrapped layer as dense kernels with a mask, or as CSR kernels."""

from typing import NamedTuple

import tensorflow as tf

from rigl_tf import masks
from rigl_tf.checks import check_choice
from rigl_tf.execution import csr, engine, products
from rigl_tf.walk import layers_by_weight, layers_of_weights

EXECUTIONS = ("masked", "csr", "auto")


class _Limits(NamedTuple):
    """The smallest kernels for which `"auto"` chooses CSR.

    Attributes:
        size: The number of weights.
        channels: The number of outputs.
        work: The number of weights for each input and output. A product reads and writes these,
            for each example or pixel, whatever the sparsity is.
    """

    size: int
    channels: int
    work: int


# Within these limits, training steps in CSR were not slower than masked ones, in batches of 1 to
# 1,024: see `results/crossover.md`. A convolution uses its kernel at each pixel, so a small kernel
# is enough.
_LEAST_SPARSITY = 0.8
_OF_PRODUCTS = _Limits(size=1 << 17, channels=1, work=96)
_OF_CONVOLUTIONS = _Limits(size=1, channels=32, work=64)


def check_execution(execution):
    """Raises a `ValueError` unless `execution` is `"masked"`, `"csr"` or `"auto"`."""
    check_choice(EXECUTIONS, execution=execution)


def store(layer, mask_variables, execution, tied=(), stored=None):
    """Stores the sparse kernels of a layer for an `execution`, where that is possible.

    Args:
        layer: The built layer.
        mask_variables: Its `rigl_tf.masks.MaskVariables`.
        execution: `"masked"`, `"csr"` or `"auto"`.
        tied: The ids of variables that other layers hold, too. They are not changed.
        stored: `None`, or what was chosen before for each kernel, `"masked"` or `"csr"`, in the
            order of the layer's weights. It is kept, so a file fits on a machine where `"auto"`
            would choose otherwise.
    """
    with tf.init_scope():
        for storage, owner in csr_storages(layer):
            is_small = storage.constraint.size <= products.LARGEST_DENSE
            if execution == "masked" or (
                execution == "auto" and is_small and _drawback(owner, storage.constraint)
            ):
                _to_masked(layer, mask_variables, storage, owner)
                _sort(layer, mask_variables)
        if execution == "masked":
            return
        around = layers_by_weight(layer)
        for index, (name, kernel) in enumerate(mask_variables.kernels().items()):
            owner = around[id(kernel.variable)][-1]
            is_refused = products.refusal(owner, kernel.variable) is not None
            if is_refused or id(kernel.variable) in tied or kernel.units.structure is not None:
                continue
            if stored is not None:
                is_wanted = stored[index] == "csr"
            else:
                is_wanted = execution == "csr" or not _drawback(owner, kernel)
            if is_wanted:
                products.attach(owner, kernel)
                mask_variables.remove(name)


def reason_for_masked(layers, kernel):
    """Why a kernel stayed masked although CSR was asked for, or an empty string.

    Args:
        layers: The layers around the kernel, the outermost first.
        kernel: The `SparseKernel`.
    """
    wanted = {getattr(layer, "execution", "masked") for layer in layers}
    if kernel.execution == "csr" or wanted == {"masked"}:
        return ""
    if kernel.units.structure is not None:
        return "has a structure"
    reason = products.refusal(layers[-1], kernel.variable)
    if reason is None and wanted >= {"csr"}:
        return "other layers use it, too"
    return reason or _drawback(layers[-1], kernel) or "its file was written with masked kernels"


def _drawback(layer, kernel):
    """Why a kernel would not be faster as CSR, or an empty string."""
    if tf.config.list_physical_devices("GPU"):
        return "CSR is for machines without a GPU"
    # The distribution may have rounded up, and given it one connection more.
    if kernel.num_active > (1 - _LEAST_SPARSITY) * kernel.size + 2:
        return "not sparse enough to be faster as CSR"
    limits = _OF_CONVOLUTIONS if products.is_convolution(layer) else _OF_PRODUCTS
    inputs, outputs = products.channels(layer, kernel.shape)
    least_size = max(limits.size, limits.work * (inputs + outputs))
    if kernel.size < least_size or outputs < limits.channels:
        return "too small to be faster as CSR"
    if not engine.is_native():
        return "CSR is slower without the operations in C++, see `python -m rigl_tf.engine`"
    return ""


def _to_masked(layer, mask_variables, storage, owner):
    mask = storage.constraint.mask
    variable = products.detach(owner, storage)
    name = variable.path.removeprefix(f"{layer.path}/")
    mask_variable = mask_variables.add(
        name, variable, lambda shape, dtype=None, mask=mask: tf.constant(mask)
    )
    masks.link(variable, mask_variable)


def _sort(layer, mask_variables):
    """Puts the masks in the order of the layer's weights, as if no kernel had ever been CSR."""
    names = {id(kernel.variable): name for name, kernel in mask_variables.kernels().items()}
    mask_variables.sort([names[id(each)] for each in layer.weights if id(each) in names])


def csr_storages(layer):
    """All pairs `(CSRStorage, layer that holds it)` inside a layer, each once."""
    found = {}
    for weight, around in layers_of_weights(layer):
        kernel = masks.kernel_of(weight)
        if isinstance(kernel, csr.CSRKernel):
            found[id(kernel)] = kernel.storage, around[-1]
    return list(found.values())
