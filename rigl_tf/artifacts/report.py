"""The report of `rigl_tf.export`."""

import dataclasses
from typing import Any

import rich.table

from rigl_tf.layers.summary import as_text


@dataclasses.dataclass(frozen=True)
class ExportReport:
    """What `rigl_tf.export` has written; `print` shows it as a table.

    Attributes:
        path: String, the path of the artifact.
        format: String: `"saved_model"`, `"keras"`, `"litert"`, `"onnx"` or `"web"`.
        num_weights: Integer, the number of weights, including zeros.
        num_active: Integer, the number of weights without inactive connections.
        flops, dense_flops: FLOPs per sample, of the active connections and of all connections;
            `None` if they cannot be counted.
        file_bytes: Size of the artifact in bytes.
        compressed_bytes: Size of the artifact after compression (zlib), as for a download. Zeros
            need hardly any space then.
        sparse_bytes: Size of the weights as active float32 values and a bit mask.
        max_difference: Float, the largest absolute difference between the outputs of the artifact
            and of the model, on `inputs` or on random inputs. Equal infinities do not differ.
        quantize: The argument of `rigl_tf.export`.
        dense_file_bytes, dense_compressed_bytes: The sizes of the same weights stored dense in the
            same format; `None` if the format stores nothing sparse. For `"web"`, all sizes are
            those of the `.tflite` files only.
        bound_bytes: The smallest possible size of the weights without compressing values: the
            active values, and the entropy of their places.
        kernels: A `KernelReport` for each sparse kernel: how the runtime multiplies it, and why.
        latencies: A `Latency` for each measured batch size.
        notes: Tuple of sentences with more information.
        not_counted: Dictionary `{path of a kernel: why its FLOPs cannot be counted}`.
        outside: Dictionary `{path of a kernel: number of weights that are not zero outside of its
            mask}`, for kernels with such weights.
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
    quantize: str | None = None
    dense_file_bytes: int | None = None
    dense_compressed_bytes: int | None = None
    bound_bytes: int | None = None
    kernels: tuple[Any, ...] = ()
    latencies: tuple[Any, ...] = ()
    notes: tuple[str, ...] = ()
    not_counted: dict[str, str] = dataclasses.field(default_factory=dict)
    outside: dict[str, int] = dataclasses.field(default_factory=dict)

    @property
    def sparsity(self) -> float:
        """Share of zeros among all weights."""
        return 1 - self.num_active / self.num_weights if self.num_weights else 0.0

    @property
    def flops_ratio(self) -> float | None:
        """FLOPs of the active connections divided by those of all; 1 if both are 0."""
        if self.flops is None or self.dense_flops is None:
            return None
        return self.flops / self.dense_flops if self.dense_flops else 1.0

    def to_dict(self) -> dict[str, Any]:
        """All attributes as a dictionary that can be saved as JSON."""
        derived = {"sparsity": self.sparsity, "flops_ratio": self.flops_ratio}
        return {**dataclasses.asdict(self), **derived}

    def __str__(self):
        table = rich.table.Table(title=f"Exported to {self.path}", title_justify="left")
        table.add_column("")
        table.add_column("", justify="right")
        table.add_row("format", ", ".join(filter(None, (self.format, self.quantize))))
        table.add_row("active weights", f"{self.num_active:,} of {self.num_weights:,}")
        table.add_row("sparsity of all weights", f"{self.sparsity:.2%}")
        if self.not_counted:
            table.add_row("FLOPs per sample", "not counted, see `not_counted`")
        else:
            table.add_row("FLOPs per sample", f"{self.flops:,} of {self.dense_flops:,}")
            table.add_row("FLOPs ratio", f"{self.flops_ratio:.3f}")
        if self.outside:
            table.add_row("not zero outside of the masks", f"{sum(self.outside.values()):,}")
        table.add_row("bytes on disk", _beside(self.file_bytes, self.dense_file_bytes))
        table.add_row(
            "bytes compressed", _beside(self.compressed_bytes, self.dense_compressed_bytes)
        )
        table.add_row("bytes as values and bit mask", f"{self.sparse_bytes:,}")
        if self.bound_bytes is not None:
            table.add_row("bytes as values and entropy of places", f"{self.bound_bytes:,}")
        for latency in self.latencies:
            table.add_row(f"latency, batch {latency.batch_size}", str(latency))
        table.add_row("largest output difference", f"{self.max_difference:.2g}")
        parts = [as_text(table)]
        ways = {(each.kernel, each.reason) for each in self.kernels}
        if len(ways) == 1:
            ((kernel, reason),) = ways
            number = len(self.kernels)
            which = f"Each of the {number} sparse kernels" if number > 1 else "The sparse kernel"
            parts.append(f"{which} runs {kernel!r}: {reason}.")
        elif ways:
            parts.append(as_text(self._table_of_kernels()))
        groups = {}
        for each in self.kernels:
            if each.advice:
                groups.setdefault(each.advice, []).append(each.path)
        lines = [
            advice
            if len(ways) == 1 and len(paths) == len(self.kernels)
            else f"{', '.join(paths)}: {advice}"
            for advice, paths in groups.items()
        ]
        parts += ["\n".join([*lines, *self.notes])] if lines or self.notes else []
        return "\n".join(parts)

    def _table_of_kernels(self):
        table = rich.table.Table(title="Sparse kernels", title_justify="left")
        for name in ("kernel", "zeros", "structure", "runs", "why"):
            table.add_column(name, justify="right" if name == "zeros" else "left")
        for each in self.kernels:
            zeros = f"{each.sparsity:.1%}"
            table.add_row(each.path, zeros, each.structure, each.kernel, each.reason)
        return table


def _beside(number, dense):
    return f"{number:,}" if dense is None else f"{number:,} (dense: {dense:,})"
