"""What a job will take: calls, tokens, dollars and hours for each lane, and the rows that no lane can take.

Before anything is asked only the prompts are known. Tokens of a prompt lie between its bytes over five and over three
(English in the tokenizers of both providers is near four); an answer has at least one token and at most max_tokens.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from pipelines import instruct
from pipelines.harvest import RowPlan
from pipelines.source import Row
from schemas.call import Call
from schemas.job import Budget, JobSpec
from schemas.lane import Teacher, lane_names
from schemas.money import NANO, Usage, nano_usd
from services.admission.charging import Charging
from services.fanout.size import Demand, fits, worst_case
from services.teachers.adapter import charging_of

FEWEST, MOST = 5.0, 3.0  # bytes a token
USUAL_CALLS_A_MINUTE = 480.0  # of a lane that names no limits: 16 in flight at two seconds each, to share rows by


@dataclass(frozen=True, slots=True)
class Range:
    """From the least to the most."""

    low: float = 0.0
    high: float = 0.0


@dataclass(slots=True)
class LaneEstimate:
    """One lane's part of a job. `hours` is None where the spec names no limit that would tell."""

    teacher: str
    calls: int = 0
    input_tokens: Range = Range()
    output_tokens: Range = Range()
    usd: Range = Range()
    reserved_usd: float = 0.0  # what the budget must hold so that no call can be left unsent
    reserved_tokens: int = 0  # likewise
    hours: Range | None = None


@dataclass(slots=True)
class Estimate:
    """A job's whole."""

    rows: int = 0
    unusable: int = 0
    generated: int = 0
    calls: int = 0
    lanes: list[LaneEstimate] = field(default_factory=list)
    too_large: list[str] = field(default_factory=list)  # for every lane's limits
    too_dear: list[str] = field(default_factory=list)  # at their most, for the whole budget

    @property
    def usd(self) -> Range:
        return Range(sum(lane.usd.low for lane in self.lanes), sum(lane.usd.high for lane in self.lanes))

    @property
    def reserved_usd(self) -> float:
        """All calls at their reservation."""
        return sum(lane.reserved_usd for lane in self.lanes)

    @property
    def reserved_tokens(self) -> int:
        """All calls at their reservation."""
        return sum(lane.reserved_tokens for lane in self.lanes)

    @property
    def tokens(self) -> Range:
        parts = [part for lane in self.lanes for part in (lane.input_tokens, lane.output_tokens)]
        return Range(sum(part.low for part in parts), sum(part.high for part in parts))

    @property
    def hours(self) -> Range | None:
        """Lanes work side by side, so the slowest tells."""
        known = [lane.hours for lane in self.lanes if lane.hours is not None and lane.calls]
        return Range(max(h.low for h in known), max(h.high for h in known)) if known else None


@dataclass(slots=True)
class _Sums:
    """What a lane's calls add up to."""

    calls: float = 0.0
    bytes: float = 0.0
    most_output: float = 0.0
    reserved_nano: float = 0.0
    reserved_tokens: float = 0.0

    def add(self, call: Call, teacher: Teacher, times: float) -> None:
        most = worst_case(call, teacher.rates).money
        self.reserved_nano += times * most.nano_usd
        self.reserved_tokens += times * most.tokens
        self.calls += times
        texts = [m.content for m in call.messages] + ([call.schema] if call.schema else [])
        self.bytes += times * sum(len(text.encode()) for text in texts)
        self.most_output += times * call.sampling.max_tokens


def estimate(spec: JobSpec, plan: RowPlan) -> Estimate:
    """Count a job. Reads the source once."""
    found, sums = Estimate(), [_Sums() for _ in spec.teachers]
    seen: set[bytes] = set()
    for name, call, times in _calls(spec, plan, found):
        takers = [number for number, teacher in enumerate(spec.teachers) if fits(call, teacher)]
        if not takers:
            found.too_large.append(name)
            continue
        mark = call.content()[:12]
        if mark in seen:
            continue  # sent once, whatever the number of rows
        seen.add(mark)
        if not any(affordable(call, spec.teachers[number], spec.budget) for number in takers):
            found.too_dear.append(name)
        speeds = [calls_a_minute(spec.teachers[n], worst_case(call, spec.teachers[n].rates)) for n in takers]
        for number, speed in zip(takers, speeds, strict=True):
            sums[number].add(call, spec.teachers[number], times * speed / sum(speeds))
    lanes = zip(lane_names(spec.teachers), spec.teachers, sums, strict=True)
    found.lanes = [_lane(name, teacher, of_lane) for name, teacher, of_lane in lanes]
    found.calls = round(sum(s.calls for s in sums))
    return found


def affordable(call: Call, teacher: Teacher, budget: Budget | None) -> bool:
    """Whether the whole budget covers the most that a call can cost; if not, it is never sent."""
    money = worst_case(call, teacher.rates).money
    if budget is None:
        return True
    usd = budget.usd is None or money.nano_usd <= nano_usd(budget.usd)
    return usd and (budget.tokens is None or money.tokens <= budget.tokens) and budget.calls != 0


def _calls(spec: JobSpec, plan: RowPlan, found: Estimate) -> Iterator[tuple[str, Call, float]]:
    """(row id, call, how many like it)."""
    asked = spec.instruct or instruct.Instruct()
    example: Call | None = None
    for row in plan.rows():
        found.rows += 1
        if not isinstance(row, Row):
            found.unusable += 1
            continue
        example = plan.call(row)
        yield row.id, example, 1.0
    if spec.pipeline != "instruct" or not asked.generate or example is None:
        return
    assert isinstance(plan, instruct.Responses)
    found.generated = asked.generate
    for call in instruct.first_round(spec, plan.duplicates).calls():
        yield call.row, call, 1.0
    # An instruction that is yet to be written is taken to be like the last of the source.
    yield "written", example._replace(row="written", sample=1), float(asked.generate)


def calls_a_minute(teacher: Teacher, demand: Demand) -> float:
    """How many such calls a lane's limits let through in a minute."""
    limits = teacher.limits.rates
    return min((limit / demand.rate(name) for name, limit in limits.items()), default=USUAL_CALLS_A_MINUTE)


def _lane(name: str, teacher: Teacher, sums: _Sums) -> LaneEstimate:
    into = Range(sums.bytes / FEWEST, sums.bytes / MOST)
    out = Range(sums.calls, sums.most_output)
    low, high = (
        teacher.rates.cost(Usage(int(i), int(o))) / NANO for i, o in ((into.low, out.low), (into.high, out.high))
    )
    hours = None
    if teacher.limits.rates:
        # OpenAI itself takes max_tokens from the limit for good, however short the answers are.
        least = out.high if charging_of(teacher) is Charging.KEEP else out.low
        hours = Range(_hours(teacher, sums.calls, into.low, least), _hours(teacher, sums.calls, into.high, out.high))
    reserved, tokens = sums.reserved_nano / NANO, round(sums.reserved_tokens)
    return LaneEstimate(name, round(sums.calls), into, out, Range(low, high), reserved, tokens, hours)


def _hours(teacher: Teacher, calls: float, into: float, out: float) -> float:
    amounts = {"requests": calls, "tokens": into + out, "input": into, "output": out}
    return max(amounts[name] / limit for name, limit in teacher.limits.rates.items()) / 60
