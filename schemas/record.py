"""Rows: a record made it into the dataset, a rejection did not and says why."""

from dataclasses import dataclass, fields
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, StringConstraints

from schemas.text import storable

Text = Annotated[str, StringConstraints(min_length=1, pattern=r"\S")]


class Record(BaseModel):
    """One validated row of a dataset. Text is kept as it was written."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: Text
    teacher: str
    call_key: str


class Rationale(Record):
    """A question with the teacher's reasoning and answer. `label` is blank where an unparsable row is kept."""

    input: Text
    choices: list[str] = []
    rationale: str
    label: str
    gold: str | None = None


class Pair(Record):
    """An instruction and its response."""

    instruction: Text
    response: Text
    instruction_source: str
    example_ids: list[str] = []
    topics: list[str] = []


@dataclass(frozen=True, slots=True)
class Rejection:
    """A row that did not make it: the stage, one reason code, a line of detail, and the raw answer."""

    id: str
    stage: str
    reason: str
    detail: str = ""
    raw: str = ""

    def __post_init__(self) -> None:
        """A refusal or a place in an answer that is quoted may hold what no parquet file can."""
        for field in fields(self):
            object.__setattr__(self, field.name, storable(getattr(self, field.name)))


COLUMNS: dict[str, tuple[str, ...]] = {
    "cot": ("id", "input", "choices", "rationale", "label", "gold", "teacher", "call_key"),
    "instruct": (
        "id", "instruction", "response", "instruction_source", "example_ids", "topics", "teacher", "call_key",
    ),
}  # fmt: skip
RECORDS: dict[str, type[Record]] = {"cot": Rationale, "instruct": Pair}


def conversation(record: dict[str, Any]) -> list[dict[str, str]]:
    """The conversational form of a row of either pipeline."""
    if "instruction" in record:
        asked, answered = record["instruction"], record["response"]
    else:
        asked = "\n".join([record["input"], *(f"- {choice}" for choice in record["choices"])])
        answered = f"{record['rationale']}\n\nSo the answer is {record['label']}."
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
