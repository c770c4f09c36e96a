"""What `make docs` looks for in the site that it has built, and what README.md promises."""

import re
import runpy
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
problems_of = runpy.run_path(str(REPOSITORY / "scripts" / "check_site.py"))["problems_of"]

GOOD = '<a href="b.html#there">b</a> <a href="https://example.org">outside</a> <img src="p.png"> <p id="here">'


@pytest.fixture
def site(tmp_path: Path) -> Path:
    (tmp_path / "a.html").write_text(GOOD, encoding="utf-8")
    (tmp_path / "b.html").write_text('<h1 id="there">b</h1> <a href="a.html">a</a>', encoding="utf-8")
    (tmp_path / "p.png").touch()
    return tmp_path


def test_a_site_that_holds_together(site: Path) -> None:
    assert problems_of(site) == []
    assert problems_of(site / "nothing")


@pytest.mark.parametrize(
    ("html", "problem"),
    [
        ('<a href="c.html">', "a.html: c.html: no such file"),
        ('<a href="b.html#elsewhere">', "a.html: b.html#elsewhere: no such anchor"),
        ('<a href="#elsewhere">', "a.html: #elsewhere: no such anchor"),
        ('<img src="q.png">', "a.html: q.png: no such file"),
        ('<img src="https://example.org/p.png">', "a.html: loads https://example.org/p.png"),
        ('<script src="//example.org/s.js"></script>', "a.html: loads //example.org/s.js"),
        ('<link rel="stylesheet" href="https://example.org/s.css">', "a.html: loads https://example.org/s.css"),
        ('<p style="background: url(https://example.org/p.png)">', "a.html: loads https://example.org/p.png"),
    ],
)
def test_what_is_wrong_is_found(site: Path, html: str, problem: str) -> None:
    (site / "a.html").write_text(GOOD + html, encoding="utf-8")
    assert problems_of(site) == [problem]


def test_style_sheets_are_read(site: Path) -> None:
    (site / "s.css").write_text("@font-face { src: url('https://example.org/f.woff2') }\n.a { background: url(q.png) }")
    assert problems_of(site) == ["s.css: loads https://example.org/f.woff2", "s.css: q.png: no such file"]


def test_readme_is_two_screens_and_its_links_lead_somewhere() -> None:
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert len(readme.split()) < 700, "what is longer belongs to docs/"
    assert re.search(r"^make demo ", readme, flags=re.MULTILINE)
    assert re.search(r"^make test ", readme, flags=re.MULTILINE)
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", readme):
        assert (REPOSITORY / link).is_file(), link


def test_every_page_can_be_reached() -> None:
    """Sphinx warns of a page that no table of contents names, but only when the site is built."""
    docs = REPOSITORY / "docs"
    index = (docs / "index.md").read_text(encoding="utf-8").splitlines()
    for page in docs.rglob("*.md"):
        name = page.relative_to(docs).with_suffix("").as_posix()
        assert name == "index" or name in index, f"docs/index.md does not name {name}"
