"""Reading result folders, and which row of a table speaks of which case."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from result_folders import make_results
from test_fuzz import damaged
from thorad.cli import app
from thorad.datasets.cases import Case
from thorad.errors import ThoradError
from thorad.results.folder import match_truth, method_title, read_folder, read_pictures, truth_of
from thorad.results.gallery import case_entry
from thorad.results.report import write_report


def test_folder_is_read_as_it_was_written(tmp_path: Path) -> None:
    make_results(tmp_path / "results", 2, steps=2, failed=["broken"])
    folder = read_folder(tmp_path / "results")
    assert [(case.name, case.status) for case in folder.cases] == [
        ("broken", "failed"),
        ("case-000", "ok"),
        ("case-001", "ok"),
    ]
    assert folder.threshold == 0.015
    assert len(folder.healthy_scores) == 40
    (picture,) = read_pictures(folder.case("case-001"))
    np.testing.assert_array_equal(picture.mask, picture.anomaly_map > 0.015)
    assert [step.timestep for step in picture.steps] == [200, 100]
    assert picture.scan is not None
    assert picture.scan.shape == picture.anomaly_map.shape == (60, 48)


def test_given_threshold_goes_before_the_calibrations(tmp_path: Path) -> None:
    make_results(tmp_path / "results", 1, calibrated=False)
    folder = read_folder(tmp_path / "results")
    assert folder.threshold is None
    assert folder.healthy_scores == ()
    run = tmp_path / "results" / "run.json"
    run.write_text(run.read_text().replace('"seed": 0', '"seed": 0, "threshold": 0.5'))
    assert read_folder(tmp_path / "results").threshold == 0.5


def test_steps_without_maps_have_none(tmp_path: Path) -> None:
    make_results(tmp_path / "results", 1)
    steps = tmp_path / "results" / "cases" / "case-000" / "steps.npz"
    maps = np.full((2, 60, 60), np.nan, np.float16)
    np.savez(steps, timesteps=[20, 10], clean=np.zeros((2, 60, 60), np.uint8), maps=maps)
    (picture,) = read_pictures(read_folder(tmp_path / "results").cases[0])
    assert [(step.timestep, step.anomaly_map) for step in picture.steps] == [(20, None), (10, None)]


@pytest.mark.parametrize("moved", [False, True])
def test_truth_is_found_by_file_and_by_its_name(tmp_path: Path, moved: bool) -> None:
    table = make_results(tmp_path / "results", 3)
    if moved:  # the results came from another machine
        for case in (tmp_path / "results" / "cases").glob("*/case.json"):
            case.write_text(case.read_text().replace(str(tmp_path), "/elsewhere"))
    rows = match_truth(read_folder(tmp_path / "results"), table)
    assert {name: row.image.name for name, row in rows.items()} == {f"case-00{n}": f"{n}.png" for n in range(3)}
    assert [row.mask is None for row in rows.values()] == [False, False, True]


def test_a_scan_gets_no_other_one_s_lesion_by_its_file_s_name(tmp_path: Path) -> None:
    """One table names one of two files of one name: where any case is known by its file, names don't count."""
    table = make_results(tmp_path / "results", 2)
    other = tmp_path / "results" / "cases" / "case-001" / "case.json"
    content = json.loads(other.read_text())
    mine = Path(json.loads((other.parents[1] / "case-000" / "case.json").read_text())["source"])
    content["source"] = str(mine.parent / "without" / mine.name)
    other.write_text(json.dumps(content))
    assert list(match_truth(read_folder(tmp_path / "results"), table)) == ["case-000"]


def test_folder_of_an_earlier_version_opens(tmp_path: Path) -> None:
    """Its run.json speaks of a preset, its case.json has no sizes and no p-values."""
    make_results(tmp_path / "results", 2, scans=False, calibrated=False, slices=2)
    run = json.loads((tmp_path / "results" / "run.json").read_text())
    run["options"]["preset"] = "published"
    (tmp_path / "results" / "run.json").write_text(json.dumps(run))
    for path in (tmp_path / "results" / "cases").glob("*/case.json"):
        content = json.loads(path.read_text())
        for key in ("p_value", "findings", "sizes"):
            del content[key]
        path.write_text(json.dumps(content))
    folder = read_folder(tmp_path / "results")
    assert method_title(folder.run["options"]) == "published-thor (simplex)"
    for case in folder.cases:
        assert (case.done, case.p_value, case.finding_count) == (True, None, None)
        assert [picture.slice_index for picture in read_pictures(case)] == [90, 95]
        assert [picture.label for picture in read_pictures(case)] == ["slice 90, z = +18 mm", "slice 95, z = +23 mm"]


def test_the_side_is_the_runs(tmp_path: Path) -> None:
    results = tmp_path / "results"
    make_results(results, 1, slices=1)
    assert read_folder(results).side == "neurological", "of an earlier version, that did not say"
    run = json.loads((results / "run.json").read_text())
    (results / "run.json").write_text(json.dumps({**run, "side": "radiological"}))
    assert read_folder(results).side == "radiological"


def test_verbs_write_what_they_name(tmp_path: Path) -> None:
    truth = make_results(tmp_path / "results", 2)
    run = CliRunner()
    done = run.invoke(app, ["report", str(tmp_path / "results"), "--truth", str(truth), "--bootstrap", "10"])
    assert done.exit_code == 0, done.output
    assert "report.html" in done.output
    assert (tmp_path / "results" / "report.html").is_file()
    figure = tmp_path / "figure.svg"
    done = run.invoke(app, ["figure", str(tmp_path / "results"), "--case", "case-000, case-001", "--out", str(figure)])
    assert done.exit_code == 0, done.output
    assert figure.is_file()
    refused = run.invoke(app, ["report", str(tmp_path)])
    assert refused.exit_code == 2
    assert "run.json: no such file" in refused.output


VALUES = ("null", "[]", "{}", "-1", '"x"', "NaN", "Infinity", "1e999", '"ok"', '["a"]', "[" * 3000)


@pytest.mark.parametrize("name", ["run.json", "cases/case-000/case.json", "cases/ct/case.json"])
def test_damaged_records_are_shown_or_named(tmp_path: Path, name: str) -> None:
    """Every value replaced by every other kind, and bytes damaged anywhere: a report, or an error of one line."""
    make_results(tmp_path / "results", 1, refused=["ct"])
    path = tmp_path / "results" / name
    whole = path.read_text()
    spots = list(re.finditer(r': ("[^"]*"|[-\d.e]+|null|true|false)', whole))
    contents = [whole[: at.start(1)] + value + whole[at.end(1) :] for at in spots for value in VALUES]
    rng = np.random.default_rng(3)
    contents += [damaged(whole.encode(), rng).decode(errors="replace") for _ in range(100)]
    messages = []
    for content in contents:
        path.write_text(content)
        try:
            write_report(tmp_path / "results", tmp_path / "report.html", bootstrap=0)
        except ThoradError as error:
            messages.append(str(error))
    assert len(messages) > len(contents) / 4
    assert all(str(tmp_path / "results") in message and "\n" not in message for message in messages)


def test_truth_and_findings_of_a_volume_lie_where_its_slices_show_them(tmp_path: Path) -> None:
    """The head is shifted by 10 mm, and its mask lies on another grid than its map."""
    nibabel = pytest.importorskip("nibabel", reason="volumes need the extra `volumes`")
    make_results(tmp_path / "results", 1, slices=3, shape=(233, 197))
    folder = tmp_path / "results" / "cases" / "case-000"
    to_template = np.eye(4)
    to_template[0, 3] = 10.0
    (folder / "registration.json").write_text(json.dumps({"to_template": to_template.tolist()}))
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = (-100, -120, -60)
    nibabel.save(nibabel.Nifti1Image(np.zeros((90, 100, 80), np.float32), affine), folder / "anomaly_map.nii.gz")
    # Voxel (40, 60, 41) of the map: (-20, 0, 22) mm of the scan, (-10, 0, 22) mm of the template, in its slice 94.
    finding = {"pixels": 8, "volume_mm3": 64.0, "peak": 0.1, "peak_position": [40, 60, 41]}
    record = json.loads((folder / "case.json").read_text())
    (folder / "case.json").write_text(json.dumps(record | {"findings": [finding]}))
    x, y, z = np.mgrid[-60:60, -60:60, -30:60]
    ball = (x + 20) ** 2 + y**2 + (z - 22) ** 2 < 36
    grid = np.eye(4)
    grid[:3, 3] = (-60, -60, -30)
    nibabel.save(nibabel.Nifti1Image(ball.astype(np.uint8), grid), tmp_path / "mask.nii.gz")
    (case,) = read_folder(tmp_path / "results").cases
    (place,) = case_entry(0, case, 512)["places"]
    row, column = 233 - 1 - 134, -10 + 98
    assert place == {"slice": 1, "row": row, "column": column, "peak": 0.1, "size": "0.064 ml"}
    truths = truth_of(Case(tmp_path / "a.nii.gz", tmp_path / "mask.nii.gz", "a", "a"), case, read_pictures(case))
    assert [bool(truth.any()) for truth in truths] == [True, True, False]  # 4 mm below, 1 mm and 6 mm above its centre
    assert np.mean(np.nonzero(truths[1]), axis=1) == pytest.approx([row, column], abs=0.51)
