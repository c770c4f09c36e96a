import json
import os
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from thorad.apps import prepare
from thorad.apps.prepare import load_prepared, prepare_files, volume_section
from thorad.errors import ThoradError
from thorad.executor import processes
from thorad.io.images import read_image
from thorad.io.registration import Registration
from thorad.io.registration_picture import registration_picture
from thorad.io.scans import find_scans
from thorad.io.tables import read_table
from thorad.io.template import MNI_2009A, cut_axial, paste_axial, template_brain
from thorad.io.volumes import Volume, read_volume, write_nifti

SHIFT = np.array([[1, 0, 0, 3.0], [0, 1, 0, -4], [0, 0, 1, 5], [0, 0, 0, 1]])


def write_head(path: Path) -> Volume:
    """The template's brain, 3 mm left of, 4 before and 5 mm below its place, on a flipped grid."""
    voxels, affine = template_brain()
    flip = np.diag([-1.0, 1, 1, 1])
    flip[0, 3] = voxels.shape[0] - 1
    grid = np.linalg.inv(SHIFT) @ affine @ flip
    head = Volume(voxels=voxels[::-1], affine=grid, source=str(path), name=path.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_nifti(path, head.voxels, head, "test")
    return head


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Instead of seconds of registration the known shift; the names of those that were registered."""
    names: list[str] = []

    def register(volume: Volume, *, skull: bool = True) -> Registration:
        names.append(volume.name)
        if volume.name.startswith("odd"):
            raise ThoradError(f"{volume.source}: can't be registered. Expected a T1w head.")
        warning = None if skull else "the skull was cut away"
        return Registration(SHIFT, overlap=0.9, similarity=0.8, warning=warning, volume=volume)

    monkeypatch.setattr(prepare, "register", register)
    return names


def test_slices_are_the_templates(tmp_path: Path, registered: list[str]) -> None:
    head = write_head(tmp_path / "heads" / "sub-01_ses-1_T1w.nii.gz")
    out = tmp_path / "out"
    done = prepare_files(find_scans([tmp_path / "heads"]), out, indices=(96, 94)).done
    assert list(done) == ["sub-01_ses-1_T1w"]
    prepared = done["sub-01_ses-1_T1w"]
    assert (prepared.subject, prepared.warning, sorted(prepared.slices)) == ("sub-01", None, [94, 96])
    brain, _ = template_brain()
    pixels = [read_image(prepared.slices[k]).pixels for k in (94, 96)]
    for k, picture in zip((94, 96), pixels, strict=True):
        assert picture.shape == (233, 197)
        expected = brain[:, ::-1, k // 2].T  # (y descending, x), every second of 1 mm
        np.testing.assert_allclose(
            picture[::2, ::2] / 65535, expected / max(brain[..., 47].max(), brain[..., 48].max()), atol=1e-4
        )
    assert max(picture.max() for picture in pixels) == 65535
    with PIL.Image.open(prepared.slices[94]) as image:
        assert image.mode == "I;16"
    rows = [row for _, row in read_table(out / "slices.csv", ["image", "subject", "volume", "slice"])]
    name = "sub-01_ses-1_T1w"
    assert rows == [
        {"image": f"{name}/slice_{k:03d}.png", "subject": "sub-01", "volume": name, "slice": f"{k}"} for k in (94, 96)
    ]
    assert [scan.path.name for scan in find_scans([out / "slices.csv"]).values()] == ["slice_094.png", "slice_096.png"]
    np.testing.assert_array_equal(prepared.affine, read_volume(tmp_path / "heads" / f"{name}.nii.gz").affine)
    assert prepared.shape == head.voxels.shape


def test_map_goes_back_to_the_native_grid(tmp_path: Path, registered: list[str]) -> None:
    """A slice that is cut and pasted is the head there again."""
    head = write_head(tmp_path / "head.nii.gz")
    prepared = prepare_files(find_scans([tmp_path / "head.nii.gz"]), tmp_path / "out").done["head"]
    cut = cut_axial(head, prepared.to_template, [95])[0]
    native = paste_axial(cut[None], [95], head, load_prepared(tmp_path / "out" / "head").to_template)
    assert native.shape == head.voxels.shape
    met = np.isfinite(native)
    z = (prepared.to_template @ prepared.affine)[2] @ [0, 0, 47, 1]
    assert z == 22  # of the voxels' plane k = 47; the slice is at 23 mm, between it and the next one
    assert met[..., 47].all()
    assert met[..., 48].all()
    assert met.sum() == 2 * met[..., 47].size
    halfway = head.voxels[..., 47:49].mean(axis=-1)
    np.testing.assert_allclose(native[..., 47], halfway, atol=1e-3)


def test_one_bad_file_never_loses_the_others_and_nothing_is_done_twice(tmp_path: Path, registered: list[str]) -> None:
    folder, out = tmp_path / "heads", tmp_path / "out"
    for name in ("a", "b", "odd"):
        write_head(folder / f"{name}.nii.gz")
    (folder / "junk.nii.gz").write_bytes(b"no volume")
    PIL.Image.new("L", (64, 64)).save(folder / "picture.png")
    seen: list[tuple[int, int]] = []
    first = prepare_files(find_scans([folder]), out, on_progress=lambda done, total: seen.append((done, total)))
    assert list(first.done) == ["a", "b"]
    assert set(first.failed) == {"odd", "junk"}
    assert "not a volume" in first.failed["junk"]
    assert seen == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]
    assert registered == ["a", "b", "odd"]

    registered.clear()
    second = prepare_files(find_scans([folder]), out)
    assert (second.already_done, registered) == (2, ["odd"])
    assert {row["volume"] for _, row in read_table(out / "slices.csv", ["volume"])} == {"a", "b"}

    registered.clear()
    (out / "a" / "slice_095.png").unlink()  # as a run that was killed would not leave it, but somebody might
    changed = folder / "b.nii.gz"
    os.utime(changed, (os.stat(changed).st_mtime + 60,) * 2)  # noqa: PTH116
    prepare_files(find_scans([folder]), out)
    assert registered == ["a", "b", "odd"]

    broken = folder / "b.nii.gz"
    content = broken.read_bytes()
    broken.write_bytes(content[:100])
    assert set(prepare_files(find_scans([folder]), out).failed) == {"b", "junk", "odd"}
    rows = [row for _, row in read_table(out / "slices.csv", ["volume"])]
    assert {row["volume"] for row in rows} == {"a"}, "what was cut from the file before is no slice of this one"
    broken.write_bytes(content)
    prepare_files(find_scans([folder]), out)

    registered.clear()
    others = prepare_files(find_scans([folder / "a.nii.gz"]), out, skull=False, indices=(90,))
    assert registered == ["a"]
    assert others.warned == {"a": "the skull was cut away"}
    assert not (out / "a" / "slice_095.png").exists()
    rows = [row for _, row in read_table(out / "slices.csv", ["volume", "slice"])]
    assert {(row["volume"], row["slice"]) for row in rows} == {("a", "90"), ("b", "95")}
    write_head(tmp_path / "other" / "a.nii.gz")
    assert "slices of another file" in prepare_files(find_scans([tmp_path / "other"]), out).failed["a"]
    assert not list(out.rglob("*.part"))


def test_processes_write_what_one_process_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spawned processes register in earnest, and refuse both of these."""
    for name in ("dark", "darker"):
        dark = Volume(voxels=-np.ones((9, 9, 9), np.float32), affine=np.eye(4), source="", name=name)
        dark.voxels[0, 0, 0] = -2
        write_nifti(tmp_path / f"{name}.nii.gz", dark.voxels, dark, "test")
    scans = find_scans([tmp_path / "dark.nii.gz", tmp_path / "darker.nii.gz"])
    several = prepare_files(scans, tmp_path / "out", executor=processes(2))
    assert several.failed == prepare_files(scans, tmp_path / "out").failed
    assert "nearly no voxel is above 0" in several.failed["dark"]


def test_overlay_outlines_the_brain(tmp_path: Path) -> None:
    head = write_head(tmp_path / "head.nii.gz")
    picture = registration_picture(Registration(SHIFT, 1, 1, None, head))
    assert picture.shape == (233, 197 + 197 + 233, 3)
    outline = (picture == (255, 96, 0)).all(axis=2)
    grey = picture.astype(int).max(axis=2) == picture.astype(int).min(axis=2)
    assert (outline | grey).all()
    brain, affine = template_brain()
    for left, width, axis, at in ((0, 197, 2, 23), (197, 197, 1, -20), (394, 233, 0, -4)):
        rows, columns = np.nonzero(outline[:, left : left + width])
        plane = np.take(brain > 0, round((at - affine[axis, 3]) / 2), axis=axis)
        across, up = (np.flatnonzero(plane.any(axis=1 - side)) for side in (0, 1))
        height = MNI_2009A.shape[1 if axis == 2 else 2]
        assert abs(columns.min() - 2 * across.min()) <= 2
        assert abs(columns.max() - 2 * across.max()) <= 2
        assert abs(height - 1 - rows.max() - 2 * up.min()) <= 2
        assert abs(height - 1 - rows.min() - 2 * up.max()) <= 2


def test_what_is_no_use_is_refused(tmp_path: Path, registered: list[str]) -> None:
    write_head(tmp_path / "head.nii.gz")
    scans = find_scans([tmp_path / "head.nii.gz"])
    with pytest.raises(ThoradError, match="expected indices from 0 to 188"):
        prepare_files(scans, tmp_path / "out", indices=(189,))
    PIL.Image.new("L", (64, 64)).save(tmp_path / "picture.png")
    with pytest.raises(ThoradError, match="no volume among the inputs"):
        prepare_files(find_scans([tmp_path / "picture.png"]), tmp_path / "out")
    empty = prepare_files(scans, tmp_path / "out", indices=(188,))
    assert "the slices [188] are empty" in empty.failed["head"]
    prepare_files(scans, tmp_path / "out")
    record = tmp_path / "out" / "head" / "prepared.json"
    content = json.loads(record.read_bytes())
    for damaged in ("{", "[]", json.dumps({**content, "affine": [1]})):
        record.write_text(damaged)
        with pytest.raises(ThoradError, match=r"prepared\.json: missing or damaged"):
            load_prepared(record.parent)


def test_model_says_what_it_wants(tmp_path: Path) -> None:
    section = volume_section("brain-t1-compact")
    assert (section.template, section.skull, section.axial_slices) == ("mni152-2009a", True, (95, 95))
    (tmp_path / "recipe.toml").write_text(
        'name = "own"\n[volume]\ntemplate = "mni152-2009a"\nskull = false\naxial_slices = [80, 110]\n'
    )
    for own in (tmp_path, tmp_path / "recipe.toml"):
        assert volume_section(str(own)).axial_slices == (80, 110)
    with pytest.raises(ThoradError, match="for pictures, not for volumes"):
        volume_section("hand-xray64")
