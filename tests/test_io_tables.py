"""Tables written: what `read_table` reads back."""

import os
from pathlib import Path

import numpy as np
import pytest

from thorad.io.tables import read_table, write_table


def test_a_written_table_reads_back(tmp_path: Path) -> None:
    rows = [{"image": 'a, "b".png', "score": 0.5, "note": "no column"}, {"image": "größe\n2.png", "score": None}, {}]
    rows[2] = {"image": os.fsdecode(b"\xff.png")}
    write_table(tmp_path / "new" / "t.csv", ["score", "image"], rows)
    assert (tmp_path / "new" / "t.csv").read_bytes().startswith(b'score,image\n0.5,"a, ""b"".png"\n,')
    assert [row for _, row in read_table(tmp_path / "new" / "t.csv", ["image"])] == [
        {"score": "0.5", "image": 'a, "b".png'},
        {"score": "", "image": "größe\n2.png"},
        {"score": "", "image": os.fsdecode(b"\xff.png")},
    ]


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("=cmd|' /C calc'!A0", "'=cmd|' /C calc'!A0"),
        ("+1+1", "'+1+1"),
        ("-2+3+cmd", "'-2+3+cmd"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("'=1", "''=1"),
        ("'quoted'", "'quoted'"),
        ("\tx\r", "\\x09x\\x0d"),
        ("\x1b[31mred\n", "\\x1b[31mred\\x0a"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        (r"C:\x1b\u00e9", r"C:\x5cx1b\x5cu00e9"),
        (r"a\b", r"a\b"),
        ("-1.5e-3", "-1.5e-3"),
        ("größe\u3000大", "größe\u3000大"),
    ],
)
def test_a_cell_neither_runs_nor_acts_and_reads_back(tmp_path: Path, name: str, written: str) -> None:
    write_table(tmp_path / "t.csv", ["image", "n"], [{"image": name, "n": 1}])
    assert (tmp_path / "t.csv").read_bytes().decode() == f"image,n\n{written},1\n"
    assert read_table(tmp_path / "t.csv", ["image"]) == [(2, {"image": name, "n": "1"})]


def test_numbers_stay_numbers(tmp_path: Path) -> None:
    row = {"a": -1, "b": -0.5, "c": np.float32(-0.25), "d": np.int64(-3), "e": float("-inf")}
    write_table(tmp_path / "t.csv", list(row), [row])
    assert (tmp_path / "t.csv").read_text() == "a,b,c,d,e\n-1,-0.5,-0.25,-3,-inf\n"
