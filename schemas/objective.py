"""The objectives that a student can be trained with, and their parameters."""

import difflib
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from schemas.lane import Strict

Share = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0, le=1e6)]
Temperature = Annotated[float, Field(gt=0, le=100)]


class LanguageModelling(Strict):
    """Plain text that is learned beside the task, so that a student does not forget how to write."""

    path: Annotated[str, Field(min_length=1)] = Field(description="jsonl, jsonl.gz, json, csv or parquet")
    field: Annotated[str, Field(min_length=1)] = Field("text", description="the column with the text")
    weight: Weight = Field(1.0, description="of its loss, beside the objective's")


class Sft(Strict):
    """Cross-entropy on the response tokens."""

    name: Literal["sft"] = "sft"


class StepByStep(Strict):
    """Distilling Step-by-Step (arXiv 2305.02301): alpha label + (1 - alpha) rationale, two tasks told apart by prefix.

    Data: input, rationale, label. The label task alone is asked at inference.
    """

    name: Literal["step_by_step"]
    alpha: Share = Field(0.5, description="weight of the label's loss; 1 - alpha is the rationale's")
    predict: str = Field("predict: ", description="prefix of an input whose label is asked")
    explain: str = Field("explain: ", description="prefix of an input whose rationale is asked")


class Icl(Strict):
    """In-context distillation (arXiv 2212.10670): hard labels fade into the teacher's soft ones, linearly."""

    name: Literal["icl"]
    soft: bool = Field(True, description="learn from option_probs, the teacher's probability of each option")
    hard_from: Share = Field(1.0, description="weight of the hard labels at the first step")
    hard_to: Share = Field(0.0, description="weight of the hard labels at the last step")
    delimiter: str = Field("\n\n\n", description="between demonstrations")
    lm: LanguageModelling | None = Field(None, description="text for the paper's language-modelling term")


class Kd(Strict):
    """alpha CE + beta tau^2 KL(teacher || student), both at temperature tau (arXiv 1503.02531)."""

    name: Literal["kd"]
    alpha: Weight = Field(0.5, description="weight of the cross-entropy with the response")
    beta: Weight = Field(0.5, description="weight of the divergence from the teacher")
    tau: Temperature = Field(2.0, description="temperature of both distributions")
    reduction: Literal["token", "batch"] = Field("token", description="the mean over tokens; the sum over a row's")
    top_k: Annotated[int, Field(ge=1, le=1_000_000)] | None = Field(
        None, description="learn from the teacher's k likeliest tokens; null: from all"
    )
    tail: bool = Field(True, description="what the k do not hold counts as one more token; else k are renormalised")
    sampled: Annotated[int, Field(ge=1, le=1_000_000)] | None = Field(
        None, description="in place of top_k, with cache: so many tokens drawn from the teacher at tau, without a bias"
    )
    cache: Annotated[str, Field(min_length=1)] | None = Field(
        None, description="a folder where the teacher's tokens are written once, before the training; null: asked live"
    )

    @model_validator(mode="after")
    def _sparse(self) -> "Kd":
        if self.top_k is not None and self.sampled is not None:
            raise ValueError("give either top_k or sampled, not both")
        if self.cache is not None and self.top_k is None and self.sampled is None:
            raise ValueError("cache holds some of the teacher's tokens: set top_k, as in 64, or sampled")
        if self.sampled is not None and self.cache is None:
            raise ValueError("sampled goes with cache: a teacher that is asked live can be learned from whole")
        return self


class Hidden(Strict):
    """Plain KD and the teacher's intermediate states: each student layer is drawn to one of the teacher's."""

    name: Literal["hidden"]
    alpha: Weight = Field(0.5, description="weight of the cross-entropy")
    beta: Weight = Field(0.5, description="weight of the divergence from the teacher")
    tau: Temperature = Field(2.0, description="temperature of both distributions")
    gamma: Weight = Field(1.0, description="weight of the states' distance")
    distance: Literal["mse", "cosine"] = "mse"
    layers: list[Annotated[list[int], Field(min_length=2, max_length=2)]] | None = Field(
        None, description="[student layer, teacher layer] pairs, 0 the embeddings; null: spread evenly"
    )


class Gkd(Strict):
    """Generalized KD (arXiv 2306.13649): a divergence on fixed responses, or on the student's own."""

    name: Literal["gkd"]
    beta: Share = Field(0.5, description="0 forward KL, 1 reverse KL, between them the generalized JSD")
    student_fraction: Share = Field(0.5, alias="lambda", description="chance that a step's responses are the student's")
    temperature: Temperature = Field(1.0, description="of sampling; the divergence is at 1")
    max_new_tokens: Annotated[int, Field(ge=1, le=100_000)] = 128
    seq_kd: bool = Field(False, description="the teacher writes the responses of the other steps")


class MiniLLM(Strict):
    """Reverse KL over whole responses by policy gradient (arXiv 2306.08543)."""

    name: Literal["minillm"]
    variant: Literal["paper", "released"] = Field(
        "paper", description="the paper's equation 7, or what its code does (discount, whitening, no shift by one)"
    )
    temperature: Temperature = Field(1.0, description="of sampling")
    max_new_tokens: Annotated[int, Field(ge=1, le=100_000)] = 128
    teacher_mix: Annotated[float, Field(ge=0, lt=1)] = Field(0.2, description="the teacher's share in the sampling")
    clip: Annotated[float, Field(gt=0, lt=1)] = Field(0.2, description="of the ratio to the sampling distribution")
    length_normalised: bool = True
    single_step: bool = Field(True, description="the next token's part is computed, not sampled")
    reuse: Annotated[int, Field(ge=1, le=100)] = Field(
        4, description="times that a sampled response is learned from, in every epoch"
    )
    rollouts: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        256, description="rows that are learned from so often before the next ones are sampled"
    )
    lm: LanguageModelling | None = Field(None, description="text for the language-modelling term")


AnyObjective = Sft | StepByStep | Icl | Kd | Hidden | Gkd | MiniLLM
OBJECTIVES: dict[str, type[AnyObjective]] = {
    "sft": Sft, "step_by_step": StepByStep, "icl": Icl, "kd": Kd, "hidden": Hidden, "gkd": Gkd, "minillm": MiniLLM,
}  # fmt: skip
OBJECTIVE_NAMES = tuple(OBJECTIVES)


def objective_of(value: Any) -> Any:
    """The objective that a spec names. A union of models would answer a typo with the errors of every branch."""
    if isinstance(value, str):
        value = {"name": value}
    if isinstance(value, Strict):
        return value
    if not isinstance(value, dict):
        raise ValueError("must be {name: ...}, with an objective's own parameters beside the name")
    name = value.get("name", "sft")
    if name not in OBJECTIVES:
        near = difflib.get_close_matches(str(name), OBJECTIVES, 1)
        raise ValueError(
            f"objective {name!r} is not known"
            + (f"; do you mean {near[0]}?" if near else "; " + ", ".join(OBJECTIVES) + " are")
        )
    return OBJECTIVES[name].model_validate(value)


def teaches(objective: AnyObjective) -> bool:
    """Whether the objective needs a teacher's logits."""
    return isinstance(objective, Kd | Hidden | Gkd | MiniLLM)


def samples(objective: AnyObjective) -> bool:
    """Whether responses are sampled while the student learns."""
    return isinstance(objective, MiniLLM) or (
        isinstance(objective, Gkd) and (objective.student_fraction > 0 or objective.seq_kd)
    )
