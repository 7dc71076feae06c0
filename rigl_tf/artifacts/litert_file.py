"""Reads the operations of a LiteRT file, and how their weights are stored."""

import dataclasses
import functools
from typing import Any

import numpy as np

# Operations that only convert stored weights, for the operation that uses them.
_STORAGE = ("DENSIFY", "DEQUANTIZE")
# Operations with a matrix or a filter as their second input.
_PRODUCTS = (
    "FULLY_CONNECTED", "CONV_2D", "DEPTHWISE_CONV_2D", "BATCH_MATMUL", "CONV_3D", "TRANSPOSE_CONV",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor of a file.

    Attributes:
        index: Its place in the file: the numbers of its graph and of the tensor in the graph.
        name: The name that the converter gave it: where in the model it comes from.
        shape, dtype: Shape and type of the dense tensor.
        block: If it is stored sparse, the number of weights in a block (1 for single weights);
            `None` if it is stored dense.
        is_constant: Whether its values are stored in the file.
        is_output: Whether it is an output of the network.
        values: Function that returns the values, or `None` if it is no constant.
    """

    index: tuple
    name: str
    shape: tuple
    dtype: np.dtype
    block: int | None
    is_constant: bool
    is_output: bool
    values: Any = dataclasses.field(repr=False, compare=False, default=None)

    @functools.cached_property
    def array(self):
        """The values as a dense array."""
        return self.values()


@dataclasses.dataclass(frozen=True)
class Operation:
    """An operation of a file.

    Attributes:
        name: Its kind, for example `"CONV_2D"`.
        inputs, outputs: Tuples of `Tensor`; `None` for an input that is left out.
        options: The options of the operation, such as strides.
        weights: If it multiplies by constants: their `Tensor`, as it is stored. Else `None`.
        is_expanded: Whether the weights are stored sparse, and made dense before the operation.
    """

    name: str
    inputs: tuple
    outputs: tuple
    options: object
    weights: Tensor | None = None
    is_expanded: bool = False


def read(content):
    """Reads the operations of a LiteRT file. Those that only convert weights are left out.

    A loop, such as that of a recurrent layer over its time steps, is an operation of the first
    graph; what it repeats is in graphs of its own, whose operations are read, too.

    Args:
        content: The bytes of the file.

    Returns:
        List of `Operation`s, in the order of the file: graph by graph.
    """
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content, 0))
    names = {
        number: name
        for name, number in vars(schema.BuiltinOperator).items()
        if isinstance(number, int)
    }
    dtypes = _dtypes(schema)
    return [
        operation
        for number, graph in enumerate(model.subgraphs)
        for operation in _operations(model, number, graph, names, dtypes)
    ]


def _operations(model, number, graph, names, dtypes):
    """Yields the `Operation`s of a graph, which has this number in the file."""
    ends = {int(index) for index in graph.outputs}
    tensors = [
        _tensor(model, dtypes, (number, index), tensor, index in ends)
        for index, tensor in enumerate(graph.tensors)
    ]
    sources = {}
    for each in graph.operators:
        code = model.operatorCodes[each.opcodeIndex]
        # Old files have the number in another field, which has no room for newer operations.
        name = names[max(code.builtinCode, code.deprecatedBuiltinCode)]
        inputs: Any = tuple(tensors[i] if i >= 0 else None for i in each.inputs)
        outputs = tuple(tensors[i] for i in each.outputs)
        if name in _STORAGE and (inputs[0].is_constant or inputs[0].index in sources):
            sources[outputs[0].index] = sources.get(inputs[0].index, inputs[0])
            continue
        weights = inputs[1] if name in _PRODUCTS and len(inputs) > 1 else None
        is_expanded = False
        if weights is not None:
            stored = sources.get(weights.index, weights)
            is_expanded = stored.block is not None and stored is not weights
            weights = stored if stored.is_constant else None
        yield Operation(name, inputs, outputs, each.builtinOptions, weights, is_expanded)


def replaced(content, old, new):
    """Replaces a number in all float32 constants of a file.

    Args:
        content: The bytes of the file.
        old: The number to replace.
        new: The number to write in its place.

    Returns:
        The bytes of the new file.
    """
    from ai_edge_litert import schema_py_generated as schema

    content = bytearray(content)
    model = schema.Model.GetRootAs(content, 0)
    graphs = map(model.Subgraphs, range(model.SubgraphsLength()))
    for tensor in (graph.Tensors(i) for graph in graphs for i in range(graph.TensorsLength())):
        buffer = model.Buffers(tensor.Buffer())
        if tensor.Type() == schema.TensorType.FLOAT32 and buffer.DataLength():
            values = buffer.DataAsNumpy().view("float32")  # a view into `content`
            values[values == np.float32(old)] = new
    return bytes(content)


def _dtypes(schema):
    kinds = {
        "FLOAT32": "float32",
        "FLOAT16": "float16",
        "INT8": "int8",
        "UINT8": "uint8",
        "INT16": "int16",
        "INT32": "int32",
        "INT64": "int64",
        "BOOL": "bool",
        "FLOAT64": "float64",
    }
    return {getattr(schema.TensorType, name): np.dtype(dtype) for name, dtype in kinds.items()}


def _tensor(model, dtypes, index, tensor, is_output):
    shape = tuple(map(int, tensor.shape)) if tensor.shape is not None else ()
    dtype = dtypes.get(tensor.type, np.dtype("O"))
    data = model.buffers[tensor.buffer].data
    block, values = None, None
    # A sparse tensor without active weights has no data.
    is_stored = data is not None and len(data) and tensor.type in dtypes
    if is_stored or tensor.sparsity is not None:
        data = np.zeros(0, "uint8") if data is None else data
        values = functools.partial(_values, data, dtype, shape, tensor.sparsity)
    if tensor.sparsity is not None:
        sizes = [each.denseSize for each in tensor.sparsity.dimMetadata[len(shape) :]]
        block = int(np.prod(sizes, initial=1))
    name = tensor.name.decode(errors="replace") if tensor.name else ""
    return Tensor(index, name, shape, dtype, block, values is not None, is_output, values)


def _values(data, dtype, shape, sparsity):
    flat = np.frombuffer(np.asarray(data, "uint8").tobytes(), dtype)
    if sparsity is None:
        return flat.reshape(shape)
    # The storage has levels, the outermost first. `places` gets one column for each level: the
    # position of each value on it.
    places = np.zeros((1, 0), "int64")
    for level in sparsity.dimMetadata:
        if level.format == 0:
            counts, last = level.denseSize, np.tile(np.arange(level.denseSize), len(places))
        else:
            counts, last = np.diff(level.arraySegments.values), level.arrayIndices.values
        places = np.column_stack([np.repeat(places, counts, axis=0), last])
    order = [int(level) for level in sparsity.traversalOrder]
    places = places[:, np.argsort(order)]
    sizes = [1] * len(shape)
    blocks = [] if sparsity.blockMap is None else [int(axis) for axis in sparsity.blockMap]
    index = [places[:, axis] for axis in range(len(shape))]
    for number, axis in enumerate(blocks):
        level = len(shape) + number
        sizes[axis] = int(sparsity.dimMetadata[order.index(level)].denseSize)
        index[axis] = index[axis] * sizes[axis] + places[:, level]
    dense = np.zeros(shape, dtype)
    dense[tuple(index)] = flat[: len(places)]
    return dense
