"""Tells a lane that is down from calls that it cannot answer. Pure: no clock, no Ray."""

from typing import NamedTuple

from schemas.call import VerdictKind

IN_A_ROW = 8  # calls that ran out of attempts, may be paid for, and while none is answered: the lane is down
FREE_IN_A_ROW = 32  # that cost nothing, of a lane that has answered: the more are tried, the likelier one tells
NEVER_RIGHT = 25  # bad requests in a row of a lane that has answered nothing: the spec is wrong, not the calls
NO_MORE_RIGHT = 100  # of one that has answered
GARBLED = 25  # answers in a row that are none: something else listens there, or stands before it. They may be paid for
AFTER = 8  # calls after one, in the order of sending, that say whether the lane was up
ENOUGH = 4  # of those that were answered
IN_VAIN = (VerdictKind.BAD_REQUEST, VerdictKind.MALFORMED)  # not repeated, though the lane may be to blame
NEVER_ITS_OWN = (VerdictKind.RATE_LIMITED, VerdictKind.RAMP_LIMITED, VerdictKind.OVERLOADED)


class Fault(NamedTuple):
    """settled: the call is to blame, and later starts leave it; opens: the lane can be given up."""

    settled: bool
    opens: bool


class Breaker:
    """Hears how every call of a lane ended, whatever the number of its attempts.

    A call that fails though those sent after it are answered is itself to blame, and says nothing about the lane: its
    retries may well be all that is left at the end. At an outage those after it fail, too. Where nothing was sent after
    it nobody can tell, and it stays open for the next start.
    """

    def __init__(self, answered_before: bool = False) -> None:
        self.has_answered = answered_before
        self._answered = bytearray()  # by number of call
        self._open: set[int] = set()  # that failed, and may yet prove to be to blame
        self._in_a_row = self._bad_in_a_row = 0

    def sent(self) -> int:
        """A call leaves for the first time; its number."""
        self._answered.append(False)
        return len(self._answered) - 1

    def answered(self, number: int) -> list[int]:
        """A call was answered; the numbers of those that failed before and are now seen to be to blame."""
        self._answered[number] = self.has_answered = True
        self._in_a_row = self._bad_in_a_row = 0
        proven = [n for n in range(max(0, number - AFTER), number) if n in self._open and self._is_to_blame(n)]
        self._open.difference_update(proven)
        return proven

    def ended(self) -> list[int]:
        """No more calls follow: the numbers of those that failed and stay open, where they are so few that it is
        chance that nothing after them told; more may be an outage's."""
        return sorted(self._open) if self.has_answered and len(self._open) < ENOUGH else []

    def failed(self, number: int, kind: VerdictKind, known: bool = False, paid: bool = False) -> Fault:
        """A call is given up. known: it failed in an earlier start, too, so that it tells little about the lane. Where
        it is paid for each time, as it may be by its kind, it is then settled all the same: money goes before
        certainty."""
        if kind.closes_lane:
            return Fault(False, True)
        if kind not in IN_VAIN and not kind.retried:
            return Fault(True, False)  # refused, or too large: said of this very call
        if paid or kind not in NEVER_ITS_OWN:
            if self._is_to_blame(number) or (known and (paid or kind.may_be_paid) and self.has_answered):
                return Fault(True, False)
            self._open.add(number)
        if known and self.has_answered:
            return Fault(False, False)
        if kind in IN_VAIN:
            self._bad_in_a_row += 1
            most = GARBLED if kind.may_be_paid else NO_MORE_RIGHT if self.has_answered else NEVER_RIGHT
            return Fault(False, self._bad_in_a_row >= most)
        self._in_a_row += 1
        patient = self.has_answered and not kind.may_be_paid
        return Fault(False, self._in_a_row >= (FREE_IN_A_ROW if patient else IN_A_ROW))

    def _is_to_blame(self, number: int) -> bool:
        return sum(self._answered[number + 1 : number + 1 + AFTER]) >= ENOUGH
