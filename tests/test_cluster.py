"""A run on a Dask cluster of two worker processes: the same results, whatever dies."""

from __future__ import annotations

import csv
import json
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from typer.testing import CliRunner, Result

from dying_worker import known_registration
from test_apps_prepare import write_head
from test_io_shards import write_slices
from thorad import cli, executor
from thorad.apps import cluster as apps_cluster
from thorad.apps import prepare
from thorad.apps.cluster import connected
from thorad.apps.cluster_detector import _checked
from thorad.apps.run import detect_files, open_results
from thorad.datasets.cases import read_cases
from thorad.detector import Detector
from thorad.errors import ThoradError
from thorad.evaluation.evaluate import evaluate
from thorad.io.scans import find_scans

dask = pytest.importorskip("dask", reason="no cluster without the extra cluster")
distributed = pytest.importorskip("distributed", reason="no cluster without the extra cluster")

pytestmark = pytest.mark.timeout(900)  # worker processes start slowly on a busy machine

PRELOAD = Path(__file__).with_name("dying_worker.py")


@pytest.fixture(scope="module")
def died(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("died")


@pytest.fixture(scope="module")
def cluster(died: Path) -> Iterator[Any]:
    """Two worker processes of one thread, that die of some cases (`dying_worker`); one death of a task is allowed."""
    options: dict[str, Any] = {"n_workers": 2, "threads_per_worker": 1, "memory_limit": 0, "dashboard_address": ":0"}
    options |= {"preload": [str(PRELOAD)], "env": {"THORAD_TEST_DIED": str(died)}, "silence_logs": "CRITICAL"}
    settings = {"distributed.scheduler.allowed-failures": 1, "distributed.comm.timeouts.connect": "120s"}
    # Workers are forked from a process that has imported what takes seconds: they die here again and again.
    settings |= {"distributed.worker.multiprocessing-method": "forkserver"}
    with dask.config.set(settings):
        distributed.utils.get_mp_context().set_forkserver_preload(["distributed", "thorad.apps.cluster_detector"])
        with distributed.LocalCluster(**options) as cluster:
            yield cluster
            pids = [nanny.pid for nanny in cluster.workers.values()]
    for pid in filter(None, pids):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def thorad_command(*arguments: object) -> Result:
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def rows(table: Path) -> list[dict[str, str]]:
    """A table without the seconds, which no two runs share."""
    with table.open(newline="", encoding="utf-8") as file:
        return [{key: value for key, value in row.items() if "seconds" not in key} for row in csv.DictReader(file)]


def files(folder: Path, *patterns: str) -> dict[str, bytes]:
    found = {path.relative_to(folder).as_posix(): path for pattern in patterns for path in folder.rglob(pattern)}
    return {name: path.read_bytes() for name, path in found.items()}


def test_detect_is_the_same_though_workers_die(
    cluster: Any, died: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One worker is killed on the way; one case kills every worker, and it alone is lost, by its name."""
    write_slices(tmp_path / "in", 12)
    for name, other in (("s0004", "once"), ("s0007", "killer")):
        (tmp_path / "in" / f"{name}.png").rename(tmp_path / "in" / f"{other}.png")
    (tmp_path / "in" / "s0002.png").write_bytes(b"no picture")
    monkeypatch.chdir(tmp_path)  # paths are relative, as one types them
    options = ["--model", tiny_model, "--steps", 2, "--device", "cpu"]

    one = thorad_command("detect", "in", "-o", "here", *options)
    two = thorad_command("detect", "in", "-o", "there", *options, "--cluster", cluster.scheduler_address)
    assert (one.exit_code, two.exit_code) == (1, 1), two.output
    assert "11 done, 1 failed" in one.output
    assert (died / "once").exists(), "a worker was killed"
    assert "10 done, 2 failed" in two.output
    assert "killer failed: 2 workers died while they did this case" in two.output
    expected = [row for row in rows(Path("here/cases.csv")) if row["name"] != "killer"]
    found = {row["name"]: row for row in rows(Path("there/cases.csv"))}
    assert found.pop("killer")["status"] == "failed"
    assert list(found.values()) == expected, "the file that can't be read failed with the same words"
    same = ("*.npy", "*.png")
    assert len(files(Path("there"), *same)) == 10 * 6  # map, spread, scan, pseudo-healthy, judged, overlay
    here = {name: content for name, content in files(Path("here"), *same).items() if "/killer/" not in name}
    assert files(Path("there"), *same) == here
    run, other = (json.loads(Path(folder, "run.json").read_text()) for folder in ("there", "here"))
    assert run["status"] == "finished"
    assert run["options"] == other["options"]
    assert not list(Path("there").glob(".cluster-*"))

    # What is done isn't done again, on a cluster or here; what failed is tried anew.
    write_slices(tmp_path / "more", 1)
    (tmp_path / "more" / "s0000.png").rename(tmp_path / "in" / "s0002.png")
    (tmp_path / "in" / "killer.png").unlink()
    again = thorad_command("detect", "in", "-o", "there", *options, "--cluster", cluster.scheduler_address)
    assert again.exit_code == 0, again.output
    assert "11 done (10 of them before), 0 failed" in again.output
    assert "11 done (11 of them before), 0 failed" in thorad_command("detect", "in", "-o", "there", *options).output


def write_bench(folder: Path) -> Path:
    """Three lesion cases and three healthy ones."""
    mask = np.zeros((32, 32), np.uint8)
    mask[10:16, 12:18] = 255
    PIL.Image.fromarray(mask).save(folder / "mask.png")
    paths = write_slices(folder / "in", 6).values()
    lines = [f"{path},{'mask.png' if index < 3 else ''}" for index, path in enumerate(paths)]
    (folder / "cases.csv").write_text("\n".join(["image,mask", *lines]) + "\n")
    return folder / "cases.csv"


def test_evaluate_is_the_same(cluster: Any, tiny_model: Path, tmp_path: Path) -> None:
    options = [write_bench(tmp_path), "--model", tiny_model, "--method", "anoddpm,zscore", "--steps", 2]
    options += ["--device", "cpu", "--bootstrap", 20, "--permutations", 20]
    here, there = tmp_path / "here", tmp_path / "there"
    one = thorad_command("evaluate", *options, "-o", here)
    two = thorad_command("evaluate", *options, "-o", there, "--cluster", cluster.scheduler_address)
    assert (one.exit_code, two.exit_code) == (0, 0), two.output
    assert rows(here / "cases.csv") == rows(there / "cases.csv")
    kept = list((here / "maps").glob("*.npz"))
    assert len(kept) == 12
    for path in kept:
        with np.load(path) as maps, np.load(there / "maps" / path.name) as others:
            for part in ("map", "score", "healthy"):
                np.testing.assert_array_equal(maps[part], others[part])
    assert figures(here) == figures(there)


def figures(folder: Path) -> list[dict[str, Any]]:
    results = json.loads((folder / "metrics.json").read_text())
    return [{key: value for key, value in result.items() if key != "cpu_seconds_per_case"} for result in results]


def test_a_case_that_no_process_survives_is_left_out_for_every_method(tiny_model: Path, tmp_path: Path) -> None:
    cases = read_cases(write_bench(tmp_path))
    tried: list[str] = []

    def dying(function: Any, batches: Iterable[Any], lost: Any) -> Iterator[Any]:
        for batch in batches:
            for item in batch:
                tried.append(item[0])
                yield from [lost(item, "it died.")] if item[0] in bad else function([item])

    detectors = [
        Detector(tiny_model, method="zscore", device="cpu"),
        Detector(tiny_model, method="anoddpm", steps=2, device="cpu"),
    ]
    options: dict[str, Any] = {"bootstrap": 0, "permutations": 0}
    bad = {cases[1].name}
    results = evaluate(cases, [], detectors, tmp_path / "out", executor=dying, **options)
    assert [[failure["reason"] for failure in result["failures"]] for result in results] == [["it died."]] * 2
    assert tried.count(cases[1].name) == 1, "it isn't tried again with the next method"
    without = [case for case in cases if case.name not in bad]
    evaluate(without, [], detectors, tmp_path / "without", **options)
    assert rows(tmp_path / "out" / "cases.csv") == rows(tmp_path / "without" / "cases.csv")
    bad = {case.name for case in cases if case.has_finding}
    with pytest.raises(ThoradError, match=r"nothing to measure.*it died"):
        evaluate(cases, [], detectors, tmp_path / "none", executor=dying, **options)


def test_prepare_is_the_same(cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "register", known_registration)
    write_head(tmp_path / "heads" / "a.nii.gz")
    (tmp_path / "heads" / "junk.nii.gz").write_bytes(b"no volume")
    here, there = tmp_path / "here", tmp_path / "there"
    one = thorad_command("prepare", tmp_path / "heads", "-o", here)
    two = thorad_command("prepare", tmp_path / "heads", "-o", there, "--cluster", cluster.scheduler_address)
    assert (one.exit_code, two.exit_code) == (1, 1), two.output
    assert "1 done, 1 failed" in two.output
    assert files(here, "*.png", "*.json", "*.csv") == files(there, "*.png", "*.json", "*.csv")
    both = thorad_command("prepare", tmp_path / "heads", "-o", there, "--cluster", "x", "--jobs", 2)
    assert both.exit_code == 2
    assert "choose one of them" in both.output


def test_interrupted_and_resumed(cluster: Any, tiny_model: Path, tmp_path: Path) -> None:
    scans = find_scans([write_slices(tmp_path / "in", 30)["s0000"].parent])
    out = tmp_path / "out"

    def interrupt(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with connected(cluster.scheduler_address, out) as workers:
        detector = workers.detector(model=tiny_model, method="zscore")
        assert (detector.provenance()["device"], detector.batch_size) == ("cpu", 1)
        with pytest.raises(KeyboardInterrupt):
            detect_files(detector, scans, open_results(detector, out), on_progress=interrupt, executor=workers)
    until = time.monotonic() + 60
    while cluster.scheduler.tasks and time.monotonic() < until:
        time.sleep(0.05)
    assert not cluster.scheduler.tasks, "what was left is cancelled"
    done = len(list(out.glob("cases/*/case.json")))
    assert 3 <= done < 30
    local = Detector(tiny_model, method="zscore", device="cpu")
    summary = detect_files(local, scans, open_results(local, out))
    assert done <= summary.already_done <= done + 2, "a worker ends the case that it is at"
    assert len(summary.done) == 30


def test_a_file_that_no_worker_sees_is_an_error(cluster: Any, tiny_model: Path, tmp_path: Path) -> None:
    (path,) = write_slices(tmp_path / "in", 1).values()
    path.rename(path.with_name("unseen.png"))
    options = ["--model", tiny_model, "--method", "zscore", "--cluster", cluster.scheduler_address]
    result = thorad_command("detect", tmp_path / "in", "-o", tmp_path / "out", *options)
    assert result.exit_code == 2
    assert "a worker on" in result.output
    assert "doesn't see what is here" in result.output
    assert "put them on a file system that all machines share" in result.output
    assert json.loads((tmp_path / "out" / "run.json").read_text())["status"] == "running"


def test_a_worker_refuses_what_is_not_the_same_there(tmp_path: Path) -> None:
    path = tmp_path / "scan.png"
    path.write_bytes(b"four")
    call = (b"", b"", executor.__version__)
    with pytest.raises(ThoradError, match=r"scan\.png: a worker on .* doesn't see .* \(4 bytes there, 5 here"):
        executor.work(*call, {str(path): 5}, None)
    with pytest.raises(ThoradError, match=r"gone\.png: a worker .* \(No such file"):
        executor.work(*call, {str(tmp_path / "gone.png"): 5}, None)
    with pytest.raises(ThoradError, match=r"nowhere: a worker .* \(No such file"):
        executor.work(*call, {"scan.png": 4}, str(tmp_path / "nowhere"))
    with pytest.raises(ThoradError, match=r"has thorad .*, and 0\.0\.1 runs here"):
        executor.work(b"", b"", "0.0.1", {}, None)


def test_a_worker_with_another_detector_is_refused(cluster: Any, tiny_model: Path) -> None:
    with connected(cluster.scheduler_address) as workers:
        detector = workers.detector(model=tiny_model, method="zscore")
    asked = detector.__reduce__()[1][0]
    expected = {**detector.provenance(), "model_sha256": "another", "thorad": "0.0.1"}
    with pytest.raises(ThoradError, match=r"another detector.*: model_sha256 .* \('another' in .*'0\.0\.1'"):
        _checked(asked, expected)


def test_no_scheduler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apps_cluster, "CONNECT_SECONDS", 0.5)
    with pytest.raises(ThoradError, match=r"no Dask scheduler answers"), connected("tcp://127.0.0.1:9"):
        pass
    with pytest.raises(ThoradError, match=r"no such scheduler file"), connected(str(tmp_path / "scheduler.json")):
        pass
    with pytest.raises(ThoradError, match=r"no Dask scheduler answers"), connected("nonsense://x"):
        pass
