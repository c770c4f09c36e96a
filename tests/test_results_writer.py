import csv
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from thorad.data.images import read_mask
from thorad.errors import ThoradError
from thorad.results.writer import COLOURS, ResultWriter, overlay

RUN = {"options": {"method": "thor", "seed": 0, "inputs": ("a", "b")}, "versions": {"thorad": "0.1.0"}}


@dataclass(frozen=True)
class Place:
    """A component of a mask."""

    pixels: int
    peak_position: tuple[int, int]


@dataclass(frozen=True)
class Finding:
    """What a detector returns."""

    name: str
    source: str
    image: np.ndarray
    anomaly_map: np.ndarray
    pseudo_healthy: np.ndarray | None
    score: float
    network_calls: int = 9
    seconds: float = 0.25
    p_value: float | None = None
    mask: np.ndarray | None = None
    findings: tuple[Place, ...] | None = None


def finding(name: str, pseudo_healthy: bool = True) -> Finding:
    generator = np.random.default_rng(len(name))
    image, anomaly_map = generator.random((2, 23, 31))
    return Finding(
        name=name,
        source=f"scans/{name}.png",
        image=image,
        anomaly_map=anomaly_map.astype(np.float32),
        pseudo_healthy=image / 2 if pseudo_healthy else None,
        score=float(anomaly_map.max()) / 3,
    )


def writer(out: Path, run: dict[str, Any] = RUN, overlay_maximum: float = 0.5) -> ResultWriter:
    return ResultWriter(out, run, overlay_maximum=overlay_maximum)


def table(out: Path) -> list[dict[str, str]]:
    with (out / "cases.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def files(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))  # noqa: PTH208 - with hidden ones


def test_a_run(tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    results = writer(out)
    second, first = finding("b-case"), finding("a", pseudo_healthy=False)
    results.write(second)
    results.write(first)
    results.fail("c", "scans/c.png", 'it has "colours", two\nlines')
    results.close(seconds=12.5)

    assert files(out) == ["cases", "cases.csv", "run.json"]
    assert files(out / "cases" / "a") == ["anomaly_map.npy", "case.json", "overlay.png"]
    assert files(out / "cases" / "b-case") == ["anomaly_map.npy", "case.json", "overlay.png", "pseudo_healthy.png"]
    assert files(out / "cases" / "c") == ["case.json"]

    stored = np.load(out / "cases" / "b-case" / "anomaly_map.npy")
    assert stored.dtype == np.float32
    np.testing.assert_array_equal(stored, second.anomaly_map)
    with PIL.Image.open(out / "cases" / "b-case" / "pseudo_healthy.png") as picture:
        assert picture.mode == "L"
        assert np.abs(np.asarray(picture) / 255 - second.pseudo_healthy).max() <= 0.5 / 255 + 1e-6
    with PIL.Image.open(out / "cases" / "a" / "overlay.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), overlay(first.image, first.anomaly_map, 0.5))

    rows = table(out)
    assert [row["name"] for row in rows] == ["a", "b-case", "c"]
    assert rows[0] == {
        "name": "a",
        "source": "scans/a.png",
        "score": repr(first.score),
        "p_value": "",
        "findings": "",
        "network_calls": "9",
        "seconds": "0.25",
        "status": "ok",
        "message": "",
    }
    assert rows[2]["status"] == "failed"
    assert rows[2]["message"] == 'it has "colours", two\nlines'
    assert rows[2]["score"] == rows[2]["seconds"] == ""

    run = json.loads((out / "run.json").read_text())
    assert run["options"] == {"method": "thor", "seed": 0, "inputs": ["a", "b"]}
    assert run["versions"] == {"thorad": "0.1.0"}
    assert run["seconds"] == 12.5
    assert run["status"] == "finished"
    assert run["cases"] == {"ok": 2, "failed": 1}


def test_a_calibrated_case(tmp_path: Path) -> None:
    results = writer(tmp_path)
    mask = np.zeros((23, 31), bool)
    mask[2, 3:7] = True
    places = (Place(4, (2, 5)), Place(1, (9, 9)))
    results.write(replace(finding("a"), p_value=0.25, mask=mask, findings=places))
    results.write(replace(finding("bb"), p_value=1.0, mask=mask & False, findings=()))
    results.write(finding("ccc"))
    results.fail("d", "scans/d.png", "no")
    results.close(1.0)
    np.testing.assert_array_equal(read_mask(tmp_path / "cases" / "a" / "mask.png", (23, 31)), mask)
    with PIL.Image.open(tmp_path / "cases" / "a" / "mask.png") as picture:
        assert np.unique(np.asarray(picture)).tolist() == [0, 255]
    assert not np.asarray(PIL.Image.open(tmp_path / "cases" / "bb" / "mask.png")).any()
    assert "mask.png" not in files(tmp_path / "cases" / "ccc")
    case = json.loads((tmp_path / "cases" / "a" / "case.json").read_text())
    assert case["findings"] == [{"pixels": 4, "peak_position": [2, 5]}, {"pixels": 1, "peak_position": [9, 9]}]
    rows = [(row["name"], row["p_value"], row["findings"]) for row in table(tmp_path)]
    assert rows == [("a", "0.25", "2"), ("bb", "1.0", "0"), ("ccc", "", ""), ("d", "", "")]
    assert results.judged() == {"a": (0.25, 2), "bb": (1.0, 0)}
    assert writer(tmp_path).done_cases() == {"a", "bb", "ccc"}
    (tmp_path / "cases" / "a" / "mask.png").unlink()
    assert writer(tmp_path).done_cases() == {"bb", "ccc"}
    results.write(finding("a"))
    assert "mask.png" not in files(tmp_path / "cases" / "a")


def test_interrupted_run_goes_on_and_ends_the_same(tmp_path: Path) -> None:
    whole = writer(tmp_path / "whole")
    for name in ("a", "bb", "ccc"):
        whole.write(finding(name))
    whole.close(3.0)

    killed = writer(tmp_path / "parts")
    assert killed.done_cases() == set()
    killed.write(finding("bb"))
    killed.fail("a", "scans/a.png", "disk was away")
    assert json.loads((tmp_path / "parts" / "run.json").read_text())["status"] == "running"
    # and here it is killed, in the middle of a case
    (tmp_path / "parts" / "cases" / "ccc").mkdir()
    (tmp_path / "parts" / "cases" / "ccc" / "anomaly_map.npy").write_bytes(b"half")

    going_on = writer(tmp_path / "parts")
    assert going_on.done_cases() == {"bb"}  # the failed one is tried again
    for name in ("ccc", "a"):
        going_on.write(finding(name))
    going_on.close(3.0)
    assert going_on.done_cases() == {"a", "bb", "ccc"}
    for path in (tmp_path / "whole").rglob("*"):
        if path.is_file():
            same = tmp_path / "parts" / path.relative_to(tmp_path / "whole")
            assert same.read_bytes() == path.read_bytes(), path


def test_seconds_add_up(tmp_path: Path) -> None:
    writer(tmp_path).close(3.0)
    writer(tmp_path).close(4.5)
    assert json.loads((tmp_path / "run.json").read_text())["seconds"] == 7.5


@pytest.mark.parametrize("file", ["anomaly_map.npy", "overlay.png", "pseudo_healthy.png", "case.json"])
@pytest.mark.parametrize("damage", ["truncated", "gone"])
def test_a_case_with_a_damaged_file_is_not_done(tmp_path: Path, file: str, damage: str) -> None:
    results = writer(tmp_path)
    results.write(finding("a"))
    results.write(finding("bb"))
    path = tmp_path / "cases" / "a" / file
    if damage == "gone":
        path.unlink()
    elif file == "case.json":
        path.write_bytes(path.read_bytes()[:-20])
        with pytest.raises(ThoradError, match=r"case\.json: damaged .* Delete it"):
            writer(tmp_path).done_cases()
        return
    else:
        path.write_bytes(path.read_bytes()[:-1])
    assert writer(tmp_path).done_cases() == {"bb"}


def test_a_failure_leaves_nothing_of_an_earlier_try(tmp_path: Path) -> None:
    results = writer(tmp_path)
    results.write(finding("a"))
    results.fail("a", "scans/a.png", "no")
    assert files(tmp_path / "cases" / "a") == ["case.json"]
    results.write(finding("a"))
    results.write(finding("a", pseudo_healthy=False))
    assert "pseudo_healthy.png" not in files(tmp_path / "cases" / "a")


def test_other_options_need_another_folder(tmp_path: Path) -> None:
    writer(tmp_path).write(finding("a"))
    before = (tmp_path / "run.json").read_bytes()
    other = {"options": {"method": "ddpm", "seed": 0, "inputs": ["a", "b"], "steps": 5}}
    with pytest.raises(
        ThoradError, match=r"other options: method \(there 'thor', now 'ddpm'\), steps \(there None, now 5\)\. .*--out"
    ):
        writer(tmp_path, other)
    with pytest.raises(ThoradError, match=r"overlay_maximum \(there 0\.5, now 0\.7\)"):
        writer(tmp_path, overlay_maximum=0.7)
    assert (tmp_path / "run.json").read_bytes() == before
    assert writer(tmp_path, {**RUN, "versions": {"thorad": "0.2.0"}}).done_cases() == {"a"}


def test_folders_that_are_not_ours(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ThoradError, match=r"a file stands where a folder is needed\. Choose another --out"):
            writer(out)
    (tmp_path / "some" / "cases").mkdir(parents=True)
    with pytest.raises(ThoradError, match=r"no run\.json"):
        writer(tmp_path / "some")
    for content in ("", "[]", "{}", '{"options": 3, "overlay_maximum": 1}', "\xff"):
        (tmp_path / "run.json").write_text(content, encoding="latin-1")
        with pytest.raises(ThoradError, match=r"run\.json: not the run\.json of a result folder"):
            writer(tmp_path)


def test_unwritable_folder() -> None:
    if not Path("/proc").is_dir():
        pytest.skip("needs a folder that nobody can write in, not even the superuser: /proc")
    with pytest.raises(ThoradError, match=r"can't be (written|read)"):
        writer(Path("/proc/thorad-out"))


@pytest.mark.parametrize("name", ["", "..", ".hidden", "a/b", "/etc"])
def test_names_that_would_leave_the_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="usable as a folder's name"):
        writer(tmp_path).fail(name, "x.png", "no")


def test_sources_that_are_no_utf8(tmp_path: Path) -> None:
    results = writer(tmp_path)
    results.fail("a", os.fsdecode(b"sch\xe4del.png"), "no")
    results.close(1.0)
    assert table(tmp_path)[0]["source"] == "sch\\udce4del.png"


def test_overlay_by_hand() -> None:
    image = np.array([[0.0, 1.0, 0.2, 0.2, 0.2]])
    anomaly_map = np.array([[0.0, -1.0, 1.0, 5.0, 0.5]])
    expected = [[0] * 3, [255] * 3, COLOURS[-1], COLOURS[-1]]
    found = overlay(image, anomaly_map, maximum=1.0)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found[0, :4], expected)
    # Half way: half of the image's 51, half of the colour between the second and third of four.
    np.testing.assert_array_equal(found[0, 4], np.rint(25.5 + (COLOURS[1] + COLOURS[2]) / 4))


def test_one_colour_scale_for_all_cases() -> None:
    image, anomaly_map = np.full((9, 9), 0.4), np.full((9, 9), 0.1)
    np.testing.assert_array_equal(overlay(image, anomaly_map, 1.0), overlay(image, 5 * anomaly_map, 5.0))
    assert (overlay(image, anomaly_map, 1.0) != overlay(image, anomaly_map, 2.0)).any()
