"""Curation steps over staged rows: which positions go, and why."""

from dataclasses import dataclass, field
from pathlib import Path

from pipelines.dedup import Duplicate, exact_duplicates, near_duplicates
from pipelines.harvest import texts
from schemas.job import Curate

# A question is compared with its choices: the same stem with other choices is another question.
COMPARED = {"cot": ("input", "choices"), "instruct": ("instruction",)}


@dataclass(slots=True)
class Dropped:
    """Positions of staged rows that curation drops."""

    by_position: dict[int, Duplicate] = field(default_factory=dict)

    def add(self, found: list[Duplicate]) -> None:
        self.by_position.update({d.position: d for d in found})


def curate(staged: Path, pipeline: str, steps: Curate) -> Dropped:
    """Run the steps that the spec names, exact before near."""
    dropped = Dropped()
    columns = COMPARED[pipeline]
    if steps.dedup is None:
        return dropped
    if steps.dedup.exact:
        dropped.add(exact_duplicates(texts(staged, columns)))
    if steps.dedup.near is not None:
        skip = frozenset(dropped.by_position)
        dropped.add(near_duplicates(texts(staged, columns), steps.dedup.near.threshold, skip))
    return dropped
