"""The training spec: a student, what it learns from, and how."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from schemas.lane import Strict


class Scratch(Strict):
    """A student with random weights and a tokenizer trained on the data."""

    arch: Literal["llama", "t5"] = Field("llama", description="decoder-only or encoder-decoder")
    layers: Annotated[int, Field(gt=0, le=512)] = Field(
        2, description="of the decoder, and of the encoder where there is one"
    )
    hidden: Annotated[int, Field(gt=0, le=65_536)] = Field(64, description="width; a multiple of twice the heads")
    heads: Annotated[int, Field(gt=0, le=1024)] = Field(4, description="of attention")
    vocab: Annotated[int, Field(ge=300, le=1_000_000)] = Field(
        2000, description="at least 300: the 256 bytes and special tokens"
    )

    @model_validator(mode="after")
    def _divides(self) -> "Scratch":
        if self.hidden % (2 * self.heads):
            raise ValueError(f"hidden {self.hidden} must be a multiple of 2 x heads ({2 * self.heads})")
        return self


class LayerCut(Strict):
    """A bigger model cut to `layers` evenly spaced layers; the embeddings are kept."""

    source: str = Field(alias="from", description="a Hugging Face id or path, a .gguf file, or smollm2-135m")
    layers: Annotated[int, Field(gt=0)] = Field(description="how many to keep")


class FromScratch(Strict):
    scratch: Scratch = Scratch()


class Objective(Strict):
    """The loss. `sft`: cross-entropy on the response tokens."""

    name: Literal["sft", "step_by_step", "icl", "kd", "hidden", "gkd", "minillm"] = Field(
        "sft", description="sft; the others are not built yet"
    )

    @model_validator(mode="before")
    @classmethod
    def _built(cls, values: Any) -> Any:
        # Said first: a spec for one of them has parameters that are unknown as yet.
        name = values.get("name", "sft") if isinstance(values, dict) else "sft"
        if name in ("step_by_step", "icl", "kd", "hidden", "gkd", "minillm"):
            raise ValueError(f"objective {name!r} is not built yet; sft is")
        return values


Name = Annotated[str, Field(min_length=1)]


class TrainingData(Strict):
    """Where the pairs come from: a file, or the dataset of a run."""

    path: Name | None = Field(None, description="jsonl, jsonl.gz, json, csv or parquet: file, glob or directory")
    run: Name | None = Field(None, description="a run directory: its published dataset")
    fields: dict[Literal["prompt", "response"], Annotated[str, Field(min_length=1)]] = Field(
        default_factory=dict, description="our name: the column's name"
    )
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
    teacher: None = Field(None, description="local weights to compare with: not built yet")
    workers: Annotated[int, Field(ge=1, le=4096)] = Field(1, description="processes that train together")
    epochs: Annotated[float, Field(gt=0, le=1_000_000)] = Field(1, description="passes over the pairs")
    batch_size: Annotated[int, Field(ge=1, le=1_000_000)] = Field(8, description="rows a step, per worker")
    learning_rate: Annotated[float, Field(gt=0, le=100)] = Field(3.0e-4, description="its peak, after a short rise")
    max_length: Annotated[int, Field(ge=8, le=10_000_000)] = Field(
        512, description="tokens of prompt and response together"
    )
    packing: bool = Field(True, description="several pairs in one row; decoder-only students")
    eval_fraction: Annotated[float, Field(gt=0, lt=1)] = Field(0.1, description="share of the pairs that is held out")
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(0, description="of the split, of new weights and of the order")

    @field_validator("student", mode="before")
    @classmethod
    def _kind(cls, value: Any) -> Any:
        # A union of models would answer a typo with the errors of every branch; choose the branch first.
        if isinstance(value, dict):
            return (FromScratch if "scratch" in value else LayerCut).model_validate(value)
        if not isinstance(value, FromScratch | LayerCut | str):
            raise ValueError("must be {scratch: ...}, {from: ..., layers: N}, or a Hugging Face id or path")
        return value
