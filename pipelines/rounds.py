"""The first stage of an instruct run: rounds of calls in which a teacher writes instructions."""

from collections.abc import Iterator

from pipelines import instruct
from pipelines.harvest import Answers, Rejections, instructions_of
from schemas.job import Instruct, JobSpec
from schemas.record import Rejection

ROUNDS = 4  # of asking for more instructions while fewer than wanted were written


def rounds(spec: JobSpec, duplicates: frozenset[int]) -> Iterator[instruct.Instructions]:
    """Rounds of the same size, so that which calls exist never depends on timing. None where none are wanted."""
    wanted = spec.instruct or Instruct()
    if not wanted.generate:
        return
    pool = instruct.example_pool(spec.source, duplicates, spec.sampling.draws)
    size = -(-wanted.generate // wanted.per_call)
    for number in range(ROUNDS):
        yield instruct.Instructions(pool, wanted, instruct.sampling_of(spec), number * size, size)


def all_written(spec: JobSpec, duplicates: frozenset[int], answers: Answers) -> list[instruct.Written]:
    """Every instruction that the journal holds, in call order."""
    return [item for plan in rounds(spec, duplicates) for item in instructions_of(plan, answers)[0]]


def reject_surplus(
    spec: JobSpec, duplicates: frozenset[int], answers: Answers, rejected: Rejections
) -> tuple[int, int]:  # fmt: skip
    """Reject calls that brought no instruction and instructions beyond those wanted; (both, and all that were
    written)."""
    wanted, total, candidates = (spec.instruct or Instruct()).generate, 0, 0
    for plan in rounds(spec, duplicates):
        if total >= wanted:
            break  # a start without an outage would not have asked the rounds that follow
        written, empty = instructions_of(plan, answers)
        rejected.open += sum(map(answers.is_open, plan.calls()))
        for rejection in empty:
            rejected.failed += rejection.reason != "no_instruction"
            rejected.add(rejection)
        for item in written[max(0, wanted - total) :]:
            rejected.add(Rejection(item.id, "instructions", "surplus", f"{wanted} were wanted", item.text))
        total += len(written)
        candidates += len(written) + len(empty)
    return candidates, total
