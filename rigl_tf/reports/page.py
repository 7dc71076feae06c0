"""`report`: collects what is known of a model and writes it as one HTML page."""

import contextlib
import datetime
import html
import os
import pathlib
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import keras

from rigl_tf.artifacts.report import ExportReport
from rigl_tf.checks import check_keras_3
from rigl_tf.inputs import check_has_call
from rigl_tf.reports import kernels, moves, pictures, tables
from rigl_tf.reports.curves import Curves

History = keras.callbacks.History | Mapping[str, Any] | str | os.PathLike[str] | None

_STYLE = """
:root { color-scheme: light dark; --paper: #f6f8fa; --card: #ffffff; --ink: #1f2328;
  --quiet: #59636e; --line: #d0d7de; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #0d1117; --card: #161b22; --ink: #e6edf3; --quiet: #9198a1; --line: #30363d; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
main { max-width: 1240px; margin: 0 auto; padding: 16px; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 8px 0; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 32px 0 12px; }
h3 { font-size: 1rem; margin: 0 0 8px; font-weight: 600; overflow-wrap: anywhere; }
p { margin: 8px 0; overflow-wrap: anywhere; }
.quiet { color: var(--quiet); }
.numbers { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px;
  margin: 16px 0; }
.numbers div, figure, .table { background: var(--card); border: 1px solid var(--line);
  border-radius: 8px; padding: 12px; }
.numbers b { display: block; font-size: 1.4rem; font-weight: 600; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 340px), 1fr));
  gap: 12px; align-items: start; }
figure { margin: 0; }
figure img { display: block; width: 100%; max-width: 560px; height: auto; margin: 0 auto; }
.table { overflow-x: auto; margin: 12px 0; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 6px 10px; text-align: right; vertical-align: top;
  border-bottom: 1px solid var(--line); }
th { color: var(--quiet); font-weight: 600; }
th:first-child, td:first-child, .words th, .words td { text-align: left; }
td:first-child, .words td { overflow-wrap: anywhere; min-width: 8.5rem; }
.words td:nth-child(5) { min-width: 15rem; }
tr:last-child td { border-bottom: 0; }
@media (max-width: 600px) {
  th, td { padding: 5px; }
  td:first-child, .words td { min-width: 7rem; }
}
summary { cursor: pointer; padding: 4px 0; }
"""

# The names that `SparsityLogger` logs.
_OF_SPARSITY = (
    *("sparsity", "moved", "turnover", "drop_fraction", "exploration_rate", "dead_units"),
    *("weight_norm", "gradient_norm_active", "gradient_norm_inactive", "seconds_per_update"),
)

# The browser then loads nothing from the network for this page, and runs no script in it.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def report(
    model: keras.Model,
    history: History = None,
    path: str | os.PathLike[str] = "report.html",
    *,
    export: ExportReport | Sequence[ExportReport] | None = None,
    inputs: Any = None,
    command: str | None = None,
) -> pathlib.Path:
    """Writes a page about a sparse model: its training, its sparsity, its costs.

    The page is one HTML file that contains its pictures. It needs no network and runs no script. It
    uses light or dark colours, as the reader's device does. It shows:

    - the curves of training;
    - the sparsity of each kernel, and how often its connections moved, if `history` is of a
      training with `rigl_tf.callbacks.SparsityLogger`;
    - the number of active connections of each input of the first sparse kernel; if the inputs are
      an image, as a picture of its pixels;
    - the units without an active connection;
    - FLOPs, bytes and memory, beside those of the dense model;
    - the checks and times of an export;
    - the versions and the command.

    `model` may be any built model, with masked or CSR kernels, also a subclassed or recurrent one.
    In a model without masks, as after `rigl_tf.strip`, kernels that contain zeros count as sparse.

    The file is written under another name and renamed when it is complete. It replaces an earlier
    file at `path`.

    Args:
        model: A built `keras.Model`.
        history: The `History` that `fit` returned, its dictionary `{name: list of numbers}`, or the
            path of a CSV file of `keras.callbacks.CSVLogger`. Without it, there are no curves. A
            `History` does not say in which epochs there was validation. With `fit(epochs=6,
            validation_freq=3)` its two numbers are drawn at the epochs 3 and 6. If several
            frequencies fit, the page says which one is assumed.
        path: Path of the file to write. It must end with `.html`. Missing parent directories are
            created. Defaults to `"report.html"`.
        export: What `rigl_tf.export` returned, or a list of several such reports.
        inputs: A batch of arrays or `tf.TensorSpec`s, as the model is called with. It is needed
            only to count FLOPs, and only if the model does not know the shapes of its inputs: if it
            is subclassed, or takes sequences or images of any size. If it is missing then, the page
            says so.
        command: String, the command to show. Defaults to the command that started this Python
            process.

    Returns:
        The `pathlib.Path` of the file.

    Raises:
        ValueError: If an argument is wrong, or the model is not built. Then nothing is written.
        ImportError: If matplotlib is not installed.
        OSError: If the file cannot be written. An earlier file is not changed.

    Example:

    >>> x, y = np.ones((32, 8), "float32"), np.ones((32, 4), "float32")
    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
    >>> model = rigl_tf.sparsify(model, 0.5)
    >>> model.compile(rigl_tf.SET("sgd", end_step=8, update_frequency=2), "mse")
    >>> logger = rigl_tf.callbacks.SparsityLogger()
    >>> history = model.fit(x, y, epochs=8, verbose=0, callbacks=[logger])
    >>> import tempfile
    >>> path = report(model, history, tempfile.mkdtemp() + "/report.html")
    >>> path.read_text()[:15]
    '<!DOCTYPE html>'
    """
    path = pathlib.Path(path).expanduser()
    _check(model, path)
    exports = tables.check_exports(export)
    curves = Curves(history)
    pictures.check_installed()
    parts = [
        *_summary(model, inputs, exports),
        *_training(curves),
        *_sparsity(model, curves),
        *(part for each in exports for part in _export(each)),
        _heading("Where it is from"),
        _table(tables.origin(command), words=True),
    ]
    _write(path, _page(f"{model.name}: a sparse model", parts))
    return path


def _check(model, path):
    check_keras_3(model=model)
    if isinstance(model, keras.Model):
        check_has_call(model)
    if not isinstance(model, keras.Model) or not model.built or not model.weights:
        raise ValueError(
            "`rigl_tf.report` needs a built `keras.Model`: call it on a batch before. "
            f"Received: model={getattr(model, 'name', model)!r}"
        )
    if path.suffix.lower() not in (".html", ".htm") or path.is_dir():
        raise ValueError(
            f"`path` must be a file that ends with '.html'. Received: path={str(path)!r}"
        )


# The parts.


def _summary(model, inputs, exports):
    rows, sentences = tables.costs(model, inputs)
    found, has_masks = kernels.kernels_of(model)
    size = sum(each.size for each in found)
    numbers = {}
    if size:
        active = sum(each.num_active for each in found)
        numbers["sparsity of the sparse kernels"] = f"{1 - active / size:.2%}"
        numbers["active connections"] = f"{active:,}"
    for name, _, sparse, ratio in rows:
        if name.startswith("FLOPs"):
            numbers[f"FLOPs for one example, {ratio or 1} of dense"] = _short(sparse)
    for each in exports[:1]:
        numbers["difference of the export"] = f"{each.max_difference:.2g}"
    cells = "".join(f"<div><b>{_text(v)}</b>{_text(k)}</div>" for k, v in numbers.items())
    note = "" if has_masks or not size else _says("The model has no masks: zeros are counted.")
    return [
        f'<div class="numbers">{cells}</div>' if cells else "",
        note,
        _heading("What it costs"),
        _table(rows, ["", "dense", "now", "share"]),
        *map(_says, sentences),
    ]


def _training(curves):
    drawn = _curves(curves, lambda name: not _is_of_sparsity(name))
    if not drawn:
        return [_heading("Training"), _says("There are no curves, as no history was given.")]
    return [_heading("Training"), _figures(drawn), *map(_says, curves.estimates)]


def _is_of_sparsity(name):
    # With several optimizers there are also `drop_fraction_2` and so on.
    return name in _OF_SPARSITY or name.startswith("drop_fraction_")


def _curves(curves, is_chosen):
    return [
        pictures.curves(name.replace("_", " "), curves.epochs, series)
        for name, series in curves.groups()
        if is_chosen(name)
    ]


def _sparsity(model, curves):
    found, _ = kernels.kernels_of(model)
    if not found:
        return [_heading("Sparsity"), _says("No kernel of this model is sparse.")]
    labels = _labels([each.path for each in found])
    values = [each.sparsity for each in found]
    drawn = pictures.bars(
        "Sparsity of each kernel", labels, values, [f"{value:.1%}" for value in values], 1.0
    )
    moved = moves.of_kernels(found, curves)
    if moved is not None:
        drawn += pictures.bars(
            "Moves for each active connection", labels, moved, [f"{x:.2f}" for x in moved]
        )
    dead = [each.num_dead / each.num_units for each in found]
    if any(dead):
        texts = [f"{each.num_dead:,} of {each.num_units:,}" for each in found]
        drawn += pictures.bars("Units without an active connection", labels, dead, texts)
    drawn.append(_inputs(found[0], labels[0], model))
    drawn += _curves(curves, _is_of_sparsity)
    parts = [_heading("Sparsity"), _figures(drawn)]
    if moved is None:
        parts.append(_says(_why_no_moves(curves)))
    if not any(dead):
        parts.append(_says("An active connection leads to each unit of these kernels."))
    live = tables.num_live(model)
    if live is not None:
        parts.append(
            _says(
                f"Followed through the whole network, {live:,} units have a way from the inputs "
                "and to the outputs; rigl_tf.compact leaves out all others."
            )
        )
    return [*parts, _kernel_table(found, moved)]


def _why_no_moves(curves):
    if "moved" in curves.of_kernels:
        return (
            "How often connections moved is not shown: the kernels in the history have other paths "
            "or sparsities than those of this model, and it is not certain which belong together."
        )
    return (
        "How often connections moved is known if the history is of a training with "
        "rigl_tf.callbacks.SparsityLogger."
    )


def _inputs(kernel, label, model):
    matrix, what = kernels.as_image(kernel, model)
    return pictures.heat_map(f"Inputs of {label}: active connections of {what}", matrix, what)


def _kernel_table(found, moved):
    head = ["kernel", "shape", "active", "of", "sparsity", "dead units", "unread inputs"]
    rows = [
        [
            each.path,
            "x".join(map(str, each.shape)),
            f"{each.num_active:,}",
            f"{each.size:,}",
            f"{each.sparsity:.2%}",
            f"{each.num_dead:,} of {each.num_units:,}",
            f"{each.num_unread:,} of {each.inputs.shape[-1]:,}",
        ]
        for each in found
    ]
    if moved is not None:
        head.append("moves")
        rows = [[*row, f"{x:.2f}"] for row, x in zip(rows, moved, strict=True)]
    is_open = " open" * (len(rows) <= 12)
    return (
        f"<details{is_open}><summary>All {len(rows)} sparse kernels in numbers</summary>"
        f"{_table(rows, head)}</details>"
    )


def _export(report):
    parts = [_heading("The export"), _table(tables.of_export(report), words=True)]
    rows = tables.of_export_kernels(report)
    if rows:
        parts.append(_table(rows, ["kernel", "zeros", "structure", "runs", "why"], words=True))
    advice = dict.fromkeys(each.advice for each in report.kernels if each.advice)
    return [*parts, *map(_says, (*advice, *report.notes))]


# HTML.


def _page(title, parts):
    now = datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    body = "\n".join(part for part in parts if part)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{_text(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        f'<h1>{_text(title)}</h1>\n<p class="quiet">Written by rigl_tf, {_text(now)}</p>\n'
        f"{body}\n</main>\n</body>\n</html>\n"
    )


def _text(text):
    # UTF-8 has no code for half of a surrogate pair, and HTML allows no control characters.
    text = str(text).encode("utf-8", "replace").decode()
    return html.escape("".join(c if c.isprintable() or c.isspace() else "�" for c in text))


def _heading(text):
    return f"<h2>{_text(text)}</h2>"


def _says(text):
    return f"<p>{_text(text)}</p>"


def _figures(drawn):
    return f'<div class="pictures">{"".join(map(_figure, drawn))}</div>'


def _figure(picture):
    width, height = picture.size
    source = "data:image/png;base64,"
    return (
        f"<figure><h3>{_text(picture.title)}</h3><picture>"
        '<source media="(prefers-color-scheme: dark)" '
        f'srcset="{source}{picture.images["dark"]}">'
        f'<img src="{source}{picture.images["light"]}" width="{width}" height="{height}" '
        f'alt="{_text(picture.alt)}"></picture></figure>'
    )


def _table(rows, head=None, words=False):
    def line(cells, tag):
        return f"<tr>{''.join(f'<{tag}>{_text(cell)}</{tag}>' for cell in cells)}</tr>"

    top = f"<thead>{line(head, 'th')}</thead>" if head else ""
    body = "".join(line(row, "td") for row in rows)
    kind = ' class="words"' if words else ""
    return f'<div class="table"><table{kind}>{top}<tbody>{body}</tbody></table></div>'


def _labels(paths):
    """The paths without the parts with which all of them begin or end."""
    parts = [path.split("/") for path in paths]
    if len(parts) > 1:
        while all(len(each) > 1 for each in parts) and len({each[0] for each in parts}) == 1:
            parts = [each[1:] for each in parts]
        while all(len(each) > 1 for each in parts) and len({each[-1] for each in parts}) == 1:
            parts = [each[:-1] for each in parts]
    labels = ["/".join(each) for each in parts]
    return labels if len(set(labels)) == len(paths) else list(paths)


def _short(number):
    value = int(number.replace(",", ""))
    for unit, name in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:.3g} {name}"
    return str(value)


def _write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}-{uuid.uuid4().hex}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
