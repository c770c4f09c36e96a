"""What a notebook shows of a detection."""

import base64
import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image

from thorad import Detector
from thorad.io.images import Image
from thorad.pictures import overlay


def pictures(html: str) -> list[np.ndarray]:
    found = re.findall(r'src="data:image/png;base64,([^"]+)"', html)
    return [np.asarray(PIL.Image.open(io.BytesIO(base64.b64decode(text)))) for text in found]


def test_a_detection_shows_itself(tiny_model: Path) -> None:
    pixels = np.random.default_rng(0).random((40, 30), np.float32) + 0.1
    found = Detector(tiny_model, method="zscore", device="cpu", threshold=0.5).detect(Image(pixels, "a.png", "<a>"))
    html = found._repr_html_()
    scan, healthy, over = pictures(html)
    assert scan.shape == healthy.shape == (40, 30)
    np.testing.assert_array_equal(scan, np.rint(255 * found.image).astype(np.uint8))
    assert found.overlay_maximum is not None
    np.testing.assert_array_equal(over, overlay(found.image, found.anomaly_map, found.overlay_maximum))
    assert "<b>&lt;a&gt;</b>" in html
    assert f"score {found.score:.4g}, {len(found.findings or ())} findings" in html
    assert "<script" not in html
    assert "http" not in html


def test_large_pictures_are_reduced_and_without_a_scale_the_map_has_its_own(tiny_model: Path) -> None:
    pixels = np.random.default_rng(0).random((900, 450), np.float32)
    found = Detector(tiny_model, method="zscore", device="cpu").detect(Image(pixels, "a.png", "a"))
    html = replace(found, overlay_maximum=None, p_value=0.25)._repr_html_()
    assert [picture.shape[:2] for picture in pictures(html)] == [(320, 160)] * 3
    assert f"colours to {found.anomaly_map.max():.3g}" in html
    assert "p = 0.25" in html
