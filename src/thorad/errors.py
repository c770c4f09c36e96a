"""The one exception that a user can cause and mend."""


class ThoradError(Exception):
    """Something the user gave can't be used.

    The message names the file or option, what was found, what was expected and what to do about it.
    """
