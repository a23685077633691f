"""Cut a stream of calls into units, leave out what is already paid for, and hand units out again after a death."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from schemas.call import Call, call_key

SMALLEST, LARGEST = 16, 256  # calls in a unit: small first, so that few rows still reach every worker
LOOK_AHEAD = 20_000  # calls looked at in one request, so that a long stretch of reused rows does not block progress


class Plan(Protocol):
    """What a pipeline hands to the fan-out: its calls, in an order that is the same every time."""

    def calls(self) -> Iterator[Call]: ...


@dataclass(frozen=True, slots=True)
class Unit:
    """Calls that one worker runs with asyncio inside; `known` are those that its lane failed to answer before, `others`
    the lanes that could take each as well."""

    number: int
    calls: tuple[Call, ...]
    known: tuple[bool, ...]
    others: tuple[tuple[int, ...], ...]


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

    def add(self, other: "Progress") -> None:
        latest = max(self.hidden, other.hidden), max(self.overlong, other.overlong), {**self.pauses, **other.pauses}
        for name in set(self.__slots__) - {"pauses"}:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.hidden, self.overlong, self.pauses = latest


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
                (batch if self._takes(lane, call) else self._returned).append(call)
        if not batch:
            if size and not self.is_over:
                self._idle[worker] = size
            return None
        self._cut += 1
        known = (self._failed(lane, call) for call in batch)
        unit = Unit(self._cut, tuple(batch), tuple(known), tuple(self._others(lane, call) for call in batch))
        self._held.setdefault(worker, {})[unit.number] = unit
        return unit

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
        if not self.fits(lane, call):
            return False
        failed = [self._failed(number, call) for number in range(len(self.models))]
        return not failed[lane] or all(failed) or self.exhausted or len(self._returned) >= LOOK_AHEAD

    def _failed(self, lane: int, call: Call) -> bool:
        return self.has_failed(call_key(self.models[lane], call.content()))

    def _others(self, lane: int, call: Call) -> tuple[int, ...]:
        """The lanes besides `lane` that could take a call, and have not failed to answer it."""
        others = (number for number in range(len(self.models)) if number != lane)
        return tuple(n for n in others if self.fits(n, call) and not self._failed(n, call))

    def _is_new(self, call: Call) -> bool:
        content = call.content()
        # 12 bytes keep the chance of a false match among 10 million calls below 1e-15.
        mark, keys = content[:12], [call_key(model, content) for model in self.models]
        if mark in self._seen or any(map(self.paid, keys)):
            self.reused += 1
            return False
        self._seen.add(mark)
        if any(map(self.settled, keys)):
            self.failed += 1
            return False
        return any(self.fits(lane, call) for lane in range(len(self.models)))

    def idle(self, worker: str) -> dict[int, int]:
        """How many calls each other lane than this worker's could start, now that no more come from the plan."""
        found: dict[int, int] = {}
        for other, wanted in self._idle.items() if self.exhausted else ():
            if (lane := self._lane[other]) != self._lane.get(worker):
                found[lane] = found.get(lane, 0) + wanted
        return found

    def give_back(self, worker: str, number: int, call: Call) -> None:
        """A call that has not left, for a lane that has nothing to do."""
        if (unit := self._held.get(worker, {}).get(number)) is None:
            return  # its worker was taken for dead, and the call taken back
        left = tuple(other for other in unit.calls if other != call)
        if len(left) < len(unit.calls):
            self._held[worker][number] = replace(unit, calls=left)
            self._returned.append(call)

    @property
    def is_over(self) -> bool:
        """Whether no more calls will come: the plan is through, and no lane holds one that it may yet give back."""
        return self.exhausted and not (len(self.models) > 1 and any(self._held.values()))

    def done(self, worker: str, number: int) -> None:
        self._held.get(worker, {}).pop(number, None)

    def doubt(self, worker: str, call: Call) -> None:
        """A call that was seen through failed, perhaps through no fault of its own: kept in case its worker closes."""
        self._doubtful.setdefault(worker, []).append(call)

    def bury(self, worker: str, answered: Callable[[bytes], bool]) -> int:
        """Take back what a dead worker held, less what its journal segment holds, and what it may have failed for
        reasons of its own; the number of calls returned."""
        self._idle.pop(worker, None)
        lost = self._doubtful.pop(worker, []) + [
            call
            for unit in self._held.pop(worker, {}).values()
            for call in unit.calls
            if not any(answered(call_key(model, call.content())) for model in self.models)
        ]
        self._returned.extend(lost)
        return len(lost)

    @property
    def finished(self) -> bool:
        """Whether every call was handed out and none is held or waits."""
        return self.exhausted and not self._returned and not any(self._held.values())
