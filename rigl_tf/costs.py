"""The numbers of `rigl_tf.flops.count` and of `rigl_tf.export`, and their tables."""

import dataclasses
import fractions
import math

import rich.table

from rigl_tf.summary import KernelSummary, as_text

_FLOAT_BYTES = 4


@dataclasses.dataclass(frozen=True)
class KernelCost(KernelSummary):
    """What one kernel costs per sample.

    Attributes:
        path, shape, num_active: As in `rigl_tf.summary.KernelSummary`.
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
    def dense_multiply_adds(self):
        """One for each use of each connection, active or not."""
        return None if self.unknown else round(self.size * self.num_uses)

    @property
    def multiply_adds(self):
        return None if self.unknown else round(self.num_active * self.num_uses)

    @property
    def dense_flops(self):
        """A multiplication and an addition for each use of each connection."""
        return None if self.unknown else round(2 * self.size * self.num_uses)

    @property
    def flops(self):
        return None if self.unknown else round(2 * self.num_active * self.num_uses)

    @property
    def dense_bytes(self):
        """Float32 values of all connections."""
        return _FLOAT_BYTES * self.size

    @property
    def num_bytes(self):
        """Float32 values of the active connections, and one bit for each if some are inactive."""
        bits = self.size if self.num_active < self.size else 0
        return _FLOAT_BYTES * self.num_active + math.ceil(bits / 8)

    @property
    def num_bytes_indexed(self):
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
    def unknown(self):
        """`{path: reason}` of the kernels whose FLOPs cannot be counted."""
        return {kernel.path: kernel.unknown for kernel in self.kernels if kernel.unknown}

    @property
    def dense_multiply_adds(self):
        """Multiply-adds of all connections; `None` if they cannot be counted."""
        return self._sum_known("dense_multiply_adds")

    @property
    def multiply_adds(self):
        """Multiply-adds of the active connections; `None` if they cannot be counted."""
        return self._sum_known("multiply_adds")

    @property
    def dense_flops(self):
        """FLOPs of all connections; `None` if they cannot be counted."""
        return self._sum_known("dense_flops")

    @property
    def flops(self):
        """FLOPs of the active connections; `None` if they cannot be counted."""
        return self._sum_known("flops")

    @property
    def flops_ratio(self):
        """FLOPs of the sparse model as a share of the dense model's; 1 if neither has any."""
        if self.unknown:
            return None
        return self.flops / self.dense_flops if self.dense_flops else 1.0

    @property
    def num_weights(self):
        """Number of all weights, masks excluded."""
        return self._sum("size") + self.num_other_weights

    @property
    def num_active(self):
        """Number of weights that are not masked out."""
        return self._sum("num_active") + self.num_other_weights

    @property
    def dense_bytes(self):
        """Bytes of all weights as float32."""
        return _FLOAT_BYTES * self.num_weights

    @property
    def num_bytes(self):
        """Bytes of float32 weights, each sparse kernel stored as its values and a bit mask."""
        return self._sum("num_bytes") + _FLOAT_BYTES * self.num_other_weights

    @property
    def num_bytes_indexed(self):
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


@dataclasses.dataclass(frozen=True)
class ExportReport:
    """What `rigl_tf.export` wrote; `print` shows it as a table.

    Attributes:
        path: Where the artifact is.
        format: `"saved_model"` or `"keras"`.
        num_weights: Number of weights, zeros included.
        num_active: Number of weights that are not masked out.
        flops, dense_flops: FLOPs per sample, of the active connections and of all; `None` if they
            cannot be counted.
        file_bytes: Size of the artifact.
        compressed_bytes: Its size compressed (zlib), as when it is downloaded: zeros cost nothing.
        sparse_bytes: Size of the weights as active float32 values and a bit mask.
        max_difference: Largest absolute difference between the outputs of the loaded artifact and
            those of the model, on `inputs` or on random ones. Equal infinities do not differ.
        not_counted: Dictionary `{path of a kernel: why its FLOPs cannot be counted}`.
        outside: Dictionary `{path of a kernel: number of weights that are not zero outside of its
            mask}`, of the kernels with such weights.
    """

    path: str
    format: str
    num_weights: int
    num_active: int
    flops: int | None
    dense_flops: int | None
    file_bytes: int
    compressed_bytes: int
    sparse_bytes: int
    max_difference: float
    not_counted: dict = dataclasses.field(default_factory=dict)
    outside: dict = dataclasses.field(default_factory=dict)

    @property
    def sparsity(self):
        """Share of zeros among all weights."""
        return 1 - self.num_active / self.num_weights if self.num_weights else 0.0

    @property
    def flops_ratio(self):
        """FLOPs of the active connections as a share of all; 1 if there are none."""
        if self.not_counted:
            return None
        return self.flops / self.dense_flops if self.dense_flops else 1.0

    def to_dict(self):
        """All of it as a dictionary for JSON."""
        derived = {"sparsity": self.sparsity, "flops_ratio": self.flops_ratio}
        return {**dataclasses.asdict(self), **derived}

    def __str__(self):
        table = rich.table.Table(title=f"Exported to {self.path}", title_justify="left")
        table.add_column("")
        table.add_column("", justify="right")
        table.add_row("format", self.format)
        table.add_row("active weights", f"{self.num_active:,} of {self.num_weights:,}")
        table.add_row("sparsity of all weights", f"{self.sparsity:.2%}")
        if self.not_counted:
            table.add_row("FLOPs per sample", "not counted, see `not_counted`")
        else:
            table.add_row("FLOPs per sample", f"{self.flops:,} of {self.dense_flops:,}")
            table.add_row("FLOPs ratio", f"{self.flops_ratio:.3f}")
        if self.outside:
            table.add_row("not zero outside of the masks", f"{sum(self.outside.values()):,}")
        table.add_row("bytes on disk", f"{self.file_bytes:,}")
        table.add_row("bytes compressed", f"{self.compressed_bytes:,}")
        table.add_row("bytes as values and bit mask", f"{self.sparse_bytes:,}")
        table.add_row("largest output difference", f"{self.max_difference:.2g}")
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
