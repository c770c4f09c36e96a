"""The part of a run's cases that one of several processes does, on whatever machine, without speaking to the others."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from thorad.errors import ThoradError

Thing = TypeVar("Thing")


@dataclass(frozen=True)
class Shard:
    """The `index`-th (from 1) of `count` parts."""

    index: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """Read `2/8`; a ThoradError for anything but 1/N to N/N."""
        found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
        shard = cls(int(found[1]), int(found[2])) if found else cls(0, 0)
        if not 1 <= shard.index <= shard.count:
            raise ThoradError(f"the shard is {text!r}, expected I/N with I from 1 to N, as 2/8.")
        return shard

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def of(self, named: Mapping[str, Thing]) -> dict[str, Thing]:
        """The cases of this shard, {name: anything}, in the order of `named`, which are the same for all shards.

        Every case is in exactly one of the `count` shards, whatever the order; their sizes differ by one at most.
        Neighbours by name go to different shards, for they often are of one kind, and of one length.
        """
        own = set(sorted(named)[self.index - 1 :: self.count])
        return {name: thing for name, thing in named.items() if name in own}
