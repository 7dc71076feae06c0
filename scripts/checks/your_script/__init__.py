"""Training scripts as their users write them, and the two lines that make each of them sparse.

Every file here but `run.py` is a plain Keras script in the style of a published example. It runs
dense by itself. Its docstring ends with the two lines that change, as a diff:

    - model = build_model()
    + model = rigl_tf.sparsify(build_model(), 0.8)
    - optimizer = keras.optimizers.Adam(1e-3)
    + optimizer = rigl_tf.RigL(keras.optimizers.Adam(1e-3), end_step=30, update_frequency=5)

A script leaves two names: `model`, which was trained, and `sample`, a batch to call it with.
"""

import pathlib
import re

DIRECTORY = pathlib.Path(__file__).parent
NAMES = sorted(path.stem for path in DIRECTORY.glob("*.py") if path.stem not in ("__init__", "run"))
_IMPORT = "import keras"
_CHANGE = re.compile(r"^- (.+)\n\+ (.+)$", re.MULTILINE)


def dense(name):
    """The text of a script."""
    return (DIRECTORY / f"{name}.py").read_text()


def sparse(name):
    """The text of a script with its two lines changed, and `import rigl_tf`."""
    return changed(dense(name))


def changed(text):
    """What `sparse` makes of the text of a script.

    Raises:
        ValueError: If its docstring does not change two lines, or one of them is not exactly once
            in the script.
    """
    docstring, quotes, code = text[3:].partition('"""\n')
    changes = _CHANGE.findall(docstring)
    if len(changes) != 2:
        raise ValueError(
            f"The docstring of a script must change two lines. Received: {len(changes)} changes"
        )
    lines = code.split("\n")
    for old, new in changes:
        index = _only(old, lines)
        lines[index] = lines[index].replace(old, new)
    lines.insert(_only(_IMPORT, lines) + 1, "import rigl_tf")
    return '"""' + docstring + quotes + "\n".join(lines)


def _only(wanted, lines):
    """The index of the only line that is `wanted`, but for its indentation."""
    found = [index for index, line in enumerate(lines) if line.strip() == wanted]
    if len(found) != 1:
        raise ValueError(
            f"A line that changes must be in the script once. Received: {wanted!r}, "
            f"{len(found)} times"
        )
    return found[0]
