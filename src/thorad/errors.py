"""What a user can cause: an error to mend, and an end by a signal."""


class ThoradError(Exception):
    """Something the user gave can't be used.

    The message names the file or option, what was found, what was expected and what to do about it.
    """


class Interrupted(Exception):  # noqa: N818  # nothing is wrong
    """A signal ended the work, and what was done is saved.

    The message says how far it came and how to resume; of several processes only the first one's does.
    """

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(message)
        self.signum = signum
