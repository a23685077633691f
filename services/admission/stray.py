"""Refusals that have nothing to do with how much is sent: they go on when less is."""

import math
from dataclasses import dataclass

MOST = 0.2  # of calls; what is refused beyond that is for the pace
MEMORY = 0.9  # of what was counted is left after another episode
ABOVE = 1.25  # of what was proven
SOME = 1.5  # refusals that tell something new
SIGMAS, AT_LEAST = 3.0, 1.0  # of chance: small counts have long tails


@dataclass(slots=True)
class Share:
    """Refused of ended, of some episodes."""

    refused: float = 0.0
    ended: float = 0.0

    def add(self, refused: float, ended: float) -> None:
        self.refused, self.ended = MEMORY * self.refused + refused, MEMORY * self.ended + ended

    @property
    def value(self) -> float:
        return self.refused / max(1.0, self.ended)


class Stray:
    """The share of calls that a server refuses whatever the pace: gateways that spread calls over accounts of others
    do, and servers of which one replica is full. Without it, one refusal in a hundred would slow a lane down again and
    again. It is learned where no refusal can be the lane's own doing: right after it slowed down to what was just
    answered."""

    def __init__(self) -> None:
        self._proven, self._since, self._lately = Share(), Share(), Share()
        self._told = 0.0
        self._means = ""  # by which the pace is held
        self._bound = 0.0  # the pace up to which no refusal is for the pace

    @property
    def share(self) -> float:
        """Of calls, as it is believed to be."""
        return min(self._since.value, ABOVE * self._proven.value)

    def slowed(self, means: str, bound: float) -> None:
        """The lane slowed down; up to a pace of `bound`, in whatever unit `means` has, it was answered until now."""
        self._means, self._bound, self._lately = means, bound, Share()

    def is_sound(self, refused: float, ended: float, means: str, pace: float) -> bool:
        """Whether so many refusals at this pace can be none of the lane's doing."""
        return means == self._means and pace <= self._bound and refused <= MOST * ended

    def prove(self, refused: float, ended: float) -> bool:
        """Take in an episode whose refusals are none of the lane's doing; whether a larger share than was known has
        come out."""
        if _beyond_chance(refused, self._proven.value * ended):
            self._proven, self._since = Share(), Share()
        for share in (self._proven, self._since):
            share.add(refused, ended)
        if self._proven.refused < SOME or not _beyond_chance(self._proven.refused, self._told * self._proven.ended):
            return False
        self._told, self._lately = self._proven.value, Share()
        return True

    def hear(self, refused: float, ended: float) -> None:
        """Take in any other episode."""
        self._lately.add(refused, ended)
        if not self.ours(refused, ended):
            self._since.add(refused, ended)

    def ours(self, refused: float, ended: float) -> float:
        """How many of so many refusals are the lane's doing; none as long as chance alone explains them, now and over
        the last episodes."""
        beyond = _beyond_chance(refused, self.share * ended)
        if not self.share:
            return beyond
        lately = _beyond_chance(self._lately.refused, self.share * self._lately.ended)
        return max(beyond, lately * ended / max(1.0, self._lately.ended))


def _beyond_chance(refused: float, expected: float) -> float:
    """What was refused beyond what was expected; nothing where chance explains it."""
    chance = SIGMAS * math.sqrt(expected) + AT_LEAST if expected else 0.0
    return refused - expected if refused - expected > chance else 0.0
