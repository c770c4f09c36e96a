"""The report in a real browser where there is one, and what its file holds in any case."""

import base64
import hashlib
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import average_precision_score

from result_folders import JUDGED_RADIUS, disc, head, make_results
from thorad.errors import ThoradError
from thorad.evaluation.kept import KeptCase, keep_cases
from thorad.results import charts
from thorad.results.folder import OVERLAY, read_folder
from thorad.results.gallery import COLOUR_MAPS
from thorad.results.methods_text import MethodsText, detection_text
from thorad.results.page import render
from thorad.results.report import write_report
from thorad.table import Table

EVIL = "<script>alert(1)<&script>\"'x"


class Page(HTMLParser):
    """The elements of a page: tags with their attributes, and the text of the scripts."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: dict[str, str] = {}
        self.style = self.text = ""
        self._inside = ""
        self.content = path.read_text(encoding="utf-8")
        self.feed(self.content)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = (dict(attrs).get("id") or "code") if tag == "script" else "style" if tag == "style" else ""

    def handle_endtag(self, tag: str) -> None:
        if tag in ("script", "style"):
            self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "style":
            self.style += data
        elif self._inside:
            self.scripts[self._inside] = self.scripts.get(self._inside, "") + data
        else:
            self.text += data

    @property
    def index(self) -> dict[str, Any]:
        return json.loads(self.scripts["index"])

    def pictures(self, case: int) -> list[dict[str, Any]]:
        return json.loads(self.scripts[f"case-{case}"])


def decoded(text: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))


def test_page_holds_all_and_asks_for_nothing(tmp_path: Path) -> None:
    truth = make_results(tmp_path / "results", 4, failed=["broken"])
    summary = write_report(tmp_path / "results", truth=truth)
    assert summary.path == tmp_path / "results" / "report.html"
    assert summary.bytes == summary.path.stat().st_size
    assert (summary.cases, summary.side, summary.without_pictures) == (5, None, 0)
    page = Page(summary.path)
    allowed = {tag: [attributes for name, attributes in page.tags if name == tag] for tag, _ in page.tags}
    assert [attributes["href"] for attributes in allowed["link"]] == ["data:,"]
    assert all(str(attributes["href"]).startswith("#") for attributes in allowed["a"])
    assert not allowed.keys() & {"img", "iframe", "object", "embed", "form", "base"}
    assert not [attributes for _, attributes in page.tags if any(name.startswith("on") for name in attributes)]
    assert not [attributes for _, attributes in page.tags if "src" in attributes or "style" in attributes]
    assert not re.search(r"https?://|@import|url\(", page.content)


def test_policy_allows_exactly_the_pages_own_script_and_style(tmp_path: Path) -> None:
    make_results(tmp_path / "results", 1)
    page = Page(write_report(tmp_path / "results").path)
    policy = next(str(a["content"]) for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    directives = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    for directive, text in (("script-src", page.scripts["code"]), ("style-src", page.style)):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert directives[directive] == f"'sha256-{digest}'"
    assert directives["default-src"] == "'none'"
    assert directives["img-src"] == "data:"


def test_names_are_text_and_nothing_else(tmp_path: Path) -> None:
    make_results(tmp_path / "results", 2, names=[EVIL], failed=["<b>x</b>".replace("/", "")])
    run = json.loads((tmp_path / "results" / "run.json").read_text())
    run["options"]["model"] = "</script><script>alert(2)</script>"
    (tmp_path / "results" / "run.json").write_text(json.dumps(run))
    page = Page(write_report(tmp_path / "results").path)
    assert sorted(page.scripts) == ["case-0", "case-1", "code", "index"]
    assert not [tag for tag, _ in page.tags if tag == "b"]
    assert EVIL in [case["name"] for case in page.index["cases"]]
    assert "</script><script>alert(2)</script>" in page.text


def test_map_keeps_its_values_within_half_a_level(tmp_path: Path) -> None:
    make_results(tmp_path / "results", 3)
    page = Page(write_report(tmp_path / "results").path)
    assert [case["name"] for case in page.index["cases"]] == ["case-002", "case-001", "case-000"]  # by score
    for number, about in enumerate(page.index["cases"]):
        anomaly_map = np.load(tmp_path / "results" / "cases" / about["name"] / "anomaly_map.npy")
        (picture,) = page.pictures(number)
        levels = decoded(picture["map"]).astype(float)
        assert levels.shape == anomaly_map.shape == (picture["height"], picture["width"])
        maximum = picture["maximum"]
        assert maximum == pytest.approx(float(anomaly_map.max()))
        np.testing.assert_allclose(np.sqrt(anomaly_map / maximum), levels / 255, atol=0.5 / 255 + 1e-6)
        scan = np.asarray(Image.open(tmp_path / "results" / "cases" / about["name"] / "scan.png"))
        np.testing.assert_array_equal(decoded(picture["scan"]), scan)
        np.testing.assert_array_equal(decoded(picture["mask"]) > 0, anomaly_map > 0.015)
        np.testing.assert_array_equal(decoded(picture["judged"]) > 0, disc((60, 48), (30, 24), JUDGED_RADIUS))


def test_truth_gives_what_scikit_learn_and_counting_give(tmp_path: Path) -> None:
    truth = make_results(tmp_path / "results", 5)
    page = Page(write_report(tmp_path / "results", truth=truth, bootstrap=50).path)
    about = {case["name"]: case for case in page.index["cases"]}
    maps, lesions = [], []
    for number in range(5):
        anomaly_map = np.load(tmp_path / "results" / "cases" / f"case-{number:03d}" / "anomaly_map.npy")
        case = about[f"case-{number:03d}"]
        if number == 2:
            assert (case["truth"], case["dice"]) == (0, None)
            continue
        lesion = np.asarray(Image.open(tmp_path / "masks" / f"{number}.png")) > 0
        above = anomaly_map > 0.015
        assert case["truth"] == lesion.sum()
        assert case["dice"] == pytest.approx(2 * (above & lesion).sum() / (above.sum() + lesion.sum()))
        maps.append(anomaly_map.ravel())
        lesions.append(lesion.ravel())
    found = re.search(r"average precision of the pixels([0-9.]+) \[([0-9.]+), ([0-9.]+)\]", page.text)
    assert found
    assert "Few subjects: 4 with a lesion." in page.text
    exact = average_precision_score(np.concatenate(lesions), np.concatenate(maps))
    # From 2001 thresholds instead of all.
    assert float(found[1]) == pytest.approx(exact, abs=0.002)
    assert float(found[2]) <= float(found[1]) <= float(found[3])
    pooled = re.search(r"Dice at 0\.015 \(the run's threshold\)([0-9.]+) ", page.text)
    assert pooled
    both, either = np.concatenate(lesions), np.concatenate(maps) > 0.015
    assert float(pooled[1]) == pytest.approx(2 * (both & either).sum() / (both.sum() + either.sum()), abs=5e-4)


def test_without_lesions_or_with_another_table(tmp_path: Path) -> None:
    make_results(tmp_path / "results", 3)
    (tmp_path / "healthy.csv").write_text("image,mask\nimages/0.png,\n")
    page = Page(write_report(tmp_path / "results", truth=tmp_path / "healthy.csv").path)
    assert "Cases: 0 with a lesion, 1 healthy" in page.text
    assert "The truth is known of 1 of the 3 cases" in page.text
    Image.fromarray(np.eye(20, dtype=np.uint8) * 255).save(tmp_path / "other.png")
    (tmp_path / "other.csv").write_text("image,mask\nother.png,other.png\n")
    with pytest.raises(ThoradError, match=r"none of its 1 images is a case of .*case-000"):
        write_report(tmp_path / "results", truth=tmp_path / "other.csv")


@pytest.mark.parametrize("highest", [0.0, 0.7])
def test_maps_of_nearly_nothing_have_figures_and_no_curves(tmp_path: Path, highest: float) -> None:
    truth = make_results(tmp_path / "results", 5)
    for path in (tmp_path / "results" / "cases").glob("*/anomaly_map.npy"):
        anomaly_map = np.zeros((60, 48), np.float32)
        anomaly_map[5, 5] = highest if path.parent.name == "case-000" else 0
        np.save(path, anomaly_map)
    page = Page(write_report(tmp_path / "results", truth=truth, bootstrap=10).path)
    assert "average precision of the pixels" in page.text
    assert "Dice against the threshold" not in page.text


def test_the_truth_of_volumes_counts_as_known(tmp_path: Path) -> None:
    make_results(tmp_path / "results", 3, shape=(233, 197), slices=1)
    for case in (tmp_path / "results" / "cases").iterdir():
        (case / "registration.json").write_text(json.dumps({"to_template": np.eye(4).tolist()}))
    lesion = np.zeros((40, 40, 40), np.uint8)
    lesion[10:20, 10:20, 10:30] = 1
    nibabel.save(nibabel.Nifti1Image(lesion, np.eye(4)), tmp_path / "lesion.nii.gz")
    truth = tmp_path / "volumes.csv"
    truth.write_text("image,mask\nimages/0.png,lesion.nii.gz\nimages/1.png,\n")
    page = Page(write_report(tmp_path / "results", truth=truth).path)
    assert "The truth is known of 2 of the 3 cases" in page.text
    assert "The truth of 2 volumes is drawn, and not in the figures" in page.text
    assert "volumes.csv: 2 cases" in page.text


def test_page_stays_within_its_limit(tmp_path: Path) -> None:
    make_results(tmp_path / "results", 6, shape=(300, 220))
    whole = write_report(tmp_path / "results")
    assert whole.side is None
    smaller = write_report(tmp_path / "results", largest=int(0.6 * whole.bytes))
    assert smaller.side in (256, 192)
    assert smaller.without_pictures == 0
    page = Page(smaller.path)
    assert max(decoded(page.pictures(0)[0]["map"]).shape) == smaller.side
    assert f"reduced to {smaller.side} px" in page.text
    fewer = write_report(tmp_path / "results", largest=60_000)
    assert 0 < fewer.without_pictures < 6
    shown = [case["name"] for case in Page(fewer.path).index["cases"] if case["pictures"]]
    assert shown == ["case-005", "case-004", "case-003"][: len(shown)]  # those with the highest scores
    assert f"The last {fewer.without_pictures} cases with a result are listed without pictures" in Page(fewer.path).text


def test_small_pictures_stay_where_not_all_fit(tmp_path: Path) -> None:
    make_results(tmp_path / "results", 6, shape=(100, 80))
    summary = write_report(tmp_path / "results", largest=60_000)
    assert 0 < summary.without_pictures < 6
    assert summary.side is None


def test_older_folder_shows_its_overlay(tmp_path: Path) -> None:
    make_results(tmp_path / "results", 1, scans=False, calibrated=False)
    page = Page(write_report(tmp_path / "results").path)
    assert "kept no scan" in page.text
    assert "Not calibrated" in page.text
    (picture,) = page.pictures(0)
    assert picture["scan"] is None
    overlay = np.asarray(Image.open(tmp_path / "results" / "cases" / "case-000" / OVERLAY))
    np.testing.assert_array_equal(decoded(picture["overlay"]), overlay)


def test_folder_of_failures_only(tmp_path: Path) -> None:
    make_results(tmp_path / "results", 0, failed=["broken"])
    page = Page(write_report(tmp_path / "results").path)
    assert "#summary" not in [attributes.get("href") for _, attributes in page.tags]
    assert "0 ok, 0 warned, 0 refused, 1 failed" in page.text
    assert [case["pictures"] for case in page.index["cases"]] == [False]


def test_steps_and_slices_are_all_there(tmp_path: Path) -> None:
    make_results(tmp_path / "results", 1, steps=3, slices=2)
    page = Page(write_report(tmp_path / "results").path)
    assert page.index["cases"][0]["slices"] == ["slice 90, z = +18 mm", "slice 95, z = +23 mm"]
    for picture in page.pictures(0):
        assert [step["t"] for step in picture["steps"]] == [300, 200, 100]
        assert [int(decoded(step["clean"]).max()) for step in picture["steps"]] == [60, 120, 180]
        assert [step["maximum"] for step in picture["steps"]] == pytest.approx([0.03, 0.06, 0.09], rel=1e-3)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("run.json", None, "no such file. Name a folder"),
        ("run.json", "{}", "not the run.json of a result folder"),
        ("run.json", "{", "can't be read"),
        ("cases/case-000/case.json", "{}", "damaged"),
        ("cases/case-000/anomaly_map.npy", "x", "missing or damaged"),
        ("cases/case-000/overlay.png", None, "missing, or of another size"),
    ],
)
def test_damaged_folder_is_told(tmp_path: Path, file: str, content: str | None, message: str) -> None:
    make_results(tmp_path / "results", 1)
    path = tmp_path / "results" / file
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(ThoradError, match=message):
        write_report(tmp_path / "results")
    assert not (tmp_path / "results" / "report.html").exists()


RESULT = {
    "protocol": "brain-lesions",
    "method": "thor",
    "noise": "simplex",
    "model": "<m>",
    "best_dice": {"small": 10.0, "medium": None, "large": 80.0},
    "intervals": {"best_dice": {"small": [5.0, 20.0], "medium": None, "large": [75.0, 85.0]}},
    "counts": {"lesion_cases": 3, "small": 2, "medium": 0, "large": 1},
    "failures": [{"name": "bad", "image": "bad.png", "reason": "<broken>"}],
}


def test_evaluation_shows_its_table_and_sizes(tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text(json.dumps([RESULT]))
    (tmp_path / "run.json").write_text(json.dumps({"seconds": 3}))
    page = Page(write_report(tmp_path).path)
    (row,) = re.findall(r"<tr><td>thor</td>.*</tr>", page.content)
    assert re.findall("<td.*?>(.*?)</td>", row)[:2] == ["thor", "simplex"]
    assert ">10.0</td>" in row
    assert ">–</td>" in row or ">-</td>" in row  # the size without a lesion
    assert "<strong>Each picks its threshold on the test labels" in page.content
    assert "<broken>" in page.text
    assert "medium (0 cases)" in page.text
    assert sum(tag == "circle" for tag, _ in page.tags) == 2  # the sizes that have a value
    curves = {
        "predicted_share": [0, 0.5, 1],
        "dice": [None, 0.4, 0.2],
        "precision": [None, 0.5, 0.1],
        "recall": [0, 0.5, 1],
    }
    (tmp_path / "metrics.json").write_text(json.dumps([RESULT | {"curves": curves}]))
    lines = [a["points"] for tag, a in Page(write_report(tmp_path).path).tags if tag == "polyline"]
    assert [len(str(points).split()) for points in lines] == [2, 2]  # a dice and a precision are not known
    assert "index" in page.scripts
    assert "case-0" not in page.scripts
    with pytest.raises(ThoradError, match="knows its truth"):
        write_report(tmp_path, truth=tmp_path / "cases.csv")
    for damage in ("[]", "[3]", "{", json.dumps([{**RESULT, "counts": None}])):
        (tmp_path / "metrics.json").write_text(damage)
        with pytest.raises(ThoradError, match="not a whole folder"):
            write_report(tmp_path)


def keep_evaluation(folder: Path, other_side: int = 40) -> None:
    """An evaluation of two methods on two cases of 40 x 40 px, one with a lesion; one method's units are ten times
    the other's, and its grid may be of another side."""
    maps, runs = folder / "maps", []
    maps.mkdir(parents=True)
    for times, side in ((1.0, 40), (10.0, other_side)):
        run, lesion = [], disc((side, side), (0.375 * side, 0.3 * side), 0.125 * side)
        for name, truth in (("ill", lesion), ("well", np.zeros_like(lesion))):
            file = f"{name}-{times:g}.npz"
            np.savez(maps / file, map=np.float32(0.05 * times * np.where(truth, 2, 0.5)))
            run.append(KeptCase(name, head((side, side), np.random.default_rng(1)), truth, file))
        runs.append(run)
    keep_cases(runs, maps)
    results = [
        RESULT | {"thresholds": {"dice_at_fpr": {"0.01": 0.05}, "dice_at_fpr_source": "healthy scans"}},
        RESULT | {"method": "ddpm", "thresholds": {"dice_at_fpr": {"0.01": None}, "best_dice": {"pooled": 0.5}}},
    ]
    (folder / "metrics.json").write_text(json.dumps(results))


def test_evaluation_shows_its_cases_in_units_of_each_threshold(chromium: Any, tmp_path: Path) -> None:
    keep_evaluation(tmp_path / "evaluation")
    path = write_report(tmp_path / "evaluation").path
    page = Page(path)
    assert [case["name"] for case in page.index["cases"]] == ["ill", "well"]
    assert page.index["cases"][0]["methods"] == ["thor (simplex)", "ddpm (simplex)"]
    assert page.index["cases"][0]["truth"] == disc((40, 40), (15, 12), 5).sum()
    assert [picture["maximum"] for picture in page.pictures(0)] == pytest.approx([2, 2]), "times the threshold"
    assert [picture["maximum"] for picture in page.pictures(1)] == pytest.approx([0.5, 0.5])
    assert "chosen on the test labels: an upper bound" in page.text
    opened = Opened(chromium, path)
    opened.show_cases()
    assert opened.page.locator(".card.current .name").all_inner_texts() == [
        "scan",
        "thor (simplex), Dice 1",
        "ddpm (simplex), Dice 1",
    ]
    scan, thor = opened.pixels(panel=0), opened.pixels(panel=1)
    assert (np.abs(scan - thor).max(axis=2) > 20).any()
    np.testing.assert_array_equal(thor, opened.pixels(panel=2))
    opened.check_quiet()
    (tmp_path / "evaluation" / "maps" / "ill-1.npz").unlink()
    with pytest.raises(ThoradError, match=r"index\.json: damaged, or a file beside it"):
        write_report(tmp_path / "evaluation")


def test_each_method_of_an_evaluation_is_read_on_its_own_grid(chromium: Any, tmp_path: Path) -> None:
    keep_evaluation(tmp_path / "evaluation", other_side=64)
    opened = Opened(chromium, write_report(tmp_path / "evaluation").path)
    opened.show_cases()
    for panel in range(3):
        box = opened.page.locator(".card.current .panel").nth(panel).bounding_box()
        for x, y, value in ((0.31, 0.385, "2"), (0.8, 0.9, "0.504")):  # in the lesion, and far from it
            opened.page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
            reading = opened.page.locator(".card.current .reading").inner_text()
            assert reading.endswith(f"thor (simplex) {value} · ddpm (simplex) {value}"), reading
    opened.check_quiet()


def test_preset_of_an_earlier_version_is_a_method_now(tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text(json.dumps([RESULT | {"preset": "published"}]))
    assert "published-thor (simplex)" in Page(write_report(tmp_path).path).text


def test_tables_and_their_notes_become_html() -> None:
    following = Table(("C",), [("3",)], ["More."], title="Second")
    table = Table(("A", "B", "W"), [("<x>", "1", "w")], ["Some **words** `c` <y>."], "", frozenset({"W"}), [following])
    empty: dict[str, Any] = {
        "date": "",
        "methods": MethodsText("", []),
        "gallery": None,
        "points": [],
        "titles": [],
        "models": "tiny",
        "run": {},
        "counts": [],
        "sizes": [],
        "dice": [],
        "precision": [],
    }
    html = render("report/evaluation.html", name="n", results=[RESULT], table=table, **empty)
    assert '<tr><th>A</th><th>B</th><th class="text">W</th></tr>' in html
    assert '<tr><td>&lt;x&gt;</td><td>1</td><td class="text">w</td></tr>' in html
    assert '<p class="note">Some <strong>words</strong> <code>c</code> &lt;y&gt;.</p>' in html
    assert html.index("Some") < html.index("<h3>Second</h3>") < html.index("<td>3</td>") < html.index("More.")


def test_ticks_are_round_and_within() -> None:
    assert charts.ticks(0, 1) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])
    assert charts.ticks(0.03, 0.21) == pytest.approx([0.05, 0.1, 0.15, 0.2])
    assert charts.ticks(3, 3) == [3]


def test_colours_rise_evenly_in_lightness() -> None:
    """Relative luminance of the default rises with every colour, so that it reads in grey and to the colour-blind."""
    for name, colours in COLOUR_MAPS.items():
        linear = (np.asarray(colours) / 255) ** 2.2
        assert (np.diff(linear @ [0.2126, 0.7152, 0.0722]) > 0).all(), name


# ----------------------------------------------------------------------------------------------- in the browser


class Opened:
    """A report in the browser, with all that the browser said and asked for."""

    def __init__(self, chromium: Any, path: Path, **context: Any) -> None:
        self.page = chromium.new_page(viewport={"width": 1440, "height": 900}, **context)
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.url = path.resolve().as_uri()
        self.page.goto(self.url)

    def pixels(self, card: str = ".card.current", panel: int = -1) -> np.ndarray:
        """What a panel's canvas shows: (H, W, 4)."""
        canvas = self.page.locator(f"{card} canvas").nth(panel)
        text = canvas.evaluate("canvas => canvas.toDataURL().split(',')[1]")
        return decoded(text).astype(int)

    def settle(self) -> None:
        """Wait until what changed is drawn."""
        self.page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def slide(self, control: str, value: float) -> None:
        self.page.locator(control).fill(str(value))
        self.settle()

    def names(self) -> list[str]:
        return self.page.locator(".card h3").all_text_contents()

    def show_cases(self) -> None:
        self.page.locator("#gallery").scroll_into_view_if_needed()
        self.page.wait_for_selector(".card.current[data-drawn]")
        self.page.locator("#more").evaluate("details => { details.open = true; }")
        self.settle()

    def check_quiet(self) -> None:
        assert self.said == []
        assert [url for url in self.asked if url not in (self.url, "data:,")] == []


def test_sliders_change_pixels(chromium: Any, tmp_path: Path) -> None:
    make_results(tmp_path / "results", 3, names=[EVIL], steps=3)
    opened = Opened(chromium, write_report(tmp_path / "results").path)
    opened.show_cases()
    opened.page.locator("#judged").uncheck()
    opened.settle()
    start = opened.pixels()
    # The current case is the one of the highest score: its map has a disc of 0.06, above the threshold.
    coloured = np.abs(start[..., 0] - start[..., 1]) > 20
    assert coloured.any()
    opened.slide("#opacity", 0)
    assert not (np.abs(opened.pixels()[..., 0] - opened.pixels()[..., 1]) > 20).any()
    opened.slide("#opacity", 85)
    np.testing.assert_array_equal(opened.pixels(), start)
    opened.page.locator("#outline").uncheck()
    opened.page.locator("#threshold-value").fill("0.059")
    opened.page.locator("#threshold-value").press("Enter")
    opened.settle()
    fewer = opened.pixels()
    assert (np.abs(fewer[..., 0] - fewer[..., 1]) > 20).sum() > 0
    opened.slide("#threshold", 1000)
    assert not (np.abs(opened.pixels()[..., 0] - opened.pixels()[..., 1]) > 20).any()
    scan = opened.pixels(panel=0)
    opened.slide("#level", 20)
    assert opened.pixels(panel=0).sum() > scan.sum()  # a lower level is a brighter picture
    opened.page.locator("#reset").click()
    opened.page.locator("#judged").uncheck()
    opened.settle()
    np.testing.assert_array_equal(opened.pixels(), start)
    opened.page.locator("#colours").select_option("viridis")
    opened.settle()
    assert (opened.pixels() != start).any()
    opened.check_quiet()


def test_threshold_outlines_exactly_the_runs_mask(chromium: Any, tmp_path: Path) -> None:
    make_results(tmp_path / "results", 1)
    np.save(tmp_path / "results" / "cases" / "case-000" / "anomaly_map.npy", np.full((60, 48), 0.01, np.float32))
    mask = disc((60, 48), (30, 24), 8)
    Image.fromarray(np.uint8(255 * mask)).save(tmp_path / "results" / "cases" / "case-000" / "mask.png")
    opened = Opened(chromium, write_report(tmp_path / "results").path)
    opened.show_cases()
    label = opened.page.locator(".card.current canvas").nth(2).get_attribute("aria-label")
    assert f"{mask.sum()} pixels above the threshold 0.015" in str(label)
    opened.page.keyboard.press("[")
    opened.page.keyboard.press("]")
    opened.slide("#threshold", 0)
    assert "no threshold set" in str(opened.page.locator(".card.current canvas").nth(2).get_attribute("aria-label"))
    opened.check_quiet()


def test_a_reduced_map_is_described_in_pixels_of_the_image(chromium: Any, tmp_path: Path) -> None:
    make_results(tmp_path / "results", 1, shape=(600, 480), calibrated=False)
    anomaly_map = np.zeros((600, 480), np.float32)
    anomaly_map[450:550, 350:450] = 0.08
    anomaly_map[499:502, 399:402] = 0.1
    np.save(tmp_path / "results" / "cases" / "case-000" / "anomaly_map.npy", anomaly_map)
    opened = Opened(chromium, write_report(tmp_path / "results").path)
    opened.show_cases()
    label = str(opened.page.locator(".card.current canvas").nth(2).get_attribute("aria-label"))
    found = re.search(r"about (\d+) pixels above .* at row (\d+), column (\d+)", label)
    assert found, label
    assert [int(number) for number in found.groups()] == pytest.approx([10_000, 500, 400], rel=0.03)
    opened.check_quiet()


def test_what_was_judged_is_outlined_until_switched_off(chromium: Any, tmp_path: Path) -> None:
    make_results(tmp_path / "results", 1)
    opened = Opened(chromium, write_report(tmp_path / "results").path)
    opened.show_cases()
    assert opened.page.locator("#judged").is_checked()
    before = [opened.pixels(panel=panel) for panel in range(3)]
    opened.page.keyboard.press("g")
    opened.settle()
    changed = [np.abs(opened.pixels(panel=panel) - before[panel]).max(axis=2) > 20 for panel in range(3)]
    assert [one.any() for one in changed] == [False, False, True], "on the map alone"
    y, x = np.nonzero(changed[2])
    scale = changed[2].shape[0] / 60
    radius = np.hypot(y / scale - 30.5, x / scale - 24.5)
    assert np.abs(radius - JUDGED_RADIUS).max() < 1.5
    canvas = opened.page.locator(".card.current canvas").nth(2)
    box = canvas.bounding_box()
    for share, told in ((0.5, False), (0.02, True)):
        opened.page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + share * box["height"])
        assert (", not judged here" in opened.page.locator(".card.current .reading").inner_text()) == told
    opened.check_quiet()


def test_sort_filter_and_keyboard(chromium: Any, tmp_path: Path) -> None:
    truth = make_results(tmp_path / "results", 5, steps=2, failed=["broken"])
    opened = Opened(chromium, write_report(tmp_path / "results", truth=truth).path)
    page = opened.page
    names = [f"case-00{number}" for number in range(5)]
    assert opened.names() == [*names[::-1], "broken"]
    page.locator("#sort").select_option("name")
    assert opened.names() == [*names, "broken"], "whatever the order, what has no result is not in it"
    page.locator("#sort").select_option("dice")
    dice = {case["name"]: case["dice"] for case in Page(tmp_path / "results" / "report.html").index["cases"]}
    known = [dice[name] for name in opened.names() if dice[name] is not None]
    assert known == sorted(known)
    assert len(known) == 4
    page.locator("#filter").select_option("healthy")
    assert opened.names() == ["case-002"]
    page.locator("#filter").select_option("failed")
    assert opened.names() == ["broken"]
    page.locator("#filter").select_option("all")
    page.locator("#sort").select_option("score")
    page.keyboard.press("Escape")
    page.locator("#find").fill("00")
    assert page.locator("#count").inner_text() == "5 of 6 cases"
    page.keyboard.press("Escape")  # from the field to the case
    current = page.locator(".card.current h3")
    page.keyboard.press("j")
    before = current.inner_text()
    page.keyboard.press("ArrowRight")
    assert current.inner_text() == names[names.index(before) - 1]
    page.keyboard.press("ArrowLeft")
    assert current.inner_text() == before
    assert page.evaluate("document.activeElement.classList.contains('current')")
    page.wait_for_selector(".card.current[data-drawn]")
    narrow = page.locator(".card.current").bounding_box()["width"]
    page.keyboard.press("Enter")
    assert page.locator(".card.current").bounding_box()["width"] > 1.5 * narrow
    page.keyboard.press("Enter")
    # The restoration: the clean estimates are flat greys of 60 and 120, then comes the result.
    page.keyboard.press(",")
    opened.settle()
    assert set(np.unique(opened.pixels(panel=1)[..., :3])) == {120}
    page.keyboard.press(",")
    opened.settle()
    assert set(np.unique(opened.pixels(panel=1)[..., :3])) == {60}
    assert "step 1 of 2, t = 200" in page.locator(".card.current .scrubbers").inner_text()
    with_truth = opened.pixels(panel=0)
    page.keyboard.press("t")
    opened.settle()
    assert (opened.pixels(panel=0) != with_truth).any() == (before != "case-002")
    opened.check_quiet()


def test_slices_of_a_volume_and_linked_panels(chromium: Any, tmp_path: Path) -> None:
    make_results(tmp_path / "results", 1, slices=3)
    opened = Opened(chromium, write_report(tmp_path / "results").path)
    opened.show_cases()
    page = opened.page
    assert "draws agree: Dice 0.62" in page.locator(".card.current .facts").inner_text()
    assert "the masks that each would give by itself" in page.content()
    assert "slice 90, z = +18 mm (1 of 3)" in page.locator(".card.current .scrubbers").inner_text()
    first = opened.pixels()
    panel, letters = page.locator(".card.current .panel").first, page.locator(".card.current .panel:first-child .side")
    assert letters.all_inner_texts() == ["L", "R"], "x grows to the right, and to the patient's right"
    reading = page.locator(".card.current .reading")
    panel.hover(position={"x": 20, "y": 30})
    read, width = reading.inner_text(), panel.bounding_box()["width"]
    page.locator("body").press("r")
    opened.settle()
    assert letters.all_inner_texts() == ["R", "L"]
    assert panel.locator("canvas").evaluate("e => getComputedStyle(e).transform").startswith("matrix(-1")
    panel.hover(position={"x": width - 20, "y": 30})
    assert reading.inner_text() == read, "the same place of the patient"
    page.locator("body").press("r")
    page.locator(".card.current .scrubbers input").focus()
    page.keyboard.press("ArrowRight")
    opened.settle()
    assert "slice 95, z = +23 mm (2 of 3)" in page.locator(".card.current .scrubbers").inner_text()
    assert (opened.pixels() != first).any()
    page.locator(".card.current .panel").first.hover(position={"x": 20, "y": 30})
    assert page.locator(".cross:visible").count() == 3
    assert re.fullmatch(
        r"row \d+, column \d+ · scan 0\.\d\d · pseudo-healthy 0\.\d\d · map [\d.e-]+(, not judged here)?",
        page.locator(".card.current .reading").inner_text(),
    )
    opened.check_quiet()


def test_large_blocks_are_waited_for(chromium: Any, tmp_path: Path) -> None:
    """The script runs while the browser still reads the pictures of the first case."""
    make_results(tmp_path / "results", 1, shape=(330, 330), slices=21, steps=2)
    path = write_report(tmp_path / "results").path
    assert len(Page(path).scripts["case-0"]) > 4_000_000
    opened = Opened(chromium, path)
    opened.show_cases()
    assert opened.pixels(panel=0)[..., :3].max() > 100
    assert "(1 of 21)" in opened.page.locator(".card.current .scrubbers").inner_text(), "the highest map comes first"
    opened.check_quiet()


def test_damaged_block_is_shown_as_an_error(chromium: Any, tmp_path: Path) -> None:
    make_results(tmp_path / "results", 2)
    path = write_report(tmp_path / "results").path
    block = Page(path).scripts["case-0"]
    path.write_text(path.read_text(encoding="utf-8").replace(block, block[: len(block) // 2]), encoding="utf-8")
    opened = Opened(chromium, path)
    opened.page.locator("#gallery").scroll_into_view_if_needed()
    message = opened.page.wait_for_selector(".card .error").inner_text()
    assert "can't be shown" in message
    assert "Make the report again" in message
    opened.page.wait_for_selector(".card:nth-child(2)[data-drawn]")  # the other case is there
    assert opened.page.locator(".error").count() == 1
    # The block is whole now: as if it had only been late.
    opened.page.evaluate("text => { document.getElementById('case-0').textContent = text; }", block)
    opened.page.click(".error button")
    opened.page.wait_for_selector(".card:nth-child(1)[data-drawn]")
    assert opened.page.locator(".error").count() == 0
    opened.check_quiet()


def test_drag_zooms_moves_and_sets_the_window(chromium: Any, tmp_path: Path) -> None:
    """As in 3D Slicer; the pointer reads the same place however the picture lies."""
    make_results(tmp_path / "results", 1, slices=2)
    opened = Opened(chromium, write_report(tmp_path / "results").path)
    opened.show_cases()
    page, panel = opened.page, opened.page.locator(".card.current .panel").first
    panel.scroll_into_view_if_needed()
    box = panel.bounding_box()
    middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)

    def drag(across: float, down: float, button: str = "left", key: str = "") -> None:
        page.mouse.move(*middle)
        if key:
            page.keyboard.down(key)
        page.mouse.down(button=button)
        page.mouse.move(middle[0] + across / 2, middle[1] + down / 2)
        page.mouse.move(middle[0] + across, middle[1] + down)
        page.mouse.up(button=button)
        if key:
            page.keyboard.up(key)
        opened.settle()
        page.wait_for_selector(".card.current[data-drawn]")  # finer, after it was enlarged

    def point(x: float, y: float) -> str:
        page.mouse.move(x, y)
        opened.settle()
        return str(page.locator(".card.current .reading").inner_text())

    before = opened.pixels(panel=0)
    ruler = page.locator(".card.current .ruler").first
    assert re.fullmatch(r"\d+ mm", ruler.inner_text())
    shown = ruler.bounding_box()["width"] / int(ruler.inner_text().split()[0]) * 48  # px of the picture's 48 mm
    assert shown == pytest.approx(box["width"], rel=0.02)
    drag(0, -60)  # up is brighter
    assert opened.pixels(panel=0).sum() > before.sum()
    drag(60, 0)
    assert float(page.locator("#window-value").inner_text()) > 1
    page.click("#reset")
    drag(0, -100, button="right")
    place = r"row (\d+), column (\d+)"
    row, column = map(int, re.match(place, point(*middle)).groups())
    assert (row, column) == (30, 24), "the middle stays"
    assert ruler.bounding_box()["width"] / int(ruler.inner_text().split()[0]) * 48 > 1.5 * box["width"]
    drag(40, 0, key="Shift")
    assert int(re.match(place, point(*middle))[2]) < column, "the picture went to the right"
    page.keyboard.press("0")
    assert point(box["x"] + 1, box["y"] + 1).startswith("row 0, column 0 ")
    page.wait_for_selector(".card.current[data-drawn]")
    assert page.locator(".card.current .reading").inner_text().startswith("row 0, column 0 "), "drawn anew below it"
    opened.check_quiet()


def test_findings_lead_to_their_places(chromium: Any, tmp_path: Path) -> None:
    make_results(tmp_path / "results", 3)
    case = tmp_path / "results" / "cases" / "case-001" / "case.json"
    finding = {
        "pixels": 40,
        "area_mm2": 10.0,
        "volume_mm3": None,
        "peak": 0.04,
        "peak_position": [20, 11],
        "mean": 0.03,
    }
    case.write_text(json.dumps(json.loads(case.read_text()) | {"findings": [finding], "spacing_mm": [0.5, 0.5]}))
    opened = Opened(chromium, write_report(tmp_path / "results").path)
    opened.show_cases()
    page = opened.page
    assert page.locator("#findings-count").inner_text() == "3"
    page.locator("#find").fill("002")
    assert page.locator("#findings-count").inner_text() == "1 of 3"
    assert [text.split()[0] for text in page.locator("#findings-list button").all_inner_texts()] == ["case-002"]
    page.locator("#find").fill("none of them")
    assert page.locator("#findings-count").inner_text() == "0 of 3"
    page.locator("#find").fill("")
    page.click("#findings button:has-text('case-001')")
    page.wait_for_selector(".card.current[data-drawn] .cross:visible")
    assert page.locator(".card.current h3").inner_text() == "case-001"
    assert page.locator(".card.current .reading").inner_text().startswith("row 20, column 11 ")
    assert "10 mm²" in page.locator("#findings button:has-text('case-001')").inner_text()
    page.click("#keys summary")
    for width in (1300, 1180, 720, 390):  # wherever the line of controls breaks, the list of keys is whole
        page.set_viewport_size({"width": width, "height": 800})
        keys, gallery = (page.locator(id).bounding_box() for id in ("#keys dl", "#gallery"))
        assert keys["x"] >= gallery["x"], width
        assert keys["x"] + keys["width"] <= gallery["x"] + gallery["width"], width
    opened.check_quiet()


def test_older_folder_and_evaluation_open(chromium: Any, tmp_path: Path) -> None:
    make_results(tmp_path / "results", 2, scans=False, calibrated=False)
    opened = Opened(chromium, write_report(tmp_path / "results").path)
    opened.show_cases()
    assert opened.page.locator(".card.current canvas").count() == 2
    opened.check_quiet()
    evaluation = tmp_path / "evaluation"
    evaluation.mkdir()
    (evaluation / "metrics.json").write_text(json.dumps([RESULT]))
    (evaluation / "table.md").write_text("| Method |\n|---|\n| thor |\n")
    (evaluation / "run.json").write_text("{}")
    opened = Opened(chromium, write_report(evaluation).path)
    opened.page.locator("#theme").click()
    opened.check_quiet()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast(chromium: Any, tmp_path: Path, scheme: str) -> None:
    """WCAG's 4.5 to 1 between every text and what is behind it; controls have names."""
    truth = make_results(tmp_path / "results", 3, failed=["broken"])
    opened = Opened(chromium, write_report(tmp_path / "results", truth=truth).path, color_scheme=scheme)
    opened.show_cases()
    assert opened.page.evaluate("document.documentElement.dataset.theme") == scheme
    weak = opened.page.evaluate(
        """() => {
          const light = (colour) => {
            const [r, g, b] = colour.match(/[\\d.]+/g).slice(0, 3).map(Number).map((v) => v / 255)
              .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
          };
          const weak = [];
          for (const node of document.querySelectorAll("body *")) {
            if (!node.checkVisibility() || node.closest(".panel, svg, script")) continue;
            if (![...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim())) continue;
            let behind = node;
            const clear = (one) => getComputedStyle(one).backgroundColor === "rgba(0, 0, 0, 0)";
            while (clear(behind)) behind = behind.parentElement;
            const pair = [getComputedStyle(node).color, getComputedStyle(behind).backgroundColor];
            const [one, other] = pair.map(light).sort();
            if ((other + 0.05) / (one + 0.05) < 4.5) weak.push(node.outerHTML.slice(0, 80));
          }
          for (const control of document.querySelectorAll("input, select, button")) {
            const named = control.labels?.length || control.ariaLabel || control.textContent.trim();
            if (!named) weak.push(control.outerHTML);
          }
          for (const canvas of document.querySelectorAll("#gallery canvas")) {
            if (canvas.width > 1 && !canvas.getAttribute("aria-label")) weak.push("canvas");
          }
          return weak;
        }"""
    )
    assert weak == []


def test_many_cases_are_drawn_only_in_view(chromium: Any, tmp_path: Path) -> None:
    make_results(tmp_path / "results", 40, shape=(24, 24))
    opened = Opened(chromium, write_report(tmp_path / "results").path)
    opened.show_cases()
    drawn = opened.page.locator(".card[data-drawn]").count()
    assert 2 <= drawn < 30
    opened.page.keyboard.press("End")
    opened.page.locator(".card").last.scroll_into_view_if_needed()
    opened.page.wait_for_selector("#cards > .card:last-child[data-drawn]")
    opened.page.wait_for_selector("#cards > .card:first-child:not([data-drawn])", state="attached")
    opened.check_quiet()


def test_real_run_opens(chromium: Any, tiny_model: Path, tmp_path: Path) -> None:
    """The folder that the detector itself writes."""
    from thorad.apps.run import open_results
    from thorad.detector import Detector
    from thorad.io.images import image_from_array

    generator = np.random.default_rng(0)
    detector = Detector(tiny_model, method="zscore", device="cpu")
    results = open_results(detector, tmp_path / "results")
    for detection in detector.detect_batch([image_from_array(head((40, 32), generator), name) for name in "ab"]):
        results.write(detection)
    results.close(1.0, ["a", "b"])
    opened = Opened(chromium, write_report(tmp_path / "results").path)
    opened.show_cases()
    assert sorted(opened.names()) == ["a", "b"]
    assert opened.pixels()[..., :3].max() > 100
    opened.check_quiet()


def test_refused_and_warned_cases_are_listed_apart(chromium: Any, tmp_path: Path) -> None:
    """They stand in no ranking, whatever their scores and the order; of a refused volume its registration is shown."""
    names = ["forced-hand", "good", "thick"]
    marked = {"names": names, "warned": ["forced-hand", "thick"], "refused": ["ct"], "failed": ["broken"]}
    make_results(tmp_path / "results", 4, **marked)
    run = json.loads((tmp_path / "results" / "run.json").read_text()) | {"left_out": {".txt": 3, "hidden": 2}}
    (tmp_path / "results" / "run.json").write_text(json.dumps(run))
    page = Page(write_report(tmp_path / "results").path)
    assert "2 ok, 2 warned, 1 refused, 1 failed" in page.text
    assert "Left out 5: .txt (3), hidden (2)." in page.text
    assert "1 case refused" in page.text
    opened = Opened(chromium, write_report(tmp_path / "results").path)
    assert opened.names() == ["case-003", "good", "thick", "forced-hand", "ct", "broken"]
    groups = opened.page.locator("#cards > .group").all_text_contents()
    assert groups == ["Warned: in no ranking", "Refused: the model can't judge these", "Failed"]
    opened.page.locator("#sort").select_option("score-up")
    assert opened.names() == ["good", "case-003", "forced-hand", "thick", "ct", "broken"]
    refused = opened.page.locator("#card-4")
    assert "refused: not the model's kind of image" in refused.text_content()
    shown = refused.locator(".registration img")
    shown.scroll_into_view_if_needed()
    assert shown.evaluate("picture => picture.decode().then(() => picture.naturalWidth)") == 100
    assert "forced: a hand" in opened.page.locator("#card-3").text_content()
    opened.page.locator("#filter").select_option("refused")
    assert opened.names() == ["ct"]


@pytest.mark.parametrize(
    ("own", "words"), [(0.5, "the method's own threshold"), (None, "a threshold given for this run")]
)
def test_the_methods_paragraph_says_whose_threshold_it_was(tmp_path: Path, own: float | None, words: str) -> None:
    make_results(tmp_path / "run", calibrated=False)
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    run["options"]["threshold"] = 0.5
    run["method"] = {"title": "Critic", "paper": "this project", "compare": "residual", "own_threshold": own}
    calibration = {"false_positives": None, "threshold": None, "scans": 40, "sha256": "0" * 64}
    run["options"]["calibration"] = calibration if own else None
    (tmp_path / "run" / "run.json").write_text(json.dumps(run))
    text = detection_text(read_folder(tmp_path / "run"))
    assert f"Pixels above 0.5, {words}, were counted as anomalous." in text.paragraph
    assert ("p-values are ranks of the scores among those of 40 healthy scans." in text.paragraph) == bool(own)
    page = write_report(tmp_path / "run").path.read_text()
    assert ("<dt>calibration</dt><dd>40 healthy scans; p at least 0.0244</dd>" in page) == bool(own)
    assert ("Not calibrated" in page, "of healthy pixels exceed" in page) == (not own, False)
    assert "with Critic (simplex noise" in text.paragraph, "no reference to this project itself"
    assert "this project" not in text.references


@pytest.mark.parametrize("noise", [None, "simplex"])
def test_a_report_speaks_of_draws_and_seed_only_where_there_is_noise(tmp_path: Path, noise: str | None) -> None:
    make_results(tmp_path / "run", 1, slices=1 if noise else 0)
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    run["options"] |= {"noise": noise, "draws": 1}
    run["method"] = {"title": "Critic", "paper": "this project"}
    (tmp_path / "run" / "run.json").write_text(json.dumps(run))
    page = write_report(tmp_path / "run").path.read_text()
    assert ("<dt>draws</dt><dd>1</dd>" in page, "<dt>seed</dt><dd>0</dd>" in page) == (bool(noise),) * 2
    assert ("seed 0" in detection_text(read_folder(tmp_path / "run")).paragraph) == bool(noise)
    assert ("mask.nii.gz marks whole voxels" in page) == bool(noise), "of volumes alone"
