"""What scripts rely on: figures as JSON, alone on stdout; the log level; progress lines where nobody watches."""

import json
import logging
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from test_cli import bench, detect, healthy, thorad_command, write_scan  # noqa: F401  # fixtures, too
from test_cli_help import help_of
from thorad.cli import render

WITH_FIGURES = [
    *("detect", "methods", "demo", "train", "calibrate", "models show", "evaluate", "reproduce", "bench", "implant"),
    *("prepare", "data check", "data split"),
]


@pytest.mark.parametrize("words", WITH_FIGURES)
def test_verbs_that_end_in_figures_have_json(words: str) -> None:
    assert re.search(r"--json +FILE", help_of(*words.split()))


def json_on_stdout(*arguments: object, exit_code: int = 0) -> dict[str, Any]:
    """All that stdout has is JSON."""
    result = thorad_command(*arguments, "--json", "-")
    assert result.exit_code == exit_code, result.output
    figures = json.loads(result.stdout)
    assert figures.pop("thorad") == render.__version__
    return figures  # type: ignore[no-any-return]


def test_detect(tiny_model: Path, tmp_path: Path) -> None:
    write_scan(tmp_path / "in" / "good.png")
    (tmp_path / "in" / "bad.png").write_bytes(b"no picture")
    options = ("--model", tiny_model, "--method", "zscore", "--threshold", "0.1", "--device", "cpu")
    figures = json_on_stdout("detect", tmp_path / "in", "--out", tmp_path / "out", *options, exit_code=1)
    good, bad = figures["cases"]["good"], figures["cases"]["bad"]
    record = json.loads((tmp_path / "out" / "cases" / "good" / "case.json").read_text())
    assert good == {
        **{"status": "ok", "message": "", "score": record["score"], "p_value": None},
        **{"finding_count": record["findings"] if isinstance(record["findings"], int) else len(record["findings"])},
        "draw_agreement": None,
    }
    assert (bad["status"], "bad.png" in bad["message"]) == ("failed", True)
    assert figures["results"] == str(tmp_path / "out")
    assert figures["warnings"] == []
    shutil.copy(tmp_path / "in" / "good.png", tmp_path / "in" / "twice.png")
    (warning,) = json_on_stdout("detect", tmp_path / "in", "--out", tmp_path / "twice", *options, exit_code=1)[
        "warnings"
    ]
    assert warning == "The same pixels under several names: good, twice."
    (tmp_path / "in" / "twice.png").unlink()
    written = tmp_path / "figures.json"
    result = thorad_command("detect", tmp_path / "in", "--out", tmp_path / "out", *options, "--json", written)
    assert f"Figures: {written}" in result.stdout
    assert json.loads(written.read_text())["cases"] == figures["cases"]


def test_calibrate_and_evaluate(tiny_model: Path, healthy: Path, bench: Path, tmp_path: Path) -> None:  # noqa: F811
    options = ("--model", tiny_model, "--method", "zscore", "--device", "cpu")
    figures = json_on_stdout("calibrate", healthy, "--out", tmp_path / "model", *options)
    assert len(figures["calibration"]["scores"]) == 20
    assert figures["calibration"]["thresholds"].keys() == {"0.01", "0.02", "0.05"}
    options = (*options, "--bootstrap", "0", "--permutations", "0")
    figures = json_on_stdout("evaluate", bench, "--out", tmp_path / "evaluation", *options)
    assert figures["warnings"] == json.loads((tmp_path / "evaluation" / "run.json").read_text())["warnings"]
    assert figures["results_of_seed"]["0"] == json.loads((tmp_path / "evaluation" / "metrics.json").read_text())


def test_what_there_is(tiny_model: Path, tmp_path: Path) -> None:
    assert {each["method"] for each in json_on_stdout("methods")["methods"]} >= {"thor", "zscore"}
    listed = json_on_stdout("models")
    assert "brain-t1-compact" in listed["models"]
    assert listed["recipes"]["brain-t1"]["training"]["batch_size"] > 0
    assert json_on_stdout("models", tiny_model)["recipe"]["name"] == "tiny"
    for number in range(10):
        write_scan(tmp_path / "set" / f"sub-{number:02}.png", number)
    assert json_on_stdout("data", "check", tmp_path / "set")["images"] == 10
    split = json_on_stdout("data", "split", tmp_path / "set", "--out", tmp_path / "split")
    assert [part["subjects"] for part in split["parts"]] == [8, 1, 1]


def test_what_is_not_finite_is_null(capsys: pytest.CaptureFixture[str]) -> None:
    render.write_json(render.STDOUT, {"loss": float("nan"), "path": Path("a/b")})
    assert json.loads(capsys.readouterr().out)["loss"] is None


def test_progress_lines_where_stderr_is_no_terminal(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(render, "LINE_SECONDS", 0.0)
    for name in ("a.png", "b.png"):
        write_scan(tmp_path / "in" / name)
    told = detect(tiny_model, tmp_path / "in", "--method", "zscore", "--out", tmp_path / "out").stderr
    assert re.search(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  detect: 1 of 2, 0:00:0\d left$", told, flags=re.MULTILINE)
    for quiet in (("--quiet",), ("--log-level", "warning")):
        again = ("--method", "zscore", "--out", tmp_path / quiet[-1], *quiet)
        assert "1 of 2" not in detect(tiny_model, tmp_path / "in", *again).stderr


def test_the_log_level(tmp_path: Path) -> None:
    assert "Traceback" not in thorad_command("detect", tmp_path / "gone", "--out", tmp_path).stderr
    told = thorad_command("detect", tmp_path / "gone", "--out", tmp_path, "--log-level", "debug").stderr
    assert "Traceback" in told
    assert "in find_scans" in told
    with pytest.MonkeyPatch.context() as patch:
        render.set_log_level("error")
        patch.setattr(render.error_console, "print", lambda *_, **__: pytest.fail("printed"))
        render.print_warning("a warning")
        logging.getLogger("thorad.training").warning("another")
    render.set_log_level("info")
    assert thorad_command("methods", "--log-level", "loud").exit_code == 2
