"""Where the batches of a run are done: in this process, or by others, through one function."""

from __future__ import annotations

import contextlib
import multiprocessing
import pickle
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, TypeVar

from thorad import __version__
from thorad.errors import ThoradError

Item = TypeVar("Item")
Result = TypeVar("Result")

VISIBLE_SECONDS = 90.0
"""How long a file that another machine has written may be unseen here: network file systems keep listings a while."""


class Executor(Protocol):
    """Does batches of items, somewhere."""

    def __call__(
        self,
        function: Callable[[Sequence[Item]], Iterable[Result]],
        batches: Iterable[Sequence[Item]],
        lost: Callable[[Item, str], Result],
    ) -> Iterator[Result]:
        """Give the results as they come, in any order.

        Args:
            function: makes a result of each item of a batch; can be pickled where other processes do it.
            batches: what is done together, none of them empty.
            lost: makes the result of an item whose processes died, and why.

        Raises:
            ThoradError: of the function, or the other processes can't be used.
        """


def here(
    function: Callable[[Sequence[Item]], Iterable[Result]],
    batches: Iterable[Sequence[Item]],
    lost: Callable[[Item, str], Result],
) -> Iterator[Result]:
    """Do one batch after the other in this process; an `Executor`."""
    for batch in batches:
        yield from function(batch)


def processes(jobs: int) -> Executor:
    """Several batches at once, each in a process of this machine; the function gives a list."""

    def each(
        function: Callable[[Sequence[Item]], Iterable[Result]],
        batches: Iterable[Sequence[Item]],
        lost: Callable[[Item, str], Result],
    ) -> Iterator[Result]:
        # Forked processes would share locks of the parent's threads.
        with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
            submitted = {pool.submit(function, batch): batch for batch in batches}
            for future in as_completed(submitted):
                try:
                    yield from future.result()
                except BrokenProcessPool:
                    reason = "a process died, perhaps because memory ran out: try fewer --jobs."
                    yield from (lost(item, reason) for item in submitted[future])

    return here if jobs == 1 else each


def wait_for(files: Iterable[Path]) -> None:
    """Wait until files that other machines have written can be seen here.

    Raises:
        ThoradError: one can't, after `VISIBLE_SECONDS`.
    """
    until = time.monotonic() + VISIBLE_SECONDS
    for file in files:
        while not file.exists():
            if time.monotonic() > until:
                raise ThoradError(f"{file}: was written on another machine, and can't be seen here. Is it one folder?")
            time.sleep(0.5)


_one_at_a_time = threading.Lock()
"""A process has one device and one working folder, though a cluster may give it several threads."""


@lru_cache(maxsize=1)
def _loaded(function: bytes) -> Callable[[Sequence[Any]], Iterable[Any]]:
    """A pickled function, with the detector that may be in it: loaded once in a process."""
    loaded: Callable[[Sequence[Any]], Iterable[Any]] = pickle.loads(function)
    return loaded


def work(function: bytes, batch: bytes, thorad: str, files: Mapping[str, int], folder: str | None) -> list[Any]:
    """Do a batch for a process on another machine.

    Args:
        function: pickled, for who passes it on should neither load it nor need what it needs.
        batch: likewise.
        thorad: the version there.
        files: {path: bytes} of the files there that are needed here.
        folder: the working folder there, to which paths are relative; None if none is.

    Raises:
        ThoradError: another version, or a file or folder can't be seen here.
    """
    host = socket.gethostname()
    if thorad != __version__:
        raise ThoradError(f"a worker on {host} has thorad {__version__}, and {thorad} runs here. Install the same.")
    with _one_at_a_time, contextlib.ExitStack() as stack:
        try:
            if folder is not None:
                stack.enter_context(contextlib.chdir(folder))
        except OSError as error:
            raise _unseen(folder, host, error.strerror) from error
        for path, size in files.items():
            try:
                found = Path(path).stat().st_size
            except OSError as error:
                raise _unseen(path, host, error.strerror) from error
            if found != size:
                raise _unseen(path, host, f"{found} bytes there, {size} here")
        return list(_loaded(function)(pickle.loads(batch)))


def _unseen(path: str | None, host: str, reason: str | None) -> ThoradError:
    return ThoradError(
        f"{path}: a worker on {host} doesn't see what is here ({reason}). Workers need scans, model and results under "
        "the same paths: put them on a file system that all machines share."
    )
