"""A viewer as a process of its own, and a client of it, for the tests."""

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any


class Viewer:
    """`thorad view` with its temporary files in a folder of its own; as a context it is ended at the end."""

    def __init__(self, temporary: Path, *arguments: object) -> None:
        self.temporary = temporary
        temporary.mkdir(parents=True, exist_ok=True)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "thorad", "view", "--no-browser", *map(str, arguments)],
            env={**os.environ, "TMPDIR": str(temporary), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+)/\?token=(\S+)", line)
        assert found, line + (self.process.communicate(timeout=20)[1] if self.process.poll() is not None else "")
        self.address, self.port, self.token = found[0], int(found[1]), found[2]

    def __enter__(self) -> "Viewer":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.returncode is None:
            self.end()

    def end(self, number: int = signal.SIGINT) -> tuple[int, str, str]:
        """Send a signal and wait: exit code, stdout, stderr."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        out, errors = self.process.communicate(timeout=30)
        return self.process.returncode, out, errors

    @property
    def folder(self) -> Path:
        """The private folder."""
        (found,) = self.temporary.glob("thorad-view-*")
        return found

    def left(self, pattern: str) -> list[Path]:
        """What the private folder holds, when the files of jobs that are over have had the time to go."""
        until = time.monotonic() + 5
        while (found := list(self.folder.glob(pattern))) and time.monotonic() < until:
            time.sleep(0.02)
        return found

    def worker(self) -> int:
        """Process number of the process that detects."""
        listed = subprocess.run(
            ["ps", "-A", "-ww", "-o", "pid=,ppid=,args="], capture_output=True, text=True, check=True
        )
        for line in listed.stdout.splitlines():
            number, parent, arguments = line.split(None, 2)
            if int(parent) == self.process.pid and "spawn_main" in arguments:
                return int(number)
        raise AssertionError("no worker")

    def client(self) -> "Client":
        """A browser that has opened the address."""
        client = Client(self.port)
        status, headers, _ = client.ask("GET", f"/?token={self.token}")
        assert status == 200
        client.cookie = headers["set-cookie"].partition(";")[0]
        return client


class Client:
    """What a browser sends; without a cookie at first."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.cookie = ""

    def ask(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers (in small letters) and content."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        sent = {**({"Cookie": self.cookie} if self.cookie else {}), **(headers or {})}
        try:
            connection.request(method, path, body, sent)
            answer = connection.getresponse()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def json(self, method: str, path: str, content: object = None) -> tuple[int, Any]:
        """Status and parsed content."""
        status, _, answer = self.ask(method, path, None if content is None else json.dumps(content).encode())
        return status, json.loads(answer)

    def index(self, results: str) -> tuple[int, Any]:
        """Status of the page of some results, and the index of cases that it holds; None where it holds none."""
        status, _, page = self.ask("GET", f"/results/{results}")
        found = re.search(rb'id="index">(.*?)</script>', page)
        return status, json.loads(found[1]) if found else None

    def wait_for_offers(self) -> list[dict[str, Any]]:
        """What the worker offers, when it is ready."""
        until = time.monotonic() + 60
        while time.monotonic() < until:
            state = self.json("GET", "/api/state")[1]
            assert not state["trouble"], state["trouble"]
            if state["offers"]:
                offers: list[dict[str, Any]] = state["offers"]
                return offers
            time.sleep(0.1)
        raise AssertionError("the worker did not start")

    def announce(
        self,
        files: Sequence[tuple[str, int]],
        method: str = "zscore",
        noise: str | None = None,
        slices: str = "",
        model: str | None = None,
    ) -> tuple[int, Any]:
        """Announce files, for the first model offered where none is named."""
        offers = self.wait_for_offers()
        model = model or offers[0]["model"]
        content = {"files": [{"name": name, "size": size} for name, size in files], "model": model}
        return self.json("POST", "/api/jobs", {**content, "method": method, "noise": noise, "slices": slices})

    def drop(
        self,
        files: Sequence[tuple[str, bytes]],
        method: str = "zscore",
        noise: str | None = None,
        model: str | None = None,
    ) -> int:
        """Send files and start the job; its number."""
        announced = [(name, len(content)) for name, content in files]
        status, job = self.announce(announced, method, noise, model=model)
        assert status == 201, job
        for index, (_, content) in enumerate(files):
            status, _, answer = self.ask("PUT", f"/api/jobs/{job['number']}/files/{index}", content)
            assert status == 200, answer
        self.json("POST", f"/api/jobs/{job['number']}/start")
        return int(job["number"])

    def job(self, number: int) -> dict[str, Any]:
        """What the page shows of a job, with its first pictures."""
        job: dict[str, Any] = self.json("GET", f"/api/jobs/{number}")[1]
        return job

    def wait(self, number: int, *states: str) -> dict[str, Any]:
        """The job, as soon as it is over or in one of the states."""
        until = time.monotonic() + 180
        while time.monotonic() < until:
            job = self.job(number)
            if job["state"] in (states or ("done", "failed", "cancelled")):
                return job
            time.sleep(0.05)
        raise AssertionError(f"job {number} is still {job['state']}")
