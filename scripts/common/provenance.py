"""Where a result comes from: the command, the versions, the machine."""

import hashlib
import os
import platform
import subprocess
import sys

_CHANGES = "+changes"
_ROOMS = ("rigl_tf", "models", "chromium", "scripts")


def versions():
    """Versions of what a result depends on, and the machine, as `{name: text}`."""
    import keras
    import numpy
    import tensorflow as tf

    return {
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "numpy": numpy.__version__,
        "revision": git_revision(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }


def git_revision():
    """The commit that is checked out, with `+changes` if the tree differs; `unknown` outside.

    What differs in `results/` is no change: it is what scripts write.
    """
    try:
        revision = _git("rev-parse", "--short", "HEAD")
        changes = _git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":!/results")
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return f"{revision}{_CHANGES}" if changes else revision


def code():
    """A name of the commit's code, which is in the folders of `_ROOMS`; `unknown` outside git.

    Commits that differ in documentation, tests or results alone have the same.
    """
    try:
        trees = _git("rev-parse", *(f"HEAD:{room}" for room in _ROOMS))
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return f"code-{hashlib.sha256(trees.encode()).hexdigest()[:10]}"


def is_clean(revision):
    """Whether a `revision` of a row, as `git_revision` has it, is a commit and no more.

    Example:

    >>> is_clean("git-1a2b3c4"), is_clean("git-1a2b3c4+changes"), is_clean("git-unknown")
    (True, False, False)
    """
    return not revision.endswith((_CHANGES, "unknown")) and " " not in revision


def _git(*arguments):
    here = os.path.dirname(os.path.abspath(__file__))
    done = subprocess.run(
        ["git", *arguments], cwd=here, capture_output=True, text=True, check=True, timeout=10
    )
    return done.stdout.strip()


def line(module):
    """One line for the end of a result: the command that was given, versions and machine."""
    flags = [
        "--data_dir=DATA" if flag.startswith("--data_dir=") else flag
        for flag in sys.argv[1:]
        if not flag.startswith(("--output_dir=", "--only_report", "--part="))
    ]
    command = " ".join(["python -m", module, *flags])
    facts = ", ".join(f"{name} {value}" for name, value in versions().items())
    return f"`{command}` ({facts})"
