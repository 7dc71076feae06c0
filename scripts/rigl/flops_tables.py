"""FLOPs and sizes of ResNet-50 and MobileNet-v1, beside those that the RigL paper publishes.

    python -m scripts.rigl.flops_tables

writes `results/flops.md` in half a minute, without data. It has every row of the RigL README and of
the paper's tables, with the FLOPs of inference and of training and the megabytes, as the authors'
code counts them and as `rigl_tf.flops` does. Expect that every published number is matched to its
last digit, or has a note that explains the difference.
"""

import pathlib

from absl import flags

import models
import rigl_tf
from rigl_tf.distributions import published as str_lists
from rigl_tf.flops import Cost, KernelCost
from scripts.common import entry, provenance
from scripts.rigl import flops_counting, flops_published

FLAGS = flags.FLAGS


def _define_flags():
    flags.DEFINE_string("output_dir", "results", "Where the page goes.")


# Output positions that the authors count by padding twice: of 230, 225, 113, 57, 29 and 15 inputs.
_POSITIONS = {
    "resnet50": {"conv_1/kernel": 115**2},
    "mobilenet_v1": {
        "conv1/kernel": 113**2,
        "conv_dw_2/kernel": 57**2,
        "conv_dw_4/kernel": 29**2,
        "conv_dw_6/kernel": 15**2,
        "conv_dw_12/kernel": 8**2,
    },
}

# Steps at which gradual pruning is counted: the authors take the first and the last step too;
# ours are the 32 intervals of 1000 steps that the sparsity is constant in.
_PRUNING_STEPS = {"authors": range(0, 32_001, 1000), "ours": range(0, 32_000, 1000)}

_NOTES = {
    "a": "The README gives uniform 0.8 the size of Erdős-Rényi (ER), see the row below.",
    "b": "For ERK at 0.965 the README has the FLOPs of all layers sparse and the size of a dense "
    "first layer; table 4 has the FLOPs of a dense first layer. Both are in the rows here.",
    "c": "The README repeats the inference in this cell; figure 2 has 0.25.",
    "d": "Figure 2 counts the first layer as sparse in its uniform networks of 0.9 (see the rows "
    "for comparison: 0.10, and 0.52 for 5x), although it is dense; the README has 0.13 and 0.66.",
    "e": "The width 0.465 is the authors', and has the size of ERK at 0.8. The published 0.20 and "
    "1.01 are those of a uniform network whose first layer is sparse, see the row for comparison.",
    "f": "Published as two trainings of RigL.",
    "g": "The text keeps depthwise layers dense. The published FLOPs are those of sparse ones; "
    "dense ones, in the rows for comparison, add 1 to 3 % of the dense network's FLOPs.",
    "h": "Ours is less because ERK is that of the wide network's own kernels.",
    "i": "The published multiples do not fit their labels: 1.39 and 2.79 are 5x and 10x, to 1 %, "
    "with depthwise layers counted as sparse (the rows for comparison); 1.25, 6.25 and 12.5 are "
    "0.125 for each 1x, where the same count gives 0.123. The size is that of dense ones.",
    "j": "0.21 and 0.09 cannot be reproduced: with depthwise layers dense it is 0.29 and 0.15, "
    "with sparse ones 0.27 and 0.12. (0.09 is the small dense network's.)",
}

_HEADER = (
    "| method | sparsity | layers | steps | training: published | authors' count | ours "
    "| inference: published | authors' count | ours | MB: published | authors' count | ours "
    "| top-1, published | note |\n" + "| --- " * 15 + "|"
)

# Table 2 of the paper: kernels, sparsity, published kFLOPs and bytes.
_MNIST = (
    ("SBP", (245, 160, 55), 0.0, "97.1", "195100"),
    ("L0", (266, 88, 33), 0.0, "53.3", "107092"),
    ("VIB", (97, 71, 33), 0.0, "19.1", "38696"),
    ("RigL", (408, 100, 69), 0.870, "12.6", "31914"),
    ("RigL+", (375, 62, 51), 0.886, "6.2", "16113"),
)

# Table 2: what is trained, its units, the densities of its kernels, how, and published GFLOPs.
_MNIST_TRAINING = (
    ("SBP, L0, VIB: LeNet-300-100", (784, 300, 100), (1, 1, 1), "dense", "13521.6"),
    ("the network that SBP leaves", (245, 160, 55), (1, 1, 1), "dense", "2554.8"),
    ("the network that L0 leaves", (266, 88, 33), (1, 1, 1), "dense", "1356.4"),
    ("the network that VIB leaves", (97, 71, 33), (1, 1, 1), "dense", "523.0"),
    ("RigL: LeNet-300-100", (784, 300, 100), (0.01, 0.109, 1), "rigl", "482.0"),
    ("RigL+: what RigL leaves", (408, 100, 69), (0.04, 0.136, 1), "rigl", "206.3"),
)
_MNIST_SAMPLES = 120_000 * 100


class Network:
    """A network of the paper, with both ways of counting."""

    def __init__(self, name):
        self.ours = flops_counting.Ours(getattr(models, name))
        self.authors = flops_counting.Authors(self.ours.dense(), _POSITIONS[name])

    def measure(self, who, row):
        """`(training, inference, megabytes)` of a row; FLOPs are shares of the dense network's."""
        count = getattr(self, who)
        dense, _ = count("dense", 0.0)
        sparse, megabytes = count(row.scheme, row.sparsity, row.width)
        if row.method is None:
            return None, sparse / dense, megabytes
        mean = sparse
        if row.method == "pruning":
            steps = _PRUNING_STEPS[who]
            mean = flops_counting.pruning_flops(count, row.scheme, row.sparsity, steps)
        training = rigl_tf.flops.training_flops(dense, mean, row.method)
        return row.times * training / (3 * dense), sparse / dense, megabytes


def agrees(published, value):
    """Whether a value equals the published one in all published digits."""
    decimals = len(published.partition(".")[2])
    return f"{value:.{decimals}f}" == published


class Page:
    """Collects the Markdown text, and counts how many published numbers are matched."""

    def __init__(self):
        self.lines = []
        self.num_published = 0
        self.num_met = 0

    def add(self, *lines):
        self.lines += [*lines, ""]

    def published(self, text, value):
        """A table cell with a published number; bold if the authors' count differs from it."""
        if text is None:
            return "–"
        self.num_published += 1
        self.num_met += agrees(text, value)
        return text if agrees(text, value) else f"**{text}**"

    def table(self, title, network, rows):
        """The rows of a table, and their notes."""
        lines = [_HEADER]
        for row in rows:
            cells = [
                row.name or "*for comparison*",
                f"{row.sparsity:g}",
                row.scheme,
                f"{row.times:g}x",
            ]
            if row.width != 1:
                cells[2] = f"{row.scheme}, width {row.width:g}"
            measured = zip(
                (row.train, row.test, row.size),
                network.measure("authors", row),
                network.measure("ours", row),
                (4, 4, 3),
                strict=True,
            )
            for text, authors, ours, decimals in measured:
                cells.append(self.published(text, authors))
                cells += ["–" if x is None else f"{x:.{decimals}f}" for x in (authors, ours)]
            cells += [row.top1 or "–", ", ".join(row.notes)]
            lines.append(f"| {' | '.join(cells)} |")
        keys = sorted({key for row in rows for key in row.notes})
        self.add(f"## {title}", "", *lines)
        self.add(*(f"- {key}: {_NOTES[key]}" for key in keys))


def dense_table(page, networks):
    """The dense networks. FLOPs are absolute here, not shares."""
    published = {
        "resnet50": ("8.2e9", "3.2e18", "102.122"),
        "mobilenet_v1": ("1.14e9", "4.5e17", "16.864"),
    }
    lines = ["| network | number | published | authors' count | ours |", "| --- " * 5 + "|"]
    for name, (test, train, size) in published.items():
        authors, ours = (getattr(networks[name], who)("dense", 0.0) for who in ("authors", "ours"))
        samples = 3 * 32_000 * 4096
        for label, text, values, digits in (
            ("FLOPs of inference", test, (authors[0], ours[0]), 3),
            ("FLOPs of training", train, (samples * authors[0], samples * ours[0]), 3),
            ("MB", size, (authors[1], ours[1]), None),
        ):
            shown = [f"{x:.{digits}e}" if digits else f"{x:.3f}" for x in values]
            cells = [name, label, text, *(x.replace("e+0", "e").replace("e+", "e") for x in shown)]
            lines.append(f"| {' | '.join(cells)} |")
    page.add("## Dense networks", "", *lines)
    page.add("Training is 32,000 steps of 4096 images, each three times the FLOPs of inference.")


def str_table(page, network):
    """The sparsities that the STR paper lists."""
    lines = [
        "| sparsity, published | of the list "
        "| authors' count: inference | MB | ours: inference | MB |",
        "| --- " * 6 + "|",
    ]
    kernels = network.ours.dense().kernels
    shapes = {kernel.path: kernel.shape for kernel in kernels}
    for key in str_lists.LISTS:
        shares = rigl_tf.distributions.str_resnet50(shapes, key)
        num_zeros = sum(shares[kernel.path] * kernel.size for kernel in kernels)
        cells = [f"{key:.4f}", f"{num_zeros / sum(kernel.size for kernel in kernels):.4f}"]
        for count in (network.authors, network.ours):
            num_flops, megabytes = count("STR", key)
            cells += [f"{num_flops / count('dense', 0.0)[0]:.4f}", f"{megabytes:.3f}"]
        lines.append(f"| {' | '.join(cells)} |")
    page.add("## ResNet-50 with the sparsities of STR", "", *lines)


def mnist_table(page):
    """The architectures of the paper's table 2."""
    lines = [
        "| method | architecture | sparsity | kFLOPs: published | ours | bytes: published | ours |",
        "| --- " * 7 + "|",
    ]
    for name, units, sparsity, num_flops, num_bytes in _MNIST:
        sizes = [a * b for a, b in zip(units, (*units[1:], 10), strict=True)]
        kernels = tuple(
            KernelCost(str(size), (size,), round(size * (1 - sparsity)), 1) for size in sizes
        )
        cost = Cost(kernels, num_other_weights=sum(units[1:]) + 10)
        lines.append(
            f"| {name} | {'-'.join(map(str, units))} | {sparsity:g} "
            f"| {num_flops} | {cost.flops / 1000:.2f} "
            f"| {num_bytes} | {cost.num_bytes} |"
        )
    page.add("## MNIST, the networks of table 2", "", *lines)
    page.add(
        "Bytes are values, a bit mask if there are zeros, and biases. The sparsities are published "
        "to three digits, which leaves 97 bytes (RigL) and 54 bytes (RigL+) open, but less than "
        "the 0.06 kFLOPs by which RigL+ differs."
    )


def mnist_training(page):
    """The cost of training in the paper's table 2."""
    lines = [
        "| what is trained | units | sparsities | GFLOPs: published | counted |",
        "| --- " * 5 + "|",
    ]
    for name, units, densities, method, published in _MNIST_TRAINING:
        sizes = [a * b for a, b in zip(units, (*units[1:], 10), strict=True)]
        active = [size * density for size, density in zip(sizes, densities, strict=True)]
        training = rigl_tf.flops.training_flops(
            2 * sum(sizes), 2 * sum(active), method, input_gradient=2 * active[0]
        )
        value = _MNIST_SAMPLES * training / 1e9
        sparsities = ", ".join(f"{1 - density:g}" for density in densities)
        cells = [name, "-".join(map(str, units)), sparsities, page.published(published, value)]
        lines.append(f"| {' | '.join(cells)} | {value:.1f} |")
    page.add("## MNIST, training in table 2", "", *lines)
    page.add(
        "120,000 steps of 100 images. The gradient of the inputs is not computed, and not counted; "
        "RigL's dense gradients are counted at a mask update every 100 steps to the end of "
        "training. So RigL's second layer has a sparsity of 0.891 = 0.99 x 0.9, and that of RigL+ "
        "0.864 = 0.96 x 0.9, which the text rounds to 89 and 86 %."
    )


_INTRODUCTION = (
    "Each number is given three times: as published; as the authors' code counts it; and as "
    "`rigl_tf.flops` does. Training and inference are FLOPs, as a share of the dense network's "
    "(of width 1). Accuracies are those published, on ImageNet, and no results of this repository.",
    "The two ways of counting differ in this:",
    "- FLOPs: ours are a multiplication and an addition for each use of each active weight in the "
    "traced graph. The authors count one more for each output (every layer is taken to have a bias "
    "and a ReLU, and a sum of n products has n - 1 additions), and pad twice where a layer of its "
    "own pads: the first convolution of ResNet-50 then has 115 x 115 outputs for 112 x 112, and "
    "the convolutions of MobileNet-v1 with stride 2 have one more row and column.\n"
    "- Sizes: both are values and a bit mask for each sparse kernel. Ours add all other weights of "
    "the model, four vectors for each batch normalisation; the authors a bias for each output.\n"
    "- ERK: the budget that fits the published digits has each kernel's zeros rounded up; ours, as "
    "the authors' code of today, rounds them down.\n"
    "- Wider and narrower networks: the authors keep the sparsities of width 1, and round channels "
    "down; ours are computed from the kernels that the network has.\n"
    "- Gradual pruning (ramp from step 10,000 to 25,000, every 1000, of 32,000): the authors' mean "
    "is over the 33 steps 0, 1000, ..., 32,000, ours over all steps, in which the sparsity is "
    "constant for 1000.",
)


def build_page():
    """The page, without its last line."""
    networks = {name: Network(name) for name in _POSITIONS}
    resnet50, mobilenet = networks["resnet50"], networks["mobilenet_v1"]
    page = Page()
    dense_table(page, networks)
    page.table("ResNet-50, README", resnet50, flops_published.README_RESNET50)
    page.table("ResNet-50, figure 2", resnet50, flops_published.FIGURE_2)
    page.add("The paper gives no FLOPs for SNFS with redistribution and for DNW.")
    page.table("ResNet-50, table 3", resnet50, flops_published.TABLE_3)
    page.table("ResNet-50, table 4", resnet50, flops_published.TABLE_4)
    page.add("The paper's FLOPs of training in this table are those of figure 2, and left out.")
    str_table(page, resnet50)
    page.table("MobileNet-v1, paper", mobilenet, flops_published.MOBILENET)
    page.table("MobileNet-v1, README", mobilenet, flops_published.README_MOBILENET)
    mnist_table(page)
    mnist_training(page)
    return page


def main(_):
    page = build_page()
    output_dir = pathlib.Path(FLAGS.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    met = (
        f"Of {page.num_published} published numbers the authors' count gives {page.num_met} to "
        "the last digit. The others are bold, with a note."
    )
    head = ["# FLOPs and sizes, beside the published ones", *_INTRODUCTION, met]
    text = ["\n\n".join(head), "", *page.lines, provenance.line("scripts.rigl.flops_tables")]
    (output_dir / "flops.md").write_text("\n".join(text) + "\n")
    print(met)


if __name__ == "__main__":
    _define_flags()
    entry.run(main)
