"""Whether a lane's server can be reached at all. Pure: the clock comes in."""

import math
from dataclasses import dataclass

from schemas.call import VerdictKind

Seconds = float

IN_A_ROW = 8  # attempts that never left, and nothing else: from then on one at a time feels for the server
PROBE_S = 0.5  # between two of those; 500 calls that each tried for themselves took 25 s of CPU
LEAST = 6  # attempts that must have failed before a lane is given up
BLIP_S = 15.0  # a network that is gone for so long comes back without a lane being given up


@dataclass(slots=True)
class Reach:
    """Hears whether each attempt left. All calls of a lane go to one address, so an attempt that does not leave says
    nothing about its call, however often it happens to it."""

    _missed: int = 0
    _since: Seconds = math.inf

    def heard(self, kind: VerdictKind, now: Seconds) -> None:
        """An attempt is over."""
        if kind is not VerdictKind.UNREACHABLE:
            self._missed = 0
            return
        if not self._missed:
            self._since = now
        self._missed += 1

    @property
    def is_lost(self) -> bool:
        """Whether calls would fail one like the other."""
        return self._missed >= IN_A_ROW

    def is_gone(self, now: Seconds) -> bool:
        """Whether the lane can be given up."""
        return self._missed >= LEAST and now - self._since >= BLIP_S
