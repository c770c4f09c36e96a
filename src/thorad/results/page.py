"""What every HTML page of thorad has in common: one file, nothing from outside, and a policy that keeps it so."""

import base64
import hashlib
import json
from typing import Any, Final

LARGEST_PAGE: Final = 60_000_000
"""bytes; what would make a larger page is reduced, and the page says so."""


def script_hash(text: str) -> str:
    """How a content security policy names a script or a style that it allows."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def json_text(content: Any) -> str:
    """JSON that no text within can end the script element of."""
    return json.dumps(content, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
