"""The conditions under which XNNPACK runs 1x1 convolutions sparse, on ARM and in WebAssembly.

XNNPACK does this for parts of a network that it can compute with the channels as the first axis.
Such a part starts with a 3x3 convolution of stride 2. It ends in a mean over height and width, or
in a depth-to-space operation. Only a few kinds of operations may stand between (in the source of
XNNPACK: `src/subgraph.c`, function `rewrite_for_nchw`).
"""

import dataclasses
from typing import Any

import numpy as np

_UNARY = (
    "ABS", "CEIL", "ELU", "EXP", "FLOOR", "GELU", "HARD_SWISH", "LEAKY_RELU", "LOGISTIC", "NEG",
    "RELU", "RELU6", "RELU_N1_TO_1", "ROUND", "RSQRT", "SQRT", "SQUARE", "TANH",
)  # fmt: skip
_ENDS = ("MEAN", "DEPTH_TO_SPACE")
# The number for padding "same" in a file.
_SAME = 0
_RULE = "more than two thirds of the weights of the 1x1 convolutions must be zero"


@dataclasses.dataclass
class Step:
    """An operation, joined with the padding operation before it, as XNNPACK does.

    Attributes:
        operation: The `Operation`.
        inputs: Tuple of the numbers of its input tensors, without constants.
        change: What must change so that it can be in a sparse part; empty if nothing must.
        is_start: Boolean, whether a sparse part can start with it.
        part: The number of the sparse part in which it is, or `None`.
    """

    operation: Any
    inputs: tuple
    change: str = ""
    is_start: bool = False
    part: int | None = None

    @property
    def is_end(self):
        return self.operation.name in _ENDS

    @property
    def is_pointwise(self):
        """Whether it is a 1x1 convolution, which can be sparse."""
        weights = self.operation.weights
        return (
            self.operation.name == "CONV_2D"
            and weights is not None
            and weights.shape[1:3] == (1, 1)
        )


def steps_of(operations, name=None):
    """The `Step`s of a file. Each says why its operation is not in a sparse part, if it is not.

    Args:
        operations: From `litert_file.read`.
        name: Function that returns the name of an operation. It is used in sentences that say
            which other operation must change.
    """
    name = name or (lambda operation: operation.name)
    producers = {tensor.index: each for each in operations for tensor in each.outputs}
    uses = {}
    for each in operations:
        for tensor in each.inputs:
            if tensor is not None:
                uses[tensor.index] = uses.get(tensor.index, 0) + 1
    steps, fused = [], set()
    for each in operations:
        first = producers.get(each.inputs[0].index) if each.inputs and each.inputs[0] else None
        padding = np.zeros((2, 2), int)
        # The second input of a product is its weights.
        computed = each.inputs[:1] if each.weights is not None else each.inputs
        inputs = [x.index for x in computed if x is not None and not x.is_constant]
        if each.name in ("CONV_2D", "DEPTHWISE_CONV_2D") and each.options.padding != _SAME:
            pad = _padding(first)
            if first is not None and pad is not None and uses[each.inputs[0].index] == 1:
                padding, inputs[0] = pad, first.inputs[0].index
                fused.add(id(first))
        change, is_start = _change(each, padding)
        steps.append(Step(each, tuple(inputs), change, is_start))
    steps = [step for step in steps if id(step.operation) not in fused]
    _connect(steps, name)
    return steps


def _padding(operation):
    """The padding of height and width, if the operation is such a `PAD`; else `None`."""
    if operation is None or operation.name != "PAD" or not operation.inputs[1].is_constant:
        return None
    padding = np.asarray(operation.inputs[1].array)
    if padding.shape != (4, 2) or padding[[0, 3]].any():
        return None
    return padding[1:3]


def _change(operation, padding):
    """What must change so that an operation fits, and whether a sparse part can start with it."""
    if any(x.dtype != np.float32 for x in operation.outputs):
        return "compute in float32", False
    if operation.name == "CONV_2D":
        return _change_of_convolution(operation, padding)
    if operation.name == "DEPTHWISE_CONV_2D":
        return _change_of_depthwise(operation, padding), False
    if operation.name in ("ADD", "MUL"):
        if any(len(x.shape) != 4 for x in operation.inputs):
            return (
                "do not add or multiply a vector: a BatchNormalization directly behind a "
                "convolution is folded into it"
            ), False
        return "", False
    if operation.name == "MEAN" and _axes(operation) != [1, 2]:
        return "take the mean over height and width", False
    if operation.name in (*_UNARY, *_ENDS, "RESIZE_BILINEAR"):
        return ("" if len(operation.inputs[0].shape) == 4 else "give it images"), False
    if operation.name == "FULLY_CONNECTED":
        return (
            "a 1x1 convolution in its place; behind the global mean blocks of (4, 1), for which "
            "LiteRT has a sparse kernel of its own"
        ), False
    return f"leave out {operation.name}, or put it behind the global mean", False


def _axes(operation):
    axes = operation.inputs[1]
    return sorted(np.ravel(axes.array) % 4) if axes.is_constant else None


def _explicit(options, size, padding):
    """The padding of a convolution, or `None` if it depends on the size of the image."""
    if options.padding != _SAME:
        return padding
    if (options.strideH, options.strideW) != (1, 1):
        return None
    total = np.asarray(size) - 1
    return np.stack([total // 2, total - total // 2], axis=1)


def _change_of_convolution(operation, padding):
    options, weights = operation.options, operation.weights
    shape = operation.inputs[1].shape if weights is None else weights.shape
    size, strides = shape[1:3], (options.strideH, options.strideW)
    if weights is None:
        return "let its weights be constants", False
    if (options.dilationHFactor, options.dilationWFactor) != (1, 1):
        return "no dilation", False
    padding = _explicit(options, size, padding)
    channels = operation.inputs[0].shape[-1]
    if size == (1, 1):
        if channels != shape[-1]:
            return "no groups", False
        if strides != (1, 1):
            return "stride 1: let the depthwise convolution before it have the stride", False
        if padding is None or padding.any():
            return "no padding", False
        return "", False
    if size != (3, 3) or channels != 3:
        return (
            "a depthwise convolution and a 1x1 convolution in its place: a 3x3 convolution can "
            "only be the first, on images with 3 channels"
        ), False
    if strides != (2, 2):
        return "stride 2, as a sparse part starts with a 3x3 convolution of stride 2", False
    if padding is None or (padding != 1).any():
        return "ZeroPadding2D(1) before it, and padding='valid'", False
    return "", True


def _change_of_depthwise(operation, padding):
    options = operation.options
    size = operation.inputs[1].shape[1:3]
    strides = (options.strideH, options.strideW)
    if (options.dilationHFactor, options.dilationWFactor) != (1, 1):
        return "no dilation"
    if options.depthMultiplier != 1:
        return "a depth multiplier of 1"
    if strides not in ((1, 1), (2, 2)):
        return "stride 1 or 2, the same in both directions"
    if size not in ((3, 3), (5, 5)):
        return "a kernel of 3x3 or 5x5"
    padding = _explicit(options, size, padding)
    side = size[0] // 2
    if padding is None or (padding != side).any():
        return f"ZeroPadding2D({side}) before it, and padding='valid'"
    return ""


def _connect(steps, name):
    """Joins steps that fit into parts. Undoes a part that XNNPACK would not run, and says why."""
    producers = {tensor.index: step for step in steps for tensor in step.operation.outputs}
    consumers = {}
    for step in steps:
        for index in step.inputs:
            consumers.setdefault(index, []).append(step)
    fitting = [step for step in steps if not step.change]
    for number, step in enumerate(fitting):
        step.part = number
    # Neighbours are joined into one part, but a start is not joined with what comes before it.
    joined = True
    while joined:
        joined = False
        for step in fitting:
            for index in () if step.is_start else step.inputs:
                before = producers.get(index)
                if before is not None and before.part is not None and before.part != step.part:
                    low, high = sorted((before.part, step.part))
                    for each in fitting:
                        each.part = low if each.part == high else each.part
                    joined = True
    for number in sorted({step.part for step in fitting}):
        part = [step for step in fitting if step.part == number]
        change = _change_of_part(part, producers, consumers, name)
        for step in part if change else ():
            step.part, step.change = None, change
    numbers = sorted({step.part for step in fitting if step.part is not None})
    for step in fitting:
        if step.part is not None:
            step.part = numbers.index(step.part)


def _change_of_part(part, producers, consumers, name):
    members = {id(step) for step in part}
    for step in part:
        for index in () if step.is_start else step.inputs:
            before = producers.get(index)
            if before is None:
                return (
                    "start the network with ZeroPadding2D(1) and a 3x3 convolution of stride 2 on "
                    "images with 3 channels"
                )
            if id(before) not in members:
                return f"change {name(before.operation)}, which comes before: {before.change}"
    for step in part:
        for tensor in step.operation.outputs:
            after = consumers.get(tensor.index, [])
            outside = [each for each in after if id(each) not in members]
            if step.is_end and not [each for each in after if id(each) in members]:
                continue
            if outside:
                return (
                    f"change {name(outside[0].operation)}, which comes after: {outside[0].change}"
                )
            if not after:
                return "end the network in a GlobalAveragePooling2D"
            if tensor.is_output:
                return f"do not give out {name(step.operation)}, an output in between"
    if not any(step.is_pointwise for step in part):
        return "nothing: there is no 1x1 convolution in this part"
    weights = [step.operation.weights.array for step in part if step.is_pointwise]
    num_zeros = sum(np.count_nonzero(each == 0) for each in weights)
    size = sum(each.size for each in weights)
    if 3 * num_zeros <= 2 * size:
        return f"{_RULE}, and {num_zeros / size:.0%} are"
    return ""
