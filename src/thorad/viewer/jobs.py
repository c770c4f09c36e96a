"""The queue of uploads, which are detected in one after the other by the worker process.

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
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, Final, Literal

from thorad.errors import ThoradError
from thorad.io.images import SUFFIXES
from thorad.io.scans import DICOM_SUFFIXES, Scan, find_scans
from thorad.io.tables import counted
from thorad.io.text import printable
from thorad.io.volumes import VOLUME_SUFFIXES
from thorad.viewer.order import Order, Settings

LARGEST_TOGETHER: Final = 2**30  # bytes of all files that wait or are being detected in
MOST_FILES: Final = 5000  # of one job: more than the slices of any head
MOST_WAITING: Final = 100  # jobs that are not done yet
LONGEST_NAME: Final = 200  # characters shown of a file's name
MOST_EVENTS: Final = 300  # pictures of restorations that a job keeps to be watched
MOST_EVENTS_AT_ONCE: Final = 60
LONGEST_PAUSE: Final = 60.0  # seconds between two pieces of an upload, after which it is given up
DETACHED_HEADERS: Final = (".nhdr", ".mhd")  # these name another file, which isn't found under its number
WORKER_ENDED: Final = (
    "The process that detects has ended before it was done: it was killed, or the memory was too small. A new one has "
    "been started for the other scans."
)
STOPPED_COMING: Final = "Its files stopped coming. Drop them again."

State = Literal["receiving", "queued", "running", "done", "failed", "cancelled"]


@dataclass
class Job:
    """One upload and its progress."""

    number: int
    names: Sequence[str]
    """The user's names of the files; only to be shown."""
    sizes: Sequence[int]
    """bytes of each file, as announced."""
    settings: Settings
    files: Path
    """The folder of what has been received."""
    out: Path
    """The result folder."""
    state: State = "receiving"
    message: str = ""
    """Why it failed; otherwise empty."""
    received: dict[int, Path] = field(default_factory=dict)
    touched: float = field(default_factory=time.monotonic)
    scans: dict[str, Scan] = field(default_factory=dict)
    titles: dict[str, str] = field(default_factory=dict)
    """{case name: what the user calls it}."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """{why: how many} of its files are no scans."""
    done: int = 0
    failures: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    """{case name: why the model can't judge it}; while there are such, and nobody forced them, the files stay."""
    events: list[dict[str, Any]] = field(default_factory=list)
    """The last pictures of the restorations, as the page takes them."""
    forgotten: int = 0
    """How many pictures came before those."""
    began: float | None = None
    ended: float | None = None

    @property
    def over(self) -> bool:
        """Whether it has come to its end."""
        return self.state in ("done", "failed", "cancelled")

    @property
    def can_be_forced(self) -> bool:
        """Whether it refused scans whose files are still there."""
        return self.state == "done" and bool(self.refused) and self.files.is_dir()

    @property
    def title(self) -> str:
        """What it is called in the page."""
        titles = list(self.titles.values()) or self.names
        return titles[0] if len(titles) == 1 else f"{titles[0]} and {len(titles) - 1} more"

    def about(self, position: int | None, method_title: str) -> dict[str, Any]:
        """What the page shows of it; `position` in the queue, from 1, while it waits."""
        return {
            "number": self.number,
            "title": self.title,
            "model": Path(self.settings.model).name,
            "method": self.settings.method,
            "method_title": method_title,
            "noise": self.settings.noise,
            "state": self.state,
            "position": position,
            "message": self.message,
            "cases": len(self.scans),
            "volumes": sum(scan.is_volume for scan in self.scans.values()),
            "done": self.done,
            "failures": self._told(self.failures),
            "refused": self._told(self.refused),
            "can_be_forced": self.can_be_forced,
            "left_out": counted(self.left_out),
            "seconds": None if self.began is None else (self.ended or time.monotonic()) - self.began,
        }

    def _told(self, reasons: Mapping[str, str]) -> list[dict[str, str]]:
        return [
            {"case": self.display_name(name), "message": printable(why.replace(f"{name}: ", "", 1))}
            for name, why in reasons.items()
        ]

    def add_event(self, case: str, **event: Any) -> None:
        """Keep a picture for whoever watches, and forget old ones: those of hundreds of scans would fill the memory."""
        self.events.append({"key": case, "case": self.display_name(case), **event})
        if len(self.events) > MOST_EVENTS:
            self.forgotten += len(self.events) - MOST_EVENTS // 2
            self.events = self.events[-(MOST_EVENTS // 2) :]

    def events_after(self, seen: int) -> tuple[list[dict[str, Any]], int]:
        """The next events for whoever has seen so many of them, and how many that makes."""
        start = max(0, seen - self.forgotten)
        events = self.events[start : start + MOST_EVENTS_AT_ONCE]
        return events, self.forgotten + start + len(events)

    def display_name(self, case: str) -> str:
        """A case, or a slice of it, in the user's words."""
        name, _, slice_ = case.partition("__slice_")
        return self.titles.get(name, name) + (f", slice {int(slice_)}" if slice_ else "")


class Jobs:
    """All jobs of a session, oldest first, and the thread that passes them to the worker.

    `folder` is the private one; `models` and `keep` are as for `thorad.viewer.server.serve`.
    """

    def __init__(self, folder: Path, models: Sequence[str], keep: Path | None = None) -> None:
        self._folder, self._models, self._keep = folder, models, keep
        self._changed = threading.Condition()
        self._jobs: dict[int, Job] = {}
        self._count = 0
        self._closing = False
        self._worker: SpawnProcess | None = None
        self.offers: list[dict[str, Any]] = []  # models and methods; empty until the worker is ready
        self.detected = 0  # scans that are done
        self.trouble = ""  # why there is no worker
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def announce(self, files: Sequence[tuple[str, int]], settings: Settings) -> Job:
        """Open a job for files (name, bytes) that are about to come.

        Raises:
            ThoradError: too many files, too large, of a kind that can't be used, or a model or method that isn't
                offered.
        """
        _check_files(files)
        offered = [(each["model"], each["method"], each["noise"]) for each in self._offered_methods()]
        if (settings.model, settings.method, settings.noise) not in offered:
            raise ThoradError("this model with this method is not offered here.")
        with self._changed:
            self._give_up_on_stalled()
            self._check_room(sum(size for _, size in files))
            self._count += 1
            job = Job(
                number=self._count,
                names=[printable(name)[:LONGEST_NAME] for name, _ in files],
                sizes=[size for _, size in files],
                settings=settings,
                files=self._folder / "files" / str(self._count),
                out=self._folder / "results" / str(self._count),
            )
            job.files.mkdir(parents=True)
            self._jobs[job.number] = job
        return job

    def file_for(self, job: Job, index: int) -> Path:
        """Where to write the job's file with this index: its name is a number, its suffix a known one.

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
        """Find the scans in the files that have come, and queue the job.

        Raises:
            ThoradError: files are missing, or none of them can be a scan, and the job has failed; or it was cancelled
                meanwhile.
        """
        if job.state != "receiving":
            raise ThoradError("this job was started already.")
        job.touched = float("inf")  # sorting thousands of files is no pause
        try:
            if len(job.received) != len(job.names):
                raise ThoradError(f"{len(job.received)} of {len(job.names)} files have come. Drop them again.")
            scans, titles, left_out = _scans_in(job)
        except ThoradError as error:
            self.end(job, "failed", str(error))
            raise ThoradError(job.message) from error  # where it was cancelled, its files went while they were sorted
        with self._changed:
            if job.over:
                raise ThoradError(job.message)
            job.scans, job.titles, job.left_out, job.state = scans, titles, left_out, "queued"
            self._changed.notify_all()

    def end(self, job: Job, state: State, message: str) -> None:
        """End a job that isn't over; results stay where it is done, files where it is done and some were refused."""
        with self._changed:
            if job.over:
                return
            self._settle(job, state, message)
        self._remove_files(job)

    def _settle(self, job: Job, state: State, message: str) -> None:
        """Say how a job ended, under the lock; its files go after that, for thousands take a while."""
        job.message, job.ended, job.state = message, time.monotonic(), state
        if state != "done":
            job.events = []

    def _remove_files(self, job: Job) -> None:
        """Remove what a job that is over needs no more."""
        if not (job.state == "done" and job.refused):
            shutil.rmtree(job.files, ignore_errors=True)
        if job.state != "done":
            shutil.rmtree(job.out, ignore_errors=True)

    def force(self, job: Job) -> Job:
        """A new job, queued, that detects also in what the model can't judge: the scans that a job has refused.

        Raises:
            ThoradError: none was refused, or they were forced already.
        """
        with self._changed:
            if job.number not in self._jobs or not job.can_be_forced:
                raise ThoradError("nothing of this job was refused, or it runs already.")
            self._count += 1
            forced = Job(
                number=self._count,
                names=job.names,
                sizes=job.sizes,
                settings=replace(job.settings, force=True),
                files=job.files,
                out=self._folder / "results" / str(self._count),
                state="queued",
                scans={name: job.scans[name] for name in job.refused},
                titles={name: job.titles[name] for name in job.refused},
            )
            job.files = self._folder / "files" / "handed on"
            self._jobs[forced.number] = forced
            self._changed.notify_all()
        return forced

    def remove(self, job: Job) -> None:
        """Cancel a job that isn't over, at once; forget one that is, with its results."""
        with self._changed:
            forgotten, running = job.over, job.state == "running"
            if forgotten:
                self._jobs.pop(job.number, None)
            else:
                self._settle(job, "cancelled", "Cancelled.")
            if running:
                self._kill_worker()
        if forgotten:
            shutil.rmtree(job.out, ignore_errors=True)
            shutil.rmtree(job.files, ignore_errors=True)
        else:
            self._remove_files(job)

    def get(self, number: int) -> Job | None:
        """The job of this number."""
        return self._jobs.get(number)

    def all(self) -> list[dict[str, Any]]:
        """What the page shows of all jobs, the newest first."""
        with self._changed:
            self._give_up_on_stalled()
            return [self.about(job) for job in reversed(self._jobs.values())]

    def about(self, job: Job) -> dict[str, Any]:
        """What the page shows of one job."""
        with self._changed:
            queued = [other for other in self._jobs.values() if other.state == "queued"]
            position = queued.index(job) + 1 if job in queued else None
            return job.about(position, self.method_title(job.settings.method))

    def method_title(self, method: str) -> str:
        """What an offered method is called; its plain name until the worker is ready."""
        titles: dict[str, str] = {each["method"]: each["method_title"] for each in self._offered_methods()}
        return titles.get(method, method)

    def close(self) -> None:
        """End the worker, whatever it does, and the thread."""
        with self._changed:
            self._closing = True
            self._kill_worker()
            self._changed.notify_all()
        self._thread.join(10)

    def _offered_methods(self) -> list[dict[str, Any]]:
        return [{**method, "model": offer["model"]} for offer in self.offers for method in offer["methods"]]

    def _check_room(self, size: int) -> None:
        waiting = [job for job in self._jobs.values() if not job.over]
        free = LARGEST_TOGETHER - sum(sum(job.sizes) for job in self._jobs.values() if job.files.is_dir())
        if size > free:
            raise ThoradError(
                f"{size / 1e6:.0f} MB; {max(0, free) / 1e6:.0f} MB are free of the {LARGEST_TOGETHER / 1e6:.0f} MB "
                "that all waiting and refused scans may take. Remove some, or use `thorad detect` for large sets."
            )
        if len(waiting) >= MOST_WAITING:
            raise ThoradError(f"{MOST_WAITING} jobs are waiting already. Let some of them finish first.")

    def _give_up_on_stalled(self) -> None:
        now = time.monotonic()
        for job in self._jobs.values():
            if job.state == "receiving" and now - job.touched > LONGEST_PAUSE:
                self.end(job, "failed", STOPPED_COMING)

    def _run(self) -> None:
        while not self._closing:
            try:
                self._run_worker()
            except (EOFError, OSError):  # the worker has ended
                # Before its first message: the next one would end the same way.
                if not self.offers and not self._closing:
                    self.trouble = self.trouble or "The process that detects can't be started; the terminal says why."
                    return
            finally:
                self._kill_worker()

    def _kill_worker(self) -> None:
        if self._worker is not None:
            self._worker.kill()
            self._worker.join()

    def _run_worker(self) -> None:
        """Start a worker and give it jobs until it ends."""
        with self._changed:
            if self._closing:
                return
            self._worker, connection = _start_worker(self._models)
        match connection.recv():
            case ("offers", offers):
                self.offers = offers
            case ("failed", why):
                self.trouble = why
                raise EOFError
        while job := self._next_job(self._worker):
            self._run_job(connection, job)

    def _next_job(self, worker: SpawnProcess) -> Job | None:
        """Wait for a job and mark it as running; None where the worker has ended, as it may while it waits."""
        with self._changed:
            while not self._closing and worker.is_alive():
                for job in self._jobs.values():
                    if job.state == "queued":
                        job.state, job.began = "running", time.monotonic()
                        return job
                self._changed.wait(0.5)
        return None

    def _run_job(self, connection: Connection, job: Job) -> None:
        """See one job to its end.

        Raises:
            EOFError, OSError: the worker has ended, or still works on a job that something else has ended: it would
                answer the next order with that one's pictures and results.
        """
        message: tuple[Any, ...] = ()
        try:
            connection.send(Order(job.scans, job.settings, job.out, job.left_out))
            message = connection.recv()  # that it is taken
            while not job.over:
                message = connection.recv()
                self._handle(job, message)
        except (EOFError, OSError):
            if not message:
                self._put_back(job)
            elif not self._closing:
                self.end(job, "failed", WORKER_ENDED)
            raise
        if message[0] not in ("done", "failed"):
            raise EOFError

    def _put_back(self, job: Job) -> None:
        """Let a job wait again: its worker died while that waited, which is not the job's fault."""
        with self._changed:
            if not job.over:
                job.state, job.began = "queued", None

    def _handle(self, job: Job, message: tuple[Any, ...]) -> None:
        match message:
            case ("progress", done, _):
                job.done = done
            case ("scan", case, picture):
                job.add_event(case, scan=picture)
            case ("step", case, timestep, clean, overlay):
                job.add_event(case, t=timestep, clean=clean, overlay=overlay)
            case ("restored", case):
                job.add_event(case, restored=True)
            case ("done", done, failures, refused):
                job.done, job.failures, job.refused = done, failures, refused
                self.detected += done
                if done or refused:
                    self.end(job, "done", self._copy_results(job))
                else:
                    self.end(job, "failed", "No usable scan.")
            case ("failed", why):
                self.end(job, "failed", why)

    def _copy_results(self, job: Job) -> str:
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
            # Of the files in a folder shutil gives a list of (from, to, why), and no reason of its own.
            why = error.args[0][0][2] if isinstance(error, shutil.Error) else error.strerror
            return f"Not copied to the folder of --out: {why}. Save it from here."
        return ""


def _start_worker(models: Sequence[str]) -> tuple[SpawnProcess, Connection]:
    context = get_context("spawn")  # a fork of a process with threads may hang
    connection, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, list(models)), daemon=True)
    process.start()
    theirs.close()  # so that its end is the end of the connection
    return process, connection


def _work(connection: Connection, models: Sequence[str]) -> None:
    from thorad.viewer.worker import work  # only that process imports torch

    work(connection, models)


def _check_files(files: Sequence[tuple[str, int]]) -> None:
    if not files:
        raise ThoradError("no file was chosen.")
    if len(files) > MOST_FILES:
        raise ThoradError(f"{len(files)} files at once; expected {MOST_FILES} at most. Drop one study at a time.")
    for name, size in files:
        if size <= 0:
            raise ThoradError(f"{name[:LONGEST_NAME]}: the file is empty.")
        if name.lower().endswith(DETACHED_HEADERS):
            raise ThoradError(
                f"{name[:LONGEST_NAME]}: a header whose voxels are in another file. Save both in one file "
                "(.nrrd or .mha), or use `thorad detect`."
            )


def _scans_in(job: Job) -> tuple[dict[str, Scan], dict[str, str], Mapping[str, int]]:
    """The scans of a job under names that identify nobody, what the user calls them, and what was left out."""
    titles_of = {path: job.names[index] for index, path in job.received.items()}
    # A single file is judged by its content, whatever its name; among many, those that look like no scan are skipped.
    inputs = [job.files] if len(titles_of) > 1 else list(titles_of)
    try:
        found = find_scans(inputs)
    except ThoradError as error:
        if "needs" in str(error):
            raise
        raise ThoradError(
            f"{job.title}: no scan. Expected pictures ({', '.join(SUFFIXES)}), volumes (.nii, .nii.gz, .nrrd, .mha) or "
            "the DICOM files of a scan."
        ) from error
    scans: dict[str, Scan] = {}
    titles: dict[str, str] = {}
    for number, scan in enumerate(found.values(), start=1):
        title = titles_of.get(scan.path, job.title)
        if scan.series is None and scan.problem is None:
            scan = Scan(f"scan-{number}", scan.path, f"file {number} of an upload")
        elif scan.problem is not None:
            scan = replace(scan, problem=scan.problem.replace(str(scan.path), title))
        titles[scan.name] = title if len(scan.files) == 1 else f"{scan.name} ({len(scan.files)} files)"
        scans[scan.name] = scan
    # Files are kept without what users call them.
    return scans, titles, {reason.replace("no suffix", "no image"): count for reason, count in found.left_out.items()}
