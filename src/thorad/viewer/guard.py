"""Who may see what: the token, the Host and the Origin of every request, the headers of every answer, a private folder.

A page elsewhere that finds the port gets nothing: the Host must be this server's (against DNS rebinding), and so must
an Origin, where one is sent.
"""

import fcntl
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS: Final = {
    "Content-Security-Policy": POLICY,
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
PREFIX: Final = "thorad-view-"
LOCK: Final = "lock"


class Guard:
    """Passes on to `app` only requests that have the session's token and come from this server's own pages."""

    def __init__(self, app: ASGIApp, token: str, port: int) -> None:
        self._app, self._token = app, token
        self._hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}
        # Browsers send a cookie to every port: two viewers of one user must not take each other's.
        self._cookie = f"thorad-view-{port}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] != "http":
            return
        request = Request(scope)
        given = request.query_params.get("token", "") if request.url.path == "/" else ""
        opens = bool(given) and secrets.compare_digest(given.encode(), self._token.encode())
        refusal = self._refusal(request, opens)

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                added = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
                if opens and refusal is None:
                    cookie = f"{self._cookie}={self._token}; HttpOnly; SameSite=Strict; Path=/"
                    added.append((b"set-cookie", cookie.encode()))
                message["headers"] = [*message.get("headers", []), *added]
            await send(message)

        if refusal is None:
            await self._app(scope, receive, guarded)
        else:
            await PlainTextResponse(refusal, 403)(scope, receive, guarded)

    def _refusal(self, request: Request, opens: bool) -> str | None:
        host = request.headers.get("host", "")
        if host not in self._hosts:
            return "thorad view answers only under its own address, http://127.0.0.1 with its port."
        origin = request.headers.get("origin")
        site = request.headers.get("sec-fetch-site", "none")
        opened = request.method == "GET" and opens  # the address may be clicked in a notebook, or a mail to oneself
        if (origin is not None and origin != f"http://{host}") or (site not in ("same-origin", "none") and not opened):
            return "thorad view answers only its own pages, not those of other sites."
        kept = request.cookies.get(self._cookie, "")
        if not opens and not secrets.compare_digest(kept.encode(), self._token.encode()):
            return (
                "This page needs the address with the token that `thorad view` has printed in its terminal. "
                "Open that address in this browser."
            )
        return None


@contextmanager
def private_folder() -> Iterator[Path]:
    """A temporary folder for what users drop in and what is found in it: only this user can read it, gone at the end.

    What viewers that were killed have left goes first.
    """
    _remove_leftovers()
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))  # 0700
    try:
        with (folder / LOCK).open("w") as lock:
            # Until the process ends, however it ends: process numbers are used again, and differ between containers.
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _remove_leftovers() -> None:
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
