"""The pictures of a page, each for light and for dark screens."""

import base64
import importlib.util
import io
import math
import warnings

import numpy as np

# In inches. At 96 pixels an inch a picture is as wide as a large phone.
_WIDTH = 5.2
_DPI = 160
_MOST_BARS = 50

_THEMES = {
    "light": {"paper": "#ffffff", "ink": "#1f2328", "line": "#8c959f", "grid": "#d0d7de"},
    "dark": {"paper": "#161b22", "ink": "#e6edf3", "line": "#8b949e", "grid": "#30363d"},
}
# The first two can be told apart on both papers, by people who see no red or green as well.
_COLOURS = {"light": ("#0969da", "#bc4c00"), "dark": ("#58a6ff", "#f0883e")}


def check_installed():
    """Raises an `ImportError` if matplotlib is not there."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ImportError(
            "`rigl_tf.report` needs the package 'matplotlib': `pip install matplotlib`"
        )


class Picture:
    """A picture in HTML.

    Args:
        title: String, the words above it.
        alt: String, what it shows, for those who do not see it.
        draw: Function of the axes and a pair of colours.
        height: Number, in inches.
    """

    def __init__(self, title, alt, draw, height=3.2):
        self.title = title
        self.alt = alt
        self.images = {theme: _png(draw, height, theme) for theme in _THEMES}
        self.size = round(_WIDTH * 96), round(height * 96)


def _png(draw, height, theme):
    import matplotlib
    from matplotlib.figure import Figure

    paper, ink, line, grid = _THEMES[theme].values()
    settings = {
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
        # Names may be in any script; what the font has not is a box.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        draw(figure.add_subplot(), _COLOURS[theme])
        figure.savefig(image, format="png", dpi=_DPI)
    return base64.b64encode(image.getvalue()).decode()


def curves(name, epochs, series):
    """A line for each of `{label: numbers}`."""

    def draw(axes, colours):
        for (label, numbers), colour, style in zip(
            series.items(), colours, ("-", "--"), strict=False
        ):
            few = len(epochs) <= 20
            axes.plot(epochs, numbers, color=colour, linestyle=style, label=label, marker="o" * few)
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
    """Horizontal bars, in as many pictures as it takes to read them."""
    most = most or max([*values, 1e-9])
    result = []
    for start in range(0, len(labels), _MOST_BARS):
        part = slice(start, start + _MOST_BARS)
        number = (
            f" ({start + 1} to {start + len(labels[part])})" if len(labels) > _MOST_BARS else ""
        )
        result.append(_bars(title + number, labels[part], values[part], texts[part], most))
    return result


def _bars(title, labels, values, texts, most):
    def draw(axes, colours):
        places = range(len(labels))
        axes.barh(places, values, color=colours[0], height=0.7)
        for place, value, text in zip(places, values, texts, strict=True):
            axes.text(value + 0.015 * most, place, text, va="center", fontsize=10)
        axes.set_yticks(places, [shortened(label) for label in labels])
        axes.tick_params(axis="y", length=0)
        axes.set(xlim=(0, 1.22 * most), ylim=(len(labels) - 0.4, -0.6), xticks=[])
        axes.spines["bottom"].set_visible(False)

    shown = [f"{label} {text}" for label, text in zip(labels, texts, strict=True)]
    return Picture(title, f"{title}: {', '.join(shown)}", draw, 0.5 + 0.23 * len(labels))


def heat_map(title, matrix, what):
    """A matrix of counts; entries that are NaN are no entries."""
    rows, columns = matrix.shape
    is_strip = rows < columns / 4 or rows == 1

    def draw(axes, colours):
        shown = axes.imshow(
            matrix,
            cmap="viridis",
            vmin=0,
            aspect="auto" if is_strip else "equal",
            interpolation="nearest",
        )
        axes.set(xticks=[], yticks=[])
        bar = axes.figure.colorbar(shown, ax=axes, label="active connections")
        bar.locator.set_params(integer=True)
        bar.update_ticks()

    counts = matrix[np.isfinite(matrix)]
    alt = (
        f"Active connections of {what}: {counts.min():.0f} to {counts.max():.0f}, "
        f"{counts.mean():.3g} on average"
    )
    return Picture(title, alt, draw, 2.0 if is_strip else 4.0)


def at_most(matrix, most=256):
    """A matrix, or the means of the cells of a larger one."""
    rows, columns = (math.ceil(size / most) for size in matrix.shape)
    if rows == columns == 1:
        return matrix
    padding = [(0, -matrix.shape[0] % rows), (0, -matrix.shape[1] % columns)]
    padded = np.pad(matrix.astype(float), padding, constant_values=np.nan)
    cells = padded.reshape(padded.shape[0] // rows, rows, padded.shape[1] // columns, columns)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Mean of empty slice")
        return np.nanmean(cells, axis=(1, 3))


def shortened(text, most=26):
    """The end of a text, which tells more of a path than its beginning."""
    return text if len(text) <= most else "…" + text[1 - most :]
