"""What has a name and may come from outside: methods, noises, networks, engines, kinds of data set.

Thorad's own entries are named as ``module:attribute`` and loaded when they are asked for, so that a list of names
costs no import of torch. Other packages add entries by an entry point in the group's name or by `Registry.register`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import TypeVar, cast

from thorad.errors import ThoradError

Entry = TypeVar("Entry")


class Registry(Mapping[str, Entry]):
    """Entries of one kind by name, in the order: thorad's own, installed packages', registered ones.

    Args:
        group: the group of entry points, as `thorad.methods`.
        what: the word for one entry in messages, as `method`.
        kind: every entry's type; None: anything that can be called.
        own: {name: "module:attribute"} of thorad's own entries.
    """

    def __init__(self, group: str, what: str, kind: type[Entry] | None, own: Mapping[str, str]) -> None:
        self.group, self.what, self._kind = group, what, kind
        self._own = dict(own)
        self._installed: dict[str, EntryPoint] | None = None
        self._loaded: dict[str, Entry] = {}

    def register(self, name: str, entry: Entry) -> None:
        """Add an entry for this process.

        Raises:
            ThoradError: the name is taken or can't be one, or the entry is of another type.
        """
        self._checked(name, entry, "registered here")
        if not isinstance(name, str) or not re.fullmatch(r"[^\s,]+", name):
            raise ThoradError(f"{name!r} can't name a {self.what}: expected text without blanks and commas.")
        if name in self:
            raise ThoradError(f"{self.what} {name!r} exists already. Choose another name.")
        self._loaded[name] = entry

    def __getitem__(self, name: str) -> Entry:
        """The entry of that name.

        Raises:
            ThoradError: unknown, or a package's entry that can't be loaded.
        """
        if name not in self._loaded:
            self._loaded[name] = self._load(name)
        return self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        yield from dict.fromkeys([*self._own, *self._entry_points(), *self._loaded])

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, name: object) -> bool:
        return name in self._own or name in self._loaded or name in self._entry_points()

    def _entry_points(self) -> dict[str, EntryPoint]:
        if self._installed is None:
            self._installed = {point.name: point for point in entry_points(group=self.group)}
        return self._installed

    def _load(self, name: str) -> Entry:
        if name in self._own:
            module, _, attribute = self._own[name].partition(":")
            return self._checked(name, getattr(import_module(module), attribute), self._own[name])
        if name not in self._entry_points():
            raise ThoradError(f"unknown {self.what} {name!r}. Known: {', '.join(self)}.")
        point = self._entry_points()[name]
        try:
            entry = point.load()
        except Exception as error:  # whatever another package does wrong
            where = f"{point.dist.name} {point.dist.version}" if point.dist else "an installed package"
            raise ThoradError(
                f"{self.what} {name!r} of {where} can't be loaded ({type(error).__name__}: {error}). "
                "Mend or uninstall that package."
            ) from error
        return self._checked(name, entry, point.value)

    def _checked(self, name: str, entry: object, source: str) -> Entry:
        fits = callable(entry) if self._kind is None else isinstance(entry, self._kind)
        if not fits:
            expected = "something to call" if self._kind is None else f"a {self._kind.__name__}"
            raise ThoradError(f"{self.what} {name!r} ({source}) is a {type(entry).__name__}, expected {expected}.")
        return cast("Entry", entry)
