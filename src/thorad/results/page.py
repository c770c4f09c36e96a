"""What every HTML page of thorad has in common: one file, nothing from outside, and a policy that keeps it so.

Pages are Jinja templates in thorad/assets, beside their scripts and styles. All text is escaped, except what a template
marks as safe: the package's own scripts, styles and charts, and the JSON of `json_text`. The content security policy
allows a page's own scripts and style only, by their hash.
"""

import base64
import hashlib
import json
import re
from functools import cache
from html import escape
from importlib import resources
from typing import Any, Final

import jinja2

from thorad import __version__

LARGEST_PAGE: Final = 60_000_000
"""bytes; what would make a larger page is reduced, and the page says so."""


def render(template: str, **values: Any) -> str:
    """The text that a template makes of values.

    Args:
        template: its path in thorad/assets, such as `report/detection.html`.
        values: all that it asks for, beside `version`; a missing one is an error.
    """
    return _environment().get_template(template).render(version=__version__, **values)


def render_page(template: str, **values: Any) -> bytes:
    """The file of a page; see `render`. Names may hold bytes that are no UTF-8; they become question marks."""
    return render(template, **values).encode("utf-8", "replace")


def asset(name: str) -> str:
    """The text of a file in thorad/assets."""
    return asset_bytes(name).decode("utf-8")


def asset_bytes(name: str) -> bytes:
    """The content of a file in thorad/assets."""
    return (resources.files("thorad") / "assets" / name).read_bytes()


def json_text(content: Any) -> str:
    """JSON that no text within can end the script element of."""
    return json.dumps(content, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def counted(count: int, what: str) -> str:
    """`1 case`, `2 cases`."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(asset),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["asset"] = asset
    environment.filters |= {"csp_hash": _csp_hash, "marked": _marked, "px": "{:.1f}".format, "short": "{:.3g}".format}
    return environment


def _csp_hash(text: str) -> str:
    """How a content security policy names a script or a style that it allows."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _marked(text: str) -> str:
    """Text as HTML, escaped, in which **words** are bold and `words` are code."""
    return re.sub(r"`(.+?)`", r"<code>\1</code>", re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", escape(text)))
