"""Counts how often a model uses each of its weights, by the products in its traced graph.

A weight is followed from the place where the model reads it, through operations on weights alone
such as casts, reshapes and slices, to the matrix products and convolutions where it is multiplied
with values that depend on the inputs. This works for every layer, also a user's own. The number of
multiplications is divided evenly among the connections of the weight.

The first part of this module says what each operation of TensorFlow does with weights. The second
part follows the weights through the graph.
"""

import collections
import dataclasses
import fractions
import math
from typing import Any

import keras
import tensorflow as tf

# In these operations a weight is not multiplied: it is added, compared or looked up.
_WITHOUT_PRODUCT = (
    *("Add", "AddV2", "AddN", "BiasAdd", "Sub", "Maximum", "Minimum", "Select", "SelectV2"),
    *("Concat", "ConcatV2", "Pack", "Gather", "GatherV2", "GatherNd"),
)
_LOOKUPS = ("Gather", "GatherV2", "GatherNd")
_JOINS = ("Concat", "ConcatV2", "Pack")

# The results of these operations do not depend on the values of their inputs.
_OF_SHAPES = ("Shape", "ShapeN", "Size", "Rank", "ZerosLike", "OnesLike")


@dataclasses.dataclass(frozen=True)
class Value:
    """What is known of a tensor.

    Attributes:
        shape: Tuple of its dimensions, `None` where unknown; `None` if nothing is known.
        elements: `{weight: number of its elements that are in the tensor}`.
        of_inputs: Whether it depends on the model's inputs.
    """

    shape: tuple | None
    elements: dict = dataclasses.field(default_factory=dict)
    of_inputs: bool = False

    @property
    def size(self):
        return None if self.shape is None or None in self.shape else math.prod(self.shape)

    def merge(self, other):
        """What is known of a tensor that is either this one or the other one."""
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
        """Takes the larger number of uses for each weight."""
        self.multiplications |= other.multiplications
        self.unknown.update(other.unknown)


def _follow_operation(node, inputs, shapes):
    """Follows weights through one operation.

    Args:
        node: A `NodeDef` with an operation that calls no function.
        inputs: List of its input values.
        shapes: List of the shapes of its results.

    Returns:
        The values of its results, and the `Uses` in it.
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
        # A product of a kernel and a constant counts as an activation, too.
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
    """The result of an operation on weights and constants only; it contains elements of weights."""
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
    """The number of multiplications with one of the inputs, or `None` if it is unknown."""
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
        # The axes of the dots are aligned at their end, as in broadcasting.
        labels = [*before, *range(num_dots, 0, -1), *after]
        for label, size in zip(labels, value.shape, strict=True):
            sizes[label] = max(size, sizes.get(label, 1))
    return math.prod(sizes.values())


def _convolution(node, inputs, index, result):
    """The kernel is used at each position of the output."""
    return _positions(node, result) * inputs[1].size if index == 1 else None


def _transposed_convolution(node, inputs, index, result):
    """The kernel is used at each position of the input."""
    return _positions(node, inputs[2]) * inputs[1].size if index == 1 else None


def _positions(node, value):
    """The number of positions in the images of a batch."""
    channels = 1 if node.attr["data_format"].s.startswith(b"NC") else -1
    return value.size // value.shape[channels]


def _elementwise(node, inputs, index, result):
    return result.size


def _recurrent(node, inputs, index, result):
    """The operation of GPUs: all weights of a layer are in one vector, used at each timestep."""
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


_LOOPS = ("While", "StatelessWhile")
_CALLS = ("PartitionedCall", "StatefulPartitionedCall")


def trace(model, weights, specs):
    """Traces the inference of a model and counts the uses of some of its weights.

    Args:
        model: A built `keras.Model`.
        weights: List of `keras.Variable`s of the model.
        specs: Structure of `tf.TensorSpec`s, the model's inputs.

    Returns:
        `Uses`; a weight is named by its index in `weights`.
    """

    @tf.function(autograph=False)
    def infer(values, inputs):
        # The weights are arguments of the graph, so they can be followed.
        with keras.StatelessScope(state_mapping=list(zip(weights, values, strict=True))):
            return model(inputs, training=False)

    values = [tf.TensorSpec(weight.shape, weight.dtype) for weight in weights]
    concrete = infer.get_concrete_function(values, specs)
    graph_def = concrete.graph.as_graph_def(add_shapes=True)
    library = {function.signature.name: function for function in graph_def.library.function}
    arguments = {}
    # The inputs of the graph: the arguments, then other variables and tables that the model reads.
    num_arguments = len(weights) + len(tf.nest.flatten(specs))
    for index, tensor in enumerate(concrete.inputs):
        shape = _shape(tensor.shape.as_proto())
        elements = {index: math.prod(shape)} if index < len(weights) else {}
        of_inputs = len(weights) <= index < num_arguments
        arguments[tensor.op.name] = Value(shape, elements, of_inputs)
    results = [tensor.name for tensor in concrete.outputs]
    graph = _Graph(graph_def.node, list(arguments), results, library)
    return graph.follow(list(arguments.values()))[1]


class _Graph:
    """The nodes of a graph, or of a function in its library, and the tensors that it returns."""

    def __init__(self, nodes, arguments, results, library):
        self._nodes = {node.name: node for node in nodes}
        self._arguments = arguments
        self._results = results
        self._library = library
        # For a dilated convolution, TensorFlow may split an image into several padded images. Their
        # positions are counted after they are put together again.
        self._dilated = {}
        for node in nodes:
            if node.op == "BatchToSpaceND":
                self._dilated.update(dict.fromkeys(self._before(node), node))

    def _before(self, node):
        """The names of the convolution before a node, and of the nodes between them."""
        name = _parse(node.input[0])[0]
        while name in self._nodes:
            yield name
            if self._nodes[name].op != "Squeeze":
                return
            name = _parse(self._nodes[name].input[0])[0]

    def follow(self, arguments):
        """Follows weights through the graph.

        Args:
            arguments: The values of its arguments.

        Returns:
            The values of its results, and the `Uses` in it. Nodes that no result depends on are
            ignored.
        """
        values = {name: [value] for name, value in zip(self._arguments, arguments, strict=True)}
        uses = Uses()
        for name in self._in_order(self._results):
            if name not in values:
                node = self._nodes[name]
                inputs = [_get(values, tensor) for tensor in _inputs(node)]
                values[name], used = self._follow_node(node, inputs)
                uses.add(used)
        return [_get(values, tensor) for tensor in self._results], uses

    def _in_order(self, tensors):
        """Names of the nodes and arguments that tensors depend on, each after its own inputs."""
        order = {}
        waiting = [(_parse(tensor)[0], False) for tensor in tensors]
        while waiting:
            name, inputs_are_done = waiting.pop()
            if inputs_are_done:
                order[name] = None
            elif name not in order:
                waiting.append((name, True))
                if name in self._nodes:
                    waiting += [(_parse(ref)[0], False) for ref in _inputs(self._nodes[name])]
        return list(order)

    def _follow_node(self, node, inputs):
        if node.op in _LOOPS:
            return self._follow_loop(node, inputs)
        branches = _branches(node)
        if branches:
            return self._follow_branches(branches, inputs if node.op in _CALLS else inputs[1:])
        if node.op == "IdentityN":
            return inputs, Uses()
        shaped = self._dilated.get(node.name, node)
        shapes = [_shape(shape) for shape in shaped.attr["_output_shapes"].list.shape] or [None]
        return _follow_operation(node, inputs, shapes)

    def _function(self, name):
        function = self._library[name]
        arguments = [argument.name for argument in function.signature.input_arg]
        results = [function.ret[argument.name] for argument in function.signature.output_arg]
        return _Graph(function.node_def, arguments, results, self._library)

    def _follow_branches(self, names, inputs):
        """Follows several functions of which one runs; the most expensive one counts."""
        results, uses = self._function(names[0]).follow(inputs)
        for name in names[1:]:
            others, used = self._function(name).follow(inputs)
            results = [one.merge(other) for one, other in zip(results, others, strict=True)]
            uses.merge(used)
        return results, uses

    def _follow_loop(self, node, inputs):
        body = self._function(node.attr["body"].func.name)
        # Each pass carries what is known from one loop variable to the next. If it still changes
        # after this many passes, for example in a queue, it may change without end.
        for _ in range(2 * len(inputs) + 2):
            # A value must be right for every iteration.
            results, used = body.follow(inputs)
            merged = [one.merge(other) for one, other in zip(inputs, results, strict=True)]
            if merged == inputs:
                break
            grown = [new for one, new in zip(inputs, merged, strict=True) if one != new]
            inputs = merged
        else:
            reason = f"in the loop {node.name!r} it is copied to more and more variables"
            used.unknown.update({weight: reason for value in grown for weight in value.elements})
        uses = Uses()
        num_iterations = self._num_iterations(node, body)
        if num_iterations is None:
            reason = f"it is used in a loop of unknown length, {node.name!r}"
            uses.unknown = {**dict.fromkeys(used.multiplications, reason), **used.unknown}
        else:
            uses.add(used, num_iterations)
        return results, uses

    def _num_iterations(self, node, body):
        """Counts the iterations of a loop; `None` if they depend on more than constants.

        Only the loop variables that its condition depends on are computed.
        """
        condition = self._function(node.attr["cond"].func.name)
        needed = condition.arguments_behind(condition._results)
        while needed != (more := needed | body.arguments_behind(body._select(needed))):
            needed = more
        initial = [_inputs(node)[index] for index in sorted(needed)]
        if self.arguments_behind(initial) or not self._can_run(initial):
            return None
        if not condition._can_run(condition._results) or not body._can_run(body._select(needed)):
            return None

        def goes_on(number, *variables):
            return condition._run(condition._results, needed, variables)[0]

        def iterate(number, *variables):
            return number + 1, *body._run(body._select(needed), needed, variables)

        @tf.function(autograph=False)
        def count():
            return tf.while_loop(goes_on, iterate, [0, *self._run(initial)])[0]

        return int(count.get_concrete_function()())

    def _select(self, indices):
        return [self._results[index] for index in sorted(indices)]

    def arguments_behind(self, tensors):
        """The indices of the arguments that tensors depend on, a set."""
        names = set(self._in_order(tensors))
        return {index for index, name in enumerate(self._arguments) if name in names}

    def _can_run(self, tensors):
        """Whether these tensors can be computed without calling a function."""
        nodes = [self._nodes[name] for name in self._in_order(tensors) if name in self._nodes]
        return not any(node.op in _LOOPS or _branches(node) for node in nodes)

    def _run(self, tensors, indices=(), arguments=()):
        """Computes tensors from the arguments with these indices."""
        names = [f"{self._arguments[index]}:0" for index in sorted(indices)]
        given = dict(zip(names, arguments, strict=True))
        graph_def = tf.compat.v1.GraphDef()
        for name in self._in_order(tensors):
            if name in self._nodes:
                node = graph_def.node.add()
                node.CopyFrom(self._nodes[name])
                node.ClearField("input")
                node.input.extend(_full_name(tensor) for tensor in _inputs(self._nodes[name]))
        wanted = [_full_name(tensor) for tensor in tensors]
        used = {tensor for node in graph_def.node for tensor in node.input}
        results = tf.graph_util.import_graph_def(
            graph_def,
            input_map={name: tensor for name, tensor in given.items() if name in used},
            return_elements=[name for name in wanted if name not in given],
        )
        return [given[name] if name in given else results.pop(0) for name in wanted]


def _branches(node):
    """The names of the functions of which an operation calls one."""
    if node.op in _CALLS:
        return [node.attr["f"].func.name]
    if node.op in ("If", "StatelessIf"):
        return [node.attr["then_branch"].func.name, node.attr["else_branch"].func.name]
    if node.op in ("Case", "StatelessCase"):
        return [function.name for function in node.attr["branches"].list.func]
    return []


def _inputs(node):
    """The input tensors of a node, without control dependencies."""
    return [tensor for tensor in node.input if not tensor.startswith("^")]


def _parse(tensor):
    """Node and index of a tensor: `name`, `name:1`, or `name:output:1` inside a function."""
    name, *rest = tensor.split(":")
    return name, int(rest[-1]) if rest else 0


def _full_name(tensor):
    """The name of a tensor with its index, as it is used outside of functions."""
    return "{}:{}".format(*_parse(tensor))


def _get(values, tensor):
    name, index = _parse(tensor)
    return values[name][index]


def _shape(proto) -> Any:
    if proto.unknown_rank:
        return None
    return tuple(None if dim.size < 0 else dim.size for dim in proto.dim)
