"""The temporary folder that holds what users drop in and what is found in it, and nothing once the viewer has ended."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PREFIX = "thorad-view-"
LOCK = "lock"


@contextmanager
def private_folder() -> Iterator[Path]:
    """A folder that only this user can read, gone at the end; what dead viewers have left goes first."""
    remove_leftovers()
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))  # 0700
    try:
        with (folder / LOCK).open("w") as lock:
            # Until the process ends, however it ends: process numbers are used again, and differ between containers.
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_leftovers() -> None:
    """Remove this user's folders of viewers that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        try:
            if folder.is_symlink() or folder.stat().st_uid != os.getuid():
                continue
            with (folder / LOCK).open("r") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
        except OSError:  # in use, or not yet locked by a viewer that is just starting
            continue
