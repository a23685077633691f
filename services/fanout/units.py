"""Cut a stream of calls into units, leave out what is already paid for, and hand units out again after a death."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from schemas.call import Call, call_key

SMALLEST, LARGEST = 16, 256  # calls in a unit: small first, so that few rows still reach every worker
LOOK_AHEAD = 20_000  # calls looked at in one request, so that a long stretch of reused rows does not block progress


class Plan(Protocol):
    """What a pipeline hands to the fan-out: its calls, in an order that is the same every time."""

    def calls(self) -> Iterator[Call]: ...


@dataclass(frozen=True, slots=True)
class Unit:
    """Calls that one worker runs with asyncio inside; `known` are those that its lane failed to answer before."""

    number: int
    calls: tuple[Call, ...]
    known: tuple[bool, ...]


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

    def add(self, other: "Progress") -> None:
        hidden, overlong = max(self.hidden, other.hidden), max(self.overlong, other.overlong)
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.hidden, self.overlong = hidden, overlong


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
    _doubtful: dict[str, list[Call]] = field(default_factory=dict)
    _cut: int = 0

    def __post_init__(self) -> None:
        self._calls = self.plan.calls()

    def next(self, worker: str, lane: int = 0, wanted: int = LARGEST) -> Unit | None:
        """A unit for `worker` of `lane`; None where none is ready now (`exhausted` tells whether more may come)."""
        size = min(LARGEST, max(SMALLEST, SMALLEST * (self._cut // 8)), max(SMALLEST, wanted))
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
            return None
        self._cut += 1
        known = (self.has_failed(call_key(self.models[lane], call.content())) for call in batch)
        unit = Unit(self._cut, tuple(batch), tuple(known))
        self._held.setdefault(worker, {})[unit.number] = unit
        return unit

    def _taken_back(self, lane: int, size: int) -> list[Call]:
        """Calls that a dead worker held, or that were too large for another lane."""
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
        failed = [self.has_failed(call_key(model, call.content())) for model in self.models]
        return not failed[lane] or all(failed) or self.exhausted or len(self._returned) >= LOOK_AHEAD

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

    def done(self, worker: str, number: int) -> None:
        self._held.get(worker, {}).pop(number, None)

    def doubt(self, worker: str, call: Call) -> None:
        """A call that was seen through failed, perhaps through no fault of its own: kept in case its worker closes."""
        self._doubtful.setdefault(worker, []).append(call)

    def bury(self, worker: str, answered: Callable[[bytes], bool]) -> int:
        """Take back what a dead worker held, less what its journal segment holds, and what it may have failed for
        reasons of its own; the number of calls returned."""
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
