"""`thorad data check` and `thorad data split`: what they print, what they leave, and with which code they end."""

import json
import shutil
from pathlib import Path

from test_cli import thorad_command, write_scan
from thorad.datasets.cases import read_cases


def clean_set(root: Path) -> Path:
    for number in range(10):
        write_scan(root / f"sub-{number:02}.png", number)
    return root


def test_check_of_a_clean_set(tmp_path: Path) -> None:
    root = clean_set(tmp_path / "set")
    result = thorad_command("data", "check", root)
    assert result.exit_code == 0
    lines = [" ".join(line.split()) for line in result.output.splitlines()]
    assert lines[0] == f"{root} is laid out as a folder of images or volumes."
    assert {"subjects 10", "images 10", "with a lesion mask 0"} <= set(lines)
    assert lines[-1] == "No problem found in file names and headers."


def test_check_finds_problems(tmp_path: Path) -> None:
    root = clean_set(tmp_path / "set")
    for number in range(12):
        (root / f"empty{number:02}.png").touch()
    shutil.copy(root / "sub-00.png", root / "sub-99.png")
    result = thorad_command("data", "check", root, "--json", tmp_path / "found.json")
    assert result.exit_code == 1
    for line in (
        "unusable: 12",
        "  empty00.png: the file is empty. Copy it again from where it came from.",
        "  empty09.png: the file is empty. Copy it again from where it came from.",
        "  and 2 more",
        "twice: 1",
        "  sub-00.png = sub-99.png: the same content under the subjects sub-00, sub-99",
    ):
        assert line in result.output.splitlines()
    assert "empty10.png" not in result.output
    found = json.loads((tmp_path / "found.json").read_text())
    assert (found["kind"], found["images"], len(found["unusable"]), found["missing"]) == ("folder", 23, 12, [])
    assert "; --json FILE lists all" in thorad_command("data", "check", root).output


def test_check_of_wrong_arguments(tmp_path: Path) -> None:
    for arguments, message in (
        ((tmp_path / "none",), "none: no such folder"),
        ((tmp_path,), "no image or volume in this folder or below"),
        ((tmp_path, "--kind", "brain"), "unknown kind of data set 'brain'. Known: grazpedwri, ixi, atlas"),
    ):
        result = thorad_command("data", "check", *arguments)
        assert result.exit_code == 2
        assert result.stderr.startswith("Error: ")
        assert message in result.stderr


def test_split_and_check_of_the_split(tmp_path: Path) -> None:
    root, out = clean_set(tmp_path / "set"), tmp_path / "split"
    result = thorad_command("data", "split", root, "--out", out, "--fractions", "0.6,0.2,0.2", "--seed", 3)
    assert result.exit_code == 0
    assert [line.split() for line in result.output.splitlines()[2:5]] == [
        ["train", "6", "6", "0"],
        ["val", "2", "2", "0"],
        ["test", "2", "2", "0"],
    ]
    assert result.output.splitlines()[-1] == str(out / "test.csv")
    assert len({case.subject for part in ("train", "val", "test") for case in read_cases(out / f"{part}.csv")}) == 10
    assert thorad_command("data", "check", out).exit_code == 0

    again = thorad_command("data", "split", root, "--out", out, "--fractions", "0.6,0.2,0.2", "--seed", 4)
    assert again.exit_code == 2
    assert "another split is there already" in again.stderr

    both = (out / "train.csv").read_text() + (out / "val.csv").read_text().partition("\n")[2]
    (out / "train.csv").write_text(both)
    checked = thorad_command("data", "check", out)
    assert checked.exit_code == 1
    assert "leaks between splits: 2" in checked.output


def test_split_warns_of_findings_in_training(tmp_path: Path) -> None:
    root = clean_set(tmp_path / "set")
    for number in range(10):
        write_scan(root / "masks" / f"sub-{number:02}.png", 20 + number)
    warning = "train.csv holds images with findings; thorad trains on healthy ones only."
    assert warning in thorad_command("data", "split", root, "--out", tmp_path / "a").output
    for fractions in ("0,0.5,0.5", "0,0,1"):
        result = thorad_command("data", "split", root, "--out", tmp_path / fractions, "--fractions", fractions)
        assert result.exit_code == 0
        assert warning not in result.output


def test_split_with_wrong_fractions(tmp_path: Path) -> None:
    root = clean_set(tmp_path / "set")
    for fractions, message in (("a", "the fractions are 'a'; expected three numbers"), ("1,1,1", "whose sum is 1")):
        result = thorad_command("data", "split", root, "--out", tmp_path / "out", "--fractions", fractions)
        assert result.exit_code == 2
        assert message in result.stderr
    assert not (tmp_path / "out").exists()


def test_check_tells_a_doubt_and_ends_well(tmp_path: Path) -> None:
    write_scan(tmp_path / "set" / "train" / "001.png", 1)
    write_scan(tmp_path / "set" / "test" / "001.png", 2)
    result = thorad_command("data", "check", tmp_path / "set", "--json", tmp_path / "found.json")
    assert result.exit_code == 0
    assert "perhaps leaks between splits: 1" in result.output.splitlines()
    assert "No problem found" not in result.output
    assert len(json.loads((tmp_path / "found.json").read_text())["doubts"]) == 1


def test_split_tells_what_is_missing(tmp_path: Path) -> None:
    root = clean_set(tmp_path / "set")
    names = [*(path.name for path in sorted(root.iterdir())), "gone.png"]
    (root / "cases.csv").write_text("image,mask\n" + "".join(f"{name},\n" for name in names))
    arguments = ("data", "split", root, "-o", tmp_path / "out", "--json", tmp_path / "split.json")
    result = thorad_command(*arguments)
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert lines[lines.index("missing: 1") + 1] == "  cases.csv, line 12: gone.png is not there"
    assert json.loads((tmp_path / "split.json").read_text())["missing"] == ["cases.csv, line 12: gone.png is not there"]

    (root / "cases.csv").write_text("image,mask\n" + "".join(f"{name},gone_mask.png\n" for name in names[:-1]))
    refused = thorad_command("data", "split", root, "-o", tmp_path / "other")
    assert refused.exit_code == 2
    assert "10 masks, boxes or other files that belong to an image are missing" in refused.stderr
    assert not (tmp_path / "other").exists()
