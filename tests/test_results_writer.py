import csv
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from test_volume_detection import in_place
from thorad.check import Check
from thorad.errors import ThoradError
from thorad.io.images import read_mask
from thorad.io.shards import Shard
from thorad.io.volumes import Volume
from thorad.pictures import COLOURS, annotated, montage, overlay, template_slice, three_planes
from thorad.records import Detection, Finding, StepPictures, VolumeDetection
from thorad.results import writer as module
from thorad.results.writer import ResultWriter

RUN = {"options": {"method": "thor", "seed": 0, "inputs": ("a", "b")}, "versions": {"thorad": "0.1.0"}}


def finding(name: str) -> Detection:
    generator = np.random.default_rng(len(name))
    image, anomaly_map = generator.random((2, 23, 31), np.float32)
    return Detection(
        name=name,
        source=f"scans/{name}.png",
        image=image,
        anomaly_map=anomaly_map,
        pseudo_healthy=image / 2,
        score=float(anomaly_map.max()) / 3,
        network_calls=9,
        seconds=0.25,
        judged=image > 0.5,
    )


def place(pixels: int, *position: int) -> Finding:
    return Finding(pixels, None, None, peak=0.5, peak_position=position, mean=0.25)


def counts(ok: int, failed: int) -> dict[str, int]:
    return {"ok": ok, "warned": 0, "refused": 0, "failed": failed}


def writer(
    out: Path, run: dict[str, Any] = RUN, overlay_maximum: float = 0.5, shard: Shard | None = None
) -> ResultWriter:
    return ResultWriter(out, run, overlay_maximum=overlay_maximum, shard=shard)


def whole_cases(results: ResultWriter) -> set[str]:
    return {case.name for case in results.cases() if case.done and results.is_whole(case)}


def table(out: Path) -> list[dict[str, str]]:
    with (out / "cases.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def files(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))  # noqa: PTH208 - with hidden ones


def test_draws_are_kept(tmp_path: Path) -> None:
    results, one, other = writer(tmp_path), finding("a"), finding("b")
    masks = np.zeros((2, *one.anomaly_map.shape), bool)
    masks[0, :2], masks[1, :1] = True, True
    results.write(replace(one, spread=one.anomaly_map / 2, draw_masks=tuple(masks)))
    results.write(other)
    results.close(1)
    np.testing.assert_array_equal(np.load(tmp_path / "cases" / "a" / "spread.npy"), one.anomaly_map / 2)
    assert not (tmp_path / "cases" / "b" / "spread.npy").exists()
    assert [row["draw_agreement"] for row in table(tmp_path)] == [str(2 / 3), ""]
    assert [case.draw_agreement for case in results.cases()] == [2 / 3, None]
    # Done again by one draw, nothing of the earlier case stays.
    results.write(one)
    assert not (tmp_path / "cases" / "a" / "spread.npy").exists()


def test_a_run(tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    results = writer(out)
    second, first = finding("b-case"), finding("a")
    results.write(second)
    results.write(first)
    results.fail("c", "scans/c.png", 'it has "colours", two\nlines')
    results.close(seconds=12.5)

    assert files(out) == ["cases", "cases.csv", "run.json", "shards"]
    every = ["anomaly_map.npy", "case.json", "judged.png", "overlay.png", "pseudo_healthy.png", "scan.png"]
    assert files(out / "cases" / "a") == files(out / "cases" / "b-case") == every
    assert files(out / "cases" / "c") == ["case.json"]

    stored = np.load(out / "cases" / "b-case" / "anomaly_map.npy")
    assert stored.dtype == np.float32
    np.testing.assert_array_equal(stored, second.anomaly_map)
    with PIL.Image.open(out / "cases" / "b-case" / "pseudo_healthy.png") as picture:
        assert picture.mode == "L"
        assert np.abs(np.asarray(picture) / 255 - second.pseudo_healthy).max() <= 0.5 / 255 + 1e-6
    np.testing.assert_array_equal(read_mask(out / "cases" / "b-case" / "judged.png", (23, 31)), second.judged)
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
        "draw_agreement": "",
        "network_calls": "9",
        "seconds": "0.25",
        "status": "ok",
        "message": "",
    }
    assert rows[2]["status"] == "failed"
    assert rows[2]["message"] == 'it has "colours", two\\x0alines'
    assert rows[2]["score"] == rows[2]["seconds"] == ""

    run = json.loads((out / "run.json").read_text())
    assert run["options"] == {"method": "thor", "seed": 0, "inputs": ["a", "b"]}
    assert run["versions"] == {"thorad": "0.1.0"}
    assert run["seconds"] == 12.5
    assert run["status"] == "finished"
    assert run["cases"] == counts(2, 1)


def test_a_calibrated_case(tmp_path: Path) -> None:
    results = writer(tmp_path)
    mask = np.zeros((23, 31), bool)
    mask[2, 3:7] = True
    places = (place(4, 2, 5), place(1, 9, 9))
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
    unknown = {"area_mm2": None, "volume_mm3": None, "peak": 0.5, "mean": 0.25}
    assert case["findings"] == [
        {"pixels": 4, "peak_position": [2, 5], **unknown},
        {"pixels": 1, "peak_position": [9, 9], **unknown},
    ]
    rows = [(row["name"], row["p_value"], row["findings"]) for row in table(tmp_path)]
    assert rows == [("a", "0.25", "2"), ("bb", "1.0", "0"), ("ccc", "", ""), ("d", "", "")]
    assert [(case.p_value, case.finding_count) for case in results.cases(["a", "bb"])] == [(0.25, 2), (1.0, 0)]
    assert whole_cases(writer(tmp_path)) == {"a", "bb", "ccc"}
    (tmp_path / "cases" / "a" / "mask.png").unlink()
    assert whole_cases(writer(tmp_path)) == {"bb", "ccc"}
    results.write(finding("a"))
    assert "mask.png" not in files(tmp_path / "cases" / "a")


def test_interrupted_run_resumes_and_ends_the_same(tmp_path: Path) -> None:
    whole = writer(tmp_path / "whole")
    for name in ("a", "bb", "ccc"):
        whole.write(finding(name))
    whole.close(3.0)

    killed = writer(tmp_path / "parts")
    assert whole_cases(killed) == set()
    killed.write(finding("bb"))
    killed.fail("a", "scans/a.png", "disk was away")
    assert json.loads((tmp_path / "parts" / "run.json").read_text())["status"] == "running"
    # and here it is killed, in the middle of a case
    (tmp_path / "parts" / "cases" / "ccc").mkdir()
    (tmp_path / "parts" / "cases" / "ccc" / "anomaly_map.npy").write_bytes(b"half")

    going_on = writer(tmp_path / "parts")
    assert whole_cases(going_on) == {"bb"}  # the failed one is tried again
    for name in ("ccc", "a"):
        going_on.write(finding(name))
    going_on.close(3.0)
    assert whole_cases(going_on) == {"a", "bb", "ccc"}
    for path in (tmp_path / "whole").rglob("*"):
        if path.is_file():
            same = tmp_path / "parts" / path.relative_to(tmp_path / "whole")
            assert same.read_bytes() == path.read_bytes(), path


def test_seconds_add_up(tmp_path: Path) -> None:
    writer(tmp_path).close(3.0)
    writer(tmp_path).close(4.5)
    assert json.loads((tmp_path / "run.json").read_text())["seconds"] == 7.5


def test_shards_write_one_result(tmp_path: Path) -> None:
    asked = ["a", "bb", "ccc"]
    first, second = (writer(tmp_path, shard=Shard(index, 2)) for index in (1, 2))
    first.write(finding("a"))
    first.fail("ccc", "scans/ccc.png", "no")
    first.close(3.0, asked)
    run = json.loads((tmp_path / "run.json").read_text())
    assert (run["status"], run["seconds"], run["cases"]) == (
        "running",
        3.0,
        counts(1, 1),
    )
    second.write(finding("bb"))
    second.close(4.5, asked)
    run = json.loads((tmp_path / "run.json").read_text())
    assert (run["status"], run["seconds"], run["cases"]) == (
        "finished",
        7.5,
        counts(2, 1),
    )
    assert [row["name"] for row in table(tmp_path)] == asked
    again = writer(tmp_path, shard=Shard(1, 4))  # split otherwise
    assert json.loads((tmp_path / "run.json").read_text())["status"] == "running"
    again.close(1.0, asked)
    run = json.loads((tmp_path / "run.json").read_text())
    assert (run["status"], run["seconds"]) == ("finished", 8.5)
    assert files(tmp_path / "shards") == ["1-of-2.json", "1-of-4.json", "2-of-2.json"]
    with pytest.raises(ThoradError, match="other options"):
        writer(tmp_path, {"options": {"method": "ddpm"}}, shard=Shard(2, 2))


def test_a_shard_that_ends_while_another_one_writes_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that has read the cases first is the last to write cases.csv: it must see what it has missed."""
    slow, quick = (writer(tmp_path, shard=Shard(index, 2)) for index in (1, 2))
    slow.write(finding("a"))
    write_table = module.write_table

    def held_up(path: Path, *content: Any) -> None:
        monkeypatch.setattr(module, "write_table", write_table)
        quick.write(finding("bb"))
        quick.close(2.0, ["a", "bb"])
        write_table(path, *content)

    monkeypatch.setattr(module, "write_table", held_up)
    slow.close(1.0, ["a", "bb"])
    assert [row["name"] for row in table(tmp_path)] == ["a", "bb"]
    run = json.loads((tmp_path / "run.json").read_text())
    assert (run["status"], run["seconds"], run["cases"]) == (
        "finished",
        3.0,
        counts(2, 0),
    )


def test_a_shard_that_starts_while_another_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read_bytes = Path.read_bytes

    def just_too_early(path: Path) -> bytes:
        monkeypatch.setattr(Path, "read_bytes", read_bytes)
        writer(tmp_path, shard=Shard(2, 2)).write(finding("bb"))
        raise FileNotFoundError(path)

    monkeypatch.setattr(Path, "read_bytes", just_too_early)
    results = writer(tmp_path, shard=Shard(1, 2))
    assert whole_cases(results) == {"bb"}


def test_four_processes_into_one_folder(tmp_path: Path) -> None:
    script = """
import sys
from pathlib import Path
from thorad.io.shards import Shard
from thorad.results.writer import ResultWriter

shard, asked = Shard.parse(sys.argv[2]), [f"c{index}" for index in range(100)]
results = ResultWriter(Path(sys.argv[1]), {"options": {}}, overlay_maximum=1.0, shard=shard)
print("ready", flush=True)
input()
for name in shard.of(dict.fromkeys(asked)):
    results.fail(name, name, "no")
results.close(1.0, asked)
"""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path), f"{index}/4"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in (1, 2, 3, 4)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    for process in processes:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    assert [row["name"] for row in table(tmp_path)] == sorted(f"c{index}" for index in range(100))
    run = json.loads((tmp_path / "run.json").read_text())
    assert (run["status"], run["seconds"], run["cases"]) == (
        "finished",
        4.0,
        counts(0, 100),
    )
    assert files(tmp_path) == ["cases", "cases.csv", "run.json", "shards"], "no part of a file is left"


def test_what_is_no_case_is_passed_over(tmp_path: Path) -> None:
    """Another shard clears the case that it tries again, and file managers leave files."""
    results = writer(tmp_path)
    results.write(finding("a"))
    (tmp_path / "cases" / "being-done").mkdir()
    (tmp_path / "cases" / ".DS_Store").write_bytes(b"")
    assert [case.name for case in results.cases()] == ["a"]
    assert list(results.cases(["gone"])) == []


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
            whole_cases(writer(tmp_path))
        return
    else:
        path.write_bytes(path.read_bytes()[:-1])
    assert whole_cases(writer(tmp_path)) == {"bb"}


def test_a_failure_leaves_nothing_of_an_earlier_try(tmp_path: Path) -> None:
    results = writer(tmp_path)
    results.write(finding("a"))
    results.fail("a", "scans/a.png", "no")
    assert files(tmp_path / "cases" / "a") == ["case.json"]
    results.write(replace(finding("a"), mask=np.ones((23, 31), bool), findings=()))
    results.write(finding("a"))
    assert "mask.png" not in files(tmp_path / "cases" / "a")


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
    assert whole_cases(writer(tmp_path, {**RUN, "versions": {"thorad": "0.2.0"}})) == {"a"}


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


def test_steps_that_were_asked_for(tmp_path: Path) -> None:
    """Of a method with harmonised steps these only, of another one all."""
    clean = np.linspace(-0.1, 1, 16, dtype=np.float32).reshape(4, 4)
    plain, harmonised = StepPictures(70, clean, clean, None), StepPictures(50, clean, clean / 2, 0.3 * clean)
    writer(tmp_path).write(replace(finding("a"), steps=(plain, harmonised)))
    with np.load(tmp_path / "cases" / "a" / "steps.npz") as steps:
        assert steps["timesteps"].tolist() == [50]
        np.testing.assert_array_equal(steps["clean"][0], np.rint(np.clip(clean / 2, 0, 1) * 255).astype(np.uint8))
        np.testing.assert_allclose(steps["maps"][0], 0.3 * clean, rtol=1e-3)
    writer(tmp_path).write(replace(finding("b"), steps=(plain, plain)))
    with np.load(tmp_path / "cases" / "b" / "steps.npz") as steps:
        assert steps["timesteps"].tolist() == [70, 70]
        assert np.isnan(steps["maps"]).all()


AFFINE = np.array([[-2.0, 0, 0, 5], [0, 0, 3, 6], [0, 1, 0, 7], [0, 0, 0, 1]])


def volume_of(slices: tuple[Detection, ...]) -> VolumeDetection:
    """A volume with two slices."""
    voxels = np.random.default_rng(0).random((9, 10, 11), np.float32)
    anomaly_map = np.where(np.arange(11) < 4, voxels, np.nan)
    return VolumeDetection(
        name="v",
        source="v.nii",
        volume=Volume(voxels, AFFINE, "v.nii", "v"),
        registration=replace(in_place(Volume(voxels, AFFINE, "v.nii", "v")), overlap=0.9, similarity=0.8),
        indices=(7, 12),
        slices=slices,
        anomaly_map=anomaly_map,
        pseudo_healthy=anomaly_map / 2,
        judged=anomaly_map > 0.25,
        score=0.3,
        network_calls=18,
        seconds=0.5,
        check=Check(warnings=("it fits badly", "out of range")),
        mask=np.nan_to_num(anomaly_map) > 0.5,
        findings=(place(3, 1, 2, 0),),
    )


def test_a_volume(tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    whole = volume_of((finding("x"), finding("y")))
    anomaly_map, affine = whole.anomaly_map, AFFINE
    results = writer(tmp_path)
    results.write_volume(whole)
    folder = tmp_path / "cases" / "v"
    maps = ["anomaly_map.nii.gz", "case.json", "judged.nii.gz", "mask.nii.gz", "overlay.png", "pseudo_healthy.nii.gz"]
    assert files(folder) == [*maps, "registration.json", "registration.png", "slices"]
    assert files(folder / "slices") == ["007", "012"]
    pictures = ["anomaly_map.npy", "judged.png", "overlay.png", "pseudo_healthy.png", "scan.png"]
    assert files(folder / "slices" / "012") == pictures
    written = nibabel.load(folder / "anomaly_map.nii.gz")
    np.testing.assert_allclose(written.affine, affine, atol=1e-6)
    np.testing.assert_array_equal(np.asarray(written.dataobj), anomaly_map.astype(np.float32))
    assert np.asarray(nibabel.load(folder / "mask.nii.gz").dataobj).sum() == whole.mask.sum()
    np.testing.assert_array_equal(np.asarray(nibabel.load(folder / "judged.nii.gz").dataobj), whole.judged)
    with PIL.Image.open(folder / "overlay.png") as picture:
        assert picture.size == (62, 23)
    assert json.loads((folder / "registration.json").read_text()) == {
        "to_template": np.eye(4).tolist(),
        "overlap": 0.9,
        "similarity": 0.8,
        "slices": [7, 12],
    }
    assert json.loads((folder / "case.json").read_text())["message"] == "it fits badly; out of range"
    assert whole_cases(results) == {"v"}
    (folder / "slices" / "012" / "scan.png").write_bytes(b"")
    assert whole_cases(results) == set()
    results.fail("v", "v.nii", "no more")
    assert [path.name for path in folder.rglob("*") if path.is_file()] == ["case.json"]


def test_slices_lie_as_the_side_has_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ResultWriter, "_write_dicom", lambda *_: Check())
    rng = np.random.default_rng(0)
    slices = tuple(
        replace(finding(name), image=rng.random((120, 100), np.float32), anomaly_map=rng.random((120, 100)))
        for name in "xy"
    )
    tiles = {}
    for side in ("neurological", "radiological"):
        results = ResultWriter(tmp_path / side, RUN, overlay_maximum=0.5, side=side)
        results.write_volume(volume_of(slices))
        tiles[side] = np.asarray(PIL.Image.open(tmp_path / side / "cases" / "v" / "overlay.png"))
        assert json.loads((tmp_path / side / "run.json").read_text())["side"] == side, "what the pages go by"
    with pytest.raises(ThoradError, match=r"side \(there 'radiological', now 'neurological'\)"):
        writer(tmp_path / "radiological")
    of_dicom: Any = object()  # one folder may hold it beside NIfTI
    writer(tmp_path / "dicom").write_volume(volume_of(slices), series=of_dicom)
    from_dicom = np.asarray(PIL.Image.open(tmp_path / "dicom" / "cases" / "v" / "overlay.png"))
    np.testing.assert_array_equal(from_dicom, tiles["neurological"])
    # Between letters, words and scale the pixels are the slices', x to the right or mirrored.
    for start, one in zip((0, 100), slices, strict=True):
        plain = overlay(one.image, one.anomaly_map, 0.5)
        inner = slice(20, 45), slice(15, 85)
        np.testing.assert_array_equal(tiles["neurological"][:, start : start + 100][inner], plain[inner])
        np.testing.assert_array_equal(tiles["radiological"][:, start : start + 100][inner], plain[:, ::-1][inner])
        # What is kept for programs is the same for both, pixel for pixel.
        for side in tiles:
            number = {0: "007", 100: "012"}[start]
            folder = tmp_path / side / "cases" / "v" / "slices" / number
            np.testing.assert_array_equal(np.asarray(PIL.Image.open(folder / "overlay.png")), plain)
            np.testing.assert_array_equal(np.load(folder / "anomaly_map.npy"), one.anomaly_map.astype(np.float32))


def test_three_planes_say_which_side_is_which() -> None:
    shape = (120, 140, 100)
    made = three_planes(np.zeros((140, 380, 3), np.uint8), shape)
    for left, width, height, edges in ((0, 120, 140, "LRAP"), (120, 120, 100, "LRSI"), (240, 140, 100, "PASI")):
        tile = annotated(np.zeros((height, width, 3), np.uint8), tuple(edges))
        np.testing.assert_array_equal(made[:height, left : left + width], tile)
        assert not made[height:, left : left + width].any()


def test_letters_words_and_scale_are_drawn_where_they_belong() -> None:
    black = np.zeros((240, 200, 3), np.uint8)
    left = slice(100, 140), slice(0, 20)
    alone = {letter: annotated(black, (letter, "", "", ""), "", 0.1)[left] for letter in "LR"}
    assert (alone["L"] != alone["R"]).any()
    for side, (on_the_left, on_the_right) in {"neurological": "LR", "radiological": "RL"}.items():
        made = template_slice(black, "slice 95, z = +23 mm", 0.1, side)
        np.testing.assert_array_equal(made[left], alone[on_the_left])
        expected = annotated(black, ("", on_the_right, "", ""), "", 0.1)
        np.testing.assert_array_equal(made[100:140, 180:], expected[100:140, 180:])
        assert made[:20, 90:110].any(), "A"
        assert made[220:, :100].any(), "the words"
    # The scale: nothing below, the strongest colour on top, and what they mean beside them.
    unlabelled = annotated(black, ("", "", "", ""), "", 0.1)
    assert not unlabelled[:150].any()
    column = unlabelled[:, 200 - 4]
    coloured = np.flatnonzero(column.any(axis=1))
    np.testing.assert_array_equal(column[coloured[0]], COLOURS[-1])
    assert column[coloured].sum(axis=1)[-1] < 20
    other = annotated(black, ("", "", "", ""), "", 0.2)
    changed = np.argwhere((unlabelled != other).any(axis=2))
    assert len(changed)
    assert abs(changed[:, 0].min() - coloured[0]) < 10, "the number at the scale's top"
    small = np.zeros((95, 300, 3), np.uint8)
    assert annotated(small, ("L", "R", "A", "P"), "words", 1.0) is small


def test_a_montage_has_rows_of_six() -> None:
    pictures = [np.full((2, 3, 3), value, np.uint8) for value in range(1, 9)]
    made = montage(pictures)
    assert made.shape == (4, 18, 3)
    assert made[0, ::3, 0].tolist() == [1, 2, 3, 4, 5, 6]
    assert made[2, ::3, 0].tolist() == [7, 8, 0, 0, 0, 0]
    assert montage(pictures[:2]).shape == (2, 6, 3)
