"""Plots of results, as PNG files that are small enough for git."""

import contextlib
import io
import math

import numpy as np

from rigl_tf.reports.pictures import shortened
from scripts.common import styles, tables

MAX_BYTES = 150_000
_DPI = (150, 120, 100, 80, 70, 60, 50)


def plot_means(rows, series, x, y, path, order, title, xlabel, ylabel, as_error=False, look=None):
    """Draws mean ± standard deviation over x, with a line for each series.

    A value at x = 0 is drawn across the whole plot. With `as_error`, `100 - y` is drawn on a
    logarithmic axis. `look` is `{series: style}`; by default the styles of the methods are used.
    """
    if as_error:
        rows = [{**row, y: 100 - row[y]} for row in rows]
    values = tables.means(rows, series, x, y)
    ticks = sorted({key[1] for key in values if key[1] > 0})
    order = [name for name in order if any(key[0] == name for key in values)]
    look = look or styles.of(order)
    shifts = apart(len(order))
    with figure(path, (8, 5)) as axes:
        for name, shift in zip(order, shifts, strict=True):
            points = sorted((key[1], *value) for key, value in values.items() if key[0] == name)
            if len(points) == 1 and points[0][0] == 0:
                across(axes, *points[0][1:3], label=styles.label(name))
                continue
            xs, ys, errors, _ = zip(*points, strict=True)
            positions = [ticks.index(value) + shift for value in xs]
            with_errors(axes, positions, ys, errors, look[name], styles.label(name))
        axes.set_xticks(range(len(ticks)), [f"{tick:g}" for tick in ticks])
        axes.set_xlim(-0.4, len(ticks) - 0.6)
        axes.set(title=title, xlabel=xlabel, ylabel=ylabel)
        if as_error:
            plain_numbers(axes)
        axes.grid(alpha=0.3, which="both")
        legend(axes)


def with_errors(axes, x, y, errors, style, label):
    """Draws a line with error bars. There are no bars if all errors are 0."""
    bars = {"capsize": 3, "elinewidth": 1} if np.any(errors) else {}
    errors = errors if bars else None
    axes.errorbar(x, y, errors, **style, **bars, label=label, markersize=5, linewidth=1.4)


def across(axes, mean, deviation=0.0, label="Dense"):
    """Draws the value of the dense network across the plot, with a band for its deviation."""
    axes.axhline(mean, **styles.line(styles.of(["dense"])["dense"]), linewidth=1.2, label=label)
    axes.axhspan(mean - deviation, mean + deviation, color="black", alpha=0.08, linewidth=0)


def apart(number, width=0.3):
    """The shift along x of each of `number` lines, so that their error bars do not overlap.

    Example:

    >>> apart(3)
    [-0.05, 0.0, 0.05]
    """
    step = min(0.05, width / max(number - 1, 1))
    return [round(step * (i - (number - 1) / 2), 6) for i in range(number)]


def plain_numbers(axes):
    """A logarithmic y axis with ordinary numbers as labels."""
    from matplotlib import ticker

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 7)))
    axes.yaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    axes.yaxis.set_minor_locator(ticker.NullLocator())


def legend(axes, **arguments):
    """A legend inside the plot; beside the plot if there are too many lines."""
    beside = {"loc": "center left", "bbox_to_anchor": (1, 0.5), "fontsize": "small"}
    many = len(axes.get_legend_handles_labels()[1]) > 6
    # Long enough to show a line's dashes.
    axes.legend(**{"handlelength": 3.2, **(beside if many else {}), **arguments})


def legend_below(figure, lines):
    """A legend below all axes, for names of any length and with any characters.

    It makes the figure higher, so that the axes keep their height.

    Args:
        figure: A figure with `layout="constrained"`.
        lines: `{name: what was drawn}`.
    """
    # Matplotlib leaves out labels that begin with an underscore.
    labels = [f" {label}" for label in shortened(list(lines), most=60)]
    # An inch holds 14 letters, and the line before a name is as long as 8 of them.
    columns = max(1, int(14 * figure.get_figwidth()) // (max(map(len, labels), default=0) + 8))
    figure.set_figheight(figure.get_figheight() + 0.18 * math.ceil(len(lines) / columns))
    shape = {"loc": "outside lower right", "fontsize": "small", "ncols": columns}
    for text in figure.legend(lines.values(), labels, **shape).get_texts():
        text.set_parse_math(False)


@contextlib.contextmanager
def figure(path, figsize=(7, 4.5), **subplots):
    """The axes of a figure, which is saved as PNG at the end. `subplots`: see `pyplot.subplots`."""
    pyplot = start()
    figure, axes = pyplot.subplots(figsize=figsize, **subplots)
    yield axes
    save(figure, path)


def start():
    """Returns `matplotlib.pyplot`, set to draw only to files."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def save(figure, path):
    """Saves a figure as a PNG of at most `MAX_BYTES`, and closes it.

    A larger figure gets a palette of 64 colours and, if necessary, fewer dots per inch.

    Raises:
        ValueError: If it is still too large.
    """
    from matplotlib import pyplot

    if figure.get_layout_engine() is None:
        figure.tight_layout()
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=_DPI[0])
    for dpi in _DPI:
        if image.tell() <= MAX_BYTES:
            break
        image = _with_palette(figure, dpi)
    pyplot.close(figure)
    if image.tell() > MAX_BYTES:
        raise ValueError(
            f"A plot must have {MAX_BYTES:,} bytes at most. Received: {image.tell():,} for {path}"
        )
    path.write_bytes(image.getvalue())


def _with_palette(figure, dpi):
    from PIL import Image

    whole, small = io.BytesIO(), io.BytesIO()
    figure.savefig(whole, format="png", dpi=dpi)
    colours = (
        Image.open(whole)
        .convert("RGB")
        .quantize(64, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    )
    colours.save(small, format="png", optimize=True)
    return small
