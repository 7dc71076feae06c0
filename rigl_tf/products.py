"""What the operations of TensorFlow do with weights: carry them along, or multiply by them."""

import collections
import dataclasses
import fractions
import math

# A weight that meets the inputs in these is not multiplied: it is added, compared, looked up.
_WITHOUT_PRODUCT = (
    *("Add", "AddV2", "AddN", "BiasAdd", "Sub", "Maximum", "Minimum", "Select", "SelectV2"),
    *("Concat", "ConcatV2", "Pack", "Gather", "GatherV2", "GatherNd"),
)
_LOOKUPS = ("Gather", "GatherV2", "GatherNd")
_JOINS = ("Concat", "ConcatV2", "Pack")

# Their results do not depend on the values of their inputs.
_OF_SHAPES = ("Shape", "ShapeN", "Size", "Rank", "ZerosLike", "OnesLike")


@dataclasses.dataclass(frozen=True)
class Value:
    """What is known of a tensor.

    Attributes:
        shape: Tuple of its dimensions, `None` where unknown; `None` if nothing is known.
        elements: `{weight: how many of its elements are in the tensor}`.
        of_inputs: Whether it depends on the model's inputs.
    """

    shape: tuple | None
    elements: dict = dataclasses.field(default_factory=dict)
    of_inputs: bool = False

    @property
    def size(self):
        known = self.shape is not None and None not in self.shape
        return math.prod(self.shape) if known else None

    def merge(self, other):
        """What is known of a tensor that is this one or another one."""
        elements = collections.Counter(self.elements) | collections.Counter(other.elements)
        shape = self.shape if self.shape == other.shape else None
        return Value(shape, dict(elements), self.of_inputs or other.of_inputs)


@dataclasses.dataclass
class Uses:
    """Multiplications by weights, and the weights for which they are not known.

    Attributes:
        multiplications: `{weight: number}`.
        unknown: `{weight: why its multiplications cannot be counted}`.
    """

    multiplications: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    unknown: dict = dataclasses.field(default_factory=dict)

    def add(self, other, times=1):
        for weight, number in other.multiplications.items():
            self.multiplications[weight] += times * number
        self.unknown.update(other.unknown)

    def merge(self, other):
        """Either these uses or those, whichever are more."""
        self.multiplications |= other.multiplications
        self.unknown.update(other.unknown)


def follow(node, inputs, shapes):
    """Follows weights through one operation.

    Args:
        node: A `NodeDef` with an operation that calls no function.
        inputs: List of the values that it takes.
        shapes: List of the shapes of its results.

    Returns:
        The values that it gives, and the `Uses` in it.
    """
    of_inputs = any(value.of_inputs for value in inputs) and node.op not in _OF_SHAPES
    results = [Value(shape, {}, of_inputs) for shape in shapes]
    uses = Uses()
    weights = [index for index, value in enumerate(inputs) if value.elements]
    if not weights:
        return results, uses
    if not of_inputs and (node.op == "Mul" or node.op not in _PRODUCTS):
        results = [_carried(node, inputs, result) for result in results]
        number = 0 if all(result.size is not None for result in results) else None
    elif node.op in _PRODUCTS:
        # Of a constant, too, a product with a kernel is an activation.
        results = [dataclasses.replace(result, of_inputs=True) for result in results]
        number = _multiplications(node, inputs, weights, results[0])
    else:
        is_choice = node.op in _LOOKUPS and len(inputs[0].shape) > 2
        number = 0 if node.op in _WITHOUT_PRODUCT and not is_choice else None
    for value in (inputs[index] for index in weights):
        if number is None:
            reason = _why_unknown(node, inputs, weights, results)
            uses.unknown.update(dict.fromkeys(value.elements, reason))
        elif number:
            share = fractions.Fraction(number, value.size)
            uses.multiplications.update({key: n * share for key, n in value.elements.items()})
    return results, uses


def _why_unknown(node, inputs, weights, results):
    where = f"{node.name!r} ({node.op})"
    if any(value.size is None for value in (*inputs, *results)):
        return f"the shapes in {where} are not known"
    if len(weights) > 1:
        return f"it is multiplied by another weight in {where}"
    return f"what {where} does with it is not known"


def _carried(node, inputs, result):
    """The result of an operation on weights and constants alone, which holds weights."""
    elements = collections.Counter()
    for value in inputs:
        if not value.elements or not value.size or result.size is None:
            continue
        if node.op in _JOINS:
            elements.update(value.elements)
        else:
            # A slice holds a part of a weight, a broadcast holds it several times.
            ratio = fractions.Fraction(result.size, value.size)
            elements |= collections.Counter({key: n * ratio for key, n in value.elements.items()})
    return dataclasses.replace(result, elements=dict(elements))


def _multiplications(node, inputs, weights, result):
    """How many multiplications an operation makes by one of its inputs, `None` if not known."""
    if len(weights) > 1 or any(value.size is None for value in (*inputs, result)):
        return None
    return _PRODUCTS[node.op](node, inputs, weights[0], result)


def _matrix_product(node, inputs, index, result):
    names = ("transpose_a", "transpose_b") if node.op == "MatMul" else ("adj_x", "adj_y")
    transposed = node.attr[names[index]].b
    # Each element of the result is a sum over the last dimension of the first matrix.
    summed = -1 if (index == 0) != transposed else -2
    return result.size * inputs[index].shape[summed]


def _einsum(node, inputs, index, result):
    terms = node.attr["equation"].s.decode().split("->")[0].split(",")
    sizes = {}
    for term, value in zip(terms, inputs, strict=True):
        before, dots, after = term.partition("...")
        num_dots = len(value.shape) - len(before) - len(after) if dots else 0
        # What the dots stand for is aligned at its end, as in broadcasting.
        labels = [*before, *range(num_dots, 0, -1), *after]
        for label, size in zip(labels, value.shape, strict=True):
            sizes[label] = max(size, sizes.get(label, 1))
    return math.prod(sizes.values())


def _convolution(node, inputs, index, result):
    """The kernel is used at each position of the output."""
    return _positions(node, result) * inputs[1].size if index == 1 else None


def _transposed_convolution(node, inputs, index, result):
    """The kernel is used at each position of what it is applied to."""
    return _positions(node, inputs[2]) * inputs[1].size if index == 1 else None


def _positions(node, value):
    """The number of positions in the images of a batch."""
    channels = 1 if node.attr["data_format"].s.startswith(b"NC") else -1
    return value.size // value.shape[channels]


def _elementwise(node, inputs, index, result):
    return result.size


def _recurrent(node, inputs, index, result):
    """The kernel of a GPU: all weights of a layer in one vector, used at each timestep."""
    timesteps, batch, _ = inputs[0].shape
    return timesteps * batch * inputs[3].size if index == 3 else None


_PRODUCTS = {
    "MatMul": _matrix_product,
    "BatchMatMul": _matrix_product,
    "BatchMatMulV2": _matrix_product,
    "BatchMatMulV3": _matrix_product,
    "Einsum": _einsum,
    "Conv": _convolution,
    "Conv2D": _convolution,
    "Conv3D": _convolution,
    "DepthwiseConv2dNative": _convolution,
    "Conv2DBackpropInput": _transposed_convolution,
    "Conv3DBackpropInputV2": _transposed_convolution,
    "DepthwiseConv2dNativeBackpropInput": _transposed_convolution,
    "Mul": _elementwise,
    "CudnnRNN": _recurrent,
    "CudnnRNNV2": _recurrent,
    "CudnnRNNV3": _recurrent,
}
