"""Says which parts of a network XNNPACK runs with sparse kernels, on ARM and in WebAssembly.

XNNPACK is the library that LiteRT uses on CPUs. In parts of a network that fulfil its conditions,
1x1 convolutions skip zeros, whatever their pattern.
"""

import dataclasses
from typing import Any

import keras
import rich.table

from rigl_tf.artifacts import kernels, layouts, litert, litert_file, xnnpack_rules
from rigl_tf.inputs import concrete
from rigl_tf.layers.summary import as_text
from rigl_tf.transforms.rebuild import as_masked
from rigl_tf.transforms.sparsify import check_built


@dataclasses.dataclass(frozen=True)
class StepCheck:
    """One operation of the converted network.

    Attributes:
        layer: String, the name of its layer, or of the operation if the layer is unknown.
        operation: String, its kind in a LiteRT file, for example `"CONV_2D"`.
        part: Integer, the number of its sparse part, or `None` if it is in no sparse part.
        is_pointwise: Whether it is a 1x1 convolution, which skips zeros in a sparse part.
        sparsity: Share of zeros of its weights, or `None` if it has no weights.
        change: String, what must be changed first; empty if it is in a sparse part.
    """

    layer: str
    operation: str
    part: int | None
    is_pointwise: bool
    sparsity: float | None
    change: str


@dataclasses.dataclass(frozen=True)
class Check:
    """The result of `check`; `print` shows it as a table.

    Attributes:
        steps: A `StepCheck` for each operation, in their order.
    """

    steps: tuple[StepCheck, ...]

    @property
    def num_sparse(self) -> int:
        """Number of 1x1 convolutions that skip zeros."""
        return sum(step.is_pointwise and step.part is not None for step in self.steps)

    @property
    def num_pointwise(self) -> int:
        """Number of 1x1 convolutions."""
        return sum(step.is_pointwise for step in self.steps)

    @property
    def changes(self) -> dict[str, str]:
        """Dictionary `{layer: what to change}` for operations that are in no sparse part."""
        return {step.layer: step.change for step in self.steps if step.change}

    def __str__(self):
        title = (
            f"XNNPACK on ARM and in WebAssembly: {self.num_sparse} of {self.num_pointwise} 1x1 "
            "convolutions skip their zeros"
        )
        table = rich.table.Table(title=title, title_justify="left")
        for name in ("layer", "operation", "zeros", "sparse part", "change"):
            table.add_column(name)
        for step in self.steps:
            zeros = "" if step.sparsity is None else f"{step.sparsity:.1%}"
            part = "" if step.part is None else str(step.part + 1)
            table.add_row(step.layer, step.operation, zeros, part, step.change)
        return as_text(table)


def check(model: keras.Model, inputs: Any = None) -> Check:
    """Says which parts of a network XNNPACK runs with sparse kernels, on ARM and in WebAssembly.

    The model is converted to LiteRT, and its operations are compared with the conditions of
    XNNPACK. A sparse part starts with a 3x3 convolution of stride 2 on 3 channels, padded by 1 on
    each side. Then follow 1x1 convolutions of stride 1, depthwise convolutions of 3x3 or 5x5 with
    the same padding on each side, sums, products and unary functions. It ends with a mean over
    height and width. More than two thirds of the weights of its 1x1 convolutions must be zero, and
    everything must be in float32.

    Args:
        model: A built `keras.Model`, sparse or dense.
        inputs: A batch; it is needed only if the model does not know the shapes of its inputs.

    Returns:
        A `Check`; `print` it.

    Raises:
        ImportError: If `ai-edge-litert` is not installed.
        ValueError: If the model is not built, or cannot be converted to LiteRT.

    Example:

    >>> model = keras.Sequential(
    ...     [
    ...         keras.Input((32, 32, 3)),
    ...         keras.layers.Conv2D(8, 3, strides=2, padding="same", name="stem"),
    ...         keras.layers.Conv2D(16, 1, name="pointwise"),
    ...         keras.layers.GlobalAveragePooling2D(),
    ...     ]
    ... )
    >>> check(model).changes["stem"]
    "ZeroPadding2D(1) before it, and padding='valid'"
    """
    check_built(model, "xnnpack.check")
    masked = as_masked(model)
    (content,), _ = litert.convert(masked, concrete(masked, inputs), ("dense",))
    operations = litert_file.read(content)
    name = layouts.namer(masked, operations)
    steps = []
    for step in xnnpack_rules.steps_of(operations, name):
        operation = step.operation
        weights = operation.weights
        steps.append(
            StepCheck(
                layer=name(operation),
                operation=operation.name,
                part=step.part,
                is_pointwise=step.is_pointwise,
                sparsity=None if weights is None else kernels.sparsity_of(weights.array),
                change=step.change,
            )
        )
    return Check(tuple(steps))
