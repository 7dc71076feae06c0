"""Finds in a history how often the connections of each kernel moved."""

import math
import re


def of_kernels(found, curves):
    """How often the connections of each kernel moved; `None` if that is not known.

    Args:
        found: List of `Kernel`s.
        curves: The `Curves` of a history.

    Returns:
        List with the moves in all epochs divided by the active connections of each kernel.
    """
    moved = curves.of_kernels.get("moved", {})
    paths = _paths_in_history([each.path for each in found], list(moved), curves.is_in_order)
    sparsities = curves.of_kernels.get("sparsity", {})
    if paths is None or not all(
        _was_of(each, sparsities[path])
        for each, path in zip(found, paths, strict=True)
        if path in sparsities
    ):
        return None
    return [
        sum(x for x in moved[path] if math.isfinite(x)) / max(1, each.num_active)
        for each, path in zip(found, paths, strict=True)
    ]


def _was_of(kernel, sparsities):
    """Whether these were the sparsities of a kernel at some time; not after `compact`."""
    known = [x for x in sparsities if math.isfinite(x)]
    return not known or min(abs(x - kernel.sparsity) for x in known) * kernel.size < 0.5


def _paths_in_history(paths, names, is_in_order):
    """For each path the one of `names` that belongs to the same kernel; `None` if not certain.

    If the model was loaded or built again, its paths may differ from those of the history in the
    name of the model, and in the numbers that Keras adds to names. If this is not enough, the
    order decides, if it is that of the kernels.
    """
    if set(paths) <= set(names):
        return paths
    if len(paths) != len(names):
        return None
    for short in (_without_model, _without_numbers):
        by_short = dict(zip(short(names), names, strict=True))
        if len(by_short) == len(names) and set(short(paths)) == set(by_short):
            return [by_short[each] for each in short(paths)]
    return names if is_in_order or len(names) == 1 else None


def _without_model(paths):
    """The paths without their first part, if it is the same in all: the name of the model."""
    parts = [path.partition("/") for path in paths]
    return [tail for _, _, tail in parts] if len({each for each, _, _ in parts}) == 1 else paths


def _without_numbers(paths):
    """The paths without the name of the model, and without numbers at the end of other names."""
    return [re.sub(r"_\d+(?=/|$)", "", path) for path in _without_model(paths)]
