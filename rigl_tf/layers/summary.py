"""Lists what is sparse in a model, what is dense, and why."""

import dataclasses
import io
import math

import keras
import rich.console
import rich.table

from rigl_tf import masks
from rigl_tf.checks import check_keras_3
from rigl_tf.layers.eligibility import reason_within
from rigl_tf.layers.storage import reason_for_masked
from rigl_tf.walk import layers_by_weight, layers_of_weights

_OF_MODEL = "of the model itself"
_ELSEWHERE = "its mask is in another model"


@dataclasses.dataclass(frozen=True)
class KernelSummary:
    """One kernel of a model.

    Attributes:
        path: String, the path of the kernel.
        shape: Tuple of integers, its shape.
        num_active: Integer, how many of its connections are active.
    """

    path: str
    shape: tuple[int, ...]
    num_active: int

    @property
    def size(self) -> int:
        """Number of connections, active or not."""
        return math.prod(self.shape)

    @property
    def sparsity(self) -> float:
        """Share of zeros, in `[0, 1)`."""
        return 1 - self.num_active / self.size


@dataclasses.dataclass(frozen=True)
class StoredKernel(KernelSummary):
    """One sparse kernel of a model, and how it is stored.

    Attributes:
        path: String, the path of the kernel.
        shape: Tuple of integers, its shape.
        num_active: Integer, how many of its connections are active.
        execution: How it is stored and multiplied: `"masked"` or `"csr"`.
        reason: Why it stayed masked although CSR was asked for, or an empty string.
        structure: Which weights are active together, such as `"Block((4, 1))"`; an empty string if
            each weight stands alone.
    """

    execution: str = "masked"
    reason: str = ""
    structure: str = ""


@dataclasses.dataclass(frozen=True)
class DenseWeights:
    """Weights that are not sparse, and why.

    Attributes:
        path: String, the path of the weights.
        shape: Tuple of integers, their shape.
        reason: String, why they stay dense.
    """

    path: str
    shape: tuple[int, ...]
    reason: str

    @property
    def size(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)


@dataclasses.dataclass(frozen=True)
class Coverage:
    """Which part of a model's weights the sparsity applies to; `str` says it in a sentence.

    Attributes:
        num_weights: Integer, the number of all weights of the model, without masks.
        num_in_kernels: Integer, how many of them are in sparse kernels, active or not.
        num_dense: Integer, how many are in other weights with two or more dimensions that stay
            dense by default, not by the user's choice.
        num_frozen: Integer, how many of these are dense because they are frozen.
        num_embeddings: Integer, how many of these are embeddings.
        num_copied: Integer, how many of the frozen ones have the path and shape of a sparse kernel.
            They belong to a clone of the sparse layers, for example in a target network.
        num_not_wrapped: Integer, how many weights are in other kernels, which could be sparse: by
            the user's choice, or because they were frozen, or not there yet, when the model was
            made sparse.
        num_of_model: Integer, how many of the dense ones a subclassed model has added itself.
    """

    num_weights: int
    num_in_kernels: int
    num_dense: int
    num_frozen: int
    num_embeddings: int
    num_copied: int = 0
    num_not_wrapped: int = 0
    num_of_model: int = 0

    @property
    def is_surprising(self) -> bool:
        """Whether weights are frozen, or more are dense by default than in sparse kernels."""
        return self.num_frozen > 0 or self.num_in_kernels < self.num_dense

    def __str__(self):
        share = self.num_in_kernels / max(1, self.num_weights)
        parts = [
            f"{self.num_in_kernels:,} of {self.num_weights:,} weights ({share:.1%}) are in sparse "
            "kernels, and the sparsity is a share of these"
        ]
        if self.num_frozen:
            parts.append(f"{self.num_frozen:,} are frozen and stay dense")
        if self.num_copied:
            parts.append(
                f"{self.num_copied:,} of these are in a clone of sparse layers, which has the same "
                "masks if it is frozen after `sparsify`"
            )
        if self.num_embeddings:
            parts.append(
                f"{self.num_embeddings:,} are embeddings and stay dense, unless `sparse_layers` "
                "names their layers"
            )
        if self.num_of_model:
            parts.append(
                f"{self.num_of_model:,} are weights that the model has added itself, and stay "
                "dense: put them into a layer"
            )
        num_others = self.num_dense - self.num_frozen - self.num_embeddings - self.num_of_model
        if num_others:
            parts.append(f"{num_others:,} are in other weights that are no kernels")
        if self.num_not_wrapped:
            parts.append(
                f"{self.num_not_wrapped:,} are in kernels that are not wrapped: the choice of "
                "layers left them out, or they were frozen, or their layers were added later"
            )
        return "; ".join(parts) + "."


@dataclasses.dataclass(frozen=True)
class SparsitySummary:
    """The result of `sparsity_summary`; `print` shows it as a table.

    Attributes:
        kernels: A `StoredKernel` for each sparse kernel.
        dense: A `DenseWeights` for each weight with two or more dimensions that is not sparse.
        num_weights: Integer, the number of all weights of the model, without masks.
        outside: `{path: number}` of kernels with weights that are not zero although their masks are
            `False`, and how many. Other code has written them, for example a callback that
            averages weights. `rigl_tf.set_masks(model, rigl_tf.get_masks(model))` sets them to
            zero.
    """

    kernels: tuple[StoredKernel, ...]
    dense: tuple[DenseWeights, ...]
    num_weights: int
    outside: dict[str, int]

    @property
    def sparsity(self) -> float:
        """Share of zeros in all sparse kernels together."""
        size = sum(kernel.size for kernel in self.kernels)
        return 1 - sum(kernel.num_active for kernel in self.kernels) / size if size else 0.0

    @property
    def num_active(self) -> int:
        """Number of weights of the model, without the inactive ones."""
        return self.num_weights - sum(kernel.size - kernel.num_active for kernel in self.kernels)

    @property
    def coverage(self) -> Coverage:
        """The `Coverage`: which part of the weights `sparsity` applies to."""
        return _coverage(self.kernels, self.dense, self.num_weights)

    def __str__(self):
        table = rich.table.Table(title="Sparsity", title_justify="left")
        table.add_column("kernel", overflow="fold")
        for column in ("shape", "active", "of", "sparsity"):
            table.add_column(column, justify="right", no_wrap=True)
        tells_execution = any(each.execution == "csr" or each.reason for each in self.kernels)
        for kernel in self.kernels:
            execution = f" ({kernel.execution}" + f": {kernel.reason})" * bool(kernel.reason)
            table.add_row(
                kernel.path
                + f" {kernel.structure}" * bool(kernel.structure)
                + (execution.rstrip(")") + ")" if tells_execution else ""),
                "x".join(map(str, kernel.shape)),
                f"{kernel.num_active:,}",
                f"{kernel.size:,}",
                f"{kernel.sparsity:.2%}",
            )
        for weights in self.dense:
            shape = "x".join(map(str, weights.shape))
            size = f"{weights.size:,}"
            table.add_row(f"{weights.path} ({weights.reason})", shape, size, size, "dense")
        others = self.num_weights - sum(kernel.size for kernel in self.kernels)
        others -= sum(weights.size for weights in self.dense)
        if others:
            table.add_row("biases, normalisation", "", f"{others:,}", f"{others:,}", "dense")
        table.add_section()
        total = 1 - self.num_active / self.num_weights if self.num_weights else 0.0
        table.add_row(
            "all weights", "", f"{self.num_active:,}", f"{self.num_weights:,}", f"{total:.2%}"
        )
        lines = [as_text(table), str(self.coverage)]
        if self.outside:
            kernels = ", ".join(f"{number:,} in {path}" for path, number in self.outside.items())
            lines.append(f"Not zero outside of the masks: {kernels}.")
        return "\n".join(lines)


def as_text(table):
    """A `rich` table as text, at most 100 characters wide."""
    text = io.StringIO()
    rich.console.Console(file=text, width=100, markup=False, emoji=False).print(table)
    return text.getvalue().rstrip()


def sparsity_summary(model: keras.layers.Layer) -> SparsitySummary:
    """Lists the sparse kernels of a model, and the dense weights with the reason.

    Args:
        model: A built `keras.Model` or layer, sparse or not.

    Returns:
        A `SparsitySummary`; `print` it.

    Raises:
        ValueError: If the model has no weights yet.

    Example:

    >>> dense = keras.Sequential([keras.Input((784,)), keras.layers.Dense(10, name="fc")])
    >>> summary = sparsity_summary(sparsify(dense, 0.9))
    >>> summary.kernels[0].num_active, round(summary.sparsity, 3)
    (784, 0.9)
    """
    check_keras_3(model=model)
    if not model.weights:
        raise ValueError(
            "`sparsity_summary` needs a model with weights: build it by calling it on a batch. "
            f"Received: model={model.name!r}, without weights"
        )
    around = layers_by_weight(model)
    kernels = tuple(
        StoredKernel(
            path,
            kernel.shape,
            kernel.num_active,
            kernel.execution,
            reason_for_masked(around[id(kernel.variable)], kernel),
            str(kernel.units.structure or ""),
        )
        for path, kernel in masks.kernels_of(model).items()
    )
    return SparsitySummary(kernels, *_others(model), num_outside(model))


def num_outside(model: keras.layers.Layer) -> dict[str, int]:
    """`{path: number}` of kernels with weights that are not zero outside of their masks."""
    numbers = {path: kernel.num_outside() for path, kernel in masks.kernels_of(model).items()}
    return {path: number for path, number in numbers.items() if number}


def coverage(model: keras.layers.Layer) -> Coverage:
    """The `Coverage` of a built model. No values of weights are read for it."""
    kernels = masks.kernels_of(model).items()
    kernels = [DenseWeights(path, kernel.shape, "sparse") for path, kernel in kernels]
    return _coverage(kernels, *_others(model))


def _coverage(kernels, dense, num_weights):
    by_rule = [weights for weights in dense if weights.reason != "not wrapped"]
    sparse = {(kernel.path, kernel.shape) for kernel in kernels}

    def number(*reasons):
        return sum(weights.size for weights in by_rule if weights.reason in reasons)

    return Coverage(
        num_weights,
        sum(kernel.size for kernel in kernels),
        sum(weights.size for weights in by_rule),
        number("frozen", "not trainable"),
        number("embedding"),
        sum(
            weights.size
            for weights in by_rule
            if weights.reason == "frozen" and (weights.path, weights.shape) in sparse
        ),
        sum(weights.size for weights in dense if weights.reason == "not wrapped"),
        number(_OF_MODEL),
    )


def _reason(layers, weight):
    """Why a weight is dense. Weights of a model, not of a layer, cannot be wrapped."""
    if masks.kernel_of(weight) is not None:
        return _ELSEWHERE
    is_of_model = isinstance(layers[-1], keras.Model)
    return reason_within(layers, weight) or (_OF_MODEL if is_of_model else "not wrapped")


def _others(model):
    """The `DenseWeights` with two or more dimensions, and the number of all weights but masks."""
    own_kernels = {id(each.variable): each.size for each in masks.kernels_of(model).values()}
    own_masks = masks.own_masks(model)
    weights = [
        (weight, layers)
        for weight, layers in layers_of_weights(model)
        if id(weight) not in own_masks
    ]
    dense = tuple(
        DenseWeights(weight.path, tuple(weight.shape), _reason(layers, weight))
        for weight, layers in weights
        if len(weight.shape) >= 2 and id(weight) not in own_kernels
    )
    sizes = [own_kernels.get(id(each), math.prod(each.shape)) for each, _ in weights]
    return dense, sum(sizes)
