"""What a model costs: multiplications, additions, weights and bytes, dense and sparse."""

import dataclasses
import fractions
import math
from numbers import Integral, Real

import tensorflow as tf

from rigl_tf import masks, uses
from rigl_tf.eligibility import dense_reason
from rigl_tf.inputs import concrete
from rigl_tf.layers import layers_of_weights
from rigl_tf.summary import KernelSummary

_SPARSE_THROUGHOUT = ("small_dense", "static", "snip", "grasp", "set", "pruning")


@dataclasses.dataclass(frozen=True)
class KernelCost(KernelSummary):
    """What one kernel costs per sample.

    Attributes:
        path, shape, num_active: As in `rigl_tf.summary.KernelSummary`.
        num_uses: How often each connection is used for one sample, on average: 1 in a Dense layer,
            once for each output position in a convolution, once for each timestep in an LSTM. A
            fraction if some are used more often than others. `None` if it is not known.
        unknown: Why it is not known, else `None`.
    """

    num_uses: int | fractions.Fraction | None
    unknown: str | None = None

    @property
    def dense_flops(self):
        """A multiplication and an addition for each use of each connection."""
        return None if self.unknown else round(2 * self.size * self.num_uses)

    @property
    def flops(self):
        return None if self.unknown else round(2 * self.num_active * self.num_uses)

    @property
    def num_bytes(self):
        """Float32 values of the active connections, and one bit for each if some are inactive."""
        bits = self.size if self.num_active < self.size else 0
        return 4 * self.num_active + math.ceil(bits / 8)


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a model costs per sample: see `count`."""

    kernels: tuple
    num_other_weights: int

    @property
    def unknown(self):
        """`{path: reason}` of the kernels whose FLOPs cannot be counted."""
        return {kernel.path: kernel.unknown for kernel in self.kernels if kernel.unknown}

    @property
    def dense_flops(self):
        """FLOPs of all connections; `None` if they cannot be counted."""
        return self._sum(lambda kernel: kernel.dense_flops)

    @property
    def flops(self):
        """FLOPs of the active connections; `None` if they cannot be counted."""
        return self._sum(lambda kernel: kernel.flops)

    def _sum(self, of_kernel):
        return None if self.unknown else sum(map(of_kernel, self.kernels))

    @property
    def flops_ratio(self):
        """FLOPs of the sparse model as a share of the dense model's; 1 if neither has any."""
        if self.unknown:
            return None
        return self.flops / self.dense_flops if self.dense_flops else 1.0

    @property
    def dense_bytes(self):
        return 4 * (sum(kernel.size for kernel in self.kernels) + self.num_other_weights)

    @property
    def num_bytes(self):
        return sum(kernel.num_bytes for kernel in self.kernels) + 4 * self.num_other_weights


def count(model, inputs=None):
    """Counts what a built model costs for one sample.

    FLOPs are the multiplications by the model's kernels, its weights of two and more dimensions,
    and as many additions: those of every layer, a user's own too, since they are found in the
    traced graph (`rigl_tf.uses`). Biases, normalisations and activations are left out, as in the
    paper (appendix H). So are products of activations with each other, such as the scores of an
    attention layer; and to look up an embedding multiplies nothing.

    Bytes are those of float32 weights, a sparse kernel stored as its active values and a bit mask.

    Args:
        model: A built `keras.Model`, sparse or dense.
        inputs: A batch of arrays or `tf.TensorSpec`s, as the model is called with. It is needed
            only where the model does not know the shapes of its inputs: if it is subclassed, or
            takes sequences or images of any size. FLOPs are those of one sample of this shape.

    Returns:
        A `Cost`: `kernels`, `flops`, `dense_flops`, `flops_ratio`, `num_bytes`, `dense_bytes`.

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


def estimate(model, inputs=None):
    """As `count`, but what cannot be counted is `unknown` in the result."""
    specs = concrete(model, inputs)
    own_masks = {id(masks.mask_of(kernel)) for kernel in masks.sparse_kernels(model).values()}
    weights = [weight for weight in model.weights if id(weight) not in own_masks]
    kernels = [
        weight
        for weight, layers in layers_of_weights(model)
        if len(weight.shape) >= 2
        and weight.dtype != "bool"
        and dense_reason(layers[-1], weight) not in ("bias", "normalisation")
    ]
    used = uses.trace(model, kernels, specs)
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


def training_flops(dense, sparse, method, update_frequency=100):
    """FLOPs of training, for one sample and step, on average over the steps.

    A backward pass is as much again for the gradients of the activations, and as much again for
    those of the weights. Methods differ in which of these are dense:

    | method | FLOPs |
    | --- | --- |
    | `"dense"` | `3 dense` |
    | `"small_dense"`, `"static"`, `"snip"`, `"grasp"`, `"set"`, `"pruning"` | `3 sparse` |
    | `"snfs"`, `"dnw"` | `2 sparse + dense` |
    | `"rigl"` | `(3 sparse update_frequency + 2 sparse + dense) / (update_frequency + 1)` |

    Reference:

    - [Evci et al., 2020](https://arxiv.org/abs/1911.11134), appendix H; DNW, which is not in it,
      computes the dense gradient of the weights in every step, as SNFS does

    Args:
        dense: FLOPs of the dense model's inference, as `count(model).dense_flops`.
        sparse: FLOPs of the sparse (or small dense) model's inference, as `count(model).flops`. In
            `"pruning"`, whose sparsity rises, their mean over the steps of training.
        method: String, see the table.
        update_frequency: Integer, the number of steps from one update of `"rigl"` to the next.

    Raises:
        ValueError: If an argument is none of these, or a number is negative.

    Example:

    >>> training_flops(dense=1000, sparse=100, method="rigl", update_frequency=99)
    309.0
    """
    for name, value in {"dense": dense, "sparse": sparse}.items():
        if not isinstance(value, Real) or not value >= 0:
            raise ValueError(f"`{name}` must be a number of FLOPs. Received: {name}={value!r}")
    if not isinstance(update_frequency, Integral) or update_frequency < 1:
        raise ValueError(
            "`update_frequency` must be an integer >= 1. "
            f"Received: update_frequency={update_frequency!r}"
        )
    if method == "dense":
        return 3 * dense
    if method in _SPARSE_THROUGHOUT:
        return 3 * sparse
    if method in ("snfs", "dnw"):
        return 2 * sparse + dense
    if method == "rigl":
        return (3 * sparse * update_frequency + 2 * sparse + dense) / (update_frequency + 1)
    known = ["dense", *_SPARSE_THROUGHOUT, "snfs", "dnw", "rigl"]
    raise ValueError(f"`method` must be one of {known}. Received: method={method!r}")


def _kernel_cost(kernel, multiplications, unknown):
    mask = masks.mask_of(kernel)
    size = math.prod(kernel.shape)
    num_active = size if mask is None else int(tf.math.count_nonzero(mask.value))
    num_uses = multiplications / size
    if unknown:
        num_uses = None
    elif num_uses.denominator == 1:
        num_uses = int(num_uses)
    return KernelCost(kernel.path, tuple(kernel.shape), num_active, num_uses, unknown)
