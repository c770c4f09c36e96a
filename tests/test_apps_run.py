import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

import thorad
from test_io_scans import scans_of
from thorad.apps.run import RunSummary, detect_files, open_results
from thorad.detector import Detector
from thorad.errors import ThoradError
from thorad.io.images import Image
from thorad.io.volumes import Volume, write_nifti
from thorad.methods.contract import Restoration
from thorad.records import Detection


def write_scan(path: Path, seed: int) -> Path:
    generator = np.random.default_rng(seed)
    pixels = np.add.outer(np.hanning(30), np.hanning(24)) * 100 + generator.random((30, 24)) * 50
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(pixels.astype(np.uint8)).save(path)
    return path


def scans(folder: Path, count: int) -> dict[str, Path]:
    return {f"s{index}": write_scan(folder / f"s{index}.png", index) for index in range(count)}


def table(out: Path) -> list[dict[str, str]]:
    """cases.csv without the seconds, which no two runs share."""
    with (out / "cases.csv").open(newline="", encoding="utf-8") as file:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]


@pytest.fixture
def detector(tiny_model: Path) -> Detector:
    return Detector(tiny_model, method="anoddpm", steps=2, device="cpu")


def test_bad_files_never_lose_the_others(detector: Detector, tmp_path: Path) -> None:
    named = scans(tmp_path / "in", 4)
    (tmp_path / "in" / "s1.png").write_bytes(b"not an image")
    named["gone"] = tmp_path / "gone.png"
    dark = np.zeros((20, 20), np.uint8)
    dark[3, 4] = 200
    PIL.Image.fromarray(dark).save(tmp_path / "in" / "s2.png")
    detector.batch_size = 3  # good and bad ones in one batch
    seen: list[tuple[int, int]] = []
    summary = detect_files(
        detector, scans_of(named), open_results(detector, tmp_path / "out"), on_progress=lambda *now: seen.append(now)
    )
    assert set(summary.done) == {"s0", "s3"}
    assert list(summary.done.values()) == sorted(summary.done.values(), reverse=True)
    assert set(summary.failed) == {"s1", "s2", "gone"}
    for name, reason in summary.failed.items():
        assert str(named[name]) in reason, "the reason names the file"
    assert "nearly empty" in summary.failed["s2"]
    assert [row["status"] for row in table(tmp_path / "out")] == ["failed", "ok", "failed", "failed", "ok"]
    assert (tmp_path / "out" / "cases" / "s3" / "anomaly_map.npy").is_file()
    assert seen[0] == (0, 5)
    assert seen[-1] == (5, 5)
    assert seen == sorted(seen)


def test_a_second_run_does_only_what_is_left(
    detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = scans(tmp_path / "in", 3)
    (tmp_path / "in" / "s1.png").write_bytes(b"")
    first = detect_files(detector, scans_of(named), open_results(detector, tmp_path / "out"))
    assert (len(first.done), len(first.failed), first.already_done) == (2, 1, 0)

    write_scan(tmp_path / "in" / "s1.png", 1)  # mended
    tried: list[str] = []
    together = Detector._detect_together

    def spy(self: Detector, images: list[Image], *rest: Any) -> Iterator[Detection]:
        tried.extend(image.name for image in images)
        return together(self, images, *rest)

    monkeypatch.setattr(Detector, "_detect_together", spy)
    seen: list[tuple[int, int]] = []
    second = detect_files(
        detector, scans_of(named), open_results(detector, tmp_path / "out"), on_progress=lambda *now: seen.append(now)
    )
    assert tried == ["s1"]
    assert (set(second.done), second.failed, second.already_done) == ({"s0", "s1", "s2"}, {}, 2)
    assert seen[0] == (2, 3)
    assert {row["status"] for row in table(tmp_path / "out")} == {"ok"}


def test_scores_are_those_of_the_asked_cases(detector: Detector, tmp_path: Path) -> None:
    named = scans(tmp_path / "in", 3)
    all_three = detect_files(detector, scans_of(named), open_results(detector, tmp_path / "out"))
    summary = detect_files(detector, scans_of({"s1": named["s1"]}), open_results(detector, tmp_path / "out"))
    assert summary.done == {"s1": all_three.done["s1"]}
    assert len(table(tmp_path / "out")) == 3


def test_another_file_of_the_same_name_is_refused(detector: Detector, tmp_path: Path) -> None:
    """The result of one patient's `scan.png` must not pass for another's."""
    one, other = ({"scan": write_scan(tmp_path / who / "scan.png", seed)} for seed, who in enumerate("ab"))
    detect_files(detector, scans_of(one), open_results(detector, tmp_path / "out"))
    with pytest.raises(
        ThoradError, match=r"other files under the same names: scan \(there .*scan\.png, now .*scan\.png"
    ):
        detect_files(detector, scans_of(other), open_results(detector, tmp_path / "out"))
    same = {"scan": tmp_path / "b" / ".." / "a" / "scan.png"}
    assert detect_files(detector, scans_of(same), open_results(detector, tmp_path / "out")).already_done == 1


def test_a_renamed_folder_does_not_pass_for_another_case(detector: Detector, tmp_path: Path) -> None:
    named = scans(tmp_path / "in", 2)
    first = detect_files(detector, scans_of({"s0": named["s0"]}), open_results(detector, tmp_path / "out"))
    (tmp_path / "out" / "cases" / "s0").rename(tmp_path / "out" / "cases" / "s1")
    second = detect_files(detector, scans_of(named), open_results(detector, tmp_path / "out"))
    assert second.already_done == 0
    assert second.done["s0"] == first.done["s0"] != second.done["s1"]


def test_a_file_that_was_changed_is_done_again(detector: Detector, tmp_path: Path) -> None:
    named = scans(tmp_path / "in", 2)
    first = detect_files(detector, scans_of(named), open_results(detector, tmp_path / "out"))
    changed, kept = sorted(named)
    picture = np.asarray(PIL.Image.open(named[changed]))
    PIL.Image.fromarray(picture[::-1].copy()).save(named[changed])
    later = (tmp_path / "out" / "cases" / changed / "case.json").stat().st_mtime + 10
    os.utime(named[changed], (later, later))
    second = detect_files(detector, scans_of(named), open_results(detector, tmp_path / "out"))
    assert second.already_done == 1
    assert second.done[kept] == first.done[kept]
    assert second.done[changed] != first.done[changed]


def test_an_older_file_in_its_place_is_done_again(detector: Detector, tmp_path: Path) -> None:
    """As `mv`, `cp -p` and unzip leave it."""
    named = scans(tmp_path / "in", 2)
    (tmp_path / "other").mkdir()
    first, second = sorted(named)
    detect_files(detector, scans_of({first: named[first]}), open_results(detector, tmp_path / "out"))
    os.utime(named[second], (1e9, 1e9))
    named[second].rename(named[first])
    again = detect_files(detector, scans_of({first: named[first]}), open_results(detector, tmp_path / "out"))
    assert (again.already_done, len(again.done)) == (0, 1)


def test_a_file_that_is_exchanged_while_it_is_looked_at_is_done_again(detector: Detector, tmp_path: Path) -> None:
    named = scans(tmp_path / "in", 1)
    ((name, path),) = named.items()

    def exchange(_name: str, _step: object) -> None:
        os.utime(path, (2.1e9, 2.1e9))

    detect_files(detector, scans_of(named), open_results(detector, tmp_path / "out"), on_step=exchange)
    again = detect_files(detector, scans_of(named), open_results(detector, tmp_path / "out"))
    assert (again.already_done, list(again.done)) == (0, [name])


def test_run_json_says_what_was_run(detector: Detector, tmp_path: Path) -> None:
    detect_files(detector, scans_of(scans(tmp_path / "in", 1)), open_results(detector, tmp_path / "out"))
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run["options"] == {
        "method": "anoddpm",
        "noise": "simplex",
        "steps": 2,
        "noise_level": None,
        "draws": 2,
        "finish": False,
        "seed": 0,
        "model": "tiny",
        "model_sha256": detector.model.sha256,
        "settings": None,
        "critic_sha256": None,
        "perceptual_weights_sha256": None,
        "settings_sha256": detector.provenance()["settings_sha256"],
        "device": "cpu",
        "engine": "torch",
        "precision": detector.precision,
        "batch_size": 1,
        "thorad": thorad.__version__,
        "calibration": None,
        "threshold": None,
        "slices": None,
    }
    assert run["options"]["precision"] in ("float32", "bfloat16")
    assert set(run["versions"]) == {"python", "torch", "monai", "numpy"}
    assert run["versions"]["numpy"] == np.__version__
    assert run["status"] == "finished"
    assert run["seconds"] > 0
    assert run["platform"]


@pytest.mark.parametrize(
    ("name", "other"),
    [("seed", {"seed": 1}), ("steps", {"steps": 3}), ("method", {"method": "ddpm"}), ("finish", {"finish": True})],
)
def test_a_folder_of_other_options_is_refused(
    tiny_model: Path, tmp_path: Path, name: str, other: dict[str, object]
) -> None:
    options = {"method": "thor", "noise": "gaussian", "steps": 2, "device": "cpu"}
    open_results(Detector(tiny_model, **options), tmp_path)  # type: ignore[arg-type]
    with pytest.raises(ThoradError, match=rf"other options.*{name} \(there"):
        open_results(Detector(tiny_model, **{**options, **other}), tmp_path)  # type: ignore[arg-type]


def test_a_folder_of_another_model_is_refused(detector: Detector, tmp_path: Path) -> None:
    open_results(detector, tmp_path)
    detector.model = replace(detector.model, sha256="another")
    with pytest.raises(ThoradError, match="model_sha256"):
        open_results(detector, tmp_path)


def test_perceptual_weights_count_as_an_option(
    detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = tmp_path / "squeeze.pth"
    weights.write_bytes(b"abc")
    with monkeypatch.context() as patched:
        patched.setattr(detector, "_lpips_weights", weights)
        open_results(detector, tmp_path / "out")
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    # sha256 of "abc": FIPS 180-2, appendix B.1
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert run["options"]["perceptual_weights_sha256"] == digest
    with pytest.raises(ThoradError, match="perceptual_weights_sha256"):
        open_results(detector, tmp_path / "out")


def test_a_map_that_is_not_finite_is_a_failure(
    detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Detector, "_draw", lambda self, x, *_: Restoration(torch.full_like(x, torch.nan), x))
    with pytest.raises(ThoradError, match=r"the map is not finite"):
        detector.detect(np.random.default_rng(0).random((32, 32)))
    summary = detect_files(detector, scans_of(scans(tmp_path / "in", 1)), open_results(detector, tmp_path / "out"))
    assert summary.done == {}
    assert "not finite" in summary.failed["s0"]
    assert not (tmp_path / "out" / "cases" / "s0" / "anomaly_map.npy").exists()


def test_too_little_memory_is_told(detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Detector, images: list[Image], **rest: Any) -> Iterator[Detection]:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(Detector, "detect_batch", full)
    with pytest.raises(ThoradError, match="smaller --batch-size"):
        detect_files(detector, scans_of(scans(tmp_path / "in", 1)), open_results(detector, tmp_path / "out"))


def detect_command(tiny_model: Path, inputs: Path, out: Path) -> list[str]:
    return [
        *(sys.executable, "-m", "thorad", "detect", str(inputs), "--out", str(out), "--model", str(tiny_model)),
        *("--method", "ddpm", "--steps", "40", "--device", "cpu"),
    ]


def start_until_two_cases(command: list[str], out: Path) -> subprocess.Popen[str]:
    """A run in its own process that has done two cases of many."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 240
    while len(list(out.glob("cases/*/case.json"))) < 2:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def interrupt(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.strip().endswith("Run the same command again to resume.")
    assert "Traceback" not in errors


@pytest.mark.parametrize("stop", [kill, interrupt])
def test_a_stopped_run_goes_on_to_the_same_results(
    tiny_model: Path, tmp_path: Path, stop: Callable[[subprocess.Popen[str]], None]
) -> None:
    named = scans(tmp_path / "in", 16)
    out = tmp_path / "out"
    command = detect_command(tiny_model, tmp_path / "in", out)
    stop(start_until_two_cases(command, out))
    done_before = len(list(out.glob("cases/*/case.json")))
    assert 2 <= done_before < len(named), "stopped in the middle"
    assert json.loads((out / "run.json").read_text())["status"] == "running"
    left = sorted(os.listdir(out / "cases"))  # noqa: PTH208
    assert len(left) - done_before <= 1

    again = Detector(tiny_model, method="ddpm", steps=40, device="cpu")
    summary: RunSummary = detect_files(again, scans_of(named), open_results(again, out))
    assert summary.already_done == done_before
    detect_files(again, scans_of(named), open_results(again, tmp_path / "uninterrupted"))
    assert table(out) == table(tmp_path / "uninterrupted")
    for name in named:
        for file in ("anomaly_map.npy", "overlay.png", "pseudo_healthy.png"):
            one, other = (folder / "cases" / name / file for folder in (out, tmp_path / "uninterrupted"))
            assert one.read_bytes() == other.read_bytes()


def test_steps_that_were_not_kept_are_made(tiny_model: Path, tmp_path: Path) -> None:
    named = scans(tmp_path / "in", 2)
    thor = Detector(tiny_model, noise="gaussian", steps=2, device="cpu")
    for keep_steps, again in ((False, 0), (False, 2), (True, 0), (True, 2), (False, 2)):
        results = open_results(thor, tmp_path / "out")
        summary = detect_files(thor, scans_of(named), results, keep_steps=keep_steps)
        assert summary.already_done == again
    assert (tmp_path / "out" / "cases" / "s0" / "steps.npz").is_file()
    zscore = Detector(tiny_model, method="zscore", device="cpu")  # has no steps to keep
    for again in (0, 2):
        results = open_results(zscore, tmp_path / "zscore")
        assert detect_files(zscore, scans_of(named), results, keep_steps=True).already_done == again


def test_a_volume_among_pictures_fails_alone(tiny_model: Path, tmp_path: Path) -> None:
    """A model for pictures does the pictures."""
    named = scans(tmp_path / "in", 1)
    voxels = np.random.default_rng(0).random((12, 13, 14), np.float32)
    named["head"] = tmp_path / "in" / "head.nii.gz"
    write_nifti(named["head"], voxels, Volume(voxels, np.diag([2.0, 2.0, 2.0, 1.0]), "", ""), "")
    detector = Detector(tiny_model, method="zscore", device="cpu")
    summary = detect_files(detector, scans_of(named), open_results(detector, tmp_path / "out"))
    assert list(summary.done) == ["s0"]
    assert "is for pictures, not for volumes" in summary.failed["head"]
