"""Tells a lane that is down from calls that it cannot answer. Pure: no clock, no Ray."""

from typing import NamedTuple

from schemas.call import VerdictKind

IN_A_ROW = 8  # calls that ran out of attempts while no other was answered: the lane is down, not the calls
NEVER_RIGHT = 25  # bad requests of a lane that has answered nothing: the spec is wrong, not the calls
BESIDE = 8  # calls after one, in the order of sending, that say whether the lane was up


class Fault(NamedTuple):
    """lane: nothing says that the call is to blame, so a later start asks it again; opens: the lane can be given up."""

    lane: bool
    opens: bool


class Breaker:
    """Hears how every call of a lane ended, whatever the number of its attempts.

    A call that fails though later ones were answered is itself to blame, and says nothing about the lane: its retries
    may well be all that is left at the end. At an outage those after it fail, too. After it in the order of sending,
    since calls that hang are the last to end; the last calls of all are judged by those before them.
    """

    def __init__(self, answered_before: bool = False, patient: bool = False) -> None:
        """patient: calls are known to fail, as where those of an earlier start are asked again."""
        self.has_answered, self._patient = answered_before, patient
        self._answered = bytearray()  # by number of call
        self._failed_in_a_row = self._bad_in_a_row = 0

    def sent(self) -> int:
        """A call leaves for the first time; its number."""
        self._answered.append(False)
        return len(self._answered) - 1

    def answered(self, number: int) -> None:
        self._answered[number] = self.has_answered = True
        self._failed_in_a_row = self._bad_in_a_row = 0

    def failed(self, number: int, kind: VerdictKind) -> Fault:
        """A call is given up."""
        if kind.closes_lane:
            return Fault(True, True)
        if kind.retried:
            lane = not any(self._beside(number))
            self._failed_in_a_row += lane
            down = self._failed_in_a_row >= IN_A_ROW and not self._patient
            return Fault(lane, lane and (kind is VerdictKind.UNREACHABLE or down))
        self._bad_in_a_row += kind is VerdictKind.BAD_REQUEST
        lane = kind is VerdictKind.BAD_REQUEST and not self.has_answered
        return Fault(lane, lane and self._bad_in_a_row >= NEVER_RIGHT)

    def _beside(self, number: int) -> bytearray:
        after = self._answered[number + 1 : number + 1 + BESIDE]
        return after + self._answered[max(0, number - BESIDE + len(after)) : number]
