"""The training spec: a student, what it learns from, and how."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from schemas.lane import Strict


class Scratch(Strict):
    """A student with random weights and a tokenizer trained on the data."""

    arch: Literal["llama", "t5"] = "llama"
    layers: Annotated[int, Field(gt=0)] = 2
    hidden: Annotated[int, Field(gt=0)] = 64
    heads: Annotated[int, Field(gt=0)] = 4
    vocab: Annotated[int, Field(ge=300)] = Field(2000, description="at least 300: the 256 bytes and special tokens")

    @model_validator(mode="after")
    def _divides(self) -> "Scratch":
        if self.hidden % (2 * self.heads):
            raise ValueError(f"hidden {self.hidden} must be a multiple of 2 x heads ({2 * self.heads})")
        return self


class LayerCut(Strict):
    """A bigger model cut to `layers` evenly spaced layers; the embeddings are kept."""

    source: str = Field(alias="from", description="a Hugging Face id or path, a .gguf file, or smollm2-135m")
    layers: Annotated[int, Field(gt=0)]


class FromScratch(Strict):
    scratch: Scratch = Scratch()


class Objective(Strict):
    """The loss. `sft`: cross-entropy on the response tokens."""

    name: Literal["sft", "step_by_step", "icl", "kd", "hidden", "gkd", "minillm"] = "sft"

    @model_validator(mode="before")
    @classmethod
    def _built(cls, values: Any) -> Any:
        # Said first: a spec for one of them has parameters that are unknown as yet.
        name = values.get("name", "sft") if isinstance(values, dict) else "sft"
        if name in ("step_by_step", "icl", "kd", "hidden", "gkd", "minillm"):
            raise ValueError(f"objective {name!r} is not built yet; sft is")
        return values


class TrainingData(Strict):
    """Where the pairs come from: a file, or the dataset of a run."""

    path: str | None = Field(None, description="jsonl, jsonl.gz, json, csv or parquet: file, glob or directory")
    run: str | None = Field(None, description="a run directory: its published dataset")
    fields: dict[Literal["prompt", "response"], str] = Field(default_factory=dict)
    template: str | None = Field(None, description="`chat`: the tokenizer's chat template; null: text as written")

    @model_validator(mode="after")
    def _known(self) -> "TrainingData":
        if self.path is not None and self.run is not None:
            raise ValueError("give either path or run, not both")
        if self.template not in (None, "chat"):
            raise ValueError(f"template {self.template!r} is not known; chat is")
        return self


class TrainingSpec(Strict):
    student: FromScratch | LayerCut | str = Field(description="scratch, {from, layers}, or a Hugging Face id or path")
    objective: Objective = Objective()
    data: TrainingData | None = Field(None, description="in a job spec: null, the run's own dataset")
    teacher: None = None
    workers: Annotated[int, Field(ge=1)] = 1
    epochs: Annotated[float, Field(gt=0)] = 1
    batch_size: Annotated[int, Field(ge=1)] = Field(8, description="rows a step, per worker")
    learning_rate: Annotated[float, Field(gt=0)] = 3.0e-4
    max_length: Annotated[int, Field(ge=8)] = Field(512, description="tokens of prompt and response together")
    packing: bool = Field(True, description="several pairs in one row; decoder-only students")
    eval_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    seed: int = 0

    @field_validator("student", mode="before")
    @classmethod
    def _kind(cls, value: Any) -> Any:
        # A union of models would answer a typo with the errors of every branch; choose the branch first.
        if isinstance(value, dict):
            return (FromScratch if "scratch" in value else LayerCut).model_validate(value)
        if not isinstance(value, FromScratch | LayerCut | str):
            raise ValueError("must be {scratch: ...}, {from: ..., layers: N}, or a Hugging Face id or path")
        return value
