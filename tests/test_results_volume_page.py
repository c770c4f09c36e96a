"""The page of a volume: what it holds, and, where there is a Chromium, what it shows."""

import base64
import gzip
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import PIL.Image
import pytest
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter, minimum_filter

from thorad.errors import ThoradError
from thorad.io.volumes import read_volume
from thorad.records import pixels_sha256
from thorad.results.volume_page import NOT_LOOKED_AT, volume_cases, write_volume_page

SHAPE = (40, 48, 44)
PEAK = (31, 12, 10)
THRESHOLD = 0.05


def oblique(degrees: float, order: tuple[int, int, int] = (0, 1, 2), flips: tuple[int, int, int] = (1, 1, 1)) -> Any:
    """(4, 4): 4 mm voxels, turned about two axes; axis a of the array runs along `order[a]`, backwards where -1."""
    turn, axes = np.radians(degrees), np.zeros((3, 3))
    for axis, (along, flip) in enumerate(zip(order, flips, strict=True)):
        axes[along, axis] = 4.0 * flip
    cos, sin = np.cos(turn), np.sin(turn)
    about_z = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])
    affine = np.eye(4)
    affine[:3, :3] = about_x @ about_z @ axes
    affine[:3, 3] = -affine[:3, :3] @ (np.array(SHAPE) - 1) / 2 + [3, -5, 7]  # the middle lies at (3, -5, 7) mm
    return affine


def make_results(
    folder: Path,
    affine: NDArray[np.float64],
    *,
    name: str = "head",
    peak: tuple[int, int, int] = PEAK,
    shape: tuple[int, int, int] = SHAPE,
    threshold: float | None = THRESHOLD,
    message: str = "",
    method: str = "thor",
) -> Path:
    """Write a result folder with one volume: an ellipsoid with noise, a map that is highest at `peak`, and NaN beyond
    8 slices from it along the array's last axis. The scan lies beside the folder.

    Returns:
        The scan's file.
    """
    generator = np.random.default_rng(0)
    index = np.indices(shape)
    middle = np.array(shape) / 2
    distance = sum(((axis - m) / (0.42 * side)) ** 2 for axis, m, side in zip(index, middle, shape, strict=True))
    head = np.where(distance < 1, 600 + 30 * generator.normal(size=shape), 5 * generator.random(shape))
    from_peak = sum((axis - p) ** 2 for axis, p in zip(index, peak, strict=True))
    anomaly_map = (0.12 * np.exp(-from_peak / 12) + 0.002 * generator.random(shape)).astype(np.float32)
    anomaly_map[peak] = 0.1234
    anomaly_map[np.abs(index[2] - peak[2]) > 8] = np.nan
    case = folder / "cases" / name
    case.mkdir(parents=True)
    scan = folder.parent / "scan.nii.gz"
    healthy = np.where(np.isnan(anomaly_map), np.nan, np.where(distance < 1, 0.5, 0)).astype(np.float32)
    save(scan, head.astype(np.float32), affine)
    save(case / "anomaly_map.nii.gz", anomaly_map, affine)
    save(case / "pseudo_healthy.nii.gz", healthy, affine)
    save(case / "judged.nii.gz", (np.isfinite(anomaly_map) & (distance < 0.8)).astype(np.uint8), affine)
    findings = None
    if threshold is not None:
        mask = np.nan_to_num(anomaly_map) > threshold
        save(case / "mask.nii.gz", mask.astype(np.uint8), affine)
        position = np.argwhere(mask)[0].tolist()  # not the peak, so that the buttons differ
        findings = [
            {"pixels": 9, "volume_mm3": 576.0, "area_mm2": None, "peak": 0.06, "peak_position": position, "mean": 0.05}
        ]
    content = {
        **{"name": name, "source": str(scan), "score": 0.1, "p_value": 0.02, "findings": findings},
        **{"network_calls": 8, "seconds": 1.0, "status": "ok", "message": message, "sizes": {}},
    }
    (case / "case.json").write_text(json.dumps(content))
    run = {"options": {"method": method, "model": "drawn", "threshold": threshold}, "overlay_maximum": 0.1}
    (folder / "run.json").write_text(json.dumps(run))
    return scan


def save(path: Path, voxels: NDArray[Any], affine: NDArray[np.float64]) -> None:
    nibabel.save(nibabel.Nifti1Image(voxels, affine), path)


def about(page: Path) -> dict[str, Any]:
    match = re.search(r'<script type="application/json" id="index">(.*?)</script>', page.read_text(encoding="utf-8"))
    assert match
    found: dict[str, Any] = json.loads(match[1])
    return found


def embedded(page: Path, name: str) -> Any:
    """The packed bytes of an embedded volume, or None."""
    text = page.read_text(encoding="utf-8")
    match = re.search(rf'<script type="text/plain" id="volume-{name}">(.*?)</script>', text)
    return match and gzip.decompress(base64.b64decode(match[1]))


def embedded_nifti(page: Path, name: str) -> tuple[NDArray[Any], NDArray[np.float64]]:
    image = nibabel.Nifti1Image.from_bytes(embedded(page, name))
    return np.asarray(image.dataobj), image.affine


GRIDS = {
    "RAS": oblique(0),
    "LPS": oblique(0, flips=(-1, -1, 1)),
    "oblique PIR": oblique(20, order=(1, 2, 0), flips=(-1, -1, 1)),
}


@pytest.mark.parametrize("grid", GRIDS)
def test_what_is_embedded_is_what_was_given(grid: str, tmp_path: Path) -> None:
    """Each voxel of the page is a voxel of the result, at the same place in mm, with the same value."""
    affine = GRIDS[grid]
    scan = make_results(tmp_path / "results", affine)
    page = write_volume_page(tmp_path / "results", "head", tmp_path / "page.html")
    told = about(page)
    case = tmp_path / "results" / "cases" / "head"
    given = nibabel.load(case / "anomaly_map.nii.gz").get_fdata()
    voxels, where = embedded_nifti(page, "map")
    assert nibabel.aff2axcodes(where) == ("R", "A", "S")
    indices = np.indices(voxels.shape).reshape(3, -1)
    ones = np.ones((1, indices.shape[1]))
    source = np.rint(np.array(told["toSource"]) @ np.vstack([indices, ones]))[:3].astype(int)
    assert np.allclose(affine @ np.vstack([source, ones]), where @ np.vstack([indices, ones]), atol=1e-3)
    assert np.allclose(where, told["affine"], atol=1e-3)

    def of(volume: NDArray[Any]) -> NDArray[Any]:
        return volume[tuple(source)].reshape(voxels.shape)

    expected = of(given)
    assert np.array_equal(voxels == NOT_LOOKED_AT, np.isnan(expected))
    assert np.array_equal(voxels[np.isfinite(expected)], expected[np.isfinite(expected)].astype(np.float32))
    pixels = nibabel.load(scan).get_fdata()
    white = np.percentile(pixels, 98)
    assert told["white"] == pytest.approx(white, rel=1e-6)
    levels = embedded_nifti(page, "scan")[0]
    assert levels.dtype == np.uint8
    assert np.abs(levels / 255 * white - np.clip(of(pixels), 0, white)).max() <= white / 255 * 0.501
    healthy = embedded_nifti(page, "healthy")[0]
    assert np.array_equal(healthy == 0, np.isnan(expected))
    mask = np.unpackbits(np.frombuffer(embedded(page, "mask"), np.uint8))[: voxels.size]
    assert np.array_equal(mask.reshape(voxels.shape, order="F"), of(given) > THRESHOLD)
    judged = np.unpackbits(np.frombuffer(embedded(page, "judged"), np.uint8))[: voxels.size]
    kept = nibabel.load(case / "judged.nii.gz").get_fdata() > 0
    assert np.array_equal(judged.reshape(voxels.shape, order="F"), of(kept))
    assert f"{100 * kept.mean():.2g} % of the voxels were judged." in page.read_text(encoding="utf-8")

    assert told["places"][0]["voxel"] == list(PEAK)
    assert voxels[tuple(told["places"][0]["index"])] == np.float32(0.1234) == np.float32(told["largest"])
    assert voxels[tuple(told["places"][1]["index"])] == np.float32(given[tuple(told["places"][1]["voxel"])])


def test_page_is_self_contained_and_escaped(tmp_path: Path) -> None:
    evil = "</script><img src=x onerror=alert(1)>"
    make_results(tmp_path / "results", oblique(0), message=f"Odd {evil}", method=evil)
    page = write_volume_page(tmp_path / "results", "head", tmp_path / "page.html")
    text = page.read_text(encoding="utf-8")
    policy = re.search(r'<meta http-equiv="Content-Security-Policy" content="([^"]+)">', text)
    assert policy
    assert policy[1].startswith("default-src 'none'; style-src 'sha256-")
    assert "connect-src" not in policy[1]
    assert "unsafe" not in policy[1]
    assert "<img" not in text.replace("<script>var ", "")
    # Three scripts of its own kind, and the data: nothing else begins or ends a script element.
    kinds = re.findall(r"<script( [^>]*)?>", re.sub(r"<script>.*?</script>", "<script></script>", text, flags=re.S))
    assert sorted(kinds) == [
        *["", ""],
        ' type="application/json" id="index"',
        *(f' type="text/plain" id="volume-{name}"' for name in ("healthy", "judged", "map", "mask", "scan")),
    ]
    assert text.count("</script") == len(kinds)
    # Whatever a browser fetches by itself stands in an attribute or in the style.
    markup = re.sub(r"<script.*?</script>", "", text, flags=re.S)
    assert not re.search(r"https?://|@import|url\(", markup)
    assert re.findall(r'(?:src|href)="([^"]*)"', markup) == ["data:,"]
    assert "Research use only" in markup
    assert str(tmp_path) not in text


def test_of_an_earlier_versions_folder_the_slices_count_as_judged(tmp_path: Path) -> None:
    make_results(tmp_path / "results", oblique(0))
    case = tmp_path / "results" / "cases" / "head"
    (case / "judged.nii.gz").unlink()
    page = write_volume_page(tmp_path / "results", "head", tmp_path / "page.html")
    judged = np.unpackbits(np.frombuffer(embedded(page, "judged"), np.uint8))[: np.prod(SHAPE)]
    given = nibabel.load(case / "anomaly_map.nii.gz").get_fdata()
    assert np.array_equal(judged.reshape(SHAPE, order="F"), np.isfinite(given))
    text = page.read_text(encoding="utf-8")
    assert f"{100 * np.isfinite(given).mean():.2g} % of the voxels were in slices that were looked at" in text


def test_large_volume_is_reduced_and_says_so(tmp_path: Path) -> None:
    make_results(tmp_path / "results", oblique(20, flips=(-1, 1, 1)), shape=(33, 48, 40))
    whole = write_volume_page(tmp_path / "results", "head", tmp_path / "whole.html")
    assert "are one here" not in whole.read_text(encoding="utf-8")
    largest = whole.stat().st_size - 20_000
    page = write_volume_page(tmp_path / "results", "head", tmp_path / "page.html", largest=largest)
    assert page.stat().st_size <= largest
    assert "2 x 2 x 2 voxels are one here" in page.read_text(encoding="utf-8")
    told = about(page)
    assert (told["factor"], told["shape"]) == (2, [17, 24, 20])
    small, where = embedded_nifti(page, "map")
    given = nibabel.load(tmp_path / "results" / "cases" / "head" / "anomaly_map.nii.gz").get_fdata()[::-1]
    assert small[3, 6, 5] == np.float32(np.nanmax(given[6:8, 12:14, 10:12]))
    assert small.max() == np.float32(0.1234) == small[tuple(told["places"][0]["index"])]
    centre = np.array([*told["toSource"]]) @ [3, 6, 5, 1]
    assert centre.tolist() == [32 - 6.5, 12.5, 10.5, 1]
    affine = nibabel.load(tmp_path / "scan.nii.gz").affine
    assert np.allclose(where @ [3, 6, 5, 1], affine @ centre, atol=1e-3)


def test_without_scan_threshold_or_with_another_scan(tmp_path: Path) -> None:
    scan = make_results(tmp_path / "results", oblique(0), threshold=None)
    results, out = tmp_path / "results", tmp_path / "page.html"
    elsewhere = scan.rename(tmp_path / "elsewhere.nii.gz")
    text = write_volume_page(results, "head", out).read_text(encoding="utf-8")
    assert "The scan is not in this page" in text
    assert embedded(out, "scan") is None
    assert embedded(out, "mask") is None
    assert [place["label"] for place in about(out)["places"]] == ["Highest value"]
    assert embedded(write_volume_page(results, "head", out, scan=elsewhere), "scan") is not None
    with pytest.raises(ThoradError, match=r"absent\.nii: no such file"):
        write_volume_page(results, "head", out, scan=tmp_path / "absent.nii")
    other = tmp_path / "other.nii.gz"
    save(other, np.random.default_rng(0).random(SHAPE).astype(np.float32), oblique(3))
    with pytest.raises(ThoradError, match=r"other\.nii\.gz: on another grid than the map of head"):
        write_volume_page(results, "head", out, scan=other)
    shutil.copy(other, scan)
    assert "it lies on another grid" in write_volume_page(results, "head", out).read_text(encoding="utf-8")


def test_another_scan_on_the_same_grid_is_not_shown(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The heads of one protocol have one grid."""
    results, out = tmp_path / "results", tmp_path / "page.html"
    scan = make_results(results, oblique(0))
    case = results / "cases" / "head" / "case.json"
    digest = pixels_sha256(read_volume(scan).voxels)
    case.write_text(json.dumps(json.loads(case.read_text()) | {"pixels_sha256": digest}))
    for given in (None, scan):
        assert embedded(write_volume_page(results, "head", out, scan=given), "scan") is not None
    other = tmp_path / "other.nii.gz"
    save(other, np.random.default_rng(0).random(SHAPE).astype(np.float32), oblique(0))
    with pytest.raises(ThoradError, match=r"other\.nii\.gz: not the volume that was looked at as head"):
        write_volume_page(results, "head", out, scan=other)
    shutil.copy(other, scan)
    text = write_volume_page(results, "head", out).read_text(encoding="utf-8")
    assert "The file it came from is another one now: its voxels are others." in text
    assert embedded(out, "scan") is None
    assert "head: its page has no scan. The file it came from is another one now" in caplog.text


def test_the_side_is_asked_for_or_the_runs_whatever_the_scan_came_from(tmp_path: Path) -> None:
    results, out = tmp_path / "results", tmp_path / "page.html"
    make_results(results, GRIDS["oblique PIR"])
    assert about(write_volume_page(results, "head", out))["side"] == "neurological"
    assert about(write_volume_page(results, "head", out, side="radiological"))["side"] == "radiological"
    for beside in ("slices", "dicom"):
        (results / "cases" / "head" / beside).mkdir()
    assert about(write_volume_page(results, "head", out))["side"] == "neurological"
    run = json.loads((results / "run.json").read_text())
    (results / "run.json").write_text(json.dumps({**run, "side": "radiological"}))
    assert about(write_volume_page(results, "head", out))["side"] == "radiological"
    assert about(write_volume_page(results, "head", out, side="neurological"))["side"] == "neurological"


def test_refuses_what_is_no_volume(tmp_path: Path) -> None:
    results = tmp_path / "results"
    make_results(results, oblique(0))
    picture = results / "cases" / "picture"
    picture.mkdir()
    content = json.loads((results / "cases" / "head" / "case.json").read_bytes())
    (picture / "case.json").write_text(json.dumps({**content, "name": "picture"}))
    assert volume_cases(results) == ["head"]
    with pytest.raises(ThoradError, match=r"the case picture is a picture, not a volume\. Its volumes are head"):
        write_volume_page(results, "picture", tmp_path / "page.html")
    with pytest.raises(ThoradError, match="no case 'nobody'"):
        write_volume_page(results, "nobody", tmp_path / "page.html")
    path = results / "cases" / "head" / "anomaly_map.nii.gz"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ThoradError, match=r"anomaly_map\.nii\.gz: missing or damaged"):
        write_volume_page(results, "head", tmp_path / "page.html")
    save(path, np.full(SHAPE, np.nan, np.float32), oblique(0))
    with pytest.raises(ThoradError, match="no voxel was looked at"):
        write_volume_page(results, "head", tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_page_of_a_real_head(shared_data: Path, tmp_path: Path) -> None:
    """Every second voxel of a head of 1 mm; the page reads as the scan does."""
    image = nibabel.load(shared_data / "volumes" / "colin27_t1_1mm.nii.gz")
    voxels = np.asarray(image.dataobj, np.float32)[::2, ::2, ::2]
    affine = image.affine @ np.diag([2, 2, 2, 1])
    scan = make_results(tmp_path / "results", affine, shape=voxels.shape, peak=(65, 50, 47))
    save(scan, voxels, affine)
    page = write_volume_page(tmp_path / "results", "head", tmp_path / "page.html")
    assert page.stat().st_size < 6_000_000
    levels, where = embedded_nifti(page, "scan")
    assert np.allclose(where, affine)
    white = np.percentile(voxels, 98)
    assert np.abs(levels / 255 * white - np.clip(voxels, 0, white)).max() <= white / 255 * 0.501


# ----------------------------------------------------------------------------------------------- in the browser


class Opened:
    """A page in the browser, with all that the browser said and asked for."""

    def __init__(self, chromium: Any, path: Path, *, hatched: bool = False) -> None:
        self.page = chromium.new_page(viewport={"width": 900, "height": 500})
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.url = path.resolve().as_uri()
        self.page.goto(self.url)
        self.page.wait_for_selector("body[data-drawn]", timeout=60_000)
        self.page.locator("#more").evaluate("details => { details.open = true; }")
        self.check("#judged", hatched)
        self.settle()

    def settle(self) -> None:
        """Wait until what changed is drawn."""
        self.page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def picture(self) -> NDArray[np.int64]:
        """What the planes show: (H, W, 3)."""
        self.settle()
        content = self.page.locator("#planes").screenshot()
        return np.asarray(PIL.Image.open(io.BytesIO(content)).convert("RGB")).astype(np.int64)

    def check(self, control: str, on: bool) -> None:
        self.page.locator(control).set_checked(on)

    def show_map(self, on: bool) -> None:
        self.page.locator("#opacity").fill("85" if on else "0")

    def reading(self) -> str:
        self.settle()
        return str(self.page.locator("#reading").text_content())

    def press(self, key: str) -> None:
        self.page.keyboard.press(key)
        self.settle()

    def check_quiet(self) -> None:
        assert self.said == []
        assert [url for url in self.asked if url not in (self.url, "data:,") and not url.startswith("data:image")] == []
        self.page.close()


def middle_of(pixels: NDArray[np.bool_], rows: slice, columns: slice) -> tuple[float, float]:
    """(y, x): the mean of the pixels that are True in a part of the picture."""
    y, x = np.nonzero(pixels[rows, columns])
    assert len(y) > 20
    return float(y.mean()), float(x.mean())


def test_planes_show_right_left_front_and_back_where_they_are(chromium: Any, tmp_path: Path) -> None:
    """The truth is in mm: the peak is to the right of the head's middle, in front of it and below it."""
    affine = GRIDS["oblique PIR"]
    peak = np.rint(np.linalg.inv(affine) @ [3 + 40, -5 + 45, 7 - 40, 1]).astype(int)[:3]
    make_results(tmp_path / "results", affine, peak=tuple(peak.tolist()), threshold=None)
    opened = Opened(chromium, write_volume_page(tmp_path / "results", "head", tmp_path / "page.html"))
    mm = affine @ [*peak, 1]
    reading = opened.reading()
    assert f"Voxel {', '.join(map(str, peak))}" in reading
    told = re.search(r"superior (-?[\d.]+), (-?[\d.]+), (-?[\d.]+) mm", reading)
    assert told
    assert np.allclose([float(axis) for axis in told.groups()], mm[:3], atol=0.06)

    opened.check("#cross", False)
    shown = opened.picture()
    opened.show_map(False)
    bare = opened.picture()
    coloured = np.abs(shown - bare).max(axis=2) > 30
    head = (bare.max(axis=2) > 120) & (np.ptp(bare, axis=2) < 10)
    height, width = coloured.shape
    top, bottom, right = slice(0, height // 2), slice(height // 2, None), slice(int(0.56 * width) + 4, None)
    tiles = {
        "axial": (slice(None), slice(0, int(0.56 * width) - 4)),
        "coronal": (top, right),
        "sagittal": (bottom, right),
    }
    away = {}
    for name, tile in tiles.items():
        spot, middle = middle_of(coloured, *tile), middle_of(head, *tile)
        away[name] = (spot[1] - middle[1], middle[0] - spot[0])  # to the right, up
    assert away["axial"][0] > 15  # right
    assert away["axial"][1] > 15  # anterior
    assert away["coronal"][0] > 8  # right
    assert away["coronal"][1] < -8  # inferior
    assert away["sagittal"][0] > 8  # anterior
    assert away["sagittal"][1] < -8  # inferior

    # The other convention exchanges the sides, and nothing else.
    assert not opened.page.locator("#radiological").is_checked()
    opened.check("#radiological", True)
    bare = opened.picture()
    opened.show_map(True)
    coloured = np.abs(opened.picture() - bare).max(axis=2) > 30
    head = (bare.max(axis=2) > 120) & (np.ptp(bare, axis=2) < 10)
    for name, sign in (("axial", -1), ("coronal", -1), ("sagittal", 1)):
        flipped = middle_of(coloured, *tiles[name])[1] - middle_of(head, *tiles[name])[1]
        assert flipped == pytest.approx(sign * away[name][0], abs=4), name
    exchanged = opened.picture()
    opened.check_quiet()
    asked = write_volume_page(tmp_path / "results", "head", tmp_path / "asked.html", side="radiological")
    opened = Opened(chromium, asked)
    assert opened.page.locator("#radiological").is_checked()
    opened.check("#cross", False)
    np.testing.assert_array_equal(opened.picture(), exchanged)


def test_opens_offline_at_the_peak_and_controls_change_pixels(chromium: Any, tmp_path: Path) -> None:
    make_results(tmp_path / "results", oblique(20, flips=(-1, 1, 1)), name="a<b>&c", message="Overlap is low.")
    page = write_volume_page(tmp_path / "results", "a<b>&c", tmp_path / "page.html")
    opened = Opened(chromium, page, hatched=True)
    assert opened.page.locator("h1").text_content() == "a<b>&c"
    assert opened.page.locator(".warning").first.text_content() == "Overlap is low."
    assert "Research use only" in str(opened.page.locator("header").text_content())
    assert "Voxel 31, 12, 10" in opened.reading()
    assert "Map 0.123" in opened.reading()
    assert "Mask inside" in opened.reading()
    assert opened.page.locator("#threshold-value").input_value() == "0.05"

    start = opened.picture()

    def changed() -> int:
        return int((np.abs(opened.picture() - start).max(axis=2) > 20).sum())

    shown = {}
    for step in (200, 800, 990):
        opened.page.locator("#threshold").fill(str(step))
        shown[step] = changed()
    assert float(opened.page.locator("#threshold-value").input_value()) == pytest.approx(0.1234 * 0.99**2, rel=5e-3)
    # Below the threshold nothing is left, not even faintly: one voxel in each plane is not below it.
    only_peak = opened.picture()
    opened.show_map(False)
    assert 20 < (np.abs(opened.picture() - only_peak).max(axis=2) > 5).sum() < 150
    opened.show_map(True)
    assert shown[200] > 100  # more of the map than at the run's threshold, which is step 637
    assert shown[990] > shown[800] > 20  # less
    opened.page.locator("#threshold-value").fill("0.05")
    opened.page.locator("#threshold-value").press("Enter")
    assert changed() == 0
    for control in ("#outline", "#cross", "#judged"):
        opened.check(control, False)
        assert changed() > 20, control
        opened.check(control, True)
    opened.check("#healthy", True)
    assert changed() > 1000
    opened.check("#healthy", False)
    opened.page.locator("#opacity").fill("20")
    assert changed() > 20
    opened.page.locator("#opacity").fill("85")
    assert changed() == 0
    opened.page.locator("#level").fill("30")
    assert changed() > 1000  # brighter
    opened.page.locator("#reset").click()
    assert changed() == 0

    finding = about(tmp_path / "page.html")["places"][1]
    opened.page.get_by_role("button", name="Finding 1").click()
    assert f"Voxel {', '.join(map(str, finding['voxel']))}" in opened.reading()
    opened.press("p")
    assert "Voxel 31, 12, 10" in opened.reading()
    # This array's first axis runs to the left.
    for key, voxel in (
        ("ArrowRight", "30, 12, 10"),
        ("ArrowUp", "30, 13, 10"),
        ("PageDown", "30, 13, 9"),
        ("Shift+PageUp", "30, 13, 19"),
    ):
        opened.page.locator("#lines").focus()
        opened.press(key)
        assert f"Voxel {voxel} " in opened.reading(), key
    assert "not looked at" in opened.reading()
    opened.press("r")
    assert opened.page.locator("#radiological").is_checked()
    opened.press("ArrowRight")
    assert "Voxel 31, 13, 19" in opened.reading()

    theme = "() => document.documentElement.dataset.theme"
    before = opened.page.evaluate(theme)
    opened.page.locator("#theme").click()
    assert {before, opened.page.evaluate(theme)} == {"light", "dark"}
    opened.check_quiet()


@pytest.mark.parametrize("side", ["neurological", "radiological"])
def test_what_was_not_judged_is_hatched(chromium: Any, side: Any, tmp_path: Path) -> None:
    make_results(tmp_path / "results", oblique(0), peak=(28, 30, 20))
    page = write_volume_page(tmp_path / "results", "head", tmp_path / "page.html", side=side)
    opened = Opened(chromium, page, hatched=True)
    hatched = opened.picture()
    assert "not judged" not in opened.reading()
    opened.check("#judged", False)
    changed = np.abs(hatched - opened.picture()).max(axis=2) > 10
    kept = nibabel.load(tmp_path / "results" / "cases" / "head" / "judged.nii.gz").get_fdata() > 0
    places = opened.page.evaluate("() => planes().map(({ first, last, across, up }) => ({ first, last, across, up }))")
    for plane in places:
        (x0, y0), (x1, y1) = plane["first"], plane["last"]
        shown = kept.take((28, 30, 20)[3 - plane["across"] - plane["up"]], axis=3 - plane["across"] - plane["up"])
        margin = 2.5 * abs(x1 - x0) / len(shown)  # px; of three voxels around a place, all are alike
        for u, v in np.argwhere(maximum_filter(shown, 7) == minimum_filter(shown, 7))[::7]:
            x = x0 + (x1 - x0) * (u + 0.5) / shown.shape[0]
            y = y0 + (y1 - y0) * (v + 0.5) / shown.shape[1]
            top, left = max(0, round(y - margin)), max(0, round(x - margin))
            around = changed[top : round(y + margin), left : round(x + margin)]
            assert around.any() != shown[u, v], (plane, u, v)
    for key in ("g", *["Shift+PageUp"] * 2):
        opened.page.locator("#lines").focus()
        opened.press(key)
    assert opened.page.locator("#judged").is_checked()
    assert "not looked at" in opened.reading()
    opened.page.evaluate("() => go([0, 0, 20])")
    assert re.search(r"Map 0\.\d+, not judged here Scan \(its own units\) [\d.]+ Pseudo-healthy", opened.reading())
    opened.check_quiet()


def test_click_moves_the_cross_hair_and_the_outline_is_the_mask(chromium: Any, tmp_path: Path) -> None:
    make_results(tmp_path / "results", oblique(0), peak=(28, 30, 20))
    opened = Opened(chromium, write_volume_page(tmp_path / "results", "head", tmp_path / "page.html"))
    # The outline's box in the axial plane is the mask's.
    given = nibabel.load(tmp_path / "results" / "cases" / "head" / "mask.nii.gz").get_fdata()[:, :, 20]
    opened.check("#cross", False)
    shown = opened.picture()
    opened.check("#outline", False)
    lined = np.abs(shown - opened.picture()).max(axis=2) > 40
    axial = lined[:, : int(0.56 * lined.shape[1])]
    rows, columns = np.nonzero(axial)
    ratio = (np.ptp(columns) + 1) / (np.ptp(rows) + 1)
    x, y = np.nonzero(given)
    assert ratio == pytest.approx((np.ptp(x) + 1) / (np.ptp(y) + 1), rel=0.12)
    # Voxels are as high as wide: the outline's box gives their size, and with it the place of any voxel on the screen.
    size = (np.ptp(columns) - 2) / (np.ptp(x) + 1)
    middle = (columns.min() + columns.max()) / 2, (rows.min() + rows.max()) / 2
    goal = (12, 22)
    place = (
        middle[0] + size * (goal[0] - (x.min() + x.max()) / 2),
        middle[1] - size * (goal[1] - (y.min() + y.max()) / 2),
    )
    opened.page.locator("#planes").click(position={"x": place[0], "y": place[1]})
    assert "Voxel 12, 22, 20 " in opened.reading()
    opened.check_quiet()


def test_drag_sets_the_window_zooms_and_moves_all_planes(chromium: Any, tmp_path: Path) -> None:
    make_results(tmp_path / "results", oblique(0), peak=(28, 30, 20))
    page = write_volume_page(tmp_path / "results", "head", tmp_path / "page.html")
    opened = Opened(chromium, page, hatched=True)
    start, mouse, box = opened.picture(), opened.page.mouse, opened.page.locator("#planes").bounding_box()
    x, y = box["x"] + 0.2 * box["width"], box["y"] + 0.5 * box["height"]

    def drag(across: int, down: int, button: str = "left") -> int:
        mouse.move(x, y)
        mouse.down(button=button)
        mouse.move(x + across, y + down, steps=3)
        mouse.up(button=button)
        return int((np.abs(opened.picture() - start).max(axis=2) > 20).sum())

    voxel = opened.reading()
    assert drag(0, -60) > 1000
    assert float(opened.page.locator("#level").input_value()) < 50
    opened.page.locator("#reset").click()
    assert int((np.abs(opened.picture() - start).max(axis=2) > 20).sum()) == 0
    opened.press("g")  # hatching stays where it is
    assert drag(0, -80, "right") > 1000  # enlarged
    enlarged = opened.picture()
    drag(40, 25, "middle")
    moved = opened.picture()
    inner = (slice(80, 200), slice(60, 160))  # of the axial plane, without cross-hair and letters
    assert (np.abs(moved[105:225, 100:200] - enlarged[inner]).max(axis=2) > 60).mean() < 0.05
    assert np.abs(moved[inner] - enlarged[inner]).mean() > 3
    assert opened.reading() == voxel, "no drag moves the cross-hair"
    mouse.dblclick(x, y)
    opened.press("g")
    opened.press("p")
    assert int((np.abs(opened.picture() - start).max(axis=2) > 20).sum()) == 0
    mouse.wheel(0, -100)
    assert "Voxel 28, 30, 21 " in opened.reading()
    opened.check_quiet()


def test_truth_on_another_grid_is_outlined(chromium: Any, tmp_path: Path) -> None:
    """The lesion's file has voxels of 2 mm: what the page has is where its mm are."""
    scan = make_results(tmp_path / "results", oblique(0))
    fine = oblique(0) @ np.diag([0.5, 0.5, 0.5, 1])
    lesion = np.zeros(np.array(SHAPE) * 2, np.uint8)
    lesion[56:64, 20:28, 16:24] = 1  # the voxels 28 ... 31, 10 ... 13, 8 ... 11
    save(tmp_path / "lesion.nii.gz", lesion, fine)
    (tmp_path / "truth.csv").write_text(f"image,mask\n{scan.name},lesion.nii.gz\n")
    page = write_volume_page(tmp_path / "results", "head", tmp_path / "page.html", truth=tmp_path / "truth.csv")
    inside = np.unpackbits(np.frombuffer(embedded(page, "truth"), np.uint8))[: np.prod(SHAPE)]
    expected = np.zeros(SHAPE, bool)
    expected[28:32, 10:14, 8:12] = True
    np.testing.assert_array_equal(inside.reshape(SHAPE, order="F"), expected)
    opened = Opened(chromium, page)
    assert "Truth inside" in opened.reading()
    opened.check("#cross", False)
    shown = opened.picture()
    cyan = (shown[..., 0] < 90) & (shown[..., 1] > 180) & (shown[..., 2] > 200)
    assert cyan.sum() > 60
    opened.check("#truth", False)
    gone = opened.picture()
    assert ((gone[..., 0] < 90) & (gone[..., 1] > 180) & (gone[..., 2] > 200)).sum() < 20
    shutil.copy(scan, tmp_path / "other.nii.gz")
    (tmp_path / "truth.csv").write_text("image,mask\nother.nii.gz,lesion.nii.gz\n")
    with pytest.raises(ThoradError, match="none of its 1 images is a case"):
        write_volume_page(tmp_path / "results", "head", tmp_path / "page.html", truth=tmp_path / "truth.csv")
    opened.check_quiet()


def test_a_dicom_folder_is_the_scan(shared_data: Path, tmp_path: Path) -> None:
    """The series with the case's name, among others, on its own grid."""
    from thorad.io.scans import find_scans

    folder = shared_data / "heads" / "heads"
    (scan,) = find_scans([folder / "siemens-hfs"]).values()
    volume = scan.read()
    make_results(tmp_path / "results", volume.affine, name=scan.name, shape=volume.voxels.shape, peak=(20, 20, 12))
    case = tmp_path / "results" / "cases" / scan.name / "case.json"
    case.write_text(case.read_text().replace(str(tmp_path / "scan.nii.gz"), scan.source))
    out = tmp_path / "page.html"
    text = write_volume_page(tmp_path / "results", scan.name, out).read_text(encoding="utf-8")
    assert "was DICOM, whose place isn't kept. Name it with --scan" in text.replace("&#39;", "'")
    assert embedded(out, "scan") is None
    both = tmp_path / "both"
    both.mkdir()
    for name in ("siemens-hfs", "siemens-decubitus"):
        shutil.copytree(folder / name, both / name)
    for given in (folder / "siemens-hfs", both):
        page = write_volume_page(tmp_path / "results", scan.name, out, scan=given)
        levels, _ = embedded_nifti(page, "scan")
        axes = nibabel.orientations.io_orientation(volume.affine)
        expected = nibabel.orientations.apply_orientation(volume.voxels, axes)
        white = np.percentile(np.clip(volume.voxels, 0, None), 98)
        assert np.abs(levels / 255 * white - np.clip(expected, 0, white)).max() <= white / 255 * 0.501
    with pytest.raises(ThoradError, match=rf"holds mr-\w+, not the scan of {scan.name}"):
        write_volume_page(tmp_path / "results", scan.name, out, scan=folder / "siemens-decubitus")
