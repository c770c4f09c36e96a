"""What is checked of every file before it is read, and one error for whatever a library makes of a damaged one."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from thorad.errors import ThoradError

LARGEST_FILE = 2**30
"""bytes; more than any picture within `decode.LARGEST_SIDE` needs."""

COPY_AGAIN = "Copy it again from where it came from."


class PartError(Exception):
    """A part of a file can't be read; its own words name the part, and may be shown."""


def check_file(path: Path, largest: float = LARGEST_FILE) -> None:
    """Refuse what is no file with something in it, and of at most `largest` bytes; call it within `one_error`.

    Raises:
        ThoradError: missing, not a file, empty, too large.
    """
    if not path.exists():
        raise ThoradError(f"{path}: no such file. Check the path.")
    if not path.is_file():
        raise ThoradError(f"{path}: not a file. Name the file of an image or volume.")
    size = path.stat().st_size
    if size == 0:
        raise ThoradError(f"{path}: the file is empty. {COPY_AGAIN}")
    if size > largest:
        raise ThoradError(f"{path}: {size / 2**30:.1f} GiB; expected 1 GiB at most. Crop or shrink it.")


@contextmanager
def one_error(source: object, kind: str, *, quoted: bool = True) -> Iterator[None]:
    """One ThoradError for whatever libraries raise while they read a file, and none of their warnings.

    Args:
        source: names the file.
        kind: what it should be, such as `volume`.
        quoted: whether their own words are shown; of DICOM they may hold the patient's name. `reading_part` names what
            can't be read all the same.
    """
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    except ThoradError:
        raise
    except Exception as error:  # decoders and parsers raise nearly anything on damaged files
        if isinstance(error, OSError) and error.errno is not None:
            raise ThoradError(
                f"{source}: can't be read ({error.strerror}). Check the path and its permissions."
            ) from error
        words = f": {error}".splitlines()[-1] if quoted and str(error) else ""
        reason = "cut short" if isinstance(error, EOFError) else f"{type(error).__name__}{words}"
        reason = str(error) if isinstance(error, PartError) else reason
        raise ThoradError(f"{source}: damaged or incomplete {kind} ({reason}). {COPY_AGAIN}") from error


@contextmanager
def reading_part(what: str) -> Iterator[None]:
    """Say which part of a file it is that a library raises something over, within `one_error`."""
    try:
        yield
    except (ThoradError, PartError, EOFError):
        raise
    except Exception as error:
        raise PartError(f"{what} can't be read") from error
