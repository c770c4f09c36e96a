"""Tables written: what `read_table` reads back."""

import os
from pathlib import Path

from thorad.io.tables import read_table, write_table


def test_a_written_table_reads_back(tmp_path: Path) -> None:
    rows = [{"image": 'a, "b".png', "score": 0.5, "note": "no column"}, {"image": "größe\n2.png", "score": None}, {}]
    rows[2] = {"image": os.fsdecode(b"\xff.png")}
    write_table(tmp_path / "new" / "t.csv", ["score", "image"], rows)
    assert (tmp_path / "new" / "t.csv").read_bytes().startswith(b'score,image\n0.5,"a, ""b"".png"\n,')
    assert [row for _, row in read_table(tmp_path / "new" / "t.csv", ["image"])] == [
        {"score": "0.5", "image": 'a, "b".png'},
        {"score": "", "image": "größe\n2.png"},
        {"score": "", "image": r"\udcff.png"},
    ]
