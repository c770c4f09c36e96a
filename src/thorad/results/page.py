"""What every HTML page of thorad has in common: one file, nothing from outside, and a policy that keeps it so.

Pages are Jinja templates in thorad/assets, beside their scripts and styles. All text is escaped, except what a template
marks as safe: the package's own scripts and styles, and the JSON of `json_text`. The content security policy allows a
page's own scripts and style only, by their hash.
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
from thorad.io.text import printable
from thorad.results.charts import Axis, bars, finite_points

LARGEST_PAGE: Final = 60_000_000
"""bytes; what would make a larger page is reduced, and the page says so."""


def render(template: str, **values: Any) -> str:
    """The text of a template in thorad/assets; a value that it asks for and doesn't get is an error."""
    return _environment().get_template(template).render(version=__version__, **values)


def asset(name: str) -> bytes:
    """The content of a file in thorad/assets."""
    return (resources.files("thorad") / "assets" / name).read_bytes()


def json_text(content: Any) -> str:
    """JSON that no text within can end the script element of."""
    return json.dumps(content, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: asset(name).decode()),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"asset": lambda name: asset(name).decode(), "axis": Axis}
    environment.filters |= {
        "csp_hash": lambda text: f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}",
        "marked": _marked,
        "number": lambda value, form: f"{value:{form}}",
        "counted": lambda count, what: f"{count} {what}" if count == 1 else f"{count} {what}s",
        "script_json": json_text,
        "pretty_json": lambda content: json.dumps(content, indent=2, default=str),
        "bars": bars,
        "printable": printable,
        "finite_points": finite_points,
    }
    return environment


def _marked(text: str) -> str:
    """Text as HTML, escaped, in which **words** are bold and `words` are code."""
    return re.sub(r"`(.+?)`", r"<code>\1</code>", re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", escape(text)))
