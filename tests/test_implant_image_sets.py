import csv
import shutil
from pathlib import Path

import nibabel
import numpy as np
import PIL.Image
import pytest
from scipy.ndimage import binary_dilation
from skimage.filters import threshold_otsu

from test_io_dicom import DX, base
from test_io_dicom import save as save_dicom
from thorad.datasets.boxes import read_boxes
from thorad.datasets.cases import read_cases
from thorad.errors import ThoradError
from thorad.implant.image_sets import BOX_LABELS, XRAY_KINDS, ImplantedSet, _lesion, make_lesion_set, make_xray_set
from thorad.implant.regions import body_region, bone_region, otsu_threshold
from thorad.io.images import read_image, read_mask
from thorad.io.intensity import scale


def hand(seed: int, side: int = 64) -> np.ndarray:
    """A forearm and four fingers with bones in them, on a dark ground: (side, side) in [0, 1]."""
    rng = np.random.default_rng(seed)
    y, x = np.indices((side, side)) * 64 / side
    image = np.full((side, side), 0.05)
    arm = 0.8 + 0.2 * rng.uniform()
    for left, top, width, bone in [(16, 11, 6, 3), (24, 9, 6, 3), (32, 9, 6, 3), (40, 12, 6, 3), (20, 34, 22, 14)]:
        left += rng.integers(-1, 2)
        flesh, inner = arm * (0.4 if top < 30 else 0.6), arm * (0.7 if top < 30 else 1)
        image[(y >= top) & (x >= left) & (x < left + width)] = flesh
        edge = (width - bone) / 2
        image[(y >= top + 2) & (x >= left + edge) & (x < left + width - edge)] = inner
    return np.clip(image + rng.normal(0, 0.01, image.shape), 0, 1)


def save(path: Path, image: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray((255 * image).astype(np.uint8)).save(path)
    return path


@pytest.fixture(scope="module")
def hands(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("hands")
    return [save(folder / f"{number:02}.png", hand(number)) for number in range(20)]


@pytest.fixture(scope="module")
def implanted(hands: list[Path], tmp_path_factory: pytest.TempPathFactory) -> ImplantedSet:
    return make_xray_set(hands, tmp_path_factory.mktemp("set") / "out", seed=3)


def table_rows(implanted: ImplantedSet) -> dict[Path, dict[str, str]]:
    """{image: row} of the table."""
    with implanted.table.open(encoding="utf-8", newline="") as file:
        return {implanted.table.parent / row["image"]: row for row in csv.DictReader(file)}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_otsu_is_that_of_scikit_image(rng: np.random.Generator) -> None:
    for _ in range(10):
        image = np.clip(np.concatenate([rng.normal(0.2, 0.05, 500), rng.normal(0.7, 0.1, 300)]), 0, 1).reshape(40, 20)
        image[0, 0], image[0, 1] = 0, 1  # scikit-image's histogram reaches from the least to the largest value
        ours = otsu_threshold(image)
        # It gives the bin's middle, ours the edge behind it.
        assert ours == pytest.approx(threshold_otsu(image, nbins=256) + 0.5 / 256, abs=1e-9)


def test_regions_of_a_hand() -> None:
    image = scale(hand(1))
    body = body_region(image, most=0.5)
    assert body[40, 30]
    assert body[20, 26]
    assert not body[20, 5]
    assert not body[:2].any()
    assert not body[:, -2:].any()
    bone = bone_region(image, body)
    assert (body | ~bone).all()
    assert 0.3 < bone.sum() / body.sum() < 0.9
    assert image[bone].mean() > image[body & ~bone].mean() + 0.1


def test_table(implanted: ImplantedSet, hands: list[Path]) -> None:
    cases = read_cases(implanted.table, truth="boxes")
    rows = list(table_rows(implanted).values())
    assert list(rows[0]) == ["image", "boxes", "elsewhere", "subject", "kind"]
    assert implanted.counts == {**dict.fromkeys(XRAY_KINDS, 3), "healthy": 5}
    assert not implanted.left_out
    assert len(cases) == len({case.subject for case in cases}) == 20
    assert {row["kind"] for row in rows if not row["boxes"]} == {"healthy"}
    healthy = {case.subject for case in cases if case.boxes is None}
    assert all(case.image.parent.name == ("healthy" if case.subject in healthy else "images") for case in cases)
    readme = (implanted.table.parent / "README.md").read_text(encoding="utf-8")
    assert "seed 3" in readme
    assert "simulated" in readme
    assert "licence" in readme


def test_every_box_holds_what_changed(implanted: ImplantedSet, hands: list[Path]) -> None:
    by_name = {path.stem: path for path in hands}
    rows = table_rows(implanted)
    for case in read_cases(implanted.table, truth="boxes"):
        original = scale(read_image(by_name[case.subject]).pixels)
        change = np.abs(read_image(case.image).pixels / 255 - original)
        assert case.elsewhere is not None
        elsewhere = read_mask(case.elsewhere, original.shape)
        if case.boxes is None:
            assert change.max() <= 0.5 / 255 + 1e-6
            assert elsewhere.sum() > 500
            continue
        (box,) = read_boxes(case.boxes, *original.shape)
        assert box.label == BOX_LABELS[rows[case.image]["kind"]]
        inside = np.zeros(original.shape, bool)
        inside[int(box.top) : int(box.bottom), int(box.left) : int(box.right)] = True
        change[change < 0.01] = 0  # what 8 bits round
        assert change[inside].sum() > 0.6 * change.sum()
        assert change[inside].max() > 0.1
        assert not (elsewhere & binary_dilation(inside, np.ones((5, 5)))).any()  # two px of margin
        assert elsewhere.sum() > 300


def test_same_seed_same_bytes(implanted: ImplantedSet, hands: list[Path], tmp_path: Path) -> None:
    again = make_xray_set(hands[::-1], tmp_path / "again", seed=3)
    assert contents(again.table.parent) == contents(implanted.table.parent)
    other = make_xray_set(hands, tmp_path / "other", seed=4)
    assert contents(other.table.parent).keys() != contents(implanted.table.parent).keys()


def test_findings_of_choice(hands: list[Path], tmp_path: Path) -> None:
    made = make_xray_set(hands[:6], tmp_path / "b", seed=0, kinds=["swelling", "foreign-body"], healthy_share=0)
    assert made.counts == {"swelling": 3, "foreign-body": 3, "healthy": 0}
    assert {row["kind"] for row in table_rows(made).values()} == {"swelling", "foreign-body"}


def test_images_of_one_subject_stay_together(tmp_path: Path) -> None:
    paths = [save(tmp_path / "in" / f"sub-{n // 3:02}_{n % 3}.png", hand(n)) for n in range(12)]
    made = make_xray_set(paths, tmp_path / "b", seed=0, healthy_share=0.5)
    cases = read_cases(made.table, truth="boxes")
    healthy = {case.subject for case in cases if case.boxes is None}
    assert len(healthy) == 2
    assert not healthy & {case.subject for case in cases if case.boxes is not None}


def test_larger_images_get_larger_findings(tmp_path: Path) -> None:
    paths = [save(tmp_path / "in" / f"{n}.png", hand(n, side=192)) for n in range(4)]
    made = make_xray_set(paths, tmp_path / "b", seed=0, kinds=["foreign-body"], healthy_share=0)
    for case in read_cases(made.table, truth="boxes"):
        assert case.boxes is not None
        (box,) = read_boxes(case.boxes, 192, 192)
        assert box.right - box.left >= 3 * 4  # more than 4 px of 64


def test_unfit_images_are_left_out_and_named(hands: list[Path], tmp_path: Path) -> None:
    small = save(tmp_path / "small.png", hand(0, side=40))
    bright = save(tmp_path / "bright.png", np.clip(0.8 + 0.2 * hand(0), 0, 1))
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\nno")
    made = make_xray_set([*hands[:5], small, bright, broken], tmp_path / "b", seed=0, healthy_share=0)
    assert sum(made.counts.values()) == 5
    assert made.left_out.keys() == {small, bright, broken}
    assert "40 x 40 px; expected sides of 48 px at least" in made.left_out[small]
    assert "The largest bright part is" in made.left_out[bright]
    assert all(str(path) in reason for path, reason in made.left_out.items())
    assert "3 of the given images were of no use" in (tmp_path / "b" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("make", [make_xray_set, make_lesion_set])
def test_what_is_refused(hands: list[Path], tmp_path: Path, make: type) -> None:
    out = tmp_path / "out"
    with pytest.raises(ThoradError, match="Findings tumour; expected some of"):
        make(hands, out, seed=0, kinds=["tumour"])
    with pytest.raises(ThoradError, match="Findings none; expected"):
        make(hands, out, seed=0, kinds=[])
    with pytest.raises(ThoradError, match="A healthy share of 1; expected 0"):
        make(hands, out, seed=0, healthy_share=1)
    with pytest.raises(ThoradError, match="Seed -1"):
        make(hands, out, seed=-1)
    with pytest.raises(ThoradError, match=r"small\.png: the image is 40 x 40 px"):
        make([save(tmp_path / "small.png", hand(0, side=40))], out, seed=0)
    with pytest.raises(ThoradError, match="Nothing could be implanted in the 0 images"):
        make([], out, seed=0)
    assert not out.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["small.png"]  # nothing half written stays
    out.mkdir()
    (out / "cases.csv").write_text("mine")
    with pytest.raises(ThoradError, match="already there and not an empty folder"):
        make(hands, out, seed=0)
    assert (out / "cases.csv").read_text() == "mine"
    shutil.rmtree(out)
    out.mkdir()
    assert make(hands[:4], out, seed=0).table == out / "cases.csv"  # an empty folder will do


def test_lesion_set(tmp_path: Path, hands: list[Path]) -> None:
    """Dark and bright lesions within the given region, in masks that `thorad evaluate` reads."""
    region = np.zeros((64, 64), bool)
    region[36:60, 22:42] = True
    made = make_lesion_set(hands, tmp_path / "b", seed=1, region=region)
    again = make_lesion_set(hands, tmp_path / "again", seed=1, region=region)
    assert contents(tmp_path / "b") == contents(tmp_path / "again")
    assert made.counts.keys() == again.counts.keys() == {"dark", "bright", "healthy"}
    rows = table_rows(made)
    by_name = {path.stem: path for path in hands}
    cases = read_cases(made.table)
    assert sum(case.mask is None for case in cases) == 5
    for case in cases:
        if case.mask is None:
            continue
        mask = read_mask(case.mask, (64, 64))
        change = read_image(case.image).pixels / 255 - scale(read_image(by_name[case.subject]).pixels)
        assert mask.any()
        assert region[mask].all()
        assert (change[mask] * (-1 if rows[case.image]["kind"] == "dark" else 1)).min() > 0.05


def test_lesion_set_without_a_region(tmp_path: Path) -> None:
    y, x = np.indices((96, 80))
    heads = [
        save(tmp_path / "in" / f"{n}.png", 0.6 * (np.hypot((y - 48) / 40, (x - 40) / 30) < 1) + 0.02 * (n + 1))
        for n in range(6)
    ]
    made = make_lesion_set(heads, tmp_path / "b", seed=1, healthy_share=0, kinds=["dark"])
    assert made.counts == {"dark": 6, "healthy": 0}


def test_where_large_lesions_have_no_place_small_ones_are_made() -> None:
    y, _ = np.indices((200, 200))
    region = np.abs(y - 100) < 6
    for seed in range(40):
        _, mask = _lesion(np.full((200, 200), 0.6), region, "dark", np.random.default_rng(seed))
        assert mask.any()


def test_bright_lesions_lie_where_they_show_in_full(tmp_path: Path) -> None:
    """White tissue can't become brighter: a lesion that it would cut to shreds is drawn anew, elsewhere."""
    image = np.full((96, 96), 0.02)
    image[10:86, 10:86] = 1
    image[10:86, 58:86] = 0.4
    image[::4] = np.where(image[::4] == 1, 0.7, image[::4])  # so that lesions do start in the white
    made = make_lesion_set(
        [save(tmp_path / "in" / f"{n}.png", image) for n in range(8)],
        tmp_path / "b",
        seed=0,
        kinds=["bright"],
        healthy_share=0,
    )
    assert made.counts == {"bright": 8, "healthy": 0}
    for case in read_cases(made.table):
        assert case.mask is not None
        before, after, mask = scale(image), read_image(case.image).pixels / 255, read_mask(case.mask)
        assert mask[:, 58:].sum() > 0.7 * mask.sum()  # not stripes in the white
        assert (after - before)[mask].sum() > 0.5 * np.clip(after - before, 0, 1).sum()
    white = save(tmp_path / "white.png", np.where(image > 0.3, 1, 0.02))
    with pytest.raises(ThoradError, match="has no place for a bright lesion"):
        make_lesion_set([white], tmp_path / "c", seed=0, kinds=["bright"], healthy_share=0)


def test_on_real_hands(shared_data: Path, tmp_path: Path) -> None:
    import zipfile

    with zipfile.ZipFile(shared_data / "hand-xray64.zip") as archive:
        names = sorted(name for name in archive.namelist() if "test/" in name and name.endswith(".jpeg"))[:40]
        archive.extractall(tmp_path / "in", names)
    paths = [tmp_path / "in" / name for name in names]
    made = make_xray_set(paths, tmp_path / "b", seed=0)
    assert sum(made.counts.values()) >= 30
    found = [made.counts[kind] for kind in XRAY_KINDS]
    assert max(found) - min(found) <= 1
    bright = {"metal": True, "foreignbody": True, "fracture": False}
    for case in read_cases(made.table, truth="boxes"):
        if case.boxes is None:
            continue
        (box,) = read_boxes(case.boxes, 64, 64)
        if box.label not in bright:
            continue
        before = scale(read_image(next(path for path in paths if path.stem == case.subject)).pixels)
        change = read_image(case.image).pixels / 255 - before
        inside = change[int(box.top) : int(box.bottom), int(box.left) : int(box.right)]
        assert (inside.sum() > 0) == bright[box.label]


def test_dicom_pictures_are_taken_and_volumes_are_not(tmp_path: Path) -> None:
    """X-rays as a hospital keeps them: the files' names, which may be the patients', go nowhere."""
    for number in range(4):
        pixels = np.rint(4000 * hand(number)).astype(np.uint16)
        picture = base(DX, "DX", pixels, SeriesInstanceUID=f"1.2.{number}", PatientID=f"{number}")
        save_dicom(picture, tmp_path / "in" / f"Musterfrau-{number}.dcm")
    nibabel.save(nibabel.Nifti1Image(np.zeros((8, 8, 8), np.uint8), np.eye(4)), tmp_path / "in" / "head.nii.gz")
    made = make_xray_set([tmp_path / "in"], tmp_path / "out", seed=0)
    assert sum(made.counts.values()) == 4
    assert made.counts["healthy"] == 1
    assert list(made.left_out) == [tmp_path / "in" / "head.nii.gz"]
    assert "a volume; expected pictures. `thorad prepare` cuts slices" in made.left_out[tmp_path / "in" / "head.nii.gz"]
    written = b"".join(contents(tmp_path / "out").values()) + "".join(contents(tmp_path / "out")).encode()
    assert b"Musterfrau" not in written


def test_a_table_says_whom_images_show(hands: list[Path], tmp_path: Path) -> None:
    """Several images of a patient are all diseased or all healthy."""
    rows = [f"{path},P{number // 4}" for number, path in enumerate(hands)]
    (tmp_path / "hands.csv").write_text("\n".join(["image,subject", *rows]) + "\n")
    made = make_xray_set([tmp_path / "hands.csv"], tmp_path / "out", seed=3)
    of_subject: dict[str, set[bool]] = {}
    for row in table_rows(made).values():
        of_subject.setdefault(row["subject"], set()).add(row["kind"] == "healthy")
    assert of_subject.keys() == {f"P{number}" for number in range(5)}
    assert all(len(kinds) == 1 for kinds in of_subject.values())
