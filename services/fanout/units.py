"""Cut a stream of calls into units, leave out what is already paid for, and hand units out again after a death."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol

from schemas.call import Call, call_key

SMALLEST, LARGEST = 16, 256  # calls in a unit: small first, so that few rows still reach every worker
LOOK_AHEAD = 20_000  # calls looked at in one request, so that a long stretch of reused rows does not block progress


class Plan(Protocol):
    """What a pipeline hands to the fan-out: its calls, in an order that is the same every time."""

    def calls(self) -> Iterator[Call]: ...


class Errand(NamedTuple):
    """A call for a lane: known, that it failed to answer the call in an earlier start; sent, that the call has left
    before, from elsewhere; others, lanes that could take it as well and have not tried."""

    call: Call
    known: bool = False
    sent: bool = False
    others: tuple[int, ...] = ()


class Trace(NamedTuple):
    """What became of a call that its lane did not answer. sent: it has left; tried: in vain, so that no other lane
    passes it on to this one; unfit: the lane does not take such a call, and gets it back only for its verdict."""

    sent: bool = False
    tried: bool = False
    unfit: bool = False


@dataclass(frozen=True, slots=True)
class Unit:
    """What one worker runs with asyncio inside."""

    number: int
    errands: tuple[Errand, ...]

    @property
    def calls(self) -> tuple[Call, ...]:
        return tuple(errand.call for errand in self.errands)


@dataclass(slots=True)
class Progress:
    """Counters of a fan-out, summed over workers."""

    sent: int = 0
    answered: int = 0
    retried: int = 0
    failed: int = 0
    reused: int = 0
    nano_usd: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    hidden: int = 0  # input tokens of a call that the server counts beyond its text: the most seen, not a sum
    overlong: int = 0  # output tokens beyond max_tokens, likewise
    pauses: dict[str, float] = field(default_factory=dict)  # by teacher: until when its server asked for none, epoch
    absent: dict[str, str] = field(default_factory=dict)  # by teacher: why it does not work

    def add(self, other: "Progress") -> None:
        latest = max(self.hidden, other.hidden), max(self.overlong, other.overlong)
        self.pauses, self.absent = {**self.pauses, **other.pauses}, {**self.absent, **other.absent}
        for name in set(self.__slots__) - {"pauses", "absent"}:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.hidden, self.overlong = latest


@dataclass(slots=True)
class Units:
    """The stream of units of one plan.

    `paid` tells whether a call key is in the journal; `models` are the lanes' models, any of which may have answered.
    Calls with the same content are sent once: `reused` counts the others, and rows that an earlier start paid for.
    `fits(lane, call)` says whether a lane's limits can ever let a call through; one that fits no lane is left out.
    `settled` tells whether a model has given a call up in an earlier start, so that it is not asked again: `failed`
    counts those. `has_failed` tells whether a model failed to answer a call, for whatever reason; one that did not is
    asked before it.
    """

    plan: Plan
    models: Sequence[str]
    paid: Callable[[bytes], bool]
    fits: Callable[[int, Call], bool] = lambda lane, call: True
    settled: Callable[[bytes], bool] = lambda key: False
    has_failed: Callable[[bytes], bool] = lambda key: False
    reused: int = 0
    failed: int = 0
    exhausted: bool = False
    _calls: Iterator[Call] = field(init=False)
    _seen: set[bytes] = field(default_factory=set)
    _returned: deque[Call] = field(default_factory=deque)
    _held: dict[str, dict[int, Unit]] = field(default_factory=dict)
    _lane: dict[str, int] = field(default_factory=dict)
    _sent: set[bytes] = field(default_factory=set)  # calls that have left, and went on to another worker
    _tried: dict[bytes, set[int]] = field(default_factory=dict)  # lanes that refused a call, or failed it
    _unfit: dict[bytes, set[int]] = field(default_factory=dict)  # of those, lanes that do not take it
    _gone: frozenset[int] = frozenset()  # lanes that do not work now
    _over: frozenset[int] = frozenset()  # lanes that take no more calls of this plan
    _left: bool = False  # whether there were calls that only such a lane could take
    _idle: dict[str, int] = field(default_factory=dict)  # calls that workers could start, but for want of any
    _doubtful: dict[str, list[Call]] = field(default_factory=dict)
    _cut: int = 0

    def __post_init__(self) -> None:
        self._calls = self.plan.calls()

    def next(self, worker: str, lane: int = 0, wanted: int = LARGEST) -> Unit | None:
        """A unit for `worker` of `lane`; None where none is ready now (`is_over` tells whether more may come)."""
        size = min(LARGEST, max(SMALLEST, SMALLEST * (self._cut // 8)), max(0, wanted))
        self._lane[worker] = lane
        self._idle.pop(worker, None)
        batch = self._taken_back(lane, size)
        for _ in range(LOOK_AHEAD):
            if self.exhausted or len(batch) >= size or len(self._returned) >= LOOK_AHEAD:
                break
            call = next(self._calls, None)
            if call is None:
                self.exhausted = True
            elif self._is_new(call):
                if self._takes(lane, call):
                    batch.append(call)
                else:
                    self._keep(call)
        if not batch:
            if size and not self.is_over:
                self._idle[worker] = size
            return None
        self._cut += 1
        unit = Unit(self._cut, tuple(self._errand(lane, call) for call in batch))
        self._held.setdefault(worker, {})[unit.number] = unit
        return unit

    def _keep(self, call: Call) -> None:
        """Let a call wait for a lane; one that none will take is left to the next start."""
        working = (lane for lane in range(len(self.models)) if lane not in self._over)
        if not self._over or any(self._may_take(lane, call) for lane in working):
            self._returned.append(call)
        else:
            self._left = True

    def _taken_back(self, lane: int, size: int) -> list[Call]:
        """Calls that a dead worker held, that were too large for another lane, or that it gave back."""
        batch: list[Call] = []
        for _ in range(len(self._returned)):
            if len(batch) >= size:
                break
            call = self._returned.popleft()
            (batch if self._takes(lane, call) else self._returned).append(call)
        return batch

    def _takes(self, lane: int, call: Call) -> bool:
        """Whether a lane may have a call now. One that it failed to answer before is left to the others first."""
        if not self._may_take(lane, call):
            return False
        failed = [self._failed(number, call) for number in range(len(self.models))]
        return not failed[lane] or all(failed) or self.exhausted or len(self._returned) >= LOOK_AHEAD

    def _may_take(self, lane: int, call: Call) -> bool:
        return self.fits(lane, call) and not (self._is_unfit(lane, call) and self._is_open(call))

    def _is_unfit(self, lane: int, call: Call) -> bool:
        return bool(self._unfit) and lane in self._unfit.get(_mark(call.content()), ())

    def _is_open(self, call: Call) -> bool:
        """Whether a lane that works may yet take a call that others do not."""
        working = (n for n in range(len(self.models)) if n not in self._gone)
        return any(self.fits(n, call) and not self._is_unfit(n, call) for n in working)

    def absent(self, gone: frozenset[int], over: frozenset[int]) -> None:
        """The lanes that do not work now, so that nothing is left to them alone on which another could give a verdict,
        and those that take no more calls of this plan, as where their money is used up."""
        self._gone, self._over = gone, over
        waiting, self._returned = self._returned, deque()
        for call in waiting:
            self._keep(call)

    def _failed(self, lane: int, call: Call) -> bool:
        return self.has_failed(call_key(self.models[lane], call.content()))

    def _errand(self, lane: int, call: Call) -> Errand:
        mark = _mark(call.content())
        tried = self._tried.get(mark, set())
        others = (n for n in range(len(self.models)) if n != lane and n not in tried and n not in self._gone)
        could = tuple(n for n in others if self.fits(n, call) and not self._failed(n, call))
        return Errand(call, self._failed(lane, call), mark in self._sent, could)

    def _is_new(self, call: Call) -> bool:
        content = call.content()
        mark, keys = _mark(content), [call_key(model, content) for model in self.models]
        if mark in self._seen or any(map(self.paid, keys)):
            self.reused += 1
            return False
        self._seen.add(mark)
        if any(map(self.settled, keys)):
            self.failed += 1
            return False
        return any(self.fits(lane, call) for lane in range(len(self.models)))

    def idle(self, worker: str) -> dict[int, int]:
        """How many calls the other workers of each lane could start, now that no more come from the plan."""
        found: dict[int, int] = {}
        for other, wanted in self._idle.items() if self.exhausted else ():
            if other != worker:
                found[self._lane[other]] = found.get(self._lane[other], 0) + wanted
        return found

    def give_back(self, worker: str, number: int, call: Call, trace: Trace = Trace()) -> None:
        """A call that its worker does not see through, for somebody else: who has nothing to do, or whose lane takes
        what this one does not."""
        if (unit := self._held.get(worker, {}).get(number)) is None:
            return  # its worker was taken for dead, and the call taken back
        left = tuple(errand for errand in unit.errands if errand.call != call)
        if len(left) < len(unit.errands):
            self._held[worker][number] = replace(unit, errands=left)
            self.note(worker, call, trace)
            self._keep(call)

    def note(self, worker: str, call: Call, trace: Trace) -> None:
        """What became of a call, for whoever gets it next."""
        mark, lane = _mark(call.content()), self._lane[worker]
        if trace.sent:
            self._sent.add(mark)
        for known, holds in ((self._tried, trace.tried), (self._unfit, trace.unfit)):
            if holds:
                known.setdefault(mark, set()).add(lane)

    @property
    def is_over(self) -> bool:
        """Whether no more calls will come: the plan is through, and nobody holds one that may yet be given back."""
        return self.exhausted and not any(self._held.values())

    def done(self, worker: str, number: int) -> None:
        self._held.get(worker, {}).pop(number, None)

    def doubt(self, worker: str, call: Call, trace: Trace) -> None:
        """A call that was seen through failed, perhaps through no fault of its own: kept in case its worker closes."""
        self._doubtful.setdefault(worker, []).append(call)
        self.note(worker, call, trace)

    def bury(self, worker: str, answered: Callable[[bytes], bool]) -> int:
        """Take back what a dead worker held, less what its journal segment holds, and what it may have failed for
        reasons of its own; the number of calls returned."""
        self._idle.pop(worker, None)
        doubtful = self._doubtful.pop(worker, [])
        self.failed -= len(doubtful)  # their lane counted them, and another one asks again
        lost = doubtful + [
            call
            for unit in self._held.pop(worker, {}).values()
            for call in unit.calls
            if not any(answered(call_key(model, call.content())) for model in self.models)
        ]
        for call in lost:
            self._keep(call)
        return len(lost)

    @property
    def finished(self) -> bool:
        """Whether every call was handed out and none is held or waits."""
        return self.is_over and not self._returned and not self._left


def _mark(content: bytes) -> bytes:
    # 12 bytes keep the chance of a false match among 10 million calls below 1e-15.
    return content[:12]
