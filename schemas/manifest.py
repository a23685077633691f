"""`manifest.json`: what a run made, rewritten while it runs."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

ASKING = ("instructions", "responses", "answers")  # stages that call teachers
SPENT = "is not asked: the budget does not cover another call of it"
State = Literal["running", "finished", "failed", "exhausted", "interrupted"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Rows(_Part):
    """source + generated = accepted + rejected, once a run has finished. `generated` counts the instructions that a
    teacher wrote, `written`, and the calls that wrote none, which are rejected."""

    source: int = 0
    generated: int = 0
    written: int = 0
    accepted: int = 0
    rejected: dict[str, int] = Field(default_factory=dict)


class Calls(_Part):
    """`sent` counts attempts, `retried` those of them that were repeats, `reused` rows that cost no call. Of the calls
    that the current stage takes, `of`, so many are `done`: answered, reused or given up. `open` failed while their lane
    answered nothing: the next start asks them again."""

    sent: int = 0
    answered: int = 0
    reused: int = 0
    retried: int = 0
    failed: int = 0
    open: int = 0
    done: int = 0
    of: int = 0
    per_second: float = 0.0  # answers of the last start over the time from its first call


class Spend(_Part):
    """`usd` counts calls whose answer was lost at all that they can have cost: `in_doubt_usd` of it."""

    usd: float = 0.0
    in_doubt_usd: float = 0.0
    input_tokens: int = 0
    output_tokens: int = 0


class DatasetFiles(_Part):
    rows: int = 0
    sha256: str = ""
    files: list[str] = Field(default_factory=list)


class Manifest(_Part):
    name: str
    pipeline: str
    state: State = "running"
    stage: str = ""
    source_digest: str = ""
    exemplars_digest: str = ""
    recordings_digest: str = ""
    rows: Rows = Rows()
    calls: Calls = Calls()
    spend: Spend = Spend()
    dataset: DatasetFiles = DatasetFiles()
    seconds: dict[str, float] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)
    warnings: list[str] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)  # what this start reuses
    pauses: dict[str, float] = Field(default_factory=dict)  # by teacher: until when its server asked to wait, epoch
    absent: dict[str, str] = Field(default_factory=dict)  # by teacher: why it does not work, in this start
    error: str = ""
