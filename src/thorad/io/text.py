"""Text that comes from files and their names, as the screen and tables may have it."""

import re
import unicodedata
from typing import Final

_CODE: Final = r"x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8}"
_ESCAPED: Final = re.compile(rf"\\({_CODE})")
_BEFORE_CODE: Final = re.compile(rf"\\(?={_CODE})")


def printable(text: str) -> str:
    r"""Text in which all that acts on a terminal, or doesn't show, is written out: `\x1b`, `\u202e`.

    That is control characters, line breaks, marks that turn the direction of writing, bytes that are no UTF-8.
    """
    return text if text.isprintable() else "".join(each if _shows(each) else _escape(each) for each in text)


def reversible(text: str) -> str:
    r"""As `printable`, so that `original` gives the text back, even where it holds the like of `\x1b` itself."""
    return printable(_BEFORE_CODE.sub(r"\\x5c", text))


def original(text: str) -> str:
    """The text that `reversible` was given; any other text is as it was but for what is written out so."""
    return _ESCAPED.sub(_unescape, text)


def _shows(character: str) -> bool:
    return character.isprintable() or unicodedata.category(character) == "Zs"  # a wide space


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 2**8 else f"\\u{code:04x}" if code < 2**16 else f"\\U{code:08x}"


def _unescape(found: re.Match[str]) -> str:
    code = int(found[1][1:], 16)
    return found[0] if code > 0x10FFFF or (_shows(chr(code)) and chr(code) != "\\") else chr(code)
