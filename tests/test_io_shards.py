"""A run that is split over processes: nothing is lost, nothing is done twice, whatever is killed."""

import csv
import json
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from typer.testing import CliRunner

from test_io_scans import scans_of
from thorad import cli
from thorad.apps.run import detect_files, open_results
from thorad.detector import Detector
from thorad.errors import ThoradError
from thorad.io.shards import Shard

SLICES = 2000


def write_slices(folder: Path, count: int) -> dict[str, Path]:
    """`count` bright blobs of 32 x 32 px, each with noise of its own."""
    folder.mkdir()
    blob = np.add.outer(np.hanning(32), np.hanning(32)) * 100
    generator = np.random.default_rng(0)
    named = {f"s{index:04d}": folder / f"s{index:04d}.png" for index in range(count)}
    for path in named.values():
        PIL.Image.fromarray((blob + generator.random((32, 32)) * 50).astype(np.uint8)).save(path)
    return named


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "cases.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def state(out: Path) -> tuple[str, dict[str, int]]:
    run = json.loads((out / "run.json").read_text())
    seconds = [json.loads(path.read_text())["seconds"] for path in (out / "shards").iterdir()]
    assert run["seconds"] == pytest.approx(sum(seconds))
    return run["status"], run["cases"]


@pytest.mark.parametrize("count", [1, 2, 3, 8, 20])
def test_every_case_is_in_one_shard(count: int) -> None:
    named = {f"c{index}": index for index in range(13)}
    shards = [Shard(index + 1, count).of(named) for index in range(count)]
    assert sorted(name for shard in shards for name in shard) == sorted(named)
    assert {len(shard) for shard in shards} <= {13 // count, 13 // count + 1}
    assert all(named[name] == thing for shard in shards for name, thing in shard.items())
    shuffled = list(named)
    random.Random(0).shuffle(shuffled)
    again = [Shard(index + 1, count).of({name: named[name] for name in shuffled}) for index in range(count)]
    assert again == shards, "whatever the order of the inputs"
    assert [list(shard) for shard in again] == [[name for name in shuffled if name in shard] for shard in shards]


def test_parse() -> None:
    assert Shard.parse("2/8") == Shard(2, 8)
    assert str(Shard.parse("8/8")) == "8/8"


@pytest.mark.parametrize(
    "text", ["0/8", "9/8", "0/0", "a/b", "", "/8", "2/", "2", "-1/8", "1.5/8", "2/8/9", "1/" + "9" * 5000]
)
def test_no_shard(text: str) -> None:
    with pytest.raises(ThoradError, match="expected I/N with I from 1 to N, as 2/8"):
        Shard.parse(text)


def test_the_verb(tiny_model: Path, tmp_path: Path) -> None:
    write_slices(tmp_path / "in", 5)
    (tmp_path / "in" / "s0003.png").write_bytes(b"")

    def detect(shard: str) -> tuple[int, str]:
        arguments = ["detect", tmp_path / "in", "--out", tmp_path / "out", "--model", tiny_model, "--method", "zscore"]
        result = CliRunner().invoke(cli.app, [*map(str, arguments), "--device", "cpu", "--shard", shard])
        return result.exit_code, result.output

    code, said = detect("0/2")
    assert code == 2
    assert "the shard is '0/2', expected I/N" in said
    assert not (tmp_path / "out").exists()
    code, said = detect("1/2")
    assert code == 0
    assert "Shard 1/2: 3 done, 0 failed, in" in said
    assert state(tmp_path / "out") == ("running", {"ok": 3, "warned": 0, "refused": 0, "failed": 0})
    code, said = detect("2/2")
    assert code == 1, "the bad file is in this one"
    assert "Shard 2/2: 1 done, 1 failed, in" in said
    assert "s0003 failed" in said
    assert state(tmp_path / "out") == ("finished", {"ok": 4, "warned": 0, "refused": 0, "failed": 1})
    code, said = detect("1/2")
    assert code == 0, "the failure of another shard is not told again"
    assert "Shard 1/2: 3 done (3 of them before), 0 failed, in" in said
    code, said = detect("9/9")
    assert code == 0
    assert "Shard 9/9: 0 done, 0 failed, in" in said, "more shards than cases"


def test_another_number_of_shards_goes_on(tiny_model: Path, tmp_path: Path) -> None:
    named = write_slices(tmp_path / "in", 12)
    detector = Detector(tiny_model, method="zscore", device="cpu")

    def run(index: int, count: int) -> int:
        return detect_files(
            detector, scans_of(named), open_results(detector, tmp_path / "out", Shard(index, count))
        ).already_done

    assert [run(index, 6) for index in (1, 2, 3)] == [0, 0, 0]
    names = sorted(named)
    done = {*names[0::6], *names[1::6], *names[2::6]}
    for index in (1, 2, 3, 4):
        assert run(index, 4) == len(done & set(names[index - 1 :: 4]))
    assert state(tmp_path / "out") == ("finished", {"ok": 12, "warned": 0, "refused": 0, "failed": 0})
    assert run(1, 1) == 12


def test_shards_on_two_gpus_are_one_run(tiny_model: Path, tmp_path: Path) -> None:
    """Which of several equal devices decides on nothing."""
    detector = Detector(tiny_model, method="zscore", device="cpu")
    for index in (0, 1):
        detector.device = torch.device("cuda", index)
        open_results(detector, tmp_path, Shard(index + 1, 2))
    assert json.loads((tmp_path / "run.json").read_text())["options"]["device"] == "cuda"


def test_two_thousand_slices_and_a_kill(tiny_model: Path, tmp_path: Path) -> None:
    named = write_slices(tmp_path / "in", SLICES)
    out, unsharded = tmp_path / "out", tmp_path / "unsharded"

    def start(shard: int) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "thorad", "detect", tmp_path / "in", "--out", out, "--model", tiny_model]
        command += ["--method", "zscore", "--device", "cpu", "--shard", f"{shard}/2"]
        return subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    killed, other = start(1), start(2)
    deadline = time.monotonic() + 240
    while len(list(out.glob("cases/s*[02468]/case.json"))) < 100:  # those of the first shard
        assert killed.poll() is None, killed.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    killed.kill()
    killed.communicate()
    said, errors = other.communicate(timeout=240)
    assert other.returncode == 0, errors  # a slow machine says how far it has come
    assert f"Shard 2/2: {SLICES // 2} done, 0 failed" in said
    before = {path.parent.name: path.stat().st_mtime_ns for path in out.glob("cases/*/case.json")}
    assert SLICES // 2 + 100 <= len(before) < SLICES, "killed in the middle"
    status, counts = state(out)
    assert (status, counts["failed"]) == ("running", 0)

    again = start(1)
    said, errors = again.communicate(timeout=240)
    assert again.returncode == 0, errors
    assert f"Shard 1/2: {SLICES // 2} done ({len(before) - SLICES // 2} of them before), 0 failed" in said
    assert [row["name"] for row in rows(out)] == sorted(named)
    assert state(out) == ("finished", {"ok": SLICES, "warned": 0, "refused": 0, "failed": 0})
    after = {path.parent.name: path.stat().st_mtime_ns for path in out.glob("cases/*/case.json")}
    assert {name: after[name] for name in before} == before, "what was done is not done again"

    detector = Detector(tiny_model, method="zscore", device="cpu")
    sample = dict(sorted(named.items())[:: SLICES // 40])
    detect_files(detector, scans_of(sample), open_results(detector, unsharded))
    for name in sample:
        for file in ("anomaly_map.npy", "overlay.png"):
            one, two = (folder / "cases" / name / file for folder in (out, unsharded))
            assert one.read_bytes() == two.read_bytes()


MEMORY = """
import resource, sys
from pathlib import Path
from thorad.detector import Detector
from thorad.io.scans import find_scans
from thorad.apps.run import detect_files, open_results

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

peaks = []

def report(done, total):
    if done == 200:
        peaks.append(peak())

inputs, out, model = map(Path, sys.argv[1:])
detector = Detector(model, method="zscore", device="cpu")
detect_files(detector, find_scans([inputs]), open_results(detector, out), on_progress=report)
print(peaks[0], peak())
"""


def test_memory_does_not_grow_with_the_slices(tiny_model: Path, tmp_path: Path) -> None:
    write_slices(tmp_path / "in", SLICES)
    command = [sys.executable, "-c", MEMORY, tmp_path / "in", tmp_path / "out", tiny_model]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=True)
    early, late = (int(text) * (1 if sys.platform == "darwin" else 1024) for text in done.stdout.split())  # bytes
    assert len(rows(tmp_path / "out")) == SLICES
    # An image and its map alone are 8 KiB a case: 14 MiB more, if they were kept.
    assert late - early < 6 * 2**20
