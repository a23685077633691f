"""Which rows of a run are paid for already, and why the others are not: what a changed spec costs."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from pipelines.harvest import Answers, RowPlan
from pipelines.source import Row
from schemas.call import Call
from schemas.record import Rejection

NEW = "not asked before"
UNFIT = "asked with another validate.json_schema, whose answers do not fit"
ASKED = ("prompt.", "validate.json_schema", "faithful")  # what of a revisable spec goes into a call


@dataclass(slots=True)
class Reuse:
    """Rows whose answers are in the journal, and the others by the reason why they are asked again."""

    rows: int = 0
    reused: int = 0
    failed: int = 0
    asked: Counter[str] = field(default_factory=Counter)

    @property
    def line(self) -> str:
        """One line for the user."""
        why = "; ".join(f"{count:,} {reason}" for reason, count in self.asked.most_common())
        total = self.asked.total()
        rest = f"; {total:,} {'is' if total == 1 else 'are'} asked ({why})" if self.asked else ""
        failed = f"; {self.failed:,} failed before and are left as they are" if self.failed else ""
        return f"{self.reused:,} of {self.rows:,} rows are reused and cost nothing{failed}{rest}"


def touching(changes: Sequence[str]) -> list[str]:
    """Of the changes of a spec those that make another call of a row."""
    return [change for change in changes if change.startswith(ASKED)]


def reuse(
    plan: RowPlan, earlier: RowPlan, changes: Sequence[str], answers: Answers, edited: Sequence[str] = (),
    again: bool = False, schemas: Sequence[str | None] = (),
) -> Reuse:  # fmt: skip
    """Compare a plan with the one that made the journal. Reads the source once; pays nothing. edited: files of the
    spec that say something else since. again: failed calls are asked again. schemas: that calls went out with."""
    new = NEW + (f", and the content of {' and '.join(edited)} has changed" if edited else "")
    why = touching(changes)
    found, changed = Reuse(), "because " + "; ".join(why) if why else new
    for row in plan.rows():
        if not isinstance(row, Row):
            continue
        found.rows += 1
        if answers.has(plan.call(row)):
            found.reused += 1
        elif not again and answers.is_settled(plan.call(row)):
            found.failed += 1
        else:
            call = plan.call(row)
            otherwise = any(answers.has(call._replace(schema=schema)) for schema in schemas)
            found.asked[changed if answers.has(earlier.call(row)) else UNFIT if otherwise else new] += 1
    return found


def unanswered(row: Row, call: Call) -> Rejection:
    """What a replay makes of a row that nobody was asked about."""
    return Rejection(row.id, "replay", "unanswered", "the journal holds no answer to this prompt")
