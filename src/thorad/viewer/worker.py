"""The process that detects: it alone has torch, and may be killed or die without the server's end.

It takes `Order`s from its connection and answers with tuples whose first entry says what they are:

    ("offers", [...])                           once, when it is ready; see `offers`
    ("taken",)                                  first of an order
    ("scan", case, picture)                         a restoration begins: its image, on the model's grid
    ("step", case, timestep, clean, overlay)    the clean estimate and the map over the image overlay may be None
    ("restored", case)                          it has ended; several may go on at the same time
    ("progress", done, total)                   cases
    ("done", done, failures)                    the number of cases that are done, and {case: why} of the others
    ("failed", message)                         nothing could be done

Pictures are PNG in base64, as the page takes them. Shapes: B batch, S the model's grid.
"""

from __future__ import annotations

import os
import queue
import signal
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from thorad.apps.run import detect_files, open_results
from thorad.detector import Detector
from thorad.errors import ThoradError
from thorad.io.scans import Scan
from thorad.io.volumes import Volume, write_nifti
from thorad.methods import METHODS, Restoration
from thorad.methods.contract import OnStep, Step
from thorad.model import bundled_models, load_recipe_of
from thorad.pictures import overlay, png_text
from thorad.results.volume_page import write_volume_page
from thorad.selection import methods_for
from thorad.viewer.order import Order, Settings
from thorad.viewer.pages import PLANES

STEP_MAXIMUM = {"thor+": METHODS["thor"].overlay_maximum}
"""Map value at which the colours of a step end, where it isn't that of the result: THOR+ makes draws of THOR."""

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
    worker = _Worker(send)
    while True:
        order = orders.get()
        send(("taken",))
        try:
            worker.detect(order)
        except ThoradError as error:
            send(("failed", str(error)))
        except Exception as error:  # whatever it is, the next order may be well
            send(("failed", f"{type(error).__name__}: {error}"))


def offers(models: Sequence[str]) -> list[dict[str, Any]]:
    """The models to choose from, each with the methods and kinds of noise that it can do.

    Args:
        models: model folders that the user named; they come before the bundled ones.
    """
    found = []
    for model in [*models, *bundled_models()]:
        recipe = load_recipe_of(model)
        methods = [
            {"method": method, "noise": noise} for method, noise in methods_for(model) if not METHODS[method].published
        ]
        # A calibrated copy has the name of the model that it is a copy of.
        name = recipe.name if model in bundled_models() else f"{recipe.name} ({Path(model).name})"
        description = {"name": name, "about": recipe.description, "volumes": bool(recipe.volume.template)}
        found.append({"model": model, **description, "methods": methods})
    return found


class _Watched(Detector):
    """A detector that shows the restoration of each image as it goes on."""

    send: Send

    def _restore(self, x: Tensor, names: Sequence[str], on_step: OnStep | None = None) -> Restoration:
        pictures = [image[0].cpu().numpy() for image in x]  # (S, S) in [0, 1]
        for name, picture in zip(names, pictures, strict=True):
            self.send(("scan", name, _grey(picture)))

        def show(step: Step) -> None:
            if on_step is not None:
                on_step(step)
            for i, (name, picture) in enumerate(zip(names, pictures, strict=True)):
                clean = (step.clean[i, 0].float().cpu().numpy() + 1) / 2
                over = None
                if step.anomaly_map is not None:
                    # A map that isn't finite is refused at the end, with its reason.
                    map_ = np.nan_to_num((step.anomaly_map[i, 0] * self._region).float().cpu().numpy())
                    over = png_text(overlay(picture, map_, STEP_MAXIMUM.get(self.method, self.overlay_maximum)))
                self.send(("step", name, step.t, _grey(clean), over))

        restoration = super()._restore(x, names, show)
        for name in names:
            self.send(("restored", name))
        return restoration


class _Worker:
    """Keeps the last detector, so that the next scan needn't wait for it."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._loaded: Settings | None = None
        self._detector: Detector | None = None

    def detect(self, order: Order) -> None:
        """Detect in the order's scans and write its result folder."""
        settings = order.settings
        if self._detector is None or replace(settings, indices=None) != self._loaded:
            detector = _Watched(settings.model, method=settings.method, noise=settings.noise)
            detector.send = self._send
            self._loaded, self._detector = replace(settings, indices=None), detector
        results = open_results(self._detector, order.out, indices=settings.indices)
        summary = detect_files(
            self._detector,
            order.scans,
            results,
            indices=settings.indices,
            keep_steps=True,
            on_progress=lambda done, total: self._send(("progress", done, total)),
        )
        for name in summary.done:
            if order.scans[name].is_volume:
                _write_planes(order.scans[name], order.out)
        failures = {name: order.scans[name].redacted(message) for name, message in summary.failed.items()}
        self._send(("done", len(summary.done), failures))


def _write_planes(scan: Scan, out: Path) -> None:
    """The page of a volume's three planes: now, for the scan goes when the job is done."""
    with TemporaryDirectory(dir=out) as folder:
        volume = scan.read()
        assert isinstance(volume, Volume)
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
