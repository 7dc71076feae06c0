"""What a model costs: multiplications, additions, weights and bytes, dense and sparse."""

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
from rigl_tf.transforms.execution import as_masked
from rigl_tf.walk import layers_of_weights

_FLOAT_BYTES = 4


@dataclasses.dataclass(frozen=True)
class KernelCost(KernelSummary):
    """What one kernel costs per sample.

    Attributes:
        path, shape, num_active: As in `KernelSummary`.
        num_uses: How often each connection is used for one sample, on average: 1 in a Dense layer,
            once for each output position in a convolution, once for each timestep in an LSTM. A
            fraction if some are used more often than others. `None` if it is not known.
        unknown: Why it is not known, else `None`.

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
        """One for each use of each connection, active or not."""
        return None if self.num_uses is None else round(self.size * self.num_uses)

    @property
    def multiply_adds(self) -> int | None:
        return None if self.num_uses is None else round(self.num_active * self.num_uses)

    @property
    def dense_flops(self) -> int | None:
        """A multiplication and an addition for each use of each connection."""
        return None if self.num_uses is None else round(2 * self.size * self.num_uses)

    @property
    def flops(self) -> int | None:
        return None if self.num_uses is None else round(2 * self.num_active * self.num_uses)

    @property
    def dense_bytes(self) -> int:
        """Float32 values of all connections."""
        return _FLOAT_BYTES * self.size

    @property
    def num_bytes(self) -> int:
        """Float32 values of the active connections, and one bit for each if some are inactive."""
        bits = self.size if self.num_active < self.size else 0
        return _FLOAT_BYTES * self.num_active + math.ceil(bits / 8)

    @property
    def num_bytes_indexed(self) -> int:
        """Float32 values of the active connections, and the position of each if some are inactive.

        A position counts through the flat kernel, in the smallest unsigned integer of 8, 16, 32 or
        64 bits that holds the last one.
        """
        index_bytes = next(width for width in (1, 2, 4, 8) if self.size <= 256**width)
        indices = self.num_active if self.num_active < self.size else 0
        return _FLOAT_BYTES * self.num_active + index_bytes * indices


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a model costs per sample, see `rigl_tf.flops.count`; `print` shows it as a table.

    Attributes:
        kernels: A `KernelCost` for each kernel that is used, and for each sparse one.
        num_other_weights: Number of all other weights, masks excluded: biases, normalisations,
            embeddings, kernels that are not used.
    """

    kernels: tuple
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
        """FLOPs of the sparse model as a share of the dense model's; 1 if neither has any."""
        flops, dense_flops = self.flops, self.dense_flops
        if flops is None or dense_flops is None:
            return None
        return flops / dense_flops if dense_flops else 1.0

    @property
    def num_weights(self) -> int:
        """Number of all weights, masks excluded."""
        return self._sum("size") + self.num_other_weights

    @property
    def num_active(self) -> int:
        """Number of weights that are not masked out."""
        return self._sum("num_active") + self.num_other_weights

    @property
    def dense_bytes(self) -> int:
        """Bytes of all weights as float32."""
        return _FLOAT_BYTES * self.num_weights

    @property
    def num_bytes(self) -> int:
        """Bytes of float32 weights, each sparse kernel stored as its values and a bit mask."""
        return self._sum("num_bytes") + _FLOAT_BYTES * self.num_other_weights

    @property
    def num_bytes_indexed(self) -> int:
        """Bytes of float32 weights, each sparse kernel stored as its values and their positions."""
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
    """A count in four digits, as `8.178 G`; `?` if it is not known."""
    if number is None:
        return "?"
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= unit:
            return f"{number / unit:.4g} {name}"
    return str(number)


_WITH_FIXED_MASKS = ("small_dense", "snip", "grasp")


def count(model: keras.Model, inputs: Any = None) -> Cost:
    """Counts what a built model costs for one sample.

    FLOPs are the multiplications by the model's kernels, its weights of two and more dimensions,
    and as many additions: those of every layer, a user's own too, since they are found in the
    traced graph (`rigl_tf.flops.graph`). Biases, normalisations and activations are left out, as in
    the paper (appendix H). So are products of activations with each other, such as the scores of an
    attention layer; and to look up an embedding multiplies nothing.

    Bytes are those of float32 weights, a sparse kernel stored as its active values and either a bit
    mask (`num_bytes`, the sizes of the paper) or the position of each (`num_bytes_indexed`: in the
    smallest unsigned integer of 8, 16, 32 or 64 bits that holds the kernel's last position).

    Args:
        model: A built `keras.Model`, sparse or dense.
        inputs: A batch of arrays or `tf.TensorSpec`s, as the model is called with. It is needed
            only where the model does not know the shapes of its inputs: if it is subclassed, or
            takes sequences or images of any size. FLOPs are those of one sample of this shape.

    Returns:
        A `rigl_tf.flops.Cost`; `print` it. Its `kernels` and the whole have `multiply_adds`,
        `flops`, `num_active` (weights), `num_bytes`, `num_bytes_indexed`; and of the dense model
        `dense_multiply_adds`, `dense_flops`, `dense_bytes`, and `size` (`num_weights` of the
        whole).

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
            "FLOPs can be counted if each kernel meets the inputs in matrix products, convolutions "
            f"and loops of known length. Received: model={model.name!r} with {cost.unknown}"
        )
    return cost


def estimate(model: keras.Model, inputs: Any = None) -> Cost:
    """As `count`, but what cannot be counted is `unknown` in the result."""
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
    # A model that takes batches of one size only is traced with that.
    batch_size = next(iter(tf.nest.flatten(specs))).shape[0]
    costs = []
    for index, kernel in enumerate(kernels):
        multiplications = fractions.Fraction(used.multiplications[index], batch_size)
        unknown = used.unknown.get(index)
        if multiplications or unknown or masks.mask_of(kernel) is not None:
            costs.append(_kernel_cost(kernel, multiplications, unknown))
    num_weights = sum(math.prod(weight.shape) for weight in weights)
    return Cost(tuple(costs), num_weights - sum(cost.size for cost in costs))


def training_flops(dense: float, sparse: float, method: str, update_frequency: int = 100) -> float:
    """FLOPs of training, for one sample and step, on average over the steps.

    A backward pass is as much again for the gradients of the activations, and as much again for
    those of the weights. Methods differ in which of these are dense:

    | method | FLOPs |
    | --- | --- |
    | `"dense"` | `3 dense` |
    | `"small_dense"`, `"static"`, `"snip"`, `"grasp"`, `"set"`, `"pruning"` | `3 sparse` |
    | `"snfs"`, `"dnw"` | `2 sparse + dense` |
    | `"rigl"` | `(3 sparse update_frequency + 2 sparse + dense) / (update_frequency + 1)` |
    | `"rigl_inverted"` | as `"rigl"` |

    Reference:

    - [Evci et al., 2020](https://arxiv.org/abs/1911.11134), appendix H; DNW, which is not in it,
      computes the dense gradient of the weights in every step, as SNFS does

    Args:
        dense: FLOPs of the dense model's inference, as `count(model).dense_flops`.
        sparse: FLOPs of the sparse (or small dense) model's inference, as `count(model).flops`. In
            `"pruning"`, whose sparsity rises, their mean over the steps of training.
        method: String, see the table.
        update_frequency: Integer, the number of steps from one update of `"rigl"` or
            `"rigl_inverted"` to the next.

    Raises:
        ValueError: If an argument is none of these, or a number is negative.

    Example:

    >>> training_flops(dense=1000, sparse=100, method="rigl", update_frequency=99)
    309.0
    """
    check_numbers("[0, inf]", dense=dense, sparse=sparse)
    check_integers(1, update_frequency=update_frequency)
    check_choice(["dense", *_WITH_FIXED_MASKS, *ALGORITHMS], method=method)
    if method == "dense":
        return 3 * dense
    if method in _WITH_FIXED_MASKS or ALGORITHMS[method].dense_gradients == "never":
        return 3 * sparse
    if ALGORITHMS[method].dense_gradients == "always":
        return 2 * sparse + dense
    return (3 * sparse * update_frequency + 2 * sparse + dense) / (update_frequency + 1)


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
