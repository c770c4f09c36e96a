"""The code of docs/extend.md: short, and it runs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import PIL.Image
import pytest

BLOCKS = re.findall(
    r"^```python\n(.*?)^```",
    (Path(__file__).parents[1] / "docs" / "extend.md").read_text(encoding="utf-8"),
    flags=re.DOTALL | re.MULTILINE,
)

AND_THEN = """
from pathlib import Path
from thorad.datasets.layouts import find_data_set
detection = thorad.Detector("training/model", method="ddpm-uniform", device="cpu").detect(Phantoms()[0]["image"])
print("calls", detection.network_calls)
found = find_data_set(Path("visits"))
print(found.kind, [(case.name, case.subject, bool(case.mask)) for case in found.cases])
"""


def test_each_is_under_40_lines() -> None:
    assert len(BLOCKS) == 6
    for block in BLOCKS:
        assert len(block.splitlines()) < 40, block


@pytest.mark.timeout(200)
def test_the_code_runs(tmp_path: Path) -> None:
    """All blocks in one process, as one script."""
    for name in ("p1/a.png", "p1/a_lesion.png", "p2/b.png"):
        (tmp_path / "visits" / name).parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.radial_gradient("L").resize((32, 32)).save(tmp_path / "visits" / name)
    (tmp_path / "script.py").write_text("\n".join([*BLOCKS, AND_THEN]), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(str(Path(path).resolve()) for path in sys.path if path),
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "step 3 learning rate 0.0001" in lines
    assert any(line.startswith("Detection(") for line in lines)
    assert "calls 20" in lines, "of two draws"
    assert "visits [('p1-a', 'p1', True), ('p2-b', 'p2', False)]" in lines
