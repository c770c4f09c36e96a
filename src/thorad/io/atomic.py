"""Files that are there whole or not at all."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from thorad.errors import ThoradError


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all: `replacing`, for content that is in memory."""
    with replacing(path) as part:
        part.write_bytes(content)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to, which takes the place of another at the end: whole or not at all, whenever the process dies.

    Makes the folder.

    Raises:
        ThoradError: the disk or the permissions don't allow it.
    """
    # Processes on several machines, whose numbers may be the same, may write into one shared folder.
    part = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield part
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise ThoradError(
            f"{path}: can't be written ({error.strerror}). Check free space and permissions, or name another folder."
        ) from error
