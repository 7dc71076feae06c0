"""Headless Chromium, to look at the folders that `rigl_tf.export(..., format="web")` writes.

`make test-web` installs what it needs: Chromium, and in `.web` LiteRT.js and puppeteer-core.
"""

import json
import pathlib
import re
import shutil
import subprocess
import sys

_ROOT = pathlib.Path(__file__).parents[2]
_MODULES = _ROOT / ".web" / "node_modules"
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def chromium():
    """The path of a Chromium, `None` if there is none."""
    return next(filter(None, map(shutil.which, _NAMES)), None)


def missing():
    """What is missing to run a page, in words; empty if nothing is."""
    what = []
    if chromium() is None:
        what.append("Chromium")
    if shutil.which("node") is None:
        what.append("Node.js")
    what += [
        name for name in ("@litertjs/core", "puppeteer-core") if not (_MODULES / name).is_dir()
    ]
    return f"{', '.join(what)} not installed: `make test-web` does it" if what else ""


def run(folder, screenshot=None):
    """Runs the page of a folder.

    Args:
        folder: That `rigl_tf.export` wrote.
        screenshot: Path of a PNG of the page.

    Returns:
        What the page measured, as a dictionary.

    Raises:
        RuntimeError: If anything is missing, the page fails, or an error is on its console.
    """
    if missing():
        raise RuntimeError(missing())
    folder = pathlib.Path(folder)
    if not (folder / "node_modules").exists():
        (folder / "node_modules").symlink_to(_MODULES, target_is_directory=True)
    with subprocess.Popen(
        [sys.executable, str(folder / "serve.py"), "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as server:
        try:
            address = re.match(r"(http://\S+)", server.stdout.readline()).group(1)
            program = pathlib.Path(__file__).with_name("page.mjs")
            command = ["node", program, _MODULES, chromium(), address]
            done = subprocess.run(
                [*map(str, command), *([str(screenshot)] if screenshot else [])],
                capture_output=True,
                text=True,
                timeout=400,
            )
        finally:
            server.terminate()
    if done.returncode:
        raise RuntimeError(f"Chromium failed: {done.stderr.strip()[-500:]}")
    result = json.loads(done.stdout)
    error = result["errors"] or (result["report"] or {}).get("error")
    if error:
        raise RuntimeError(f"The page has errors: {error}")
    return result["report"]
