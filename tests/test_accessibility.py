"""Every page before axe, the accessibility checker, in light and dark: what a reader without eyes or a mouse meets.

And on a telephone, where nothing may be cut or scroll sideways but wide tables.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from result_folders import make_results
from test_results_report import keep_evaluation
from test_results_volume_page import make_results as make_volume
from test_results_volume_page import oblique
from thorad.results.report import write_report
from thorad.results.training_page import PRECISION, write_training_page
from thorad.results.volume_page import write_volume_page
from viewer_server import Viewer

BEYOND = """() => [...document.querySelectorAll("body *")]
  .filter((node) => node.checkVisibility() && !node.closest(".scroll table, svg *"))
  .filter((node) => node.getBoundingClientRect().right > document.documentElement.clientWidth + 1)
  .map((node) => `beyond the right edge: ${node.outerHTML.slice(0, 100)}`)"""


@pytest.fixture(scope="module")
def axe() -> Any:
    """axe-core (MPL-2.0), which comes with the package axe-playwright-python and nowhere in this repository."""
    reason = "no accessibility test without the package axe-playwright-python"
    return pytest.importorskip("axe_playwright_python.sync_playwright", reason=reason).Axe()


@pytest.fixture(scope="module")
def look(chromium: Any, axe: Any) -> Iterator[Callable[..., list[str]]]:
    """A function that opens an address, waits for a selector, and gives what axe says against it in either theme."""
    tab = chromium.new_page(viewport={"width": 1440, "height": 900}, reduced_motion="reduce")
    tab.set_default_timeout(60_000)

    def violations(address: str, ready: str, *opened: str) -> list[str]:
        tab.goto(address)
        tab.wait_for_selector(ready)
        for details in opened:
            tab.locator(details).evaluate("details => { details.open = true; }")
        found = []
        for theme in ("light", "dark"):
            tab.evaluate("theme => { document.documentElement.dataset.theme = theme; }", theme)
            for violation in axe.run(tab).response["violations"]:
                places = [f"{node['target']} {node['failureSummary']}" for node in violation["nodes"][:3]]
                found.append("\n".join([f"{theme}: {violation['id']}: {violation['help']}", *places]))
        tab.set_viewport_size({"width": 390, "height": 844})
        found += tab.evaluate(BEYOND)
        tab.set_viewport_size({"width": 1440, "height": 900})
        return found

    yield violations
    tab.close()


def test_faults_are_found(axe: Any, chromium: Any) -> None:
    """The checker itself: a picture without words and grey letters on grey."""
    tab = chromium.new_page()
    grey = "color: #aaa; background: #999"
    tab.set_content(f'<html lang="en"><title>Grey</title><main><h1>Grey</h1><p style="{grey}">Grey</p><img src="x">')
    found = {violation["id"] for violation in axe.run(tab).response["violations"]}
    tab.close()
    assert {"image-alt", "color-contrast"} <= found


def test_the_report_of_pictures(look: Callable[..., list[str]], tmp_path: Path) -> None:
    results = tmp_path / "results"
    truth = make_results(results, 12, steps=2, refused=["hand"], warned=["case-001"], failed=["broken"])
    page = write_report(results, truth=truth).path
    assert look(page.as_uri(), ".card[data-drawn]", "#more", "#keys") == []


def test_the_report_of_a_volume(look: Callable[..., list[str]], tmp_path: Path) -> None:
    make_results(tmp_path / "results", 1, slices=21)
    page = write_report(tmp_path / "results").path
    assert look(page.as_uri(), ".card[data-drawn]", "#more") == []


def test_the_report_of_an_evaluation(look: Callable[..., list[str]], tmp_path: Path) -> None:
    keep_evaluation(tmp_path / "evaluation")
    page = write_report(tmp_path / "evaluation").path
    assert look(page.as_uri(), ".card[data-drawn]") == []


def test_the_page_of_a_volume(look: Callable[..., list[str]], tmp_path: Path) -> None:
    make_volume(tmp_path / "results", oblique(20), message="Overlap is low.")
    page = write_volume_page(tmp_path / "results", "head", tmp_path / "page.html")
    assert look(page.as_uri(), "body[data-drawn]", "#keys") == []


def test_the_viewer(look: Callable[..., list[str]], tmp_path: Path, tiny_model: Path) -> None:
    make_results(tmp_path / "results", 2, slices=2, refused=["hand"])
    with Viewer(tmp_path / "temporary", tmp_path / "results", "--model", tiny_model) as viewer:
        assert look(viewer.address, "#model:enabled") == []
        assert look(f"http://127.0.0.1:{viewer.port}/results/folder-1", ".card[data-drawn]", "#more", "#keys") == []


def test_the_page_of_a_training(look: Callable[..., list[str]], tmp_path: Path) -> None:
    write_training_page(
        tmp_path,
        state="step 30 of 30, done",
        points={"train/loss": [(10, 0.9), (20, 0.4), (30, 0.3)], PRECISION: [(15, 0.2), (30, 0.4)]},
        every=10,
        images_per_step=16,
        measured_on="made-up anomalies",
        keeps_best=True,
        facts={"images": "465"},
        settings="name = 'tiny'",
        labels=[],
    )
    assert look((tmp_path / "training.html").as_uri(), "#curves") == []
