"""ok, warned, refused, failed: what a run leaves of each kind of case, on the disk, on the screen and in DICOM."""

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from test_cli import detect, thorad_command, write_mask, write_scan
from test_io_dicom import DX, base, blob, save
from test_volume_detection import head, in_place, volume_model  # noqa: F401  (volume_model is a fixture)
from thorad import volume_detection
from thorad.apps import prepare
from thorad.apps.calibrate import calibrate_files
from thorad.check import Check
from thorad.detector import Detector
from thorad.io.images import Image
from thorad.io.scans import find_scans
from thorad.io.volumes import write_nifti
from thorad.results.folder import read_case, read_folder

HAND = "not the model's kind of image: a hand"


@pytest.fixture
def foreign(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Check], None]:
    """Says what a detector's check finds in the images of a name."""
    found: dict[str, Check] = {}
    monkeypatch.setattr(Detector, "check", lambda self, image: found.get(image.name, Check()))
    return found.__setitem__


def cases_of(out: Path) -> dict[str, dict[str, Any]]:
    return {path.parent.name: json.loads(path.read_text()) for path in out.glob("cases/*/case.json")}


def rows_of(out: Path) -> dict[str, dict[str, str]]:
    with (out / "cases.csv").open(newline="") as file:
        return {row["name"]: row for row in csv.DictReader(file)}


def test_each_case_has_its_status(tiny_model: Path, tmp_path: Path, foreign: Callable[[str, Check], None]) -> None:
    for number, name in enumerate(("good", "thick", "hand")):
        write_scan(tmp_path / "in" / f"{name}.png", number)
    (tmp_path / "in" / "broken.png").write_bytes(b"none")
    (tmp_path / "in" / "notes.txt").write_text("x")
    (tmp_path / "in" / ".hidden.png").write_text("x")
    foreign("thick", Check(warnings=("thick slices",)))
    foreign("hand", Check(refusals=(HAND,), warnings=("large",)))
    out = tmp_path / "out"
    run = (tiny_model, tmp_path / "in", "--out", out, "--threshold", 0.1)
    result = detect(*run)
    assert result.exit_code == 1
    assert "2 done (1 of them warned), 1 refused, 1 failed" in result.output
    assert "Left out 2: .txt (1), hidden (1)." in result.output
    assert f"hand refused: {HAND} ...\n" in result.output, "the first reason; all are in the table"
    assert "--force detects in it all the same" in result.output
    ranked, _, apart = result.output.partition("warned, so not among them")
    assert "good" in ranked.partition("highest scores")[2]
    assert "thick" in apart
    assert "thick" not in ranked.partition("highest scores")[2]

    assert {name: row["status"] for name, row in rows_of(out).items()} == {
        **{"good": "ok", "thick": "warned", "hand": "refused", "broken": "failed"}
    }
    about = json.loads((out / "run.json").read_text())
    assert about["cases"] == {"ok": 1, "warned": 1, "refused": 1, "failed": 1}
    assert about["left_out"] == {".txt": 1, "hidden": 1}
    refused = rows_of(out)["hand"]
    assert refused["message"] == f"{HAND}; large"
    assert [column for column, cell in refused.items() if cell] == ["name", "source", "status", "message"]
    assert [path.name for path in (out / "cases" / "hand").iterdir()] == ["case.json"]
    assert cases_of(out)["thick"]["forced"] is False

    done = {name: (out / "cases" / name / "case.json").stat().st_mtime_ns for name in ("good", "thick", "hand")}
    again = detect(*run)
    assert again.exit_code == 1
    assert "2 done (2 of them before, 1 of them warned), 1 refused, 1 failed" in again.output
    assert done == {name: (out / "cases" / name / "case.json").stat().st_mtime_ns for name in done}

    forced = detect(*run, "--force")
    assert forced.exit_code == 1, "one still can't be read"
    assert "3 done (2 of them before, 2 of them warned), 1 failed" in forced.output
    case = cases_of(out)["hand"]
    assert (case["status"], case["forced"], case["message"]) == ("warned", True, f"forced: {HAND}; large")
    assert case["score"] > 0
    assert (out / "cases" / "hand" / "mask.png").is_file()
    assert json.loads((out / "run.json").read_text())["cases"] == {"ok": 1, "warned": 2, "refused": 0, "failed": 1}
    assert "2 done (2 of them before, 1 of them warned), 1 refused" in detect(*run).output, "nobody forced it this time"
    assert [path.name for path in (out / "cases" / "hand").iterdir()] == ["case.json"]


def test_nothing_of_an_earlier_result_stays_beside_a_refusal_or_a_failure(
    tiny_model: Path, tmp_path: Path, foreign: Callable[[str, Check], None]
) -> None:
    path = tmp_path / "in" / "x"
    path.parent.mkdir()
    dataset = base(DX, "DX", blob((34, 33, 1))[:, :, 0].T.copy(), PixelSpacing=[0.2, 0.2])
    content = save(dataset, path).read_bytes()
    out = tmp_path / "out"
    run = (tiny_model, tmp_path / "in", "--out", out, "--threshold", 0.1)
    assert detect(*run).exit_code == 0
    (name,) = cases_of(out)
    objects = out / "cases" / name / "dicom"
    assert (objects / "segmentation.dcm").is_file()
    said = pydicom.dcmread(objects / "segmentation.dcm")
    assert said.SeriesDescription == "thorad map, research use only"

    foreign(name, Check(refusals=(HAND,)))
    path.write_bytes(content)  # changed since
    assert detect(*run).exit_code == 1
    assert not list(objects.rglob("*.dcm"))
    assert cases_of(out)[name]["score"] is None

    assert detect(*run, "--force").exit_code == 0
    written = sorted(objects.rglob("*.dcm"))
    assert [file.name for file in written] == ["0001.dcm", "segmentation.dcm"]
    for file in written:
        assert "forced: not the model's kind" in pydicom.dcmread(file).SeriesDescription
    assert HAND in pydicom.dcmread(objects / "overlay" / "0001.dcm").DerivationDescription

    path.write_bytes(content[:-900])
    assert detect(*run).exit_code == 1
    assert cases_of(out)[name]["status"] == "failed"
    assert not list(objects.rglob("*.dcm"))


def test_a_refused_volume_keeps_the_picture_of_its_registration(
    volume_model: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    volume = head()
    write_nifti(tmp_path / "in" / "head.nii.gz", volume.voxels, volume, "")

    def failed(volume: Any, *, skull: bool) -> Any:
        return replace(in_place(volume, "the registration failed"), doubtful=True)

    monkeypatch.setattr(volume_detection, "register", failed)
    out = tmp_path / "out"
    run = (volume_model, tmp_path / "in", "--out", out, "--method", "zscore", "--threshold", 0.5)
    result = detect(*run)
    assert result.exit_code == 1
    folder = out / "cases" / "head"
    assert sorted(path.name for path in folder.iterdir()) == ["case.json", "registration.json", "registration.png"]
    assert detect(*run, "--force").exit_code == 0
    case = read_case(folder)
    assert case is not None
    assert (case.status, case.forced, case.message) == ("warned", True, "forced: the registration failed")
    assert {"registration.png", "mask.nii.gz"} <= {path.name for path in folder.iterdir()}


def test_old_folders_are_read_as_what_they_say(tmp_path: Path) -> None:
    content = {"name": "a", "source": "a.png", "score": 0.1, "status": "ok", "message": "it fits badly"}
    for name, message in (("a", "it fits badly"), ("b", "")):
        (tmp_path / "cases" / name).mkdir(parents=True)
        (tmp_path / "cases" / name / "case.json").write_text(json.dumps({**content, "name": name, "message": message}))
    (tmp_path / "run.json").write_text(json.dumps({"options": {}, "overlay_maximum": 0.1}))
    cases = read_folder(tmp_path).cases
    assert [(case.status, case.done, case.forced) for case in cases] == [("warned", True, False), ("ok", True, False)]


def test_names_and_reasons_act_on_no_terminal(
    tiny_model: Path, tmp_path: Path, foreign: Callable[[str, Check], None]
) -> None:
    write_scan(tmp_path / "in" / "\x1b[31mred\u202e.png")
    (tmp_path / "in" / "\x1b]0;title\x07.png").write_bytes(b"none")
    (name,) = (name for name in find_scans([tmp_path / "in"]) if "red" in name)
    foreign(name, Check(refusals=("a\x1b[2Jhand",)))
    result = detect(tiny_model, tmp_path / "in", "--out", tmp_path / "out")
    assert result.exit_code == 1
    shown = result.output.replace("\n", "")
    assert shown.isprintable()
    assert r"a\x1b[2Jhand" in shown
    assert (tmp_path / "out" / "cases.csv").read_text().replace("\n", "").isprintable()


def test_the_check_is_asked_once_before_the_method(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refused image costs no network call, whoever asks."""
    asked: list[str] = []

    def check(self: Detector, image: Image) -> Check:
        asked.append(image.name)
        return Check(refusals=(HAND,))

    monkeypatch.setattr(Detector, "check", check)
    monkeypatch.setattr(Detector, "_restore", lambda *_: pytest.fail("the network was called"))
    with pytest.raises(Exception, match="refused: not the model's kind"):
        Detector(tiny_model, method="ddpm", device="cpu").detect(np.random.default_rng(0).random((32, 32)))
    assert asked == ["image"]


def test_a_refused_scan_moves_no_threshold(
    tiny_model: Path, tmp_path: Path, foreign: Callable[[str, Check], None]
) -> None:
    healthy = {f"h{number}": write_scan(tmp_path / "in" / f"h{number}.png", number) for number in range(21)}
    foreign("h3", Check(refusals=(HAND,)))
    foreign("h4", Check(warnings=("thick slices",)))
    found = calibrate_files(Detector(tiny_model, method="zscore", device="cpu"), find_scans(list(healthy.values())))
    assert found.calibration.scans == 20
    assert found.failed == {"h3": f"{healthy['h3']}: refused: {HAND}"}


def test_an_evaluation_tells_what_its_model_cannot_judge(
    tiny_model: Path, tmp_path: Path, foreign: Callable[[str, Check], None]
) -> None:
    rows = []
    for number in range(4):
        write_scan(tmp_path / f"{number}.png", number, lesion=number < 2)
        rows.append(f"{number}.png,{write_mask(tmp_path / 'masks' / f'{number}.png').name if number < 2 else ''}")
    table = tmp_path / "cases.csv"
    table.write_text("image,mask\n" + "\n".join(row.replace(",", ",masks/") if row[-1] != "," else row for row in rows))
    foreign("2", Check(refusals=(HAND,)))
    options = ("--method", "zscore", "--bootstrap", 0, "--permutations", 0, "--model", tiny_model, "--device", "cpu")
    result = thorad_command("evaluate", table, "--out", tmp_path / "out", *options)
    assert result.exit_code == 0
    assert "1 of 4 images are not what model 'tiny' can judge, and are measured all the same" in result.output
    assert json.loads((tmp_path / "out" / "run.json").read_text())["refused"] == {
        "tiny": {str(tmp_path / "2.png"): HAND}
    }


def test_slices_of_a_failed_registration_are_in_no_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = head()
    for name in ("good", "bad"):
        write_nifti(tmp_path / "in" / f"{name}.nii.gz", volume.voxels, volume, "")

    def failed(volume: Any, *, skull: bool) -> Any:
        return replace(in_place(volume, "the registration failed"), doubtful=volume.name == "bad")

    monkeypatch.setattr(prepare, "register", failed)
    result = thorad_command("prepare", tmp_path / "in", "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "bad refused: the registration failed" in result.output
    with (tmp_path / "out" / "slices.csv").open(newline="") as file:
        assert [row["volume"] for row in csv.DictReader(file)] == ["good"]
    assert (tmp_path / "out" / "bad" / "overlay.png").is_file()
