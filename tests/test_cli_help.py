"""What `thorad --help` and each verb's help say, and how options that verbs share reach them."""

import re
from dataclasses import fields
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from test_cli import thorad_command
from thorad.cli import app
from thorad.cli.options import DetectorOptions, RunOptions, verb
from thorad.errors import ThoradError

PANELS = {
    "Detect and look": ["detect", "report", "volume", "figure", "view", "demo"],
    "Train and calibrate": ["train", "calibrate", "models"],
    "Evaluate and reproduce": ["evaluate", "reproduce", "bench", "implant"],
    "Data": ["prepare", "data"],
}
VERBS = [verb for verbs in PANELS.values() for verb in verbs if verb not in ("models", "data")]
SUB_VERBS = ["models show", "models import", "data check", "data split"]


def help_of(*words: str) -> str:
    result = thorad_command(*words, "--help")
    assert result.exit_code == 0, result.output
    return result.stdout


def test_verbs_are_listed_by_group() -> None:
    panels = re.split(r"^╭─ ", help_of(), flags=re.MULTILINE)[2:]
    listed = {panel.partition(" ─")[0]: re.findall(r"^│ (\w+) ", panel, flags=re.MULTILINE) for panel in panels}
    assert listed == PANELS
    assert "--install-completion" in help_of()


@pytest.mark.parametrize("words", [*VERBS, *SUB_VERBS])
def test_help_ends_with_an_example_of_the_verb(words: str) -> None:
    text = help_of(*words.split())
    assert text == thorad_command(*words.split(), "-h").stdout
    example = " ".join(text.rpartition("Example: ")[2].split())
    assert re.match(rf"thorad {words.removesuffix(' show')} ", example)
    options = re.findall(r"(?<!\S)--?[a-z-]+", example)
    assert all(re.search(rf"{option}\b", text) for option in options), "the example's options exist"


@pytest.mark.parametrize("words", [verb for verb in [*VERBS, *SUB_VERBS] if "--out" in help_of(*verb.split())])
def test_o_is_short_for_out(words: str) -> None:
    assert re.search(r"--out +-o ", help_of(*words.split()))


def test_verbs_share_the_options_of_a_detector() -> None:
    for words, options in (("detect", DetectorOptions), ("calibrate", DetectorOptions), ("evaluate", RunOptions)):
        text = help_of(words)
        for field in fields(options):
            assert f"--{field.name.replace('_', '-')} " in text


def test_a_dataclass_of_options_reaches_its_verb() -> None:
    tool = typer.Typer()
    received: list[object] = []

    @verb(tool, example="go 3")
    def go(count: int, options: DetectorOptions, *, fail: Annotated[bool, typer.Option("--fail")] = False) -> None:
        """Go."""
        received.extend([count, options])
        if fail:
            raise ThoradError("nowhere to go.")

    result = CliRunner().invoke(tool, ["3", "--steps", "5", "--method", "ddpm"])
    assert result.exit_code == 0, result.output
    assert received == [3, DetectorOptions(method="ddpm", steps="5")]
    result = CliRunner().invoke(tool, ["3", "--fail"])
    assert (result.exit_code, result.stderr) == (2, "Error: nowhere to go.\n")


def test_completion_knows_the_verbs() -> None:
    environment = {"_THORAD_COMPLETE": "complete_bash", "COMP_WORDS": "thorad ca", "COMP_CWORD": "1"}
    result = CliRunner().invoke(app, [], prog_name="thorad", env=environment)
    assert result.stdout.split() == ["calibrate"]
