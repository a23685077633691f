"""The evaluation spec: students, what they are asked, and how."""

from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from schemas.lane import Strict
from schemas.objective import AnyObjective, Icl, Sft, objective_of
from schemas.student import Name, TrainingData


class KShot(Strict):
    """In-context accuracy: options ranked by their mean log-probability a token, after k demonstrations."""

    k: Annotated[int, Field(ge=0, le=1000)] = Field(4, description="demonstrations before a query")
    draws: Annotated[int, Field(ge=1, le=1000)] = Field(5, description="of demonstrations; the options vote")
    pool: Name | None = Field(
        None, description="file of input and output to draw from; null: the data's own other rows"
    )


class EvaluationSpec(Strict):
    students: dict[Name, Name] = Field(description="name: a student/ folder, a Hugging Face id or path", min_length=1)
    data: TrainingData = Field(description="held-out rows: what is asked and what is right")
    objective: AnyObjective = Field(Sft(), description="decides how rows become prompts, as in a training spec")
    teacher: Name | None = Field(None, description="local weights: forward and reverse KL to it are measured")
    rows: Annotated[int, Field(ge=1, le=10_000_000)] = Field(200, description="at the most, drawn by seed")
    seeds: list[Annotated[int, Field(ge=0, lt=2**31)]] = Field(
        [10, 20, 30, 40, 50], description="of sampled responses (temperature 1), beside the greedy one; [] for none"
    )
    max_new_tokens: Annotated[int, Field(ge=1, le=100_000)] = 128
    max_length: Annotated[int, Field(ge=8, le=10_000_000)] = Field(512, description="tokens of prompt and response")
    k_shot: KShot | None = Field(None, description="with objective icl, whose rows have options")
    lm_eval: list[Name] = Field([], description="tasks of lm-eval, as in [piqa, boolq]; needs limbeck[lm-eval]")
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0

    @field_validator("objective", mode="before")
    @classmethod
    def _objective(cls, value: Any) -> Any:
        return objective_of(value)

    @field_validator("students", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        """A list goes by its paths."""
        if isinstance(value, list) and all(isinstance(one, str) for one in value):
            return {one: one for one in value}
        return value

    @model_validator(mode="after")
    def _fits(self) -> "EvaluationSpec":
        if self.k_shot is not None and not isinstance(self.objective, Icl):
            raise ValueError("k_shot goes with objective icl, whose rows have options")
        return self
