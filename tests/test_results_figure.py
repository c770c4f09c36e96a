"""Figures of real files: what is drawn where, and what is refused."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from result_folders import make_results
from thorad.errors import ThoradError
from thorad.results import figure as module
from thorad.results.figure import write_figure

pytest.importorskip("matplotlib", reason="figures need the extra plots")


def texts(svg: Path) -> list[str]:
    """What an SVG of matplotlib says: it draws letters as shapes, and keeps the words in comments."""
    return re.findall(r"<!-- (.+?) -->", svg.read_text(encoding="utf-8"))


def test_panels_of_cases(tmp_path: Path) -> None:
    truth = make_results(tmp_path / "results", 3)
    write_figure(tmp_path / "results", ["case-000", "case-001"], tmp_path / "figure.svg", truth=truth)
    said = texts(tmp_path / "figure.svg")
    columns = ["input", "pseudo-healthy", "anomaly map", "overlay", "truth"]
    assert [word for word in said if word in columns] == [*columns, "anomaly map"]  # the last is the scale's
    assert [word for word in said if word.startswith("case-")] == ["case-000", "case-001"]
    assert "0.10" in said  # the scale ends where the run's does
    write_figure(tmp_path / "results", ["case-000"], tmp_path / "no-truth.svg")
    assert "truth" not in texts(tmp_path / "no-truth.svg")


def test_map_has_the_scale_of_the_run_not_its_own(tmp_path: Path) -> None:
    """The map of case 1 is twice as high as that of case 0: in one figure its colours must be brighter."""
    make_results(tmp_path / "results", 2)
    write_figure(tmp_path / "results", ["case-000", "case-001"], tmp_path / "figure.png")
    picture = np.asarray(Image.open(tmp_path / "figure.png").convert("RGB")).astype(int)
    upper, lower = np.array_split(picture, 2)
    # 0.02 and 0.04 of 0.1, on black over violet over magenta: what is between the colours is only in the maps.
    table = module._colour_map()
    for part, value in ((upper, 0.02), (lower, 0.04)):
        colour = np.rint(255 * np.asarray(table(value / 0.1)[:3]))
        near = np.abs(part - colour).max(axis=-1) < 14
        assert near.sum() > 50, value
        other = lower if part is upper else upper
        assert near.sum() > 3 * (np.abs(other - colour).max(axis=-1) < 14).sum()


@pytest.mark.parametrize(("suffix", "begins"), [("pdf", b"%PDF-"), ("png", b"\x89PNG"), ("svg", b"<?xml")])
def test_kinds_and_the_same_file_twice(tmp_path: Path, suffix: str, begins: bytes) -> None:
    make_results(tmp_path / "results", 1)
    for name in "ab":
        write_figure(tmp_path / "results", ["case-000"], tmp_path / f"{name}.{suffix}")
    assert (tmp_path / f"a.{suffix}").read_bytes().startswith(begins)
    if suffix != "svg":  # whose ids are random
        assert (tmp_path / f"a.{suffix}").read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()


def test_restoration_shows_every_step(tmp_path: Path) -> None:
    make_results(tmp_path / "results", 1, steps=3)
    write_figure(tmp_path / "results", ["case-000"], tmp_path / "figure.svg", layout="restoration")
    said = texts(tmp_path / "figure.svg")
    columns = ["input", "t = 300", "t = 200", "t = 100", "result"]
    assert [word for word in said if word in columns] == columns


def test_slice_of_a_volume(tmp_path: Path) -> None:
    make_results(tmp_path / "results", 1, slices=3)
    write_figure(tmp_path / "results", ["case-000"], tmp_path / "highest.svg")
    assert any("slice 90" in word for word in texts(tmp_path / "highest.svg"))
    write_figure(tmp_path / "results", ["case-000"], tmp_path / "asked.svg", slice_number=95)
    assert any("slice 95" in word for word in texts(tmp_path / "asked.svg"))
    with pytest.raises(ThoradError, match=r"no slice 7\. There are slice 90, z = \+18 mm, slice 95"):
        write_figure(tmp_path / "results", ["case-000"], tmp_path / "none.svg", slice_number=7)


def test_square_is_cut_to_the_image_it_was_padded_from() -> None:
    square = np.arange(64).reshape(8, 8)
    np.testing.assert_array_equal(module._cut(square, 16, 8), square[:, 2:6])
    np.testing.assert_array_equal(module._cut(square, 4, 8), square[2:6])


def test_what_cannot_be_drawn_is_told(tmp_path: Path) -> None:
    make_results(tmp_path / "results", 1, failed=["broken"])
    make_results(tmp_path / "older" / "results", 1, scans=False)
    for folder, name, out, layout, message in (
        ("results", "case-000", "figure.jpg", "cases", r"ends in \.pdf, \.png, \.svg"),
        ("results", "nobody", "figure.png", "cases", r"no case 'nobody'\. It holds broken, case-000"),
        ("results", "broken", "figure.png", "cases", "failed: broken: broken"),
        ("results", "case-000", "figure.png", "restoration", "kept no steps"),
        ("older/results", "case-000", "figure.png", "cases", "kept no scan"),
    ):
        with pytest.raises(ThoradError, match=message):
            write_figure(tmp_path / folder, [name], tmp_path / out, layout=layout)  # type: ignore[arg-type]
        assert not (tmp_path / out).exists()
