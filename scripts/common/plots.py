"""Plots of results, as PNG files that are small enough for git."""

import contextlib
import io

from scripts.common import tables

MAX_BYTES = 150_000
_DPI = (150, 120, 100, 80, 70, 60, 50)


def plot_means(rows, series, x, y, path, order, title, xlabel, ylabel, as_error=False):
    """Draws mean ± standard deviation over x, a line for each series; x = 0 across the plot.

    With `as_error` it draws `100 - y`, on a logarithmic axis.
    """
    if as_error:
        rows = [{**row, y: 100 - row[y]} for row in rows]
    values = tables.means(rows, series, x, y)
    ticks = sorted({key[1] for key in values if key[1] > 0})
    with figure(path) as axes:
        for number, name in enumerate(order):
            style = ("-", "--", ":")[number // 10 % 3]
            points = sorted((key[1], *value) for key, value in values.items() if key[0] == name)
            if len(points) == 1 and points[0][0] == 0:
                axes.axhline(points[0][1], color="black", linestyle="--", label=name)
            elif points:
                xs, ys, errors, _ = zip(*points, strict=True)
                positions = [ticks.index(value) for value in xs]
                axes.errorbar(
                    positions, ys, errors, marker="o", capsize=3, label=name, linestyle=style
                )
        axes.set_xticks(range(len(ticks)), [f"{tick:g}" for tick in ticks])
        axes.set(title=title, xlabel=xlabel, ylabel=ylabel)
        if as_error:
            axes.set_yscale("log")
        axes.grid(alpha=0.3, which="both")
        # Many lines leave no room between them.
        beside = {"loc": "center left", "bbox_to_anchor": (1, 0.5), "fontsize": "small"}
        axes.legend(**(beside if len(axes.get_legend_handles_labels()[1]) > 6 else {}))


@contextlib.contextmanager
def figure(path, figsize=(7, 4.5), **subplots):
    """The axes of a figure, saved as PNG at the end; for `subplots` see `pyplot.subplots`."""
    pyplot = start()
    figure, axes = pyplot.subplots(figsize=figsize, **subplots)
    yield axes
    save(figure, path)


def start():
    """`matplotlib.pyplot`, which draws to files alone."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def save(figure, path):
    """Saves a figure as PNG of `MAX_BYTES` at most, and closes it.

    A figure that is larger gets a palette of 64 colours and, if need be, fewer dots per inch.

    Raises:
        ValueError: If it is too large even so.
    """
    from matplotlib import pyplot

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
    colours = Image.open(whole).convert("RGB").quantize(64, dither=Image.Dither.NONE)
    colours.save(small, format="png", optimize=True)
    return small
