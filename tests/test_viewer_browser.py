"""The viewer in a real browser: drop a scan, watch it, look at the result, save it; nothing leaves the machine."""

import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from result_folders import make_results
from viewer_server import Viewer

SAMPLE = Path(__file__).parents[1] / "src" / "thorad" / "assets" / "samples" / "head.png"


@pytest.fixture(scope="module")
def viewer(chromium: Any, tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Viewer]:
    folder = tmp_path_factory.mktemp("viewer")
    make_results(folder / "volumes", 1, slices=3, steps=2, names=["head"])
    make_results(folder / "many", 40, names=["<img src=x onerror=alert(1)>"])
    make_results(folder / "other" / "volumes", 1)
    arguments = (folder / "volumes", folder / "many", folder / "other" / "volumes", "--model", tiny_model)
    with Viewer(folder / "temporary", *arguments) as viewer:
        yield viewer


class Session:
    """A tab, and all that it said and asked for."""

    def __init__(self, chromium: Any, viewer: Viewer, **context: Any) -> None:
        self.viewer = viewer
        self.context = chromium.new_context(viewport={"width": 1440, "height": 900}, **context)
        self.context.set_default_timeout(60_000)
        self.page = self.context.new_page()
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.context.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(viewer.address)

    def choose(self, *files: Path | dict[str, Any], method: str = "anoddpm simplex") -> None:
        """Choose files and a method, and start."""
        self.page.wait_for_selector("#model:enabled", timeout=60_000)
        self.page.set_input_files("#files", list(files))
        assert not self.page.is_visible("#slices"), "for volumes alone"
        self.page.select_option("#method", method)
        self.page.click("#detect")

    def pixels(self, panel: int) -> np.ndarray:
        """What the panel of the first case shows: (H, W, 4)."""
        from test_results_report import decoded

        text = self.page.locator(".card canvas").nth(panel).evaluate("canvas => canvas.toDataURL().split(',')[1]")
        return decoded(text).astype(int)

    def slide(self, control: str, value: float) -> None:
        self.page.locator("#more").evaluate("details => { details.open = true; }")
        self.page.locator(control).fill(str(value))
        self.page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def check_quiet(self) -> None:
        assert self.said == []
        own = f"http://127.0.0.1:{self.viewer.port}/"
        assert [url for url in self.asked if not url.startswith((own, "data:", "blob:"))] == []

    def close(self) -> None:
        self.context.close()


@pytest.fixture
def session(chromium: Any, viewer: Viewer) -> Iterator[Session]:
    session = Session(chromium, viewer)
    yield session
    session.close()


def test_drop_watch_look_and_save(session: Session, tmp_path: Path) -> None:
    page = session.page
    assert "token" not in page.url
    session.choose(SAMPLE)
    page.wait_for_url(re.compile(r"/jobs/\d+$"))
    page.wait_for_selector("#strip li", timeout=60_000)  # the restoration, while it happens
    assert page.locator("#live-clean").get_attribute("src").startswith("data:image/png")
    page.wait_for_url(re.compile(r"/results/job-\d+$"), timeout=60_000)
    page.wait_for_selector(".card[data-drawn]")
    assert page.title() == "head.png"
    assert page.locator(".card h3").all_text_contents() == ["head.png"]
    assert "Not calibrated" in page.inner_text("#status")
    page.locator("#more").evaluate("details => { details.open = true; }")
    for outline in ("#outline", "#judged"):
        page.uncheck(outline)
    # The map hides nothing without opacity, and all three panels show something.
    scan, healthy, over = (session.pixels(panel) for panel in range(3))
    assert scan.std() > 5
    assert healthy.std() > 5
    assert np.abs(over - scan).max() > 10
    session.slide("#opacity", 0)
    assert np.abs(session.pixels(2) - scan).max() <= 1
    session.slide("#opacity", 100)
    page.check("#outline")
    session.slide("#threshold", 1000)
    outlined = np.abs(session.pixels(2) - scan)
    assert np.count_nonzero(outlined.max(axis=2) > 1) < np.count_nonzero(np.abs(over - scan).max(axis=2) > 1)
    # The steps, one by one.
    steps = page.locator(".scrubbers input")
    steps.fill("0")
    assert "step 1 of" in page.inner_text(".scrubbers")
    assert np.abs(session.pixels(1) - healthy).max() > 10
    with page.expect_download() as saving:
        page.click("#save")
    saving.value.save_as(tmp_path / "saved.zip")
    with zipfile.ZipFile(tmp_path / "saved.zip") as saved:
        assert any(name.endswith("anomaly_map.npy") for name in saved.namelist())
    with page.expect_download() as saving:
        page.click("#report")
    assert Path(saving.value.path()).read_bytes().startswith(b"<!doctype html>")
    page.click("text=All scans")
    page.wait_for_selector("#jobs .title")
    assert page.locator("#jobs .title").first.text_content() == "head.png"
    page.locator("#jobs .remove").first.click()
    page.wait_for_selector("#no-jobs:visible")
    session.check_quiet()


def test_a_folder_is_dropped(session: Session, tmp_path: Path) -> None:
    page = session.page
    page.wait_for_selector("#model:enabled", timeout=60_000)
    scans = tmp_path / "scans"
    (scans / "deeper").mkdir(parents=True)
    (scans / ".hidden").write_bytes(b"x")
    (scans / "<b>one<b>.png").write_bytes(SAMPLE.read_bytes())
    (scans / "deeper" / "two.png").write_bytes(SAMPLE.read_bytes())
    box = page.locator("#drop").bounding_box()
    at = {"x": box["x"] + 20, "y": box["y"] + 20}
    browser = session.context.new_cdp_session(page)
    for kind in ("dragEnter", "dragOver", "drop"):
        data = {"items": [], "files": [str(scans)], "dragOperationsMask": 1}
        browser.send("Input.dispatchDragEvent", {"type": kind, **at, "data": data})
    page.wait_for_selector("#chosen li")
    assert sorted(page.locator("#chosen li span:first-child").all_text_contents()) == ["<b>one<b>.png", "two.png"]
    page.select_option("#method", "zscore ")
    page.click("#detect")
    page.wait_for_url(re.compile(r"/results/job-\d+$"), timeout=60_000)
    page.wait_for_selector(".card[data-drawn]")
    assert sorted(page.locator(".card h3").all_text_contents()) == ["<b>one<b>.png", "two.png"]
    session.check_quiet()


def test_what_cannot_be_used_is_told_where_it_was_dropped(session: Session) -> None:
    page = session.page
    evil = "<img src=x onerror=alert(1)>.mhd"
    session.choose({"name": evil, "mimeType": "", "buffer": b"x"})
    page.wait_for_selector("#problem:visible")
    assert evil in page.inner_text("#problem")
    session.said.clear()  # the browser tells of the answer 400
    session.choose({"name": "notes.png", "mimeType": "", "buffer": b"not a picture"})
    page.wait_for_url(re.compile(r"/jobs/\d+$"))
    page.wait_for_selector("#problem:visible", timeout=60_000)
    assert "notes.png" in page.inner_text("#problem")
    session.check_quiet()


def test_folders_are_looked_at_lazily(session: Session) -> None:
    page, root = session.page, session.viewer.temporary.parent.name
    page.click("#folders >> text=many")
    page.wait_for_selector(".card[data-drawn]")
    assert page.locator(".card").count() == 40
    assert page.locator(".card h3").first.text_content() != ""
    asked = [url for url in session.asked if "/cases/" in url]
    assert 0 < len(asked) < 40
    page.locator("#find").fill("<img")
    page.wait_for_selector(".card[data-drawn]")
    assert page.locator(".card h3").all_text_contents() == ["<img src=x onerror=alert(1)>"]
    assert page.is_visible("#findings")
    page.go_back()
    page.locator("#folders .title").nth(2).wait_for()
    titles = page.locator("#folders .title").all_text_contents()
    assert titles == [f"{root}/volumes", "many", "other/volumes"], "two folders of one name are told apart"
    page.click(f"#folders >> text={root}/volumes")
    page.wait_for_selector(".card[data-drawn]")
    assert page.locator(".side").all_text_contents() == ["L", "R"] * 3
    page.locator(".scrubbers input").first.fill("2")
    assert "slice 100, z = +28 mm (3 of 3)" in page.inner_text(".scrubbers")
    healthy = session.pixels(1)
    page.locator(".scrubbers input").nth(1).fill("0")
    assert np.abs(session.pixels(1) - healthy).max() > 10
    session.check_quiet()


def test_a_page_elsewhere_drives_nothing(session: Session, chromium: Any) -> None:
    """A page of another origin in the very browser that has the session."""
    page = session.page
    page.wait_for_selector("#model:enabled", timeout=60_000)
    other = session.context.new_page()
    other.route(
        "http://elsewhere.test/", lambda route: route.fulfill(body="<p>elsewhere</p>", content_type="text/html")
    )
    other.goto("http://elsewhere.test/")
    own = f"http://127.0.0.1:{session.viewer.port}"
    answers = other.evaluate(
        """async own => {
            const answers = [];
            for (const [path, method, mode] of [["/api/state", "GET", "cors"], ["/api/jobs", "POST", "no-cors"]]) {
                try {
                    const body = method === "POST" ? "{}" : undefined;
                    const answer = await fetch(own + path, { method, mode, credentials: "include", body });
                    answers.push(answer.type + answer.status);
                } catch { answers.push("refused"); }
            }
            return answers;
        }""",
        own,
    )
    assert answers[0] == "refused"
    assert answers[1] in ("refused", "opaque0")
    other.set_content(
        f'<img src="{own}/api/state"><iframe src="{own}/"></iframe><script src="{own}/static/shell.js"></script>'
    )
    other.wait_for_timeout(300)
    assert "thorad view needs" not in other.content()
    assert (
        page.evaluate("async () => (await call('/api/state')).jobs.filter((job) => job.state === 'receiving').length")
        == 0
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 1024, 390])
def test_pages_fit_and_follow_the_system(chromium: Any, viewer: Viewer, scheme: str, width: int) -> None:
    session = Session(chromium, viewer, color_scheme=scheme)
    page = session.page
    page.set_viewport_size({"width": width, "height": 800})
    for path in ("/", "/results/folder-1", "/results/folder-2"):
        page.goto(f"http://127.0.0.1:{viewer.port}{path}")
        page.wait_for_selector("#folders li" if path == "/" else ".card[data-drawn]")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", ground)[:3])) < 200) == (scheme == "dark")
    page.click("#theme")
    page.goto(f"http://127.0.0.1:{viewer.port}/")  # remembered
    assert page.evaluate("document.documentElement.dataset.theme") != scheme
    session.check_quiet()
    session.close()
