"""Does the built documentation hold together, and is it enough for itself?

python scripts/check_site.py build/site

Of every page: each link within the site leads to a file, and to an anchor that is there; no script, style sheet, font,
picture or frame comes from elsewhere. Links that a reader would click may lead outside; nobody follows them here.
"""

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADED = {("script", "src"), ("img", "src"), ("iframe", "src"), ("source", "src"), ("link", "href"), ("use", "href")}
"""What a browser fetches by itself."""
UNLOADED_LINKS = {"canonical", "index", "search", "next", "prev", "author", "copyright", "help", "top", "up"}
"""Kinds of <link> that name a page instead."""
OF_STYLE = re.compile(r"url\(\s*['\"]?(?!data:|#)([^'\")]+)|@import\s+['\"]([^'\"]+)")


class Page(HTMLParser):
    """The anchors of a page, what it loads, and where its links lead."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep what the tag says."""
        of_tag = {name: value or "" for name, value in attrs}
        self.anchors |= {of_tag[name] for name in ("id", "name") if name in of_tag}
        names_a_page = tag == "link" and bool(UNLOADED_LINKS & set(of_tag.get("rel", "").split()))
        for name, value in of_tag.items():
            if (tag, name) in LOADED and not names_a_page:
                self.loaded.append(value)
            elif name in ("href", "src", "data"):
                self.links.append(value)
            elif name == "style":
                self.loaded += [address for found in OF_STYLE.findall(value) for address in found if address]


def problems_of(site: Path) -> list[str]:
    """A line for each link that leads nowhere and for each file that is loaded from elsewhere."""
    site = site.resolve()
    pages = {path: Page(path) for path in sorted(site.rglob("*.html"))}
    if not pages:
        return [f"{site}: no page"]
    found = []
    for path, page in pages.items():
        where = path.relative_to(site)
        found += [f"{where}: loads {address}" for address in page.loaded if _is_elsewhere(address)]
        for link in {*page.links, *page.loaded}:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.is_relative_to(site) or not target.is_file():
                found.append(f"{where}: {link}: no such file")
            elif target in pages and parts.fragment and unquote(parts.fragment) not in pages[target].anchors:
                found.append(f"{where}: {link}: no such anchor")
    for path in sorted(site.rglob("*.css")):
        for address in (address for pair in OF_STYLE.findall(path.read_text(encoding="utf-8")) for address in pair):
            if address and _is_elsewhere(address):
                found.append(f"{path.relative_to(site)}: loads {address}")
            elif address and not (path.parent / urlsplit(address).path).is_file():
                found.append(f"{path.relative_to(site)}: {address}: no such file")
    return found


def _is_elsewhere(address: str) -> bool:
    parts = urlsplit(address)
    return bool(parts.netloc) or parts.scheme not in ("", "data")


if __name__ == "__main__":
    problems = problems_of(Path(sys.argv[1]))
    print(*problems, sep="\n", end="\n" if problems else "")
    sys.exit(1 if problems else 0)
