"""Says in words how a runtime multiplies by each sparse kernel, and why."""

import dataclasses
import platform

import numpy as np

from rigl_tf.artifacts import layouts, structure, xnnpack_rules

NATIVE, EXPANDED, DENSE, UNKNOWN = "native sparse", "expanded at load", "dense", "not found"
_ARM = ("aarch64", "arm64", "armv7l", "armv8l")
# Measured: LiteRT's sparse kernels were slower than dense at 70 % of zeros. They became faster
# between 80 and 90 %.
_WORTHWHILE = 0.8
_BLOCKS_OF_4 = "blocks of (4, 1)"


@dataclasses.dataclass(frozen=True)
class KernelReport:
    """One sparse kernel in an artifact.

    Attributes:
        path: Path of the kernel in the model.
        shape: Shape of the kernel in the model.
        sparsity: Share of zeros.
        structure: The pattern of the zeros, for example `"blocks of (4, 1)"` or `"unstructured"`.
        kernel: How this runtime multiplies by it on this machine: `"native sparse"`, `"dense"`,
            `"expanded at load"` (stored sparse, multiplied dense), or `"not found"`.
        in_browser: The same in a browser and on ARM, where XNNPACK has sparse kernels.
        reason: Why it is multiplied in this way on this machine.
        advice: One sentence that says how to make it faster; empty if there is nothing to say.
    """

    path: str
    shape: tuple
    sparsity: float
    structure: str
    kernel: str
    in_browser: str
    reason: str
    advice: str = ""


def report_dense(kernels, reason, advice):
    """`KernelReport`s for a format whose runtime multiplies dense matrices."""
    return tuple(
        _report(path, array, DENSE, DENSE, reason, advice) for path, array in kernels.items()
    )


def report_litert(kernels, operations, name):
    """`KernelReport`s for a LiteRT file.

    Args:
        kernels: Dictionary `{path: array}` of the sparse kernels.
        operations: The operations of the file, from `litert_file.read`.
        name: Function that returns the name of an operation's layer.

    Returns:
        Tuple of `KernelReport`s.
    """
    uses = layouts.matched(kernels, operations)
    steps = {id(step.operation): step for step in xnnpack_rules.steps_of(operations, name)}
    return tuple(
        _report(path, array, *_of_all(array, [(each, steps[id(each)]) for each in uses[path]]))
        for path, array in kernels.items()
    )


def _report(path, array, *words):
    array = np.asarray(array)
    words = (structure.structure_of(array != 0), *words)
    return KernelReport(path, array.shape, sparsity_of(array), *words)


def sparsity_of(array):
    """Share of zeros."""
    return 1 - int(np.count_nonzero(array)) / array.size


def _of_all(array, used):
    """The last four attributes of the `KernelReport` of a kernel, which has these uses.

    If they are not alike, such as the parts of a kernel that was cut, it is one that is not sparse.
    """
    if not used:
        return (
            UNKNOWN,
            UNKNOWN,
            "no operation of the file has these zeros: the converter merged or changed the kernel",
            "It is taken for dense. Those of Dense, Conv and recurrent layers are found.",
        )
    found = [_in_litert(array, operation, step) for operation, step in used]
    return next((each for each in found if each[0] != NATIVE), found[0])


def _in_litert(array, operation, step):
    weights = operation.weights
    stored = DENSE if weights.block is None else EXPANDED if operation.is_expanded else NATIVE
    if step.part is not None and step.is_pointwise:
        reason = "XNNPACK runs it sparse on ARM and in WebAssembly"
        if platform.machine().lower() in _ARM:
            return NATIVE, NATIVE, reason, ""
        return (
            stored,
            NATIVE,
            f"{reason}, not on {platform.machine()}",
            'It is no faster here; it is in a browser or on a phone: `format="web"` shows it.',
        )
    if stored == NATIVE:
        reason = f"LiteRT has a sparse kernel for blocks of {weights.block}"
        if not structure.structure_of(array != 0).startswith(("blocks", "whole")):
            reason += ", in which it stores this one, with the zeros inside of them"
        if sparsity_of(array) < _WORTHWHILE:
            return (
                stored,
                stored,
                reason,
                f"Below {_WORTHWHILE:.0%} of zeros it may be slower than dense: more zeros help.",
            )
        return stored, stored, reason, ""
    advice = _advice(operation, step)
    if stored == EXPANDED:
        return stored, stored, f"LiteRT has no sparse {operation.name} for these zeros", advice
    reason = f"it is stored dense, in {weights.dtype}"
    if operation.name == "FULLY_CONNECTED" and weights.shape[-1] % 4:
        reason += ": LiteRT stores zeros wrong that look like blocks of 4, unless these divide it"
    return stored, stored, reason, advice


def _advice(operation, step):
    if operation.name == "FULLY_CONNECTED":
        return (
            f"It is no faster than dense: {_BLOCKS_OF_4} in float32, along its inputs, have a "
            "sparse kernel on every CPU."
        )
    if step.is_pointwise:
        return (
            "It is no faster than dense; XNNPACK would run it sparse on ARM and in WebAssembly "
            f"after one change: {step.change}."
        )
    return (
        f"It is no faster than dense, and LiteRT has no sparse {operation.name} of its kind: fewer "
        "channels help, or a depthwise and a 1x1 convolution in its place."
    )
