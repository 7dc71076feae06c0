"""Pages that the library writes, in a headless Chromium where there is one."""

import base64
import json
import re

import numpy as np
import pytest
from helpers import covers_part
from pages import HISTORY, lenet, many_layers, mobile, several_inputs
from running import needs_browser

import rigl_tf
from scripts.common import browser

pytestmark = covers_part


@needs_browser
@pytest.mark.parametrize("make", [mobile, several_inputs])
def test_a_web_page(make, tmp_path):
    rigl_tf.export(make(), tmp_path / "page", "web", measure=False)
    report = browser.run(tmp_path / "page", tmp_path / "page.png")
    assert report["same"]
    assert report["bytes"]["sparse"] == (tmp_path / "page" / "sparse.tflite").stat().st_size
    assert report["rounds"] >= 5
    for latency in report["latencies"].values():
        assert 0 <= latency["least"] <= latency["median"] <= latency["most"]
    assert (tmp_path / "page.png").stat().st_size > 10_000


@needs_browser
def test_a_web_page_sees_other_outputs(tmp_path):
    rigl_tf.export(mobile(), tmp_path / "page", "web", measure=False)
    other = tmp_path / "page" / "model.json"
    page = json.loads(other.read_text())
    (output,) = page["outputs"]
    output["data"] = base64.b64encode(np.asarray([1, 2, 3], "<f4").tobytes()).decode()
    other.write_text(json.dumps(page))
    assert not browser.run(tmp_path / "page")["same"]


@needs_browser
def test_a_broken_web_page_is_told_of(tmp_path):
    rigl_tf.export(mobile(), tmp_path / "page", "web", measure=False)
    (tmp_path / "page" / "sparse.tflite").unlink()
    with pytest.raises(RuntimeError, match=r"The page has errors: .*sparse\.tflite: 404"):
        browser.run(tmp_path / "page")


def contrast(one, other):
    """The contrast of two colours, as WCAG 2 defines it; text needs 4.5."""

    def luminance(colour):
        parts = [float(part) / 255 for part in colour]
        parts = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@needs_browser
@pytest.mark.parametrize("make", [lenet, many_layers])
def test_a_report(make, tmp_path):
    path = rigl_tf.report(make(), HISTORY, tmp_path / "report.html")
    seen = browser.look(path, tmp_path)
    assert seen["errors"] == []
    assert set(seen["requests"]) == {path.as_uri()}
    assert [(v["width"], v["scheme"]) for v in seen["views"]] == [
        (400, "light"),
        (400, "dark"),
        (1400, "light"),
        (1400, "dark"),
    ]
    for view in seen["views"]:
        assert len(view["images"]) >= 6
        assert view["scrollWidth"] <= view["width"]
        assert view["fontSize"] >= 14
        ink, paper = (
            [int(part) for part in re.findall(r"\d+", view[key])] for key in ("color", "background")
        )
        assert contrast(ink, paper) > 7
        is_dark = view["scheme"] == "dark"
        assert (sum(paper) < 384) == is_dark
        for image, corner in zip(view["images"], view["papers"], strict=True):
            assert image["alt"]
            assert image["naturalWidth"] > 500
            # A picture is drawn for 422 pixels, with letters of 15: at 300 these have 11.
            assert 300 <= image["width"] <= 560
            assert (sum(corner) < 384) == is_dark
            assert contrast(ink, corner) > 7
