"""The evaluation spec: students, what they are asked, and how."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, field_validator, model_validator

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


class Judging(Strict):
    """How students are judged, whoever they are."""

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
    lm_eval_tasks: Name | None = Field(None, description="a folder with lm-eval tasks of one's own")
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0

    @field_validator("objective", mode="before")
    @classmethod
    def _objective(cls, value: Any) -> Any:
        return objective_of(value)

    @model_validator(mode="after")
    def _fits(self) -> "Judging":
        if self.k_shot is not None and not isinstance(self.objective, Icl):
            raise ValueError("k_shot goes with objective icl, whose rows have options")
        return self


def named(students: Any) -> Any:
    """A list of students goes by their paths."""
    if isinstance(students, list) and all(isinstance(one, str) for one in students):
        return {one: one for one in students}
    return students


Students = Annotated[dict[Name, Name], BeforeValidator(named)]


class EvaluationSpec(Judging):
    students: Students = Field(description="name: a student/ folder, a Hugging Face id or path", min_length=1)
    data: TrainingData = Field(
        description="what is asked and what is right; of what they learned, rows held out alone. Without a template, "
        "prompts are written for each student as when it learned"
    )


class JobEvaluation(Judging):
    """The evaluation of a job: of the student that it trains, beside others."""

    students: Students = Field({}, description="others beside the run's own, by name")
    data: TrainingData | None = Field(None, description="null: the rows of the run's dataset that no student learned")

    def of(self, own: str | None, run: str, objective: AnyObjective) -> EvaluationSpec:
        """The evaluation of the student in `own`, where there is one, and the others on the dataset of `run`;
        `objective`: of the training, where this names none."""
        whole = self.model_dump(mode="json", by_alias=True)
        data = self.data or TrainingData()
        if data.path is None and data.run is None:
            data = data.model_copy(update={"run": run})
        if "objective" not in self.model_fields_set:
            whole["objective"] = objective.model_dump(mode="json", by_alias=True)
        students = {**({"student": own} if own else {}), **self.students}
        return EvaluationSpec.model_validate({**whole, "students": students, "data": data})
