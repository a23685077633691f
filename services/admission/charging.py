"""What a server takes from a token limit for a call, learned from its headers and from its refusals."""

import math
from dataclasses import dataclass
from enum import IntEnum

from services.admission.bucket import Bucket
from services.admission.stray import SIGMAS

Seconds = float

SEVERAL = 8  # calls' worth of tokens not used, before it is asked whether the server gave them back
NEARLY = 0.75  # of what was not used
REMEMBERED_S = 2.0  # of a limit in tokens that were not used
CHANCE = 1.5  # refused of what is remembered
IN_SPITE = 2  # refusals after that was believed: it is asked whether it is so
IN_FLIGHT_S = 2.0  # after which refusals are not of calls that had left before
DOUBT_S = 60.0  # without a refusal, before it is asked whether a server keeps what calls do not use
RICH = 0.4  # seconds' worth of tokens that the server has and we have not
RICH_S = 3.0  # of waiting for tokens that the server says are there
SETTLED_S = 1.0  # after a change; until then calls that left before it are on their way
WISER = 4.0  # times as long, each time that this turned out to be wrong


class Charging(IntEnum):
    """What a server takes from a token limit for a call, from lenient to strict."""

    LIVE = 0  # what was used, when it was used
    REFUND = 1  # input and max_tokens at once; what was not used comes back with the answer
    KEEP = 2  # input and max_tokens at once, for good


@dataclass(slots=True)
class Counting:
    """What is believed of a server's counting, and the evidence since that changed, in tokens."""

    charging: Charging = Charging.REFUND
    _changed_at: Seconds = float("-inf")
    _unused: float = 0.0  # that answered calls could have used but did not
    _short: float = 0.0  # by which the server's figure fell below ours
    _denied: float = 0.0  # of calls that were refused
    _denials: float = 0.0  # those calls
    _stray: float = 0.0  # of those, refused whatever they take
    _denied_at: Seconds = float("-inf")
    _held_at_first: Seconds = 1.0  # of the limit, as far as what was not used is remembered from then
    _is_suspected: bool = False  # of keeping what calls do not use, because of refusals alone
    _doubt_s: Seconds = DOUBT_S
    _in_spite: int = 0  # refused since then
    _patience: float = IN_SPITE
    _rich_since: Seconds | None = None
    _rich_s: Seconds = RICH_S
    _was_lenient: bool = False  # the last change was towards more lenient

    def hear(self, gap: float, call: float, bucket: Bucket, is_short: bool, now: Seconds) -> None:
        """The server's figure lies `gap` above ours, or, negative, below; `is_short`: calls wait for tokens. If it is
        stricter than is believed, its figure falls short of ours by just what was not used; if it is more lenient, its
        figure stays well above ours while we wait."""
        if now - self._changed_at < SETTLED_S:
            return
        if self.charging is not Charging.KEEP:
            self._short += max(0.0, -gap)
            enough = max(bucket.per_second / 4, SEVERAL * call)
            if self._unused > enough and self._short > NEARLY * self._unused:
                self._change(Charging(self.charging + 1), now)
        if self.charging is not Charging.LIVE:
            # A server that holds one second's worth cannot show a gap of three large calls.
            enough = max(RICH * bucket.per_second, min(3 * call, 2 * RICH * bucket.per_second))
            if not (is_short and gap > enough and bucket.factor == 1.0):
                self._rich_since = None
            elif self._rich_since is None:
                self._rich_since = now
            if self._rich_since is not None and now - self._rich_since > self._rich_s:
                self._change(Charging(self.charging - 1), now)

    def count(
        self, unused: float, refused: int, stray: float, call: float, bucket: Bucket, is_silent: bool, now: Seconds
    ) -> bool:  # fmt: skip
        """Take in what came of calls; whether refusals, less those that are stray, show that the server is stricter:
        one that keeps what calls do not use refuses about as much as was given back to them, once it has spent what it
        held at first."""
        self._unused += unused
        self._denials += refused
        self._stray += stray
        self._denied += refused * call
        if refused:
            self._denied_at = now
            self._in_spite += now - self._changed_at > IN_FLIGHT_S and refused
        held = self._held_at_first * bucket.per_second
        beyond = self._denials - self._stray
        is_more = beyond > CHANCE + SIGMAS * math.sqrt(self._stray)
        denied = self._denied * beyond / max(1.0, self._denials)
        found = self._unused >= call and is_more and denied > 0.5 * (self._unused - held)
        if self.charging is Charging.REFUND and found:
            self._change(Charging.KEEP, now)
            self._is_suspected = True
            return True
        if self._is_suspected and is_silent and now - self._denied_at > self._doubt_s:
            # A server that sends no headers shows in no other way that those refusals had another cause.
            self._change(Charging.REFUND, now)
            self._doubt_s *= WISER
        elif self._is_suspected and self._in_spite > self._patience:
            self._change(Charging.REFUND, now)  # it did not help
            self._patience *= WISER
        elif self._unused > max(REMEMBERED_S * bucket.per_second, SEVERAL * call):
            self._unused, self._short, self._held_at_first = self._unused / 2, self._short / 2, self._held_at_first / 2
            self._denied, self._denials, self._stray = self._denied / 2, self._denials / 2, self._stray / 2
        return False

    def explains_many_refusals(self, now: Seconds) -> bool:
        """Whether a server that was taken to count what is used is now taken to reserve max_tokens instead."""
        if self.charging is not Charging.LIVE or not self._unused:
            return False
        self._change(Charging.REFUND, now)
        return True

    def _change(self, charging: Charging, now: Seconds) -> None:
        if charging > self.charging and self._was_lenient:
            self._rich_s *= WISER
        self._was_lenient = charging < self.charging
        self.charging, self._rich_since, self._short, self._unused = charging, None, 0.0, 0.0
        self._denied, self._denials, self._stray, self._in_spite = 0.0, 0.0, 0.0, 0
        self._is_suspected, self._changed_at = False, now
