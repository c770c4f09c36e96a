import gzip
from pathlib import Path

import pytest

from thorad.datasets.wrist import read_dataset_table
from thorad.errors import ThoradError

TABLE = (
    "filestem,patient_id,study_number,timehash,gender,age,laterality,projection,initial_exam,ao_classification,cast,"
    "diagnosis_uncertain,osteopenia,fracture_visible,metal,pixel_spacing,device_manufacturer\n"
    "0001_a,1,1,12,M,14.1,L,1,1,23r-M/2.1,,,,,,0.144,Siemens\n"
    "0001_b,1,2,13,F,,R,3,,,1,1,1,1,1,,Agfa\n"
)


def saved(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize("packed", [False, True])
def test_dataset_table(tmp_path: Path, packed: bool) -> None:
    content = TABLE.encode("utf-8-sig")
    name, content = ("dataset.csv.gz", gzip.compress(content)) if packed else ("dataset.csv", content)
    first, second = read_dataset_table(saved(tmp_path, name, content))
    assert (first.name, first.subject, first.study, first.projection) == ("0001_a", "1", 1, 1)
    assert (first.fracture_visible, first.metal) == (False, False)
    assert (second.name, second.subject, second.study, second.projection) == ("0001_b", "1", 2, 3)
    assert (second.fracture_visible, second.metal) == (True, True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (TABLE.replace("patient_id", "patient"), "no column patient_id in the first line"),
        (TABLE.replace("0001_b", "0001_a"), "0001_a appears in lines 2 and 3"),
        (TABLE.replace("0001_b,1", "0001_b,"), "line 3: filestem or patient_id is empty"),
        (TABLE.replace(",R,3", ",R,4"), "line 3: projection is '4'; expected 1 or 2 or 3"),
        (TABLE.replace("0001_b,1,2", "0001_b,1,two"), "study_number is 'two'"),
        (
            TABLE.replace("1,1,1,1,1,,Agfa", "1,1,1,yes,1,,Agfa"),
            "visible is 'yes'; expected 1 or 0 or nothing",
        ),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_dataset_tables_that_are_refused(tmp_path: Path, content: str, message: str, packed: bool) -> None:
    name = "dataset.csv.gz" if packed else "dataset.csv"
    path = saved(tmp_path, name, gzip.compress(content.encode()) if packed else content)
    with pytest.raises(ThoradError, match=message) as caught:
        read_dataset_table(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("content", [b"no gzip", gzip.compress(TABLE.encode(), mtime=0)[:-20], b""])
def test_damaged_archive(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(ThoradError, match=r"dataset\.csv\.gz: "):
        read_dataset_table(saved(tmp_path, "dataset.csv.gz", content))
