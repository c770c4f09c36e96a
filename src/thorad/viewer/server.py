"""The viewer's server: on 127.0.0.1 only, only for whoever has its token, and only for its own pages.

Every request needs the session's token, which comes once in the address that `thorad view` opens and then as a cookie
that no script can read and no other site can send (`thorad.viewer.guard`). Nothing is logged but counts.

`viewer_app` lists all addresses. The id of results is job-1, job-2, ... and folder-1, ... of the command line.
"""

import json
import re
import secrets
import signal
import socket
import sys
import tempfile
import threading
import time
import webbrowser
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from thorad.datasets.cases import read_cases
from thorad.errors import ThoradError
from thorad.io.images import files_below
from thorad.io.tables import counted
from thorad.records import parse_indices
from thorad.results.methods_text import detection_text
from thorad.results.page import asset, render
from thorad.results.report import write_report
from thorad.viewer.guard import Guard, private_folder
from thorad.viewer.jobs import LARGEST_TOGETHER, MOST_FILES, STOPPED_COMING, Job, Jobs
from thorad.viewer.order import Settings
from thorad.viewer.pages import Results, folder_titles, result_folders

LARGEST_ANNOUNCEMENT: Final = 2**21
"""bytes: the names of all files of a job."""

STATIC: Final = {
    **{name: f"viewer/{name}" for name in ("viewer.css", "shell.js", "start.js", "job.js", "result.js")},
    **{name: f"report/{name}" for name in ("report.css", "gallery.js")},
    **{name: name for name in ("page.css", "page.js", "looking.js")},
}
"""The only files that are served by name, and their paths in thorad/assets."""

GALLERY_NOTE: Final = (
    "Pictures are as large as the results, 1024 px at most; maps have 8 bits here, fine near 0 and coarse near a map's "
    "peak. Above the threshold the map lies over the scan, stronger with its value; below it the scan is as it is."
)


def serve(
    results: Sequence[Path],
    *,
    truth: Path | None = None,
    models: Sequence[str] = (),
    keep: Path | None = None,
    port: int = 0,
    on_ready: Callable[[str], None],
    browser: bool = True,
) -> int:
    """Serve until Ctrl-C or SIGTERM, when nothing is left; returns how many scans were detected in.

    Args:
        results: result folders, or folders of result folders, to browse.
        truth: table with columns image and mask, of the results' cases.
        models: model folders that are offered beside the bundled ones.
        keep: a folder that gets a copy of the results of everything that is dropped in.
        port: of 127.0.0.1; 0 for any that is free.
        on_ready: called with the address, which holds the token; `browser`: whether a browser opens it, too.

    Raises:
        ThoradError: no results there, no such model, the folder to keep can't be written, or the port is taken.
    """
    folders = [folder for path in results for folder in result_folders(path)]
    _check_options(truth, models, keep)
    try:
        listening = socket.create_server(("127.0.0.1", port))
    except OSError as error:
        raise ThoradError(f"port {port} can't be used ({error.strerror}). Leave --port out for a free one.") from error
    for number in (signal.SIGTERM, signal.SIGHUP):  # otherwise these end the process before the folder is removed
        signal.signal(number, lambda number, frame: sys.exit(128 + number))
    with listening, private_folder() as folder:
        jobs = Jobs(folder, [str(Path(model).resolve()) for model in models], keep)
        port, token = listening.getsockname()[1], secrets.token_urlsafe(32)
        app = viewer_app(jobs, folders, folder, token, port, truth)
        try:
            _run(app, listening, f"http://127.0.0.1:{port}/?token={token}", on_ready, browser)
        finally:
            jobs.close()
    return jobs.detected


def _check_options(truth: Path | None, models: Sequence[str], keep: Path | None) -> None:
    if truth is not None:
        read_cases(truth)  # an error now, not on the first page
    for model in models:
        if not (Path(model) / "recipe.toml").is_file():
            raise ThoradError(f"{model}: not a model folder, for it has no recipe.toml. `thorad train` makes one.")
    if keep is not None:
        try:
            keep.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ThoradError(f"{keep}: can't be made ({error.strerror}). Choose another --out.") from error


def _run(app: ASGIApp, listening: socket.socket, address: str, on_ready: Callable[[str], None], browser: bool) -> None:
    def announce() -> None:
        on_ready(address)
        if browser:
            threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()

    config = uvicorn.Config(app, log_level="critical", server_header=False, timeout_graceful_shutdown=1, lifespan="off")
    with suppress(KeyboardInterrupt):  # the usual way to end it
        _Server(config, announce).run(sockets=[listening])


class _Server(uvicorn.Server):
    """Announces itself once it answers and handles signals: one that came between the two left a warning."""

    def __init__(self, config: uvicorn.Config, announce: Callable[[], None]) -> None:
        super().__init__(config)
        self._announce = announce

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to answer, then say so."""
        await super().startup(sockets)
        self._announce()


def viewer_app(
    jobs: Jobs, folders: Sequence[Path], folder: Path, token: str, port: int, truth: Path | None = None
) -> ASGIApp:
    """The application behind its guard; `folders` are results to browse, `folder` is the private one."""
    pages = _Pages(jobs, folders, folder, truth)
    routes = [
        Route("/", pages.start),
        Route("/jobs/{number:int}", pages.job),
        Route("/results/{id}", pages.result),
        Route("/results/{id}/cases/{name}", pages.pictures),
        Route("/results/{id}/thumbnail", pages.thumbnail),
        Route("/results/{id}/save", pages.save),
        Route("/results/{id}/report", pages.report),
        Route("/results/{id}/planes/{name}", pages.planes),
        Route("/results/{id}/registration/{name}", pages.registration),
        Route("/api/state", pages.state),
        Route("/api/jobs", pages.announce, methods=["POST"]),
        Route("/api/jobs/{number:int}", pages.watch),
        Route("/api/jobs/{number:int}", pages.remove, methods=["DELETE"]),
        Route("/api/jobs/{number:int}/files/{index:int}", pages.receive, methods=["PUT"]),
        Route("/api/jobs/{number:int}/start", pages.begin, methods=["POST"]),
        Route("/api/jobs/{number:int}/force", pages.force, methods=["POST"]),
        Route("/static/{name}", pages.static),
    ]
    handlers = {ThoradError: _error, HTTPException: _error, Exception: _unexpected_error}
    return Guard(Starlette(routes=routes, exception_handlers=handlers), token, port)


class _Pages:
    """The answers. Functions that are not async run on threads."""

    def __init__(self, jobs: Jobs, folders: Sequence[Path], folder: Path, truth: Path | None) -> None:
        self._jobs, self._folder = jobs, folder
        self._folders = {f"folder-{number}": path for number, path in enumerate(folders, start=1)}
        titles = folder_titles(folders)
        self._results = {
            name: Results(path, title, truth=truth)
            for (name, path), title in zip(self._folders.items(), titles, strict=True)
        }

    def start(self, request: Request) -> Response:
        return HTMLResponse(render("viewer/start.html"))

    def job(self, request: Request) -> Response:
        self._job(request)
        return HTMLResponse(render("viewer/job.html"))

    def result(self, request: Request) -> Response:
        results, job = self._result(request), self._job_of(request)
        about = self._jobs.about(job) if job else {}
        address = f"/results/{request.path_params['id']}"
        folder, index = results.read(address)
        facts = [folder.subtitle, *([f"{about['seconds']:.0f} s"] if about.get("seconds") else [])]
        page = render(
            "viewer/result.html",
            title=results.title,
            subtitle=" · ".join([self._jobs.method_title(str(folder.options.get("method"))), *facts]),
            folder=folder,
            index=index,
            address=address,
            job=job,
            can_be_forced=about.get("can_be_forced", False),
            left_out=counted(folder.run.get("left_out") or {}),
            methods=detection_text(folder),
            note=GALLERY_NOTE,
        )
        return HTMLResponse(page.encode("utf-8", "replace"))  # names of files may hold halves of characters

    def static(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in STATIC:
            raise HTTPException(404, "No such file.")
        kind = "text/css" if name.endswith(".css") else "text/javascript"
        return Response(asset(STATIC[name]), media_type=kind)

    # ------------------------------------------------------------------------------------------- results

    def pictures(self, request: Request) -> Response:
        return _Json(self._result(request).pictures(request.path_params["name"]))

    def thumbnail(self, request: Request) -> Response:
        results = self._result(request)
        path = results.thumbnail()
        if not results.owns(path):
            raise HTTPException(404, "There is no such picture.")
        return FileResponse(path, media_type="image/png")

    def save(self, request: Request) -> Response:
        """All files of the results in one ZIP."""
        results, top = self._result(request), f"thorad-{request.path_params['id']}"
        packed = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 - has no name; gone as soon as it is sent
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for file in filter(results.owns, files_below(results.path)):
                archive.write(file, Path(top) / file.relative_to(results.path))
        headers = {"Content-Length": str(packed.tell()), **_attached(f"{top}-{time.strftime('%Y-%m-%d')}.zip")}
        packed.seek(0)
        return StreamingResponse(iter(lambda: packed.read(2**20), b""), media_type="application/zip", headers=headers)

    def report(self, request: Request) -> Response:
        """The results as one HTML file."""
        with tempfile.TemporaryDirectory(dir=self._folder) as folder:
            content = write_report(self._result(request).path, Path(folder) / "report.html").path.read_bytes()
        name = f"thorad-{request.path_params['id']}-{time.strftime('%Y-%m-%d')}.html"
        return HTMLResponse(content, headers=_attached(name))

    def planes(self, request: Request) -> Response:
        """A volume in three linked planes, as one HTML file."""
        content = self._result(request).planes(request.path_params["name"], self._folder)
        return HTMLResponse(content, headers=_attached("thorad-three-planes.html"))

    def registration(self, request: Request) -> Response:
        return FileResponse(self._result(request).registration(request.path_params["name"]), media_type="image/png")

    def state(self, request: Request) -> Response:
        folders = [{"id": name, **self._with_title(self._results[name].summary())} for name in self._folders]
        limits = {"bytes": LARGEST_TOGETHER, "files": MOST_FILES}
        worker = {"offers": self._jobs.offers, "trouble": self._jobs.trouble}
        return _Json({"jobs": self._jobs.all(), "folders": folders, "limits": limits, **worker})

    def watch(self, request: Request) -> Response:
        job = self._job(request)
        after = request.query_params.get("after", "")
        events, seen = job.events_after(int(after) if re.fullmatch(r"[0-9]{1,9}", after) else 0)
        return _Json({**self._jobs.about(job), "events": events, "seen": seen})

    async def announce(self, request: Request) -> Response:
        content = b""
        async for piece in request.stream():
            content += piece
            if len(content) > LARGEST_ANNOUNCEMENT:
                raise HTTPException(413, "The names of the files are too long.")
        job = self._jobs.announce(*_parse_announcement(content))
        return _Json(self._jobs.about(job), 201)

    async def receive(self, request: Request) -> Response:
        """One file, straight to the disk. Whatever goes wrong with it ends the job."""
        job, index = self._job(request), request.path_params["index"]
        path = self._jobs.file_for(job, index)
        try:
            length = 0
            with path.open("wb") as file:
                async for piece in request.stream():
                    length += len(piece)
                    if length > job.sizes[index]:
                        break
                    job.touched = time.monotonic()
                    await run_in_threadpool(file.write, piece)
                    if job.over:
                        raise HTTPException(409, job.message)
        except ClientDisconnect as error:
            self._jobs.end(job, "failed", STOPPED_COMING)
            raise HTTPException(400, job.message) from error
        except OSError as error:
            self._jobs.end(job, "failed", f"The files can't be kept ({error.strerror}).")
            raise HTTPException(507, job.message) from error
        if length != job.sizes[index]:
            self._jobs.end(job, "failed", "A file came with another size than was announced. Drop it again.")
            raise HTTPException(413 if length > job.sizes[index] else 400, job.message)
        return _Json({})

    def begin(self, request: Request) -> Response:
        job = self._job(request)
        self._jobs.start(job)
        return _Json(self._jobs.about(job))

    def force(self, request: Request) -> Response:
        return _Json(self._jobs.about(self._jobs.force(self._job(request))), 201)

    def remove(self, request: Request) -> Response:
        self._jobs.remove(self._job(request))
        return _Json({})

    def _with_title(self, run: Mapping[str, Any]) -> dict[str, Any]:
        return {**run, "method_title": self._jobs.method_title(run["method"])} if "method" in run else dict(run)

    def _job(self, request: Request) -> Job:
        job = self._jobs.get(request.path_params["number"])
        if job is None:
            raise HTTPException(404, "There is no such job. It may have been removed.")
        return job

    def _job_of(self, request: Request) -> Job | None:
        found = re.fullmatch(r"job-(\d{1,9})", request.path_params["id"])
        return self._jobs.get(int(found[1])) if found else None

    def _result(self, request: Request) -> Results:
        name, job = request.path_params["id"], self._job_of(request)
        if job is not None and job.state == "done":
            return self._results.setdefault(name, Results(job.out, job.title, job.display_name))
        if name not in self._folders:
            raise HTTPException(404, "There are no such results. They may have been removed.")
        return self._results[name]


class _Json(JSONResponse):
    """In ASCII: what users call their files may hold halves of characters, which are no UTF-8."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, allow_nan=False).encode("ascii")


def _attached(name: str) -> dict[str, str]:
    """To be saved, never shown as a page of this server."""
    return {"Content-Disposition": f'attachment; filename="{name}"'}


def _parse_announcement(content: bytes) -> tuple[list[tuple[str, int]], Settings]:
    """Names and bytes of the files to come, and what to do with them."""
    try:
        asked = json.loads(content)
        files = [(str(file["name"]), int(file["size"])) for file in asked["files"]]
        noise, slices = asked.get("noise"), asked.get("slices")
        settings = Settings(
            model=str(asked["model"]),
            method=str(asked["method"]),
            noise=None if noise is None else str(noise),
            indices=parse_indices(str(slices)) if slices else None,
        )
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise HTTPException(400, "Not an announcement of files.") from error
    return files, settings


async def _error(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        return _Json({"message": error.detail}, error.status_code)
    return _Json({"message": str(error)}, 400)


async def _unexpected_error(request: Request, error: Exception) -> Response:
    return _Json({"message": f"Unexpected: {type(error).__name__}. The viewer goes on."}, 500)
