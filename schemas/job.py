"""The job spec: what a user writes in YAML."""

import json
import re
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from schemas.evaluation import JobEvaluation
from schemas.lane import Strict, Teacher
from schemas.student import TrainingSpec

DEEPEST = 32  # levels of a JSON schema; providers take 5 (OpenAI) to 10
Field_name = Literal["id", "input", "label", "choices"]


class Source(Strict):
    """The rows that go in. Files are streamed; ids default to a content hash."""

    path: str = Field(
        min_length=1, description="jsonl, jsonl.gz, json, csv, parquet: file, glob or directory; or hf:DATASET[:SPLIT]"
    )
    on_error: Literal["fail", "reject"] = Field("fail", description="what a malformed row does")
    fields: dict[Field_name, Annotated[str, Field(min_length=1)]] = Field(
        default_factory=dict, description="our name: the column's name"
    )

    @field_validator("path")
    @classmethod
    def _reachable(cls, value: str) -> str:
        if value.startswith("hf:") and not value.removeprefix("hf:").partition(":")[0].strip():
            raise ValueError("names no dataset; as in hf:DATASET:SPLIT")
        if value.startswith("s3://"):
            raise ValueError("s3:// sources are not built yet; copy the file to a local or shared path")
        return value


class SamplingSpec(Strict):
    temperature: Annotated[float, Field(ge=0, le=2)] | None = Field(
        0.7, description="null: not sent; nor is it to models of OpenAI and Anthropic that refuse one"
    )
    max_tokens: Annotated[int, Field(ge=1, le=10_000_000)] = Field(
        256, description="most tokens of an answer; what is reserved"
    )
    n: Literal[1] = Field(1, description="answers a row")
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = Field(
        0, description="of every draw of a run, and sent to chat lanes; null: not sent, for servers that refuse one"
    )

    @property
    def draws(self) -> int:
        """The seed of what a run draws by itself."""
        return self.seed or 0


class Prompt(Strict):
    """How a row becomes messages."""

    style: Literal["zero-shot", "few-shot"] = Field("zero-shot", description="few-shot shows the exemplars; cot")
    task: Literal["multiple_choice", "arithmetic", "nli", "free_text"] = Field("free_text", description="cot only")
    exemplars: str | None = Field(None, description="JSONL of input, rationale, label (and choices): few-shot")
    system: str | None = Field(None, description="the system message; null: none")

    @model_validator(mode="after")
    def _shots(self) -> "Prompt":
        if (self.style == "few-shot") != (self.exemplars is not None):
            raise ValueError("style: few-shot and exemplars: FILE go together")
        return self


class Validation(Strict):
    """What an answer must satisfy."""

    keep_unparsable: bool = Field(False, description="cot: keep a row without a label, with a blank one")
    finished: bool = Field(False, description="reject an answer that was cut off at max_tokens")
    json_schema: dict[str, Any] | None = Field(
        None, description="instruct: asked for as structured output, and what the response must satisfy"
    )

    @field_validator("json_schema")
    @classmethod
    def _shallow(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        if depth(value) > DEEPEST:
            raise ValueError(f"is nested deeper than {DEEPEST} levels")
        try:
            same = json.loads(json.dumps(value, allow_nan=False)) == value
        except (TypeError, ValueError) as error:
            raise ValueError(f"holds what JSON cannot: {error}; put dates in quotes") from None
        if not same:
            raise ValueError("has a key that is not text; put it in quotes")
        return value


def depth(value: Any) -> int:
    """Levels of dicts and lists, counted without recursion up to one past `DEEPEST`."""
    level, here = 0, [value]
    while here and level <= DEEPEST:
        inner = [part.values() if isinstance(part, dict) else part for part in here if isinstance(part, dict | list)]
        if not inner:
            break
        level, here = level + 1, [part for parts in inner for part in parts]
    return level


class Near(Strict):
    threshold: Annotated[float, Field(gt=0, le=1)] = Field(0.7, description="Jaccard of word bigrams")


class Dedup(Strict):
    exact: bool = Field(True, description="the same text but for case, spaces and Unicode form")
    near: Near | None = Field(None, description="nearly the same words, every pair verified; the first is kept")

    @field_validator("near", mode="before")
    @classmethod
    def _switch(cls, value: Any) -> Any:
        return None if value is False else {} if value is True else value


class Curate(Strict):
    """Steps over the finished rows; null or false turns a step off."""

    dedup: Dedup | None = Field(None, description="drop rows that repeat an earlier one")
    decontaminate: None = Field(None, description="not built yet")
    filters: list[Any] = Field(default_factory=list, description="not built yet")

    @field_validator("dedup", "decontaminate", mode="before")
    @classmethod
    def _switch(cls, value: Any) -> Any:
        return None if value is False else value

    @field_validator("filters")
    @classmethod
    def _built(cls, value: list[Any]) -> list[Any]:
        if value:
            raise ValueError("filters are not built yet; leave the list empty")
        return value


class Instruct(Strict):
    generate: Annotated[int, Field(ge=0, le=10**9)] = Field(
        0, description="instructions for the teacher to write; 0: none"
    )
    mode: Literal["example_guided"] = Field("example_guided", description="examples before the request; topics later")
    per_call: Annotated[int, Field(ge=1, le=100)] = Field(20, description="instructions asked for in one call")
    examples: Annotated[int, Field(ge=1, le=1000)] = Field(
        3, description="instructions of the source shown in each call"
    )
    topics: None = Field(None, description="not built yet")


class Budget(Strict):
    """Hard caps for the whole run, reserved before a call is sent."""

    usd: Annotated[float, Field(ge=0, le=10**9)] | None = Field(None, description="0: nothing is spent")
    tokens: Annotated[int, Field(ge=0, le=10**15)] | None = Field(None, description="input and output together")
    calls: Annotated[int, Field(ge=0, le=10**12)] | None = Field(
        None, description="attempts that leave, refused ones and repeats, too"
    )


class Publish(Strict):
    format: list[Literal["parquet", "messages"]] = Field(default=["parquet"], description="parquet is always written")
    push_to_hub: None = Field(None, description="not built yet")


class JobSpec(Strict):
    name: Annotated[str, Field(min_length=1, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = Field(
        description="of the run, in the card and the report"
    )
    pipeline: Literal["cot", "icl", "instruct"] = Field(description="rationales, episodes (not built yet), or pairs")
    source: Source
    teachers: Annotated[list[Teacher], Field(min_length=1)] = Field(
        description="lanes; rows are spread over them by free capacity"
    )
    sampling: SamplingSpec = SamplingSpec()
    cascade: None = Field(None, description="not built yet")
    prompt: Prompt = Prompt()
    validation: Validation = Field(Validation(), alias="validate")
    curate: Curate = Curate()
    instruct: Instruct | None = Field(None, description="for pipeline instruct")
    journal: str | None = Field(
        None, description="an object store for paid answers, as in s3://bucket/folder; null: the run directory"
    )
    budget: Budget | None = Field(None, description="null: no cap")
    faithful: bool = Field(
        False, description="cot: the paper's own parser, blank labels where it finds none, duplicates kept"
    )
    publish: Publish = Publish()
    train: TrainingSpec | None = Field(None, description="a student to train on the dataset")
    evaluate: JobEvaluation | None = Field(None, description="judge that student, and others beside it")

    @property
    def answers_by_row(self) -> bool:
        """Whether rows that ask the same have answers of their own. Not beside a teacher that is paid: with that, they
        would be paid for more than once."""
        return all(teacher.provider == "recorded" for teacher in self.teachers)

    @property
    def keeps_unparsable(self) -> bool:
        """Whether an answer without a label makes a row all the same, with a blank one."""
        return self.validation.keep_unparsable or self.faithful

    @field_validator("curate", "publish", "prompt", "validation", "sampling", mode="before")
    @classmethod
    def _off(cls, value: Any) -> Any:
        return {} if value is None or value is False else value

    @field_validator("journal")
    @classmethod
    def _store(cls, value: str | None) -> str | None:
        if value is None:
            return None
        if not re.fullmatch(r"[a-z0-9]+://\S+", value):
            raise ValueError("must be the URL of a folder on an object store, as in s3://bucket/folder")
        if "@" in urlsplit(value).netloc:
            raise ValueError("must not hold credentials; they come from the environment")
        return value

    @model_validator(mode="before")
    @classmethod
    def _built(cls, values: Any) -> Any:
        # Said first: a spec for it has keys that are unknown as yet.
        if isinstance(values, dict) and values.get("pipeline") == "icl":
            raise ValueError("pipeline 'icl' is not built yet; cot and instruct are")
        return values

    @model_validator(mode="after")
    def _whole(self) -> "JobSpec":
        if self.faithful and self.pipeline != "cot":
            raise ValueError("faithful: true goes with pipeline 'cot' as yet")
        if self.faithful and self.curate.dedup is not None:
            raise ValueError("faithful: true keeps duplicates: leave curate.dedup out")
        if self.pipeline == "cot" and self.validation.json_schema is not None:
            raise ValueError("validate.json_schema goes with pipeline 'instruct'")
        if self.pipeline != "instruct" and self.instruct is not None:
            raise ValueError(f"section instruct does not go with pipeline {self.pipeline!r}")
        if self.pipeline == "instruct" and self.prompt.style == "few-shot":
            raise ValueError("prompt.style few-shot goes with pipeline 'cot'")
        if self.evaluate is not None and self.train is None and not self.evaluate.students:
            raise ValueError("evaluate has no student: add a train section, or name some in evaluate.students")
        if self.pipeline == "cot" and self.prompt.task == "multiple_choice" and "choices" not in self.source.fields:
            raise ValueError("prompt.task multiple_choice needs source.fields.choices, the column that holds them")
        return self


FIXED = ("pipeline", "source", "sampling", "cascade", "instruct", "journal")
REVISABLE = ("prompt", "validate", "curate", "faithful")


def fixed_part(spec: JobSpec) -> dict[str, Any]:
    """The part of a spec that a run directory belongs to for good: with another one it is another run. Models may be
    added, and those that have not answered may go (`models_gone`); accounts come and go."""
    whole = spec.model_dump(mode="json", by_alias=True)
    return {**{key: whole[key] for key in FIXED}, "teachers": sorted({t.name for t in spec.teachers})}


def models_gone(earlier: JobSpec, now: JobSpec) -> set[str]:
    """Models that no longer belong to a run: what they answered would be paid for again."""
    return {t.name for t in earlier.teachers} - {t.name for t in now.teachers}


def published_part(spec: JobSpec) -> dict[str, Any]:
    """What decides the files beside the rows: with another one a finished run is published again."""
    whole = spec.model_dump(mode="json", by_alias=True)
    return {key: whole[key] for key in ("name", "publish")}


def revisable_part(spec: JobSpec) -> dict[str, Any]:
    """What may change between two starts of a run and changes its data: only what it touches is paid for again.
    Limits, budget, keys, publishing and training may change too, and touch no row."""
    whole = spec.model_dump(mode="json", by_alias=True)
    return {key: whole[key] for key in REVISABLE}
