"""Opens pages in headless Chromium, for scripts and tests.

`make test-web` installs what is needed: Chromium, and LiteRT.js and puppeteer-core in `.web`.
"""

import json
import pathlib
import re
import shutil
import subprocess
import sys

_MODULES = pathlib.Path(__file__).parents[1] / ".web" / "node_modules"
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def path():
    """The path of Chromium, or `None` if it is not installed."""
    return next(filter(None, map(shutil.which, _NAMES)), None)


def missing():
    """What is missing to run a page, as text; empty if nothing is missing."""
    what = []
    if path() is None:
        what.append("Chromium")
    if shutil.which("node") is None:
        what.append("Node.js")
    what += [
        name for name in ("@litertjs/core", "puppeteer-core") if not (_MODULES / name).is_dir()
    ]
    return f"{', '.join(what)} not installed: `make test-web` does it" if what else ""


def run(folder, screenshot=None):
    """Runs a page that says what it measured.

    Args:
        folder: A folder that `rigl_tf.export` wrote.
        screenshot: Path of a PNG file to write, with a picture of the page.

    Returns:
        Dictionary with the numbers that the page measured.

    Raises:
        RuntimeError: If something is missing, the page fails, or its console shows an error.
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
            command = ["node", program, _MODULES, path(), address]
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


def look(page, folder, widths=(400, 1400)):
    """Opens a page at several widths, with light and with dark colours.

    Args:
        page: Path of the HTML file.
        folder: Path of the folder for the screenshots `400-light.png` and so on.
        widths: Integers, in pixels.

    Returns:
        Dictionary with `views`, a dictionary of what was seen for each width and colour scheme;
        `requests`, the addresses that the page requested; and `errors`, the errors on its console.
    """
    if missing():
        raise RuntimeError(missing())
    program = pathlib.Path(__file__).with_name("look.mjs")
    address = pathlib.Path(page).resolve().as_uri()
    command = ["node", program, _MODULES, path(), address, folder, ",".join(map(str, widths))]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=300)
    if done.returncode:
        raise RuntimeError(f"Chromium failed: {done.stderr.strip()[-500:]}")
    return json.loads(done.stdout)
