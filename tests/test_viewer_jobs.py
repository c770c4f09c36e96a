"""The viewer's queue, with a made-up worker: whatever is cancelled when, each job shows its own results."""

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import pytest

from thorad.errors import ThoradError
from thorad.viewer import jobs as queue
from thorad.viewer.jobs import Job, Jobs
from thorad.viewer.order import Settings


class Workers:
    """Makes up workers: each sends a picture that names the job of its order, waits while `busy`, and is done."""

    def __init__(self) -> None:
        self.orders: list[str] = []
        self.started = 0
        self.free = threading.Event()
        self.alive = False

    def start(self, models: Any) -> tuple[Any, Any]:
        ours, theirs = Pipe()
        threading.Thread(target=self._work, args=(theirs,), daemon=True).start()
        self.started, self.alive = self.started + 1, True
        return self, ours

    def is_alive(self) -> bool:
        return self.alive

    def kill(self) -> None:
        self.alive = False

    def join(self) -> None:
        pass

    def _work(self, connection: Any) -> None:
        connection.send(("offers", [{"model": "m", "methods": [{"method": "a", "noise": None, "method_title": "A"}]}]))
        try:
            while True:
                order = connection.recv()
                self.orders.append(order.out.name)
                connection.send(("taken",))
                self.free.wait(20)
                for _ in range(3):
                    connection.send(("step", "scan-1", 0, f"of job {order.out.name}", None))
                order.out.mkdir(parents=True)
                connection.send(("done", 1, {}, {}))
        except (EOFError, OSError):
            return


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> Workers:
    workers = Workers()
    monkeypatch.setattr(queue, "_start_worker", workers.start)
    return workers


@pytest.fixture
def jobs(workers: Workers, tmp_path: Path) -> Iterator[Jobs]:
    jobs = Jobs(tmp_path / "private", [], tmp_path / "kept")
    wait(lambda: bool(jobs.offers))
    yield jobs
    jobs.close()


def wait(until: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not until():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.01)


def upload(jobs: Jobs) -> Job:
    job = jobs.announce([("scan.png", 3)], Settings("m", "a", None, None))
    jobs.file_for(job, 0).write_bytes(b"abc")
    return job


def drop(jobs: Jobs) -> Job:
    job = upload(jobs)
    jobs.start(job)
    return job


def pictures(job: Job) -> set[str]:
    return {event["clean"] for event in job.events}


def test_a_job_that_is_cancelled_as_its_turn_comes_shifts_no_other(
    jobs: Jobs, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its files take a while to go, and the worker gets free meanwhile."""
    first, second, third = (drop(jobs) for _ in range(3))
    wait(lambda: first.state == "running")
    removing, removed = threading.Event(), threading.Event()
    rmtree = shutil.rmtree

    def slow(path: Path, **options: Any) -> None:
        if path == second.files:
            removing.set()
            removed.wait(20)
        rmtree(path, **options)

    monkeypatch.setattr(queue.shutil, "rmtree", slow)
    cancelling = threading.Thread(target=jobs.remove, args=(second,))
    cancelling.start()
    removing.wait(20)
    workers.free.set()
    wait(lambda: first.over)
    time.sleep(0.1)  # in which the worker could be given the second
    removed.set()
    cancelling.join()
    fourth = drop(jobs)
    wait(lambda: fourth.over)
    assert [job.state for job in (first, second, third, fourth)] == ["done", "cancelled", "done", "done"]
    assert workers.orders == ["1", "3", "4"]
    assert [pictures(job) for job in (first, second, third, fourth)] == [
        {"of job 1"},
        set(),
        {"of job 3"},
        {"of job 4"},
    ]
    assert not second.files.exists()


def test_after_a_job_that_something_else_ended_there_is_a_new_worker(jobs: Jobs, workers: Workers) -> None:
    first, second = drop(jobs), drop(jobs)
    wait(lambda: workers.orders == ["1"])
    jobs.end(first, "failed", "its files can't be kept")
    workers.free.set()
    wait(lambda: second.over)
    assert (first.message, second.state, pictures(second)) == ("its files can't be kept", "done", {"of job 2"})
    assert workers.started == 2


def test_a_running_job_is_cancelled_at_once_and_the_next_one_is_done(jobs: Jobs, workers: Workers) -> None:
    first, second = drop(jobs), drop(jobs)
    wait(lambda: workers.orders == ["1"])
    jobs.remove(first)
    assert (first.state, workers.alive, first.files.exists()) == ("cancelled", False, False)
    workers.free.set()
    wait(lambda: second.over)
    assert (second.state, pictures(second), workers.started) == ("done", {"of job 2"}, 2)


def test_a_cancel_holds_while_files_are_sorted(jobs: Jobs, workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    job, sort = upload(jobs), queue._scans_in

    def cancelled_meanwhile(job: Job) -> Any:
        found = sort(job)
        jobs.remove(job)
        return found

    monkeypatch.setattr(queue, "_scans_in", cancelled_meanwhile)
    with pytest.raises(ThoradError, match="Cancelled"):
        jobs.start(job)
    workers.free.set()
    monkeypatch.setattr(queue, "_scans_in", sort)
    following = drop(jobs)
    wait(lambda: following.over)
    assert (job.state, workers.orders) == ("cancelled", ["2"])


def test_why_results_were_not_copied_is_told(
    jobs: Jobs, workers: Workers, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(*_: Any) -> None:
        raise shutil.Error([("a", "b", "[Errno 28] No space left on device"), ("c", "d", "another")])

    monkeypatch.setattr(queue.shutil, "copytree", full)
    workers.free.set()
    job = drop(jobs)
    wait(lambda: job.over)
    assert job.state == "done"
    assert job.message == "Not copied to the folder of --out: [Errno 28] No space left on device. Save it from here."
