"""The queue of scans that were dropped in, and the process that detects in them, one job after the other.

A job is what was dropped in at once: one picture, one series, or many of them. Its files lie in numbered files of the
private folder until it ends; what users called them is kept only to be shown.
"""

import shutil
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final, Literal

from thorad.errors import ThoradError
from thorad.io.images import SUFFIXES
from thorad.io.scans import DICOM_SUFFIXES, Scan, find_scans
from thorad.io.volumes import VOLUME_SUFFIXES

LARGEST_TOGETHER: Final = 2**30
"""bytes of all files that wait or are being looked at."""

MOST_FILES: Final = 5000
"""Of one job: more than the slices of any head."""

MOST_WAITING: Final = 100
"""Jobs that are not done yet."""

LONGEST_NAME: Final = 200
"""Characters that are shown of what users call a file."""

MOST_EVENTS: Final = 300
"""Pictures of restorations that a job keeps to be watched."""

MOST_EVENTS_AT_ONCE: Final = 60

LONGEST_PAUSE: Final = 60.0
"""seconds between two pieces of an upload, after which it is given up."""

HEADERS_ALONE: Final = (".nhdr", ".mhd")
"""Files that name another file, which a numbered one doesn't find."""

State = Literal["receiving", "queued", "running", "done", "failed", "cancelled"]


@dataclass(frozen=True)
class Order:
    """What the worker is to do."""

    scans: Mapping[str, Scan]
    model: str
    method: str
    noise: str | None
    indices: Sequence[int] | None
    """Of the slices that volumes are looked at in; None: the model's own."""
    out: Path
    """The result folder."""


@dataclass
class Job:
    """One upload and what becomes of it."""

    number: int
    names: Sequence[str]
    """What the user calls the files; only to be shown."""
    sizes: Sequence[int]
    """bytes of each file, as announced."""
    model: str
    method: str
    noise: str | None
    indices: Sequence[int] | None
    files: Path
    out: Path
    state: State = "receiving"
    message: str = ""
    """Why it failed; else empty."""
    received: dict[int, Path] = field(default_factory=dict)
    touched: float = field(default_factory=time.monotonic)
    scans: dict[str, Scan] = field(default_factory=dict)
    titles: dict[str, str] = field(default_factory=dict)
    """{case name: what the user calls it}."""
    done: int = 0
    failures: dict[str, str] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)
    """The last pictures of the restorations, as the page takes them."""
    forgotten: int = 0
    """How many pictures came before those."""
    began: float | None = None
    ended: float | None = None

    @property
    def over(self) -> bool:
        """Whether nothing more will become of it."""
        return self.state in ("done", "failed", "cancelled")

    @property
    def title(self) -> str:
        """What is shown for it."""
        titles = list(self.titles.values()) or self.names
        return titles[0] if len(titles) == 1 else f"{titles[0]} and {len(titles) - 1} more"

    def about(self, position: int | None) -> dict[str, Any]:
        """What the page shows of it; `position` in the queue, from 1, where it waits."""
        return {
            "number": self.number,
            "title": self.title,
            "model": Path(self.model).name,
            "method": self.method,
            "noise": self.noise,
            "state": self.state,
            "position": position,
            "message": self.message,
            "cases": len(self.scans),
            "volumes": sum(scan.is_volume for scan in self.scans.values()),
            "done": self.done,
            "failures": [
                {"case": self.told(name), "message": why.replace(f"{name}: ", "", 1)}
                for name, why in self.failures.items()
            ],
            "seconds": None if self.began is None else (self.ended or time.monotonic()) - self.began,
        }

    def keep(self, case: str, event: dict[str, Any]) -> None:
        """Keep a picture for who watches, and forget old ones: hundreds of scans would fill the memory."""
        self.events.append({"key": case, "case": self.told(case), **event})
        if len(self.events) > MOST_EVENTS:
            self.forgotten += len(self.events) - MOST_EVENTS // 2
            self.events = self.events[-(MOST_EVENTS // 2) :]

    def events_after(self, seen: int) -> tuple[list[dict[str, Any]], int]:
        """The next pictures for who has seen so many of them, and how many that are then."""
        start = max(0, seen - self.forgotten)
        events = self.events[start : start + MOST_EVENTS_AT_ONCE]
        return events, self.forgotten + start + len(events)

    def told(self, case: str) -> str:
        """A case, or a slice of it, in the user's words."""
        name, _, slice_ = case.partition("__slice_")
        return self.titles.get(name, name) + (f", slice {int(slice_)}" if slice_ else "")


class Jobs:
    """All jobs of a session, oldest first, and the thread that sees to them.

    Args:
        folder: the private folder.
        models: model folders that the user named, to be offered beside the bundled ones.
        keep: a folder where the results of every job are copied to; None: nowhere.
    """

    def __init__(self, folder: Path, models: Sequence[str], keep: Path | None = None) -> None:
        self._folder, self._models, self._keep = folder, models, keep
        self._changed = threading.Condition()
        self._jobs: dict[int, Job] = {}
        self._count = 0
        self._closing = False
        self._cancelled: Job | None = None
        self._worker: _Process | None = None
        self.offers: list[dict[str, Any]] = []
        """Models and methods; empty until the worker is ready."""
        self.looked_at = 0
        """Scans that are done."""
        self.trouble = ""
        """Why there is no worker."""
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    # ------------------------------------------------------------------------------------------- from the page

    def announce(
        self,
        files: Sequence[tuple[str, int]],
        model: str,
        method: str,
        noise: str | None,
        indices: Sequence[int] | None,
    ) -> Job:
        """Open a job for files (name, bytes) that are about to come.

        Raises:
            ThoradError: too many, too large, of a kind that can't be, or a model or method that isn't offered.
        """
        if not files:
            raise ThoradError("no file was chosen.")
        if len(files) > MOST_FILES:
            raise ThoradError(f"{len(files)} files at once; expected {MOST_FILES} at most. Drop one study at a time.")
        for name, size in files:
            if size <= 0:
                raise ThoradError(f"{name[:LONGEST_NAME]}: the file is empty.")
            if name.lower().endswith(HEADERS_ALONE):
                raise ThoradError(
                    f"{name[:LONGEST_NAME]}: a header whose voxels are in another file. Save both in one file "
                    "(.nrrd or .mha), or use `thorad detect`."
                )
        offered = {(offer["model"], one["method"], one["noise"]) for offer in self.offers for one in offer["methods"]}
        if (model, method, noise) not in offered:
            raise ThoradError("this model with this method is not offered here.")
        with self._changed:
            self._give_up_on_stalled()
            waiting = [job for job in self._jobs.values() if not job.over]
            free = LARGEST_TOGETHER - sum(sum(job.sizes) for job in waiting)
            size = sum(size for _, size in files)
            if size > free:
                raise ThoradError(
                    f"{size / 1e6:.0f} MB; {max(0, free) / 1e6:.0f} MB are free of the {LARGEST_TOGETHER / 1e6:.0f} MB "
                    "that all waiting scans may have. Use `thorad detect` for large sets."
                )
            if len(waiting) >= MOST_WAITING:
                raise ThoradError(f"{MOST_WAITING} jobs are waiting already. Let some of them finish first.")
            self._count += 1
            job = Job(
                number=self._count,
                names=[name[:LONGEST_NAME] for name, _ in files],
                sizes=[size for _, size in files],
                model=model,
                method=method,
                noise=noise,
                indices=indices,
                files=self._folder / "files" / str(self._count),
                out=self._folder / "results" / str(self._count),
            )
            job.files.mkdir(parents=True)
            self._jobs[job.number] = job
        return job

    def file_for(self, job: Job, index: int) -> Path:
        """Where the job's file with this index is to be written; its name is a number, its suffix one that is known.

        Raises:
            ThoradError: the job doesn't wait for it.
        """
        if job.state != "receiving" or not 0 <= index < len(job.names) or index in job.received:
            raise ThoradError("this job doesn't wait for such a file.")
        name = job.names[index].lower()
        known = (*SUFFIXES, *VOLUME_SUFFIXES, *DICOM_SUFFIXES)
        suffix = max((suffix for suffix in known if name.endswith(suffix)), key=len, default="")
        path = job.files / f"{index:05d}{suffix}"
        job.received[index] = path
        return path

    def start(self, job: Job) -> None:
        """Look what the files are and let the job wait for its turn.

        Raises:
            ThoradError: files are missing, or none of them can be a scan; the job is failed.
        """
        if job.state != "receiving":
            raise ThoradError("this job was started already.")
        job.touched = float("inf")  # looking at thousands of files is no pause
        try:
            if len(job.received) != len(job.names):
                raise ThoradError(f"{len(job.received)} of {len(job.names)} files have come. Drop them again.")
            scans, titles = _scans_in(job)
        except ThoradError as error:
            self._end(job, "failed", str(error))
            raise
        with self._changed:
            job.scans, job.titles, job.state = scans, titles, "queued"
            self._changed.notify_all()

    def fail(self, job: Job, message: str) -> None:
        """Give up on a job whose files didn't come."""
        if not job.over:
            self._end(job, "failed", message)

    def remove(self, job: Job) -> None:
        """Cancel a job that isn't over, at once; forget one that is, with its results."""
        with self._changed:
            if job.state == "running":
                self._cancelled = job
                if self._worker is not None:
                    self._worker.kill()
                return
            if job.over:
                del self._jobs[job.number]
                shutil.rmtree(job.out, ignore_errors=True)
                return
        self._end(job, "cancelled", "Cancelled.")

    def get(self, number: int) -> Job | None:
        """The job of this number."""
        return self._jobs.get(number)

    def all(self) -> list[dict[str, Any]]:
        """What the page shows of all jobs, the newest first."""
        with self._changed:
            self._give_up_on_stalled()
            return [job.about(self._position(job)) for job in reversed(self._jobs.values())]

    def about(self, job: Job) -> dict[str, Any]:
        """What the page shows of one job."""
        with self._changed:
            return job.about(self._position(job))

    def close(self) -> None:
        """End the worker, whatever it does, and the thread."""
        with self._changed:
            self._closing = True
            if self._worker is not None:
                self._worker.kill()
            self._changed.notify_all()
        self._thread.join(10)

    @property
    def worker_number(self) -> int | None:
        """Process number of the worker, if there is one."""
        return None if self._worker is None else self._worker.number

    def _position(self, job: Job) -> int | None:
        waiting = [one for one in self._jobs.values() if one.state == "queued"]
        return waiting.index(job) + 1 if job in waiting else None

    def _give_up_on_stalled(self) -> None:
        now = time.monotonic()
        for job in self._jobs.values():
            if job.state == "receiving" and now - job.touched > LONGEST_PAUSE:
                self._end(job, "failed", "Its files stopped coming. Drop them again.")

    # ------------------------------------------------------------------------------------------- the thread

    def _run(self) -> None:
        while not self._closing:
            try:
                self._serve()
            except EOFError:
                # Before its first word: the next one would end the same way.
                if not self.offers and not self._closing:
                    self.trouble = self.trouble or "The process that detects can't be started; the terminal says why."
                    return
            finally:
                if self._worker is not None:
                    self._worker.kill()

    def _serve(self) -> None:
        """Start a worker and give it jobs until it ends.

        Raises:
            EOFError: it has ended.
        """
        with self._changed:
            if self._closing:
                return
            worker = self._worker = _Process(self._models)
        said, told = worker.receive()
        if said == "failed":
            self.trouble = told
            raise EOFError
        self.offers = told
        while True:
            with self._changed:
                job = next((job for job in self._jobs.values() if job.state == "queued"), None)
                while job is None and not self._closing and worker.alive:
                    self._changed.wait(0.5)  # a worker may die while it waits, too
                    job = next((job for job in self._jobs.values() if job.state == "queued"), None)
                if job is None or not worker.alive:
                    raise EOFError
                job.state, job.began = "running", time.monotonic()
            taken = False
            try:
                worker.send(Order(job.scans, job.model, job.method, job.noise, job.indices, job.out))
                worker.receive()
                taken = True
                while not job.over:
                    self._note(job, worker.receive())
            except EOFError:
                if self._cancelled is job:
                    self._end(job, "cancelled", "Cancelled.")
                elif not taken:  # the worker died while it waited; that is not the job's fault
                    job.state, job.began = "queued", None
                elif not self._closing:
                    self._end(
                        job,
                        "failed",
                        "The process that detects has ended before it was done: somebody killed it, or the memory was "
                        "too small. A new one has been started for the other scans.",
                    )
                raise

    def _note(self, job: Job, message: tuple[Any, ...]) -> None:
        match message:
            case ("progress", done, _):
                job.done = done
            case ("scan", case, picture):
                job.keep(case, {"scan": picture})
            case ("step", case, timestep, clean, over):
                job.keep(case, {"t": timestep, "clean": clean, "overlay": over})
            case ("restored", case):
                job.keep(case, {"restored": True})
            case ("done", done, failures):
                job.done, job.failures = done, failures
                self.looked_at += done
                if done:
                    self._end(job, "done", self._kept(job))
                else:
                    self._end(job, "failed", "None of it could be used.")
            case ("failed", why):
                self._end(job, "failed", why)

    def _kept(self, job: Job) -> str:
        """Copy the results to the user's folder; returns why not, where that fails."""
        if self._keep is None:
            return ""
        name = f"{time.strftime('%Y-%m-%d-%H%M%S')}-{job.number}"
        part = self._keep / f".{name}.part"
        try:
            shutil.copytree(job.out, part)
            part.rename(self._keep / name)
        except OSError as error:
            shutil.rmtree(part, ignore_errors=True)
            return f"Not kept in the folder of --out: {error.strerror}. Save it from here."
        return ""

    def _end(self, job: Job, state: State, message: str) -> None:
        """Nothing of a job stays but its results."""
        shutil.rmtree(job.files, ignore_errors=True)
        if state != "done":
            shutil.rmtree(job.out, ignore_errors=True)
        with self._changed:
            job.message, job.ended, job.state = message, time.monotonic(), state
            if state != "done":
                job.events = []


class _Process:
    """The worker, seen from here."""

    def __init__(self, models: Sequence[str]) -> None:
        context = get_context("spawn")  # a fork of a process with threads may hang
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, list(models)), daemon=True)
        self._process.start()
        theirs.close()  # so that its end is the end of the connection

    @property
    def alive(self) -> bool:
        return self._process.is_alive()

    @property
    def number(self) -> int | None:
        return self._process.pid

    def send(self, order: Order) -> None:
        """Raises EOFError where the process has ended."""
        try:
            self._connection.send(order)
        except OSError as error:
            raise EOFError from error

    def receive(self) -> tuple[Any, ...]:
        """The next message. Raises EOFError where the process has ended."""
        try:
            message: tuple[Any, ...] = self._connection.recv()
        except OSError as error:
            raise EOFError from error
        return message

    def kill(self) -> None:
        self._process.kill()
        self._process.join()


def _work(connection: Connection, models: Sequence[str]) -> None:
    from thorad.viewer.worker import work  # torch is for that process only

    work(connection, models)


def _scans_in(job: Job) -> tuple[dict[str, Scan], dict[str, str]]:
    """The scans of a job under names that tell nobody, and what the user calls them.

    Raises:
        ThoradError: nothing that can be looked at.
    """
    titles_of = {path: job.names[index] for index, path in job.received.items()}
    # Of a single file the content decides, whatever its name; of many those that look like no scan are passed over.
    inputs = [job.files] if len(titles_of) > 1 else list(titles_of)
    try:
        found = find_scans(inputs)
    except ThoradError as error:
        if "needs" in str(error):
            raise
        raise ThoradError(
            f"{job.title}: nothing to look at. Expected pictures ({', '.join(SUFFIXES)}), volumes (.nii, .nii.gz, "
            ".nrrd, .mha) or the DICOM files of a scan."
        ) from error
    scans: dict[str, Scan] = {}
    titles: dict[str, str] = {}
    for number, scan in enumerate(found.values(), start=1):
        title = titles_of.get(scan.path, job.title)
        if scan.series is None and scan.problem is None:
            name = f"scan-{number}"
            scan = Scan(name, scan.path, f"file {number} of an upload")
        elif scan.problem is not None:
            scan = replace(scan, problem=scan.problem.replace(str(scan.path), title))
        titles[scan.name] = title if len(scan.files) == 1 else f"{scan.name} ({len(scan.files)} files)"
        scans[scan.name] = scan
    return scans, titles
