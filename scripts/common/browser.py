"""Headless Chromium, to look at pages: those of `rigl_tf.export(..., format="web")`, and reports.

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


def look(page, folder, widths=(400, 1400)):
    """Looks at a page of one file, at these widths in pixels, in light and in dark.

    Args:
        page: Path of the HTML file.
        folder: Where the screenshots go, `400-light.png` and so on.
        widths: Integers.

    Returns:
        Dictionary: `views`, a dictionary for each width and scheme, with what was seen; `requests`,
        the addresses that were asked for; `errors`, what was on the console.
    """
    if missing():
        raise RuntimeError(missing())
    program = pathlib.Path(__file__).with_name("look.mjs")
    address = pathlib.Path(page).resolve().as_uri()
    command = ["node", program, _MODULES, chromium(), address, folder, ",".join(map(str, widths))]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=300)
    if done.returncode:
        raise RuntimeError(f"Chromium failed: {done.stderr.strip()[-500:]}")
    return json.loads(done.stdout)
