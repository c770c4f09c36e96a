"""Files that are there whole or not at all."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from thorad.errors import ThoradError


def write_atomic(path: Path, content: bytes) -> None:
    """`open_atomic`, for content that is in memory."""
    with open_atomic(path) as file:
        file.write(content)


@contextmanager
def open_atomic(path: Path) -> Iterator[BinaryIO]:
    """A file that takes its place when it is closed: there whole or not at all, whenever the process dies.

    Makes its folder.

    Raises:
        ThoradError: the disk or the permissions don't allow it.
    """
    # Processes on several machines, whose numbers may be the same, may write into one shared folder.
    part = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with part.open("wb") as file:
                yield file
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise ThoradError(
            f"{path}: can't be written ({error.strerror}). Check free space and permissions, or name another folder."
        ) from error
