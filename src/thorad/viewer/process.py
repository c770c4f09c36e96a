"""The worker process as the server sees it; the process itself runs `thorad.viewer.worker`."""

from collections.abc import Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

from thorad.viewer.order import Order


class WorkerProcess:
    """A process that detects what it is ordered to.

    Args:
        models: model folders that the user named.
    """

    def __init__(self, models: Sequence[str]) -> None:
        context = get_context("spawn")  # a fork of a process with threads may hang
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, list(models)), daemon=True)
        self._process.start()
        theirs.close()  # so that its end is the end of the connection

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._process.is_alive()

    def send(self, order: Order) -> None:
        """Send it an order.

        Raises:
            EOFError: it has ended.
        """
        try:
            self._connection.send(order)
        except OSError as error:
            raise EOFError from error

    def receive(self) -> tuple[Any, ...]:
        """Wait for its next message, one of those that `thorad.viewer.worker` lists.

        Raises:
            EOFError: it has ended.
        """
        try:
            message: tuple[Any, ...] = self._connection.recv()
        except OSError as error:
            raise EOFError from error
        return message

    def kill(self) -> None:
        """End it at once, whatever it does."""
        self._process.kill()
        self._process.join()


def _work(connection: Connection, models: Sequence[str]) -> None:
    from thorad.viewer.worker import work  # only that process imports torch

    work(connection, models)
