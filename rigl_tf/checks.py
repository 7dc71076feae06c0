"""Checks of arguments, with error messages in the style of Keras."""

import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np

# For a very small density, the sparsity would round to 1 in floats, and the kernel would be empty.
LARGEST_SPARSITY = math.nextafter(1.0, 0.0)


def is_number(value: Any) -> bool:
    """Whether a value is a real number. `True` and `False` are none here."""
    return isinstance(value, Real) and not isinstance(value, bool)


def is_integer(value: Any) -> bool:
    """Whether a value is an integer. `True` and `False` are none here."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def check_integers(least: int | None = None, **values: Any) -> None:
    """Raises a `ValueError` that names the first value that is not an integer, or below `least`.

    Example:

    >>> check_integers(1, steps=0)
    Traceback (most recent call last):
        ...
    ValueError: `steps` must be an integer >= 1. Received: steps=0
    """
    for name, value in values.items():
        if not is_integer(value) or (least is not None and value < least):
            rule = "an integer" if least is None else f"an integer >= {least}"
            raise ValueError(f"`{name}` must be {rule}. Received: {name}={value!r}")


def check_seed(seed: Any) -> None:
    """Raises a `ValueError` if a seed is not an integer of 64 bits.

    Example:

    >>> check_seed(2**70)
    Traceback (most recent call last):
        ...
    ValueError: `seed` must be in [-2**63, 2**63). Received: seed=1180591620717411303424
    """
    check_integers(seed=seed)
    if not -(2**63) <= seed < 2**63:
        raise ValueError(f"`seed` must be in [-2**63, 2**63). Received: seed={seed}")


def check_numbers(interval: str, **values: Any) -> None:
    """Raises a `ValueError` that names the first value that is not a number in an interval.

    Args:
        interval: String, such as `"[0, 1)"`. A round bracket excludes the limit; with `inf)` or
            `(-inf`, numbers must be finite.
        **values: The values, by the names of the arguments.

    Example:

    >>> check_numbers("(0, inf)", power=0)
    Traceback (most recent call last):
        ...
    ValueError: `power` must be a finite number > 0. Received: power=0
    >>> check_numbers("[0, 1)", momentum=True)
    Traceback (most recent call last):
        ...
    ValueError: `momentum` must be a number in [0, 1). Received: momentum=True
    """
    low, high = (float(end) for end in interval[1:-1].split(","))
    for name, value in values.items():
        is_above = is_number(value) and (value >= low if interval[0] == "[" else value > low)
        if not is_above or not (value <= high if interval[-1] == "]" else value < high):
            rule = _rule(interval, low, high)
            raise ValueError(f"`{name}` must be {rule}. Received: {name}={value!r}")


def _rule(interval, low, high):
    if high < math.inf:
        return f"a number in {interval}"
    number = "a number" if interval[-1] == "]" else "a finite number"
    sign = ">=" if interval[0] == "[" else ">"
    return number if low == -math.inf else f"{number} {sign} {low:g}"


def check_booleans(**values: Any) -> None:
    """Raises a `ValueError` that names the first value that is neither `True` nor `False`.

    Example:

    >>> check_booleans(residual=1)
    Traceback (most recent call last):
        ...
    ValueError: `residual` must be `True` or `False`. Received: residual=1
    """
    for name, value in values.items():
        if not isinstance(value, (bool, np.bool_)):
            raise ValueError(f"`{name}` must be `True` or `False`. Received: {name}={value!r}")


def check_functions(**values: Any) -> None:
    """Raises a `ValueError` that names the first value that is not a function.

    Example:

    >>> check_functions(train=None)
    Traceback (most recent call last):
        ...
    ValueError: `train` must be a function. Received: train=None
    """
    for name, value in values.items():
        if not callable(value):
            raise ValueError(f"`{name}` must be a function. Received: {name}={value!r}")


def check_choice(choices: Iterable[str], **values: Any) -> None:
    """Raises a `ValueError` that names the first value that is not one of these strings.

    Example:

    >>> check_choice(["global", "layerwise"], scope="all")
    Traceback (most recent call last):
        ...
    ValueError: `scope` must be one of ['global', 'layerwise']. Received: scope='all'
    """
    for name, value in values.items():
        if not isinstance(value, str) or value not in choices:
            known = list(choices)
            raise ValueError(f"`{name}` must be one of {known}. Received: {name}={value!r}")


def check_keras_3(**values: Any) -> None:
    """Raises a `ValueError` that names the first value that is an object of Keras 2.

    Keras 2 is the package `tf_keras`, and also `tf.keras` if `TF_USE_LEGACY_KERAS` is set.
    """
    for name, value in values.items():
        modules = {cls.__module__.partition(".")[0] for cls in type(value).__mro__}
        if "tf_keras" in modules:
            raise ValueError(
                f"`{name}` must be made with Keras 3, `import keras`. This one is made with Keras "
                f"2, which is `tf_keras`, and `tf.keras` if TF_USE_LEGACY_KERAS is set. "
                f"Received: {name}={value!r}"
            )


def check_sparsity(value: float, name: str = "sparsity") -> float:
    """Returns a sparsity as a float, after checking it.

    Args:
        value: The sparsity.
        name: String, its name in the error message.

    Returns:
        Float in `[0, 1)`.

    Raises:
        ValueError: If `value` is not a real number in `[0, 1)`.

    Example:

    >>> check_sparsity(0.9)
    0.9
    """
    if is_number(value) and 0 <= value < 1:
        return min(float(value), LARGEST_SPARSITY)
    raise ValueError(f"A sparsity must be a real number in [0, 1). Received: {name}={value!r}")


def check_shapes(shapes: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, ...]]:
    """Returns `shapes` as `{path: tuple of integers}`, after checking them (`ValueError`)."""
    if not isinstance(shapes, Mapping) or not shapes:
        raise ValueError(f"`shapes` must map at least one path to a shape. Received: {shapes!r}")
    for path, shape in shapes.items():
        dims = tuple(shape) if hasattr(shape, "__iter__") else ()
        if not dims or not all(is_integer(dim) and dim > 0 for dim in dims):
            rule = "A shape must have one dimension or more, each a positive integer."
            raise ValueError(f"{rule} Received: shapes[{path!r}]={shape!r}")
    return {path: tuple(int(dim) for dim in shape) for path, shape in shapes.items()}
