"""The process that detects: it alone has torch, and may be killed or die while the server goes on.

It takes `Order`s from its connection and answers with tuples whose first entry says what they are:

    ("offers", [...])                           once, when it is ready; see `offers`
    ("taken",)                                  first of an order
    ("scan", case, picture)                     a restoration begins: its image, on the model's grid
    ("step", case, timestep, clean, overlay)    the clean estimate, and the map over the image or None
    ("restored", case)                          it has ended; several may go on at the same time
    ("progress", done, total)                   cases
    ("done", done, failures, refused)           the number of cases that have a result, and {case: why} of the others
    ("failed", message)                         nothing could be done

Pictures are PNG in base64, as the page takes them. Shapes: S the model's grid.
"""

from __future__ import annotations

import os
import queue
import signal
import threading
from collections.abc import Callable, Sequence
from functools import lru_cache
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thorad.apps.run import detect_files, open_results
from thorad.detector import Detector
from thorad.errors import ThoradError
from thorad.io.scans import Scan
from thorad.io.volumes import Volume, write_nifti
from thorad.methods import METHODS
from thorad.model import bundled_models, load_recipe_of
from thorad.pictures import overlay, png_text
from thorad.records import StepPictures
from thorad.results.folder import PLANES
from thorad.results.volume_page import write_volume_page
from thorad.selection import methods_for
from thorad.viewer.order import Order

Send = Callable[[tuple[Any, ...]], None]


def work(connection: Connection, models: Sequence[str]) -> None:
    """Detect what is ordered until the connection ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the server ends this process
    orders: queue.SimpleQueue[Order] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(connection, orders), daemon=True).start()
    sending = threading.Lock()

    def send(message: tuple[Any, ...]) -> None:
        with sending:
            connection.send(message)

    try:
        send(("offers", offers(models)))
    except ThoradError as error:
        send(("failed", str(error)))
        return
    while True:
        order = orders.get()
        send(("taken",))
        try:
            _detect(order, send)
        except ThoradError as error:
            send(("failed", str(error)))
        except Exception as error:  # whatever it is, the next order may succeed
            send(("failed", f"{type(error).__name__}: {error}"))


def offers(models: Sequence[str]) -> list[dict[str, Any]]:
    """The models to choose from, each with its methods and kinds of noise; those that the user named come first."""
    offered = []
    for model in [*models, *bundled_models()]:
        recipe = load_recipe_of(model)
        possible = [(METHODS[name], noise) for name, noise in methods_for(model)]
        methods = [
            {"method": method.name, "noise": noise, "method_title": method.title, "blurb": method.blurb}
            for method, noise in possible
            if not method.published
        ]
        # A calibrated copy has the name of the model that it is a copy of.
        name = recipe.name if model in bundled_models() else f"{recipe.name} ({Path(model).name})"
        description = {"name": name, "about": recipe.description, "volumes": bool(recipe.volume.template)}
        offered.append({"model": model, **description, "methods": methods})
    return offered


class _Watcher:
    """Sends the restorations of an order, step by step; several threads may call it."""

    def __init__(self, send: Send, detector: Detector) -> None:
        self._send = send
        self._maximum = METHODS[detector.method].step_maximum
        self._at_once = detector.batch_size
        self._begun: set[str] = set()
        self._restoring: list[str] = []
        self._lock = threading.Lock()

    def __call__(self, case: str, pictures: StepPictures) -> None:
        self._begin(case, pictures.image)
        over = None
        if pictures.anomaly_map is not None:
            # A map that isn't finite is refused at the end, with its reason.
            anomaly_map = np.nan_to_num(pictures.anomaly_map)
            over = png_text(overlay(pictures.image, anomaly_map, self._maximum))
        self._send(("step", case, pictures.timestep, _grey(pictures.clean), over))

    def end(self) -> None:
        for case in self._restoring:
            self._send(("restored", case))

    def _begin(self, case: str, image: NDArray[np.float32]) -> None:
        with self._lock:
            if case in self._begun:
                return
            self._begun.add(case)
            # The detector says when a restoration goes on, not when it ends; but it has only so many at a time.
            if len(self._restoring) == self._at_once:
                self._send(("restored", self._restoring.pop(0)))
            self._restoring.append(case)
            self._send(("scan", case, _grey(image)))


@lru_cache(maxsize=1)
def _detector(model: str, method: str, noise: str | None, force: bool) -> Detector:
    """The last one is kept, so that the next scan needn't wait for it."""
    return Detector(model, method=method, noise=noise, force=force)


def _detect(order: Order, send: Send) -> None:
    """Detect in the order's scans and write its result folder."""
    settings = order.settings
    detector = _detector(settings.model, settings.method, settings.noise, settings.force)
    watcher = _Watcher(send, detector)
    summary = detect_files(
        detector,
        order.scans,
        open_results(detector, order.out, indices=settings.indices, left_out=order.left_out),
        indices=settings.indices,
        keep_steps=True,
        on_progress=lambda done, total: send(("progress", done, total)),
        on_step=watcher,
    )
    watcher.end()
    for name in summary.done:
        _write_planes(order.scans[name], order.out)
    failures = {name: order.scans[name].redacted(message) for name, message in summary.failed.items()}
    send(("done", len(summary.done), failures, summary.refused))


def _write_planes(scan: Scan, out: Path) -> None:
    """The page of a volume's three planes: now, for the scan goes when the job is done."""
    volume = scan.read() if scan.is_volume else None
    if not isinstance(volume, Volume):
        return
    with TemporaryDirectory(dir=out) as folder:
        path = Path(folder) / "scan.nii.gz"
        write_nifti(path, volume.voxels, volume, "")
        write_volume_page(out, scan.name, out / "cases" / scan.name / PLANES, scan=path)


def _grey(picture: NDArray[np.floating[Any]]) -> str:
    """A picture (S, S) in [0, 1] as text."""
    return png_text(np.rint(255 * picture.clip(0, 1)).astype(np.uint8))


def _listen(connection: Connection, orders: queue.SimpleQueue[Order]) -> None:
    """Take orders; without a server there is nobody to work for, whatever is being done."""
    while True:
        try:
            orders.put(connection.recv())
        except (EOFError, OSError):
            os._exit(0)
