"""Refusals that have nothing to do with how much is sent: they go on when less is."""

import math
from dataclasses import dataclass

MOST = 0.2  # of calls; what is refused beyond that is for the pace
MEMORY, LONGER_MEMORY = 0.9, 0.95  # of what was counted is left after another episode
ABOVE = 1.25  # of what was proven
PROOF = 20  # calls that tell a share
NEWS = 1.5  # refusals that tell something new
SOME = 3  # refusals: more than chance
SIGMAS, AT_LEAST = 3.0, 1.0  # of chance: small counts have long tails
SIGMAS_LATELY = 2.0  # of several episodes, whose counts are larger


@dataclass(slots=True)
class Share:
    """Refused of ended, of some episodes."""

    refused: float = 0.0
    ended: float = 0.0

    def add(self, refused: float, ended: float, memory: float = MEMORY) -> None:
        self.refused, self.ended = memory * self.refused + refused, memory * self.ended + ended

    @property
    def value(self) -> float:
        return self.refused / max(1.0, self.ended)

    @property
    def error(self) -> float:
        """Of `value`, by chance."""
        return math.sqrt(max(1.0, self.refused)) / max(1.0, self.ended)


class Stray:
    """The share of calls that a server refuses whatever the pace: gateways that spread calls over accounts of others
    do, and servers of which one replica is full. Without it, one refusal in a hundred would slow a lane down again and
    again. It is learned where no refusal can be the lane's own doing: right after it slowed down to what was just
    answered."""

    def __init__(self) -> None:
        self._proven, self._since = Share(), Share()
        self.lately = Share()  # since the lane slowed down last, or sped up because it had for nothing
        self._told = 0.0
        self._means = ""  # by which the pace is held
        self._bound = 0.0  # the pace up to which no refusal is for the pace
        self._looked = 0.0  # calls, since the lane slowed down

    @property
    def share(self) -> float:
        """Of calls, as it is believed to be."""
        if self._proven.ended < PROOF:
            return 0.0
        return min(self._since.value, ABOVE * self._proven.value)

    def slowed(self, means: str, bound: float) -> None:
        """The lane slowed down; up to a pace of `bound`, in whatever unit `means` has, it was answered until now."""
        self._means, self._bound, self.lately, self._looked = means, bound, Share(), 0.0

    @property
    def is_looking(self) -> bool:
        """Whether it would tell more if the lane stayed where it slowed down to for a while."""
        return self._bound > 0 and self._looked < PROOF

    def is_sound(self, refused: float, ended: float, means: str, pace: float) -> bool:
        """Whether so many refusals at this pace can be none of the lane's doing."""
        return means == self._means and pace <= self._bound and refused <= MOST * ended

    def prove(self, refused: float, ended: float) -> bool:
        """Take in an episode whose refusals are none of the lane's doing; whether a larger share than was known has
        come out."""
        self._looked += ended
        if _beyond_chance(refused, self._proven.value * ended):
            self._proven, self._since = Share(), Share()
        for share in (self._proven, self._since):
            share.add(refused, ended)
        return self._is_news()

    def prove_lately(self, refused: float, ended: float) -> bool:
        """The same of all the last episodes together, where there are few refusals in each."""
        self.lately.add(refused, ended, LONGER_MEMORY)
        self._proven, self._since = (Share(self.lately.refused, self.lately.ended) for _ in range(2))
        return self._is_news()

    def _is_news(self) -> bool:
        if (
            self.share == 0
            or self._proven.refused < NEWS
            or not _beyond_chance(self._proven.refused, self._told * self._proven.ended)
        ):
            return False
        self._told, self.lately = self._proven.value, Share()
        return True

    def hear(self, refused: float, ended: float) -> None:
        """Take in any other episode."""
        self.lately.add(refused, ended, LONGER_MEMORY)
        if not self.ours(refused, ended):
            self._since.add(refused, ended)

    def ours(self, refused: float, ended: float) -> float:
        """How many of so many refusals are the lane's doing; none as long as chance alone explains them."""
        return _beyond_chance(refused, self.share * ended)

    @property
    def ours_lately(self) -> float:
        """The share of the last calls that were refused by the lane's doing."""
        beyond = _beyond_chance(self.lately.refused, self.share * self.lately.ended, SIGMAS_LATELY)
        return beyond / max(1.0, self.lately.ended) if beyond >= SOME else 0.0


def _beyond_chance(refused: float, expected: float, sigmas: float = SIGMAS) -> float:
    """What was refused beyond what was expected; nothing where chance explains it."""
    chance = sigmas * math.sqrt(expected) + AT_LEAST if expected else 0.0
    return refused - expected if refused - expected > chance else 0.0
