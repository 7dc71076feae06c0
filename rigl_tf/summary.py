"""What is sparse in a model, what is not, and why."""

import dataclasses
import io
import math

import rich.console
import rich.table

from rigl_tf import masks
from rigl_tf.eligibility import dense_reason
from rigl_tf.layers import layers_of_weights


@dataclasses.dataclass(frozen=True)
class KernelSummary:
    """One kernel: its path, shape, and how many of its connections are active."""

    path: str
    shape: tuple
    num_active: int

    @property
    def size(self):
        return math.prod(self.shape)

    @property
    def sparsity(self):
        """Share of zeros, in `[0, 1)`."""
        return 1 - self.num_active / self.size


@dataclasses.dataclass(frozen=True)
class DenseWeights:
    """Weights that are not sparse, and why."""

    path: str
    shape: tuple
    reason: str


@dataclasses.dataclass(frozen=True)
class SparsitySummary:
    """The result of `sparsity_summary`; `print` shows it as a table.

    Attributes:
        kernels: A `KernelSummary` for each sparse kernel.
        dense: A `DenseWeights` for each weight of two and more dimensions that is not sparse.
        num_weights: Number of all weights of the model, masks excluded.
    """

    kernels: tuple
    dense: tuple
    num_weights: int

    @property
    def sparsity(self):
        """Share of zeros in all sparse kernels together."""
        size = sum(kernel.size for kernel in self.kernels)
        return 1 - sum(kernel.num_active for kernel in self.kernels) / size if size else 0.0

    @property
    def num_active(self):
        """Number of weights of the model that are not masked out."""
        return self.num_weights - sum(kernel.size - kernel.num_active for kernel in self.kernels)

    def __str__(self):
        table = rich.table.Table(title="Sparsity", title_justify="left")
        table.add_column("kernel", overflow="fold")
        for column in ("shape", "active", "of", "sparsity"):
            table.add_column(column, justify="right", no_wrap=True)
        for kernel in self.kernels:
            table.add_row(
                kernel.path,
                "x".join(map(str, kernel.shape)),
                f"{kernel.num_active:,}",
                f"{kernel.size:,}",
                f"{kernel.sparsity:.2%}",
            )
        for weights in self.dense:
            shape = "x".join(map(str, weights.shape))
            size = f"{math.prod(weights.shape):,}"
            table.add_row(f"{weights.path} ({weights.reason})", shape, size, size, "dense")
        others = self.num_weights - sum(kernel.size for kernel in self.kernels)
        others -= sum(math.prod(weights.shape) for weights in self.dense)
        if others:
            table.add_row("biases, normalisation", "", f"{others:,}", f"{others:,}", "dense")
        table.add_section()
        total = 1 - self.num_active / self.num_weights if self.num_weights else 0.0
        table.add_row(
            "all weights", "", f"{self.num_active:,}", f"{self.num_weights:,}", f"{total:.2%}"
        )
        return as_text(table)


def as_text(table):
    """A `rich` table as text, at most 100 characters wide."""
    console = rich.console.Console(file=io.StringIO(), width=100, markup=False, emoji=False)
    console.print(table)
    return console.file.getvalue().rstrip()


def sparsity_summary(model):
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
    if not model.weights:
        raise ValueError(
            "`sparsity_summary` needs a model with weights: build it by calling it on a batch. "
            f"Received: model={model.name!r}, without weights"
        )
    sparse = masks.sparse_kernels(model)
    kernels = tuple(
        KernelSummary(path, mask.shape, int(mask.sum()))
        for path, mask in masks.get_masks(model).items()
    )
    own_masks = {id(masks.mask_of(kernel)) for kernel in sparse.values()}
    own_kernels = {id(kernel) for kernel in sparse.values()}
    weights = [weight for weight in model.weights if id(weight) not in own_masks]
    reasons = _reasons(model)
    dense = tuple(
        DenseWeights(weight.path, tuple(weight.shape), reasons.get(id(weight), "not wrapped"))
        for weight in weights
        if len(weight.shape) >= 2 and id(weight) not in own_kernels
    )
    return SparsitySummary(kernels, dense, sum(math.prod(weight.shape) for weight in weights))


def _reasons(model):
    """`{id of a weight: why it is dense}`, by the innermost layer that it belongs to."""
    return {
        id(weight): dense_reason(layers[-1], weight) or "not wrapped"
        for weight, layers in layers_of_weights(model)
    }
