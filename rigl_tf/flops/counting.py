"""Counts multiplications, additions, weights and bytes of a model, dense and sparse."""

import dataclasses
import fractions
import math
from typing import Any

import keras
import rich.table
import tensorflow as tf

from rigl_tf import masks
from rigl_tf.checks import check_choice, check_integers, check_numbers
from rigl_tf.flops import graph
from rigl_tf.inputs import concrete
from rigl_tf.layers.eligibility import dense_reason
from rigl_tf.layers.summary import KernelSummary, as_text
from rigl_tf.optimizers import ALGORITHMS
from rigl_tf.transforms.rebuild import as_masked
from rigl_tf.walk import layers_of_weights

_FLOAT_BYTES = 4


@dataclasses.dataclass(frozen=True)
class KernelCost(KernelSummary):
    """The cost of one kernel per sample.

    Attributes:
        path: String, the path of the kernel.
        shape: Tuple of integers, its shape.
        num_active: Integer, how many of its connections are active.
        num_uses: How often each connection is used for one sample, on average: 1 in a Dense layer,
            once for each output position in a convolution, once for each timestep in an LSTM. It is
            a fraction if some connections are used more often than others, and `None` if it is
            unknown.
        unknown: String, why it is unknown, or `None`.

    Example:

    >>> kernel = KernelCost("conv/kernel", (3, 3, 16, 32), num_active=461, num_uses=64)
    >>> kernel.multiply_adds, kernel.flops, kernel.dense_flops
    (29504, 59008, 589824)
    >>> kernel.num_bytes, kernel.num_bytes_indexed, kernel.dense_bytes
    (2420, 2766, 18432)
    """

    num_uses: int | fractions.Fraction | None
    unknown: str | None = None

    @property
    def dense_multiply_adds(self) -> int | None:
        """Number of uses of all connections, active or not; `None` if it is unknown."""
        return None if self.num_uses is None else round(self.size * self.num_uses)

    @property
    def multiply_adds(self) -> int | None:
        """Number of uses of the active connections; `None` if it is unknown."""
        return None if self.num_uses is None else round(self.num_active * self.num_uses)

    @property
    def dense_flops(self) -> int | None:
        """A multiplication and an addition for each use of all connections; `None` if unknown."""
        return None if self.num_uses is None else round(2 * self.size * self.num_uses)

    @property
    def flops(self) -> int | None:
        """A multiplication and an addition for each use of active connections, or `None`."""
        return None if self.num_uses is None else round(2 * self.num_active * self.num_uses)

    @property
    def dense_bytes(self) -> int:
        """Bytes of the float32 values of all connections."""
        return _FLOAT_BYTES * self.size

    @property
    def num_bytes(self) -> int:
        """Bytes of the float32 values of the active connections and of a bit mask.

        There is no bit mask if all connections are active.
        """
        bits = self.size if self.num_active < self.size else 0
        return _FLOAT_BYTES * self.num_active + math.ceil(bits / 8)

    @property
    def num_bytes_indexed(self) -> int:
        """Bytes of the float32 values of the active connections and of their positions.

        A position is an index into the flattened kernel, in the smallest unsigned integer of 8, 16,
        32 or 64 bits that can hold all of them. There are no positions if all connections are
        active.
        """
        index_bytes = next(width for width in (1, 2, 4, 8) if self.size <= 256**width)
        indices = self.num_active if self.num_active < self.size else 0
        return _FLOAT_BYTES * self.num_active + index_bytes * indices


@dataclasses.dataclass(frozen=True)
class Cost:
    """The cost of a model per sample, see `rigl_tf.flops.count`; `print` shows it as a table.

    Attributes:
        kernels: A `KernelCost` for each kernel that is used, and for each sparse kernel.
        num_other_weights: Integer, the number of all other weights, without masks: biases,
            normalisations, embeddings, kernels that are not used.
    """

    kernels: tuple[KernelCost, ...]
    num_other_weights: int

    @property
    def unknown(self) -> dict[str, str]:
        """`{path: reason}` of the kernels whose FLOPs cannot be counted."""
        return {kernel.path: kernel.unknown for kernel in self.kernels if kernel.unknown}

    @property
    def dense_multiply_adds(self) -> int | None:
        """Multiply-adds of all connections; `None` if they cannot be counted."""
        return self._sum_known("dense_multiply_adds")

    @property
    def multiply_adds(self) -> int | None:
        """Multiply-adds of the active connections; `None` if they cannot be counted."""
        return self._sum_known("multiply_adds")

    @property
    def dense_flops(self) -> int | None:
        """FLOPs of all connections; `None` if they cannot be counted."""
        return self._sum_known("dense_flops")

    @property
    def flops(self) -> int | None:
        """FLOPs of the active connections; `None` if they cannot be counted."""
        return self._sum_known("flops")

    @property
    def flops_ratio(self) -> float | None:
        """FLOPs of the sparse model divided by those of the dense model; 1 if both are 0."""
        flops, dense_flops = self.flops, self.dense_flops
        if flops is None or dense_flops is None:
            return None
        return flops / dense_flops if dense_flops else 1.0

    @property
    def num_weights(self) -> int:
        """Number of all weights, without masks."""
        return self._sum("size") + self.num_other_weights

    @property
    def num_active(self) -> int:
        """Number of all weights, without masks and inactive connections."""
        return self._sum("num_active") + self.num_other_weights

    @property
    def dense_bytes(self) -> int:
        """Bytes of all weights as float32."""
        return _FLOAT_BYTES * self.num_weights

    @property
    def num_bytes(self) -> int:
        """Bytes of float32 weights, with each sparse kernel stored as its values and a bit mask."""
        return self._sum("num_bytes") + _FLOAT_BYTES * self.num_other_weights

    @property
    def num_bytes_indexed(self) -> int:
        """Bytes of float32 weights, with each sparse kernel stored as values and positions."""
        return self._sum("num_bytes_indexed") + _FLOAT_BYTES * self.num_other_weights

    def _sum(self, name):
        return sum(getattr(kernel, name) for kernel in self.kernels)

    def _sum_known(self, name):
        return None if self.unknown else self._sum(name)

    def __str__(self):
        table = rich.table.Table(title="Cost of one sample", title_justify="left")
        table.add_column("kernel", overflow="fold")
        for column in ("shape", "sparsity", "FLOPs", "of", "bytes", "indexed", "of"):
            table.add_column(column, justify="right", no_wrap=True)
        for kernel in self.kernels:
            shape = "x".join(map(str, kernel.shape))
            table.add_row(kernel.path, shape, f"{kernel.sparsity:.2%}", *_cells(kernel))
        if self.num_other_weights:
            others = _short(_FLOAT_BYTES * self.num_other_weights)
            table.add_row("other weights", "", "", "", "", others, others, others)
        table.add_section()
        sparsity = 1 - self.num_active / self.num_weights if self.num_weights else 0.0
        table.add_row("model", "", f"{sparsity:.2%}", *_cells(self))
        return as_text(table)


def _cells(cost):
    names = ("flops", "dense_flops", "num_bytes", "num_bytes_indexed", "dense_bytes")
    return [_short(getattr(cost, name)) for name in names]


def _short(number):
    """A count with four digits, such as `8.178 G`; `?` if it is unknown."""
    if number is None:
        return "?"
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= unit:
            return f"{number / unit:.4g} {name}"
    return str(number)


_WITH_FIXED_MASKS = ("small_dense", "snip", "grasp")


def count(model: keras.Model, inputs: Any = None) -> Cost:
    """Counts the cost of a built model for one sample.

    FLOPs are the multiplications by kernels (weights with two or more dimensions), and as many
    additions. They are found in the traced graph, so every layer is counted, also a user's own.
    As in the paper (appendix H), biases, normalisations and activations are not counted. Products
    of two activations are not counted either, such as the scores of an attention layer. An
    embedding is only looked up, so it has no FLOPs.

    Bytes are those of float32 weights. A sparse kernel is stored as its active values and either a
    bit mask (`num_bytes`, as in the paper) or the positions of the values (`num_bytes_indexed`, in
    the smallest unsigned integer of 8, 16, 32 or 64 bits that can hold them).

    Args:
        model: A built `keras.Model`, sparse or dense.
        inputs: A batch of arrays or `tf.TensorSpec`s, as the model is called with. It is needed
            only if the model does not know the shapes of its inputs: if it is subclassed, or takes
            sequences or images of any size. FLOPs are counted for one sample of this shape.

    Returns:
        A `rigl_tf.flops.Cost`; `print` it. It has the properties `multiply_adds`, `flops`,
        `num_active` (weights), `num_bytes` and `num_bytes_indexed`, and for the dense model
        `dense_multiply_adds`, `dense_flops`, `dense_bytes` and `num_weights`. Each of its `kernels`
        has the same properties (but `size` instead of `num_weights`).

    Raises:
        ValueError: If the model is not built, its input shapes are neither known nor given, or it
            uses a kernel in a way that cannot be counted.

    Example:

    >>> model = keras.Sequential([keras.Input((784,)), keras.layers.Dense(10)])
    >>> count(model).flops
    15680
    >>> model = keras.Sequential([keras.Input((None, 8)), keras.layers.SimpleRNN(4)])
    >>> count(model, tf.TensorSpec((1, 100, 8))).flops == 100 * 2 * (8 * 4 + 4 * 4)
    True
    """
    cost = estimate(model, inputs)
    if cost.unknown:
        raise ValueError(
            "FLOPs can be counted if each kernel is used in matrix products, convolutions and "
            f"loops of known length. Received: model={model.name!r} with {cost.unknown}"
        )
    return cost


def estimate(model: keras.Model, inputs: Any = None) -> Cost:
    """Counts the cost of a model as `count` does, but without errors for unknown FLOPs.

    Args:
        model: A built `keras.Model`, sparse or dense.
        inputs: As in `count`.

    Returns:
        A `rigl_tf.flops.Cost`. Its `unknown` says which kernels cannot be counted, and why; then
        its FLOPs are `None`.

    Raises:
        ValueError: If the model is not built, or its input shapes are neither known nor given.
    """
    specs = concrete(model, inputs)
    model = as_masked(model)
    weights = masks.without_masks(model, model.weights)
    kernels = [
        weight
        for weight, layers in layers_of_weights(model)
        if len(weight.shape) >= 2
        and weight.dtype != "bool"
        and dense_reason(layers[-1], weight) not in ("bias", "normalisation", "activation")
    ]
    used = graph.trace(model, kernels, specs)
    # A model with a fixed batch size is traced with this size.
    batch_size = next(iter(tf.nest.flatten(specs))).shape[0]
    costs = []
    for index, kernel in enumerate(kernels):
        multiplications = fractions.Fraction(used.multiplications[index], batch_size)
        unknown = used.unknown.get(index)
        if multiplications or unknown or masks.kernel_of(kernel) is not None:
            costs.append(_kernel_cost(kernel, multiplications, unknown))
    num_weights = sum(math.prod(weight.shape) for weight in weights)
    return Cost(tuple(costs), num_weights - sum(cost.size for cost in costs))


def training_flops(
    dense: float,
    sparse: float,
    method: str,
    update_frequency: int = 100,
    input_gradient: float = 0,
) -> float:
    """The FLOPs of training for one sample and step, on average over the steps.

    The forward pass, the gradients of the activations and the gradients of the weights cost the
    same. Methods differ in the gradients of the weights:

    | gradients of the weights | methods | FLOPs |
    | --- | --- | --- |
    | dense, as all else | `"dense"` | `3 dense` |
    | sparse in all steps | `"static"`, `"set"`, `"pruning"`, `"snip"` and others | `3 sparse` |
    | dense in all steps | `"snfs"`, `"dnw"` and others | `2 sparse + dense` |
    | dense in updates | `"rigl"` and others | the mean over the steps, see below |

    The mean is `(3 sparse update_frequency + 2 sparse + dense) / (update_frequency + 1)`.

    Reference:

    - [Evci et al., 2020](https://arxiv.org/abs/1911.11134), appendix H. DNW is not in the paper; it
      computes the dense gradient of the weights in every step, as SNFS does.

    Args:
        dense: FLOPs of inference with the dense model, `count(model).dense_flops`.
        sparse: FLOPs of inference with the sparse (or small dense) model, `count(model).flops`. For
            `"pruning"`, where the sparsity rises, their mean over the steps of training.
        method: String: a name in `rigl_tf.optimizers.ALGORITHMS`, whose class says when it needs
            dense gradients; or `"dense"`, `"small_dense"`, `"snip"`, `"grasp"`.
        update_frequency: Integer >= 1, the number of steps between updates, for methods with dense
            gradients in updates.
        input_gradient: FLOPs to take off: those of the gradient of the network's inputs, which no
            training computes. That is the cost of inference of the layers that read the inputs, of
            their active connections. Appendix H counts it, as the default of 0 does; table 2 of the
            paper takes it off.

    Returns:
        Number of FLOPs, a float or an integer.

    Raises:
        ValueError: If `method` is unknown, or a number is negative.

    Example:

    >>> training_flops(dense=1000, sparse=100, method="rigl", update_frequency=99)
    309.0
    """
    check_numbers("[0, inf]", dense=dense, sparse=sparse, input_gradient=input_gradient)
    check_integers(1, update_frequency=update_frequency)
    check_choice(["dense", *_WITH_FIXED_MASKS, *ALGORITHMS], method=method)
    if method == "dense":
        return 3 * dense - input_gradient
    if method in _WITH_FIXED_MASKS or ALGORITHMS[method].dense_gradients == "never":
        return 3 * sparse - input_gradient
    if ALGORITHMS[method].dense_gradients == "always":
        return 2 * sparse + dense - input_gradient
    mean = (3 * sparse * update_frequency + 2 * sparse + dense) / (update_frequency + 1)
    return mean - input_gradient


def _kernel_cost(kernel, multiplications, unknown):
    sparse = masks.kernel_of(kernel)
    size = math.prod(kernel.shape)
    num_active = size if sparse is None else sparse.num_active
    num_uses = multiplications / size
    if unknown:
        num_uses = None
    elif num_uses.denominator == 1:
        num_uses = int(num_uses)
    return KernelCost(kernel.path, tuple(kernel.shape), num_active, num_uses, unknown)
