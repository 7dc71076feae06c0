"""FLOPs and sizes that the RigL paper and README publish, as rows for `flops_tables`."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Row:
    """A network, how it is trained, and its published numbers.

    Attributes:
        name: Name of the method in the paper; empty in a row that explains another one.
        scheme: How the kernels share the sparsity, see `scripts.rigl.flops_counting.shares`.
        sparsity: Published share of zeros.
        method: See `rigl_tf.flops.training_flops`; `None` if the training is not known.
        times: Training steps, as a multiple of 32,000.
        width: Factor of the number of channels.
        train, test: Published FLOPs of training and of inference, as a share of those of the dense
            network of width 1. They are texts with the published digits, or `None`.
        size: Published megabytes, as text or `None`.
        top1: Published accuracy, as text or `None`.
        notes: Keys of the notes that explain differences.
    """

    name: str
    scheme: str
    sparsity: float
    method: str | None
    times: float
    width: float
    train: str | None
    test: str | None
    size: str | None
    top1: str | None
    notes: str


def _rows(text):
    rows = []
    for line in text.strip("\n").splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        name, scheme, sparsity, method, times, width, *published, notes = (
            None if cell == "-" else cell for cell in cells
        )
        numbers = (float(sparsity), method, float(times), float(width))
        rows.append(Row(name, scheme, *numbers, *published, notes))
    return tuple(rows)


# name | scheme | sparsity | method | times | width | training | inference | MB | top-1 | notes
README_RESNET50 = _rows("""
RigL | ERK | 0.8 | rigl | 5 | 1 | 2.09 | 0.42 | 23.683 | 77.17 |
RigL | uniform | 0.8 | rigl | 5 | 1 | 1.14 | 0.23 | 23.685 | 76.71 | a
 | ER | 0.8 | rigl | 5 | 1 | - | - | - | - | a
RigL | ERK | 0.9 | rigl | 5 | 1 | 1.23 | 0.24 | 13.499 | 76.42 |
RigL | uniform | 0.9 | rigl | 5 | 1 | 0.66 | 0.13 | 13.532 | 75.73 |
RigL | ERK | 0.95 | rigl | 5 | 1 | 0.63 | 0.12 | 8.399 | 74.63 |
RigL | uniform | 0.95 | rigl | 5 | 1 | 0.42 | 0.08 | 8.433 | 73.22 |
RigL | ERK | 0.965 | rigl | 5 | 1 | 0.45 | 0.09 | 6.904 | 72.77 | b
 | ERK, first layer dense | 0.965 | rigl | 5 | 1 | - | - | - | - | b
RigL | uniform | 0.965 | rigl | 5 | 1 | 0.34 | 0.07 | 6.904 | 71.31 |
RigL | ERK, first layer dense | 0.99 | rigl | 5 | 1 | 0.29 | 0.05 | 4.354 | 61.86 |
RigL | ERK, first layer dense | 0.99 | rigl | 10 | 1 | 0.58 | - | - | 63.89 |
RigL | ERK, first layer dense | 0.99 | rigl | 40 | 1 | 2.32 | 0.05 | 4.354 | 66.94 |
RigL | ERK, first layer dense | 0.99 | rigl | 100 | 1 | 5.8 | - | - | 68.15 |
RigL | ERK | 0.8 | rigl | 1 | 1 | 0.42 | 0.42 | 23.683 | 75.12 |
RigL | uniform | 0.8 | rigl | 1 | 1 | 0.23 | 0.23 | 23.685 | 74.60 | a
RigL | ERK | 0.9 | rigl | 1 | 1 | 0.24 | 0.24 | 13.499 | 73.07 | c
RigL | uniform | 0.9 | rigl | 1 | 1 | 0.13 | 0.13 | 13.532 | 72.02 |
RigL, no label smoothing | ERK | 0.8 | rigl | 1 | 1 | - | - | - | 75.02 |
RigL, no label smoothing | ERK | 0.8 | rigl | 5 | 1 | - | - | - | 76.17 |
RigL, no label smoothing | ERK | 0.9 | rigl | 1 | 1 | - | - | - | 73.4 |
RigL, no label smoothing | ERK | 0.9 | rigl | 5 | 1 | - | - | - | 75.9 |
RigL, no label smoothing | ERK | 0.95 | rigl | 1 | 1 | - | - | - | 70.39 |
RigL, no label smoothing | ERK | 0.95 | rigl | 5 | 1 | - | - | - | 74.36 |
""")

FIGURE_2 = _rows("""
Static | uniform | 0.8 | static | 1 | 1 | 0.23 | 0.23 | - | 70.6 |
SNIP | uniform | 0.8 | snip | 1 | 1 | 0.23 | 0.23 | - | 72.0 |
Small-Dense | dense | 0.8 | small_dense | 1 | 0.465 | 0.20 | 0.20 | - | 72.1 | e
SET | uniform | 0.8 | set | 1 | 1 | 0.23 | 0.23 | - | 72.9 |
RigL | uniform | 0.8 | rigl | 1 | 1 | 0.23 | 0.23 | - | 74.6 |
Small-Dense | dense | 0.8 | small_dense | 5 | 0.465 | 1.01 | 0.20 | - | 73.9 | e
 | uniform, first layer sparse | 0.8 | static | 5 | 1 | - | - | - | - | e
RigL | uniform | 0.8 | rigl | 5 | 1 | 1.14 | 0.23 | - | 76.6 |
Static | ERK | 0.8 | static | 1 | 1 | 0.42 | 0.42 | - | 72.1 |
DSR | DSR | 0.8 | set | 1 | 1 | 0.40 | 0.40 | - | 73.3 |
RigL | ERK | 0.8 | rigl | 1 | 1 | 0.42 | 0.42 | - | 75.1 |
RigL | ERK | 0.8 | rigl | 5 | 1 | 2.09 | 0.42 | - | 77.1 |
SNFS | ERK | 0.8 | snfs | 1 | 1 | 0.61 | 0.42 | - | 75.2 |
Pruning | uniform | 0.8 | pruning | 1 | 1 | 0.56 | 0.23 | - | 75.6 |
Pruning | uniform | 0.8 | pruning | 1.5 | 1 | 0.84 | 0.23 | - | 76.5 |
Static | uniform | 0.9 | static | 1 | 1 | 0.10 | 0.10 | - | 65.8 | d
 | uniform, first layer sparse | 0.9 | static | 1 | 1 | - | - | - | - | d
SNIP | uniform | 0.9 | snip | 1 | 1 | 0.10 | 0.10 | - | 67.2 | d
Small-Dense | dense | 0.9 | small_dense | 1 | 0.34 | 0.12 | 0.12 | - | 68.9 |
SET | uniform | 0.9 | set | 1 | 1 | 0.10 | 0.10 | - | 69.6 | d
RigL | uniform | 0.9 | rigl | 1 | 1 | 0.10 | 0.10 | - | 72.0 | d
Small-Dense | dense | 0.9 | small_dense | 5 | 0.34 | 0.60 | 0.12 | - | 71.3 |
RigL | uniform | 0.9 | rigl | 5 | 1 | 0.52 | 0.10 | - | 75.7 | d
 | uniform, first layer sparse | 0.9 | rigl | 5 | 1 | - | - | - | - | d
Static | ERK | 0.9 | static | 1 | 1 | 0.24 | 0.24 | - | 67.7 |
DSR | DSR | 0.9 | set | 1 | 1 | 0.30 | 0.30 | - | 71.6 |
RigL | ERK | 0.9 | rigl | 1 | 1 | 0.25 | 0.24 | - | 73.0 |
RigL | ERK | 0.9 | rigl | 5 | 1 | 1.23 | 0.24 | - | 76.4 |
SNFS | ERK | 0.9 | snfs | 1 | 1 | 0.50 | 0.24 | - | 72.9 |
Pruning | uniform | 0.9 | pruning | 1 | 1 | 0.51 | 0.10 | - | 73.9 | d
Pruning | uniform | 0.9 | pruning | 1.5 | 1 | 0.76 | 0.10 | - | 75.2 | d
""")

TABLE_3 = _rows("""
RigL, random initialisation | uniform | 0.8 | rigl | 1 | 1 | 0.23 | - | - | 74.55 |
RigL, lottery initialisation | uniform | 0.8 | rigl | 2 | 1 | 0.46 | - | - | 73.93 | f
RigL | uniform | 0.8 | rigl | 2 | 1 | 0.46 | - | - | 76.06 |
""")

TABLE_4 = _rows("""
Static | uniform | 0.95 | static | 1 | 1 | - | 0.08 | - | 59.5 |
SNIP | uniform | 0.95 | snip | 1 | 1 | - | 0.08 | - | 57.8 |
SET | uniform | 0.95 | set | 1 | 1 | - | 0.08 | - | 64.4 |
RigL | uniform | 0.95 | rigl | 1 | 1 | - | 0.08 | - | 67.5 |
RigL | uniform | 0.95 | rigl | 5 | 1 | - | 0.08 | - | 73.1 |
RigL | ERK | 0.95 | rigl | 1 | 1 | - | 0.12 | - | 69.7 |
RigL | ERK | 0.95 | rigl | 5 | 1 | - | 0.12 | - | 74.5 |
SNFS | ERK | 0.95 | snfs | 1 | 1 | - | 0.12 | - | 70.0 |
Pruning | uniform | 0.95 | pruning | 1 | 1 | - | 0.08 | - | 70.6 |
Pruning | uniform | 0.95 | pruning | 1.5 | 1 | - | 0.08 | - | 72.7 |
Static | uniform | 0.965 | static | 1 | 1 | - | 0.07 | - | 55.4 |
SNIP | uniform | 0.965 | snip | 1 | 1 | - | 0.07 | - | 52.0 |
SET | uniform | 0.965 | set | 1 | 1 | - | 0.07 | - | 60.8 |
RigL | uniform | 0.965 | rigl | 1 | 1 | - | 0.07 | - | 65.0 |
RigL | uniform | 0.965 | rigl | 5 | 1 | - | 0.07 | - | 71.1 |
RigL | ERK | 0.965 | rigl | 1 | 1 | - | 0.11 | - | 67.2 | b
RigL | ERK | 0.965 | rigl | 5 | 1 | - | 0.11 | - | 72.7 | b
SNFS | ERK | 0.965 | snfs | 1 | 1 | - | 0.11 | - | 67.1 | b
 | ERK, first layer dense | 0.965 | rigl | 1 | 1 | - | - | - | - | b
Pruning | uniform | 0.965 | pruning | 1.5 | 1 | - | 0.07 | - | 69.26 |
""")

MOBILENET = _rows("""
Small-Dense | dense | 0.75 | small_dense | 5 | 0.47 | - | 0.23 | - | 66.0 |
Pruning (Zhu) | uniform | 0.75 | - | 1 | 1 | - | 0.27 | - | 67.7 | g
RigL | uniform | 0.75 | rigl | 5 | 1 | - | 0.27 | - | 71.5 | g
 | uniform, depthwise dense | 0.75 | rigl | 5 | 1 | - | - | - | - | g
RigL | ERK | 0.75 | rigl | 5 | 1 | - | 0.52 | - | 71.9 | g
 | ERK, depthwise dense | 0.75 | rigl | 5 | 1 | - | - | - | - | g
Small-Dense | dense | 0.9 | small_dense | 5 | 0.285 | - | 0.09 | - | 57.7 |
Pruning (Zhu) | uniform | 0.9 | - | 1 | 1 | - | 0.12 | - | 61.8 | g
RigL | uniform | 0.9 | rigl | 5 | 1 | - | 0.12 | - | 67.0 | g
 | uniform, depthwise dense | 0.9 | rigl | 5 | 1 | - | - | - | - | g
RigL | ERK | 0.9 | rigl | 5 | 1 | - | 0.27 | - | 68.1 | g
 | ERK, depthwise dense | 0.9 | rigl | 5 | 1 | - | - | - | - | g
RigL, Big-Sparse | uniform | 0.75 | rigl | 5 | 1.98 | - | 0.98 | - | 76.4 | g
RigL, Big-Sparse | ERK | 0.75 | rigl | 5 | 1.98 | - | 1.91 | - | 77.0 | gh
""")

README_MOBILENET = _rows("""
RigL | ERK, depthwise dense | 0.9 | rigl | 10 | 1 | 1.39 | 0.21 | 2.392 | 69.31 | ij
 | ERK | 0.9 | rigl | 5 | 1 | - | - | - | - | i
RigL | ERK, depthwise dense | 0.9 | rigl | 50 | 1 | 2.79 | - | - | 70.63 | i
 | ERK | 0.9 | rigl | 10 | 1 | - | - | - | - | i
RigL | uniform, depthwise dense | 0.9 | rigl | 10 | 1 | 1.25 | 0.09 | - | 69.28 | ij
 | uniform | 0.9 | rigl | 10 | 1 | - | - | - | - | i
RigL | uniform, depthwise dense | 0.9 | rigl | 50 | 1 | 6.25 | - | - | 70.25 | i
RigL | uniform, depthwise dense | 0.9 | rigl | 100 | 1 | 12.5 | - | - | 70.59 | i
""")
