"""What `thorad --help` and each verb's help say, and how options that verbs share reach them."""

import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from test_cli import thorad_command
from thorad.cli import app
from thorad.cli.options import DetectorOptions, Inputs, OutOption, Quiet, RunOptions, command_line, verb
from thorad.diffusion import ENGINES, NOISES
from thorad.errors import ThoradError
from thorad.methods import METHODS

PANELS = {
    "Detect and look": ["detect", "methods", "report", "volume", "figure", "view", "demo"],
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
    assert example.startswith(f"thorad {words.removesuffix(' show')}")
    options = re.findall(r"(?<!\S)--?[a-z-]+", example)
    assert all(re.search(rf"{option}\b", text) for option in options), "the example's options exist"


@pytest.mark.parametrize("words", [verb for verb in [*VERBS, *SUB_VERBS] if "--out" in help_of(*verb.split())])
def test_o_is_short_for_out(words: str) -> None:
    assert re.search(r"--out +-o ", help_of(*words.split()))


def test_verbs_share_the_options_of_a_detector() -> None:
    for words, options in (("detect", DetectorOptions), ("calibrate", DetectorOptions), ("evaluate", RunOptions)):
        text = help_of(words)
        for field in fields(options):
            assert f"--{'set' if field.name == 'settings' else field.name.replace('_', '-')} " in text
    shown = help_of("detect")
    assert shown.index("--method ") < shown.index("--steps "), "what a dataclass adds stands before what it inherits"


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


def test_options_list_what_there_is() -> None:
    text = " ".join(re.sub(r"[│\n ]+", " ", help_of("detect")).split())
    assert f"{', '.join(METHODS)}. `thorad methods`" in text
    assert f"{' or '.join(NOISES)}. Default" in text
    assert f"What runs the network: {', '.join(ENGINES)}." in text
    environment = {"_THORAD_COMPLETE": "complete_bash", "COMP_WORDS": "thorad detect --method ano", "COMP_CWORD": "3"}
    assert CliRunner().invoke(app, [], prog_name="thorad", env=environment).stdout.split() == ["anoddpm"]


def test_methods_are_described() -> None:
    result = thorad_command("methods")
    assert (result.exit_code, result.stderr) == (0, "")
    said = " ".join(result.stdout.split())
    assert re.search(r"^thor +simplex, gaussian +16 +THOR: ", result.stdout, flags=re.MULTILINE)
    assert re.search(r"^zscore +- +0 +z-score: ", result.stdout, flags=re.MULTILINE)
    for name, method in METHODS.items():
        assert re.search(rf"^{re.escape(name)} ", result.stdout, flags=re.MULTILINE)
        assert method.title.split()[-1] in said


def test_help_needs_neither_torch_nor_numpy() -> None:
    script = """
import sys
from typer.testing import CliRunner
from thorad.cli import app
for words in sys.argv[1:]:
    assert CliRunner().invoke(app, [*words.split(), "--help"]).exit_code == 0
assert not {"torch", "numpy", "monai", "scipy"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", script, *VERBS, *SUB_VERBS], check=True)


def test_the_command_line_is_told_without_what_may_name_patients() -> None:
    group, told = typer.Typer(), []

    @verb(group, example="thorad look")
    def look(inputs: Inputs, out: Annotated[Path, OutOption(help="There.")], quiet: Quiet = False) -> None:
        """Look."""
        told.extend([command_line(), command_line(inputs=True)])

    CliRunner().invoke(group, ["Jane Doe/1", "2", "-o", "there", "-q"])
    assert told == ["thorad look 'Jane Doe/1' 2 --out there --quiet", "thorad look INPUTS --out there --quiet"]
