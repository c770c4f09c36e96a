"""A run on the workers of a Dask cluster; the only module that knows Dask, and imports it when it is asked for.

A worker that dies loses nothing: Dask gives its batches to another, until `distributed.scheduler.allowed-failures` have
died under one. What lay on such workers is then done once more, each case alone, so that only the one that kills its
workers is lost, and is told by its name.
"""

from __future__ import annotations

import logging
import os
import pickle
import queue
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from thorad import __version__
from thorad.errors import ThoradError
from thorad.executor import work
from thorad.io.atomic import write_atomic
from thorad.io.scans import Scan

if TYPE_CHECKING:
    from distributed import Client, Future

    from thorad.detector import Detector

Item = TypeVar("Item")
Result = TypeVar("Result")

IN_FLIGHT = 512
"""Batches that the scheduler holds at once."""

CONNECT_SECONDS = 20
PATIENCE_SECONDS = 30.0
"""Without a result before it is looked whether there is a worker at all."""

log = logging.getLogger("thorad.cluster")


@contextmanager
def connected(address: str, shared: Path | None = None) -> Iterator[Cluster]:
    """The workers of a cluster.

    Args:
        address: the scheduler's, as `tcp://host:8786`, or its scheduler file.
        shared: a folder that the workers write to; they are to see it under the same path.

    Raises:
        ThoradError: the extra `cluster` isn't installed, or no scheduler answers.
    """
    try:
        import distributed
    except ModuleNotFoundError as error:
        raise ThoradError(
            f"--cluster needs {error.name}, which is not installed. pip install 'thorad[cluster]'"
        ) from error
    if "://" not in address and (address.endswith(".json") or os.sep in address) and not Path(address).is_file():
        raise ThoradError(f"{address}: no such scheduler file. Is the scheduler running, with --scheduler-file?")
    where = {"scheduler_file": address} if Path(address).is_file() else {"address": address}
    with ExitStack() as stack:
        try:
            client = stack.enter_context(
                distributed.Client(**where, timeout=CONNECT_SECONDS, set_as_default=False, name="thorad")
            )
        except (OSError, ValueError, TypeError) as error:  # TimeoutError is an OSError
            raise ThoradError(
                f"--cluster {address}: no Dask scheduler answers ({error}). Expected its address, as tcp://host:8786, "
                "or its scheduler file."
            ) from error
        yield Cluster(client, address, None if shared is None else stack.enter_context(_seen_by_workers(shared)))


@contextmanager
def _seen_by_workers(folder: Path) -> Iterator[Path]:
    """A file in a folder by which workers know that they see this folder, and not their own of the same name."""
    file = folder / f".cluster-{uuid.uuid4().hex}"
    write_atomic(file, b"thorad: a run on a cluster; its workers look for this file.\n")
    try:
        yield file
    finally:
        file.unlink(missing_ok=True)


class Cluster:
    """The workers of a cluster; an `Executor`.

    Args:
        client: connected to its scheduler.
        address: what the user calls it.
        token: a file that all workers must see.
    """

    def __init__(self, client: Client, address: str, token: Path | None) -> None:
        self._client, self._address, self._token = client, address, token

    def detector(self, **options: Any) -> Detector:
        """Stand in for a detector that the workers have; options as `Detector` takes them, and a model among them.

        Raises:
            ThoradError: as `Detector`, here or on a worker; a worker has another model.
        """
        from thorad.apps.cluster_detector import ClusterDetector, describe
        from thorad.model import is_bundled, model_folder

        # As the worker's folder may be another; a bundled model has its name.
        if not is_bundled(folder := model_folder(options["model"])):
            options["model"] = folder.absolute()
        if (weights := options.get("perceptual_weights")) is not None:
            options["perceptual_weights"] = weights.absolute()
        asked = pickle.dumps(options)
        (there,) = self(describe, [[asked]], _no_detector)
        self._warn_of_versions(there["versions"])
        return ClusterDetector(asked, there)

    def __call__(
        self,
        function: Callable[[Sequence[Item]], Iterable[Result]],
        batches: Iterable[Sequence[Item]],
        lost: Callable[[Item, str], Result],
    ) -> Iterator[Result]:
        """See `Executor`; of scans their files must be seen by the workers."""
        pickled = pickle.dumps(function)
        suspects: list[tuple[Item, str]] = []
        yield from self._results(pickled, batches, suspects)
        culprits: list[tuple[Item, str]] = []
        for item, _ in suspects:
            yield from self._results(pickled, [[item]], culprits)
        yield from (lost(item, reason) for item, reason in culprits)

    def _results(
        self, function: bytes, batches: Iterable[Sequence[Item]], suspects: list[tuple[Item, str]]
    ) -> Iterator[Any]:
        """The results of the batches, but for those of `suspects`, under which too many workers died."""
        from distributed import CancelledError
        from distributed.scheduler import KilledWorker

        left, running = iter(batches), dict[Any, tuple[Any, Sequence[Item]]]()
        ended = queue.SimpleQueue[Any]()
        try:
            while True:
                for batch in islice(left, IN_FLIGHT - len(running)):
                    future = self._submit(function, batch)
                    running[future.key] = future, batch
                    future.add_done_callback(lambda done: ended.put(done.key))
                if not running:
                    return
                future, batch = running.pop(self._next(ended))
                try:
                    results = future.result()
                except KilledWorker as error:
                    reason = (
                        f"{error.allowed_failures + 1} workers died while they did this case, perhaps because memory "
                        f"ran out. Their logs tell; the last was {error.last_worker.address}."
                    )
                    suspects += [(item, reason) for item in batch]
                except CancelledError as error:
                    raise ThoradError(
                        f"--cluster {self._address}: the scheduler is gone ({error}). What is done is kept: start it "
                        "anew, and run the same command again."
                    ) from error
                else:
                    yield from results
        finally:
            with suppress(Exception):  # of a scheduler that is gone
                self._client.cancel([future for future, _ in running.values()])

    def _submit(self, function: bytes, batch: Sequence[Any]) -> Future[Any]:
        files = {file for item in batch if isinstance(item, Scan) for file in item.files}
        files |= {self._token} if self._token is not None else set()
        sizes = {}
        for file in files:
            with suppress(OSError):  # what isn't here either fails as a case
                sizes[str(file)] = file.stat().st_size
        relative = any(not file.is_absolute() for file in files)
        # Not named after the case: a scheduler shows everybody its keys.
        return self._client.submit(
            work,
            function,
            pickle.dumps(batch),
            __version__,
            sizes,
            str(Path.cwd()) if relative else None,
            key=f"thorad-{uuid.uuid4()}",
            pure=False,
        )

    def _next(self, ended: queue.SimpleQueue[Any]) -> Any:
        """The key of the next batch that has ended."""
        told = False
        while True:
            try:
                return ended.get(timeout=PATIENCE_SECONDS)
            except queue.Empty:
                if not told and not self._client.nthreads():
                    log.warning("The cluster %s has no worker. Waiting for one; Ctrl-C ends it.", self._address)
                    told = True

    def _warn_of_versions(self, there: dict[str, str]) -> None:
        odd = [f"{name} {found} (here {version(name)})" for name, found in there.items() if found != version(name)]
        if odd:
            log.warning("Workers have %s: last digits of results may differ from a run here.", ", ".join(odd))


def _no_detector(asked: bytes, reason: str) -> dict[str, Any]:
    raise ThoradError(f"the detector can't be loaded: {reason}")
