"""The paper's split lists, whole, and against the data set's own table where it is at hand."""

from collections import Counter
from pathlib import Path

from thorad.datasets.published import ATLAS_SCANS, FINDINGS, NORMALS, brain_split, wrist_split
from thorad.datasets.wrist import NAME, overlaps, patient_of, read_dataset_table


def test_wrist_counts() -> None:
    split = wrist_split()
    assert {part: len(names) for part, names in split.items()} == {
        **{"train": 1600, "validation": 201, "test": 1039},
        **{"boneanomaly": 122, "foreignbody": 4, "fracture": 6553, "metal": 351},
        **{"periostealreaction": 1154, "softtissue": 72},
    }
    annotations = {kind: sum(split[kind].values()) for kind in FINDINGS}
    assert annotations == {
        **{"boneanomaly": 180, "foreignbody": 4, "fracture": 10182, "metal": 414},
        **{"periostealreaction": 2036, "softtissue": 76},
    }
    everything = [name for names in split.values() for name in names]
    assert all(NAME.fullmatch(name) for name in everything)
    healthy = Counter(name for part in NORMALS for name in split[part])
    assert set(healthy.values()) == {1}, "no healthy image is in two parts"


def test_the_wrist_lists_overlap() -> None:
    split = wrist_split()
    training = {patient_of(name) for name in split["train"]}
    assert len(training & {patient_of(name) for name in split["test"]}) == 13
    both = {kind: len(split[kind].keys() & split["train"].keys()) for kind in FINDINGS}
    assert both == {**dict.fromkeys(FINDINGS, 0), "boneanomaly": 23, "foreignbody": 2, "softtissue": 6}
    assert overlaps() == (135, 31, 25)


def test_the_wrist_lists_are_of_the_data_set(shared_data: Path) -> None:
    rows = {row.name: row for row in read_dataset_table(shared_data / "wrist" / "dataset.csv.gz")}
    split = wrist_split()
    listed = {name for names in split.values() for name in names}
    assert listed <= rows.keys()
    assert {rows[name].projection for name in listed} == {1}, "posteroanterior"
    assert all(rows[name].subject == patient_of(name) for name in rows)
    assert all(rows[name].fracture_visible for name in split["fracture"])
    assert not any(rows[name].fracture_visible or rows[name].metal for part in NORMALS for name in split[part])


def test_brain_counts() -> None:
    split = brain_split()
    assert [len(part) for part in split] == [465, 58, 218, 20]
    assert not split.ixi_train & split.ixi_validation
    assert max(split.atlas_train | split.atlas_artefacts) == ATLAS_SCANS - 1
    assert {number for number in split.atlas_train if number < 20} == {0, 5, 7, 9, 18, 19}


def test_the_slices_at_hand_are_those_of_the_lists(shared_data: Path) -> None:
    split = brain_split()
    for part, subjects in (("train", split.ixi_train), ("val", split.ixi_validation)):
        assert {path.stem.removeprefix("sub-") for path in (shared_data / "ixi" / part).iterdir()} == subjects
