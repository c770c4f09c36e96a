"""Build the wheel, look into it, install it without extras into a fresh environment, and detect in a picture.

    python scripts/wheel_test.py [--constraints constraints.txt]

It fetches torch, so it takes minutes. pip's settings say from where; without an index of CPU builds that is gigabytes.
"""

import argparse
import email
import email.policy
import json
import re
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
LARGEST = 30_000_000  # bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--constraints", type=Path)
    constraints = parser.parse_args().constraints
    with tempfile.TemporaryDirectory() as folder:
        build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, str(REPOSITORY)]
        subprocess.run(build, check=True)
        (wheel,) = Path(folder).glob("thorad-*.whl")
        look_into(wheel)
        venv.create(Path(folder) / "venv", with_pip=True)
        install = [Path(folder) / "venv" / "bin" / "python", "-m", "pip", "install", "--quiet", wheel]
        subprocess.run([*install, *(["--constraint", constraints] if constraints else [])], check=True)
        detect(Path(folder))


def look_into(wheel: Path) -> None:
    """Size, licences of all that is bundled, a description without relative links."""
    size = wheel.stat().st_size
    assert size < LARGEST, f"{wheel.name} has {size} bytes, expected less than {LARGEST}"
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = (archive.read(name) for name in names if name.endswith(".dist-info/METADATA"))
    licences = [name.partition(".dist-info/licenses/")[2] for name in names if ".dist-info/licenses/" in name]
    assets = REPOSITORY / "src" / "thorad" / "assets"
    expected = {"LICENSE", *(str(path.relative_to(REPOSITORY)) for path in assets.rglob("LICENSE*"))}
    assert set(licences) == expected, f"licences {sorted(licences)}, expected {sorted(expected)}"
    described = email.message_from_bytes(metadata, policy=email.policy.compat32)
    relative = re.findall(r"\]\((?!https?:|#)[^)]*\)", described.get_payload(decode=True).decode())
    assert not relative, f"PyPI can't show {relative}"
    assert "all" in described.get_all("Provides-Extra", [])
    print(f"{wheel.name}: {size / 1e6:.1f} MB, {len(licences)} licence files, no relative link")


def detect(folder: Path) -> None:
    """The command, in the folder's environment and away from the source."""
    python = folder / "venv" / "bin" / "python"
    where = "import thorad, pathlib; print(pathlib.Path(thorad.__file__).parent / 'assets' / 'samples' / 'head.png')"
    head = subprocess.check_output([python, "-c", where], text=True, cwd=folder).strip()
    assert Path(head).is_relative_to(folder), f"{head} is not the wheel's"
    command = [folder / "venv" / "bin" / "thorad", "detect", head, "--out", folder / "results", "--device", "cpu"]
    subprocess.run(command, check=True, cwd=folder)
    case = json.loads((folder / "results" / "cases" / "head" / "case.json").read_text())
    assert case["status"] == "ok", case
    assert 0 < case["score"] < 2, case
    print(f"detected in {Path(head).name}: score {case['score']:.4g}")


if __name__ == "__main__":
    main()
