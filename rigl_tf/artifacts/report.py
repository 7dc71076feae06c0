"""What `rigl_tf.export` tells of an artifact."""

import dataclasses

import rich.table

from rigl_tf.layers.summary import as_text


@dataclasses.dataclass(frozen=True)
class ExportReport:
    """What `rigl_tf.export` wrote; `print` shows it as a table.

    Attributes:
        path: Where the artifact is.
        format: `"saved_model"`, `"keras"`, `"litert"`, `"onnx"` or `"web"`.
        num_weights: Number of weights, zeros included.
        num_active: Number of weights that are not masked out.
        flops, dense_flops: FLOPs per sample, of the active connections and of all; `None` if they
            cannot be counted.
        file_bytes: Size of the artifact.
        compressed_bytes: Its size compressed (zlib), as when it is downloaded: zeros cost nothing.
        sparse_bytes: Size of the weights as active float32 values and a bit mask.
        max_difference: Largest absolute difference between the outputs of the loaded artifact and
            those of the model, on `inputs` or on random ones. Equal infinities do not differ.
        quantize: As it was given to `rigl_tf.export`.
        dense_file_bytes, dense_compressed_bytes: Sizes of the same weights stored dense, in the
            same format; `None` if the format stores nothing sparse. Of `"web"` all sizes are
            those of the `.tflite` files alone.
        bound_bytes: The fewest bytes that the weights need with each value stored as it is: values
            of the active ones, and the entropy of their places.
        kernels: A `KernelReport` for each sparse kernel: what multiplies by it, and why.
        latencies: A `Latency` for each batch size that was measured.
        notes: Sentences on what else is to be known.
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
    quantize: str | None = None
    dense_file_bytes: int | None = None
    dense_compressed_bytes: int | None = None
    bound_bytes: int | None = None
    kernels: tuple = ()
    latencies: tuple = ()
    notes: tuple = ()
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
            advice if len(paths) == len(self.kernels) else f"{', '.join(paths)}: {advice}"
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
