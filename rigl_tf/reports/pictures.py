"""The pictures of a page. Each is drawn twice: for light and for dark screens."""

import base64
import importlib.util
import io
import itertools
import math
import warnings
from typing import Any

import numpy as np

# In inches. With 96 pixels for an inch a picture is as wide as a large phone.
_WIDTH = 4.4
_DPI = 180
_MOST_BARS = 50

_THEMES = {
    "light": {"paper": "#ffffff", "ink": "#1f2328", "line": "#8c959f", "grid": "#d0d7de"},
    "dark": {"paper": "#161b22", "ink": "#e6edf3", "line": "#8b949e", "grid": "#30363d"},
}
# These colours are easy to distinguish on both backgrounds, also with red-green colour blindness.
_COLOURS = {"light": ("#0969da", "#bc4c00"), "dark": ("#58a6ff", "#f0883e")}


def check_installed():
    """Raises an `ImportError` if matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ImportError(
            "`rigl_tf.report` needs the package 'matplotlib': `pip install matplotlib`"
        )


class Picture:
    """A picture in HTML.

    Args:
        title: String, the title above the picture.
        alt: String, a description for readers who cannot see the picture.
        draw: Function that draws on the given axes, in the given pair of colours.
        height: Number, in inches.
    """

    def __init__(self, title, alt, draw, height=2.9):
        self.title = title
        self.alt = alt
        self.images = {theme: _png(draw, height, theme) for theme in _THEMES}
        self.size = round(_WIDTH * 96), round(height * 96)


def _png(draw, height, theme):
    import matplotlib
    from matplotlib.figure import Figure

    paper, ink, line, grid = _THEMES[theme].values()
    settings: Any = {
        "font.size": 11,
        "font.family": "sans-serif",
        "text.parse_math": False,
        "axes.formatter.use_mathtext": False,
        "axes.grid": False,
        "axes.spines.top": False,
        "axes.spines.right": False,
        **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), paper),
        **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.labelcolor"), ink),
        **dict.fromkeys(("ytick.labelcolor", "axes.titlecolor"), ink),
        **dict.fromkeys(("xtick.color", "ytick.color", "axes.edgecolor"), line),
        "grid.color": grid,
        "legend.frameon": False,
    }
    image = io.BytesIO()
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(settings)
        # Names may be in any script. Characters that the font does not have are drawn as boxes.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        draw(figure.add_subplot(), _COLOURS[theme])
        figure.savefig(image, format="png", dpi=_DPI)
    return base64.b64encode(_with_palette(image)).decode()


def _with_palette(image):
    """The bytes of a PNG with 128 colours. It has a third of the size."""
    from PIL import Image

    small = io.BytesIO()
    colours = Image.open(image).convert("RGB").quantize(128, dither=Image.Dither.NONE)
    colours.save(small, format="png", optimize=True)
    return small.getvalue()


def curves(name, epochs, series):
    """A picture with a line for each entry of `{label: numbers}`. It leaves out what is NaN."""

    def draw(axes, colours):
        for (label, numbers), colour, style in zip(
            series.items(), colours, ("-", "--"), strict=False
        ):
            known = np.isfinite(numbers)
            x, y = np.array(epochs)[known], np.array(numbers)[known]
            few = "o" if len(x) <= 20 else ""
            # The axis is a little longer than the numbers, and must not become infinite.
            y = y.clip(-1e300, 1e300)
            axes.plot(x, y, color=colour, linestyle=style, label=label, marker=few)
        axes.set(xlabel="epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(True)
        if len(series) > 1:
            axes.legend()

    last = ", ".join(f"{label} {_last(numbers):.4g}" for label, numbers in series.items())
    return Picture(name, f"{name} over the epochs; at the end {last}", draw)


def _last(numbers):
    finite = [number for number in numbers if np.isfinite(number)]
    return finite[-1]


def bars(title, labels, values, texts, most=None):
    """Horizontal bars, in several pictures if there are too many for one."""
    most = most or max([*values, 1e-9])
    result, short = [], shortened(labels)
    for start in range(0, len(labels), _MOST_BARS):
        part = slice(start, start + _MOST_BARS)
        of_them = f" ({start + 1} to {start + len(labels[part])})"
        name = title + of_them * (len(labels) > _MOST_BARS)
        result.append(_bars(name, labels[part], short[part], values[part], texts[part], most))
    return result


def _bars(title, labels, short, values, texts, most):
    def draw(axes, colours):
        places = range(len(labels))
        axes.barh(places, values, color=colours[0], height=0.7)
        for place, value, text in zip(places, values, texts, strict=True):
            axes.text(value + 0.015 * most, place, text, va="center")
        axes.set_yticks(places, short)
        axes.tick_params(axis="y", length=0)
        axes.set(xlim=(0, 1.3 * most), ylim=(len(labels) - 0.4, -0.6), xticks=[])
        axes.spines["bottom"].set_visible(False)

    shown = [f"{label} {text}" for label, text in zip(labels, texts, strict=True)]
    return Picture(title, f"{title}: {', '.join(shown)}", draw, 0.4 + 0.24 * len(labels))


def heat_map(title, matrix, what):
    """A picture of a matrix of counts. Entries that are NaN stay empty.

    Of a large matrix the means of its parts are shown.
    """
    shown_matrix = at_most(matrix)
    rows, columns = shown_matrix.shape
    is_strip = rows < columns / 4 or rows == 1

    def draw(axes, colours):
        shown = axes.imshow(
            shown_matrix,
            cmap="viridis",
            vmin=0,
            aspect="auto" if is_strip else "equal",
            interpolation="nearest",
        )
        axes.set(xticks=[], yticks=[])
        label = "active connections" + ", means of parts" * (shown_matrix is not matrix)
        bar = axes.figure.colorbar(shown, ax=axes, label=label)
        bar.locator.set_params(integer=True)
        bar.update_ticks()

    counts = matrix[np.isfinite(matrix)]
    alt = (
        f"Active connections of {what}: {counts.min():.0f} to {counts.max():.0f}, "
        f"{counts.mean():.3g} on average"
    )
    return Picture(title, alt, draw, 1.8 if is_strip else 3.6)


def at_most(matrix, most=256):
    """The matrix; if it is too large, a smaller one with the means of its parts."""
    rows, columns = (math.ceil(size / most) for size in matrix.shape)
    if rows == columns == 1:
        return matrix
    padding = [(0, -matrix.shape[0] % rows), (0, -matrix.shape[1] % columns)]
    padded = np.pad(matrix.astype(float), padding, constant_values=np.nan)
    cells = padded.reshape(padded.shape[0] // rows, rows, padded.shape[1] // columns, columns)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Mean of empty slice")
        return np.nanmean(cells, axis=(1, 3))


def shortened(labels, most=22):
    """Shortens labels for a picture. Labels that differ before still differ after.

    First the characters with which all labels begin or end are left out, then the beginning of each
    label.

    Example:

    >>> shortened(["a_block_with_a_long_name_1_dense", "a_block_with_a_long_name_2_dense"])
    ['…1…', '…2…']
    """
    short = labels
    if len(set(labels)) > 1 and max(map(len, labels)) > most:
        begin = _num_common(labels)
        end = _num_common([label[begin:][::-1] for label in labels])
        begin, end = (number if number > 3 else 0 for number in (begin, end))
        short = [
            "…" * (begin > 0) + label[begin : len(label) - end] + "…" * (end > 0)
            for label in labels
        ]
    short = [each if len(each) <= most else "…" + each[1 - most :] for each in short]
    if len(set(short)) == len(set(labels)):
        return short
    return [f"{number}: {each}" for number, each in enumerate(short, 1)]


def _num_common(texts):
    """The number of characters with which all of the texts begin."""
    columns = zip(*texts, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda column: len(set(column)) == 1, columns))
