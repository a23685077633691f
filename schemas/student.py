"""The training spec: a student, what it learns from, and how."""

import math
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from schemas.lane import Strict
from schemas.objective import OBJECTIVE_NAMES, AnyObjective, Sft, objective_of, samples, teaches
from schemas.recipes import RECIPES, with_recipe


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


TRAINED_ON = "trained_on.json"  # beside a student: what it was made of
Role = Literal["teacher", "student"]
FINE_TUNED: dict[Role, str] = {"teacher": "fine_tuned_teacher", "student": "fine_tuned"}
"""Where `fine_tune_teacher` and `fine_tune_first` leave what the objective starts from, in the order of trainings."""
Name = Annotated[str, Field(min_length=1)]
Beta = Annotated[float, Field(ge=0, lt=1)]
Column = Literal[
    "id",
    "prompt",
    "response",
    "input",
    "rationale",
    "label",
    "output",
    "demonstrations",
    "options",
    "option_probs",
    "messages",
    "instruction",
    "task",
]


class TrainingData(Strict):
    """Where the pairs come from: a file, or the dataset of a run."""

    path: Name | None = Field(
        None, description="jsonl, jsonl.gz, json, csv or parquet: file, glob or directory; or hf:DATASET[:SPLIT]"
    )
    form: Literal["pairs", "messages", "alpaca"] = Field(
        "pairs", description="prompt and response; a list of role and content; instruction, input and output"
    )
    run: Name | None = Field(None, description="a run directory: its published dataset")
    fields: dict[Column, Annotated[str, Field(min_length=1)]] = Field(
        default_factory=dict,
        description="our name: the column's name. prompt, response; step_by_step: input, rationale, label; icl: input, "
        "output, demonstrations, options, option_probs",
    )
    template: str | None = Field(None, description="`chat`: the tokenizer's chat template; null: text as written")

    @model_validator(mode="after")
    def _known(self) -> "TrainingData":
        if self.path is not None and self.run is not None:
            raise ValueError("give either path or run, not both")
        if self.run is not None and self.form == "messages":
            raise ValueError("form messages goes with path; the rows of an instruct run may take form alpaca")
        if self.template not in (None, "chat"):
            raise ValueError(f"template {self.template!r} is not known; chat is")
        return self


class Checkpoints(Strict):
    """When a training is saved, and which of its states becomes the student."""

    every: Annotated[int, Field(ge=1)] | None = Field(
        None, description="steps between two; null: five minutes, or a tenth of the steps where best or patience is set"
    )
    keep: Annotated[int, Field(ge=1, le=10_000)] = Field(1, description="how many of the newest, beside the best")
    best: bool = Field(False, description="the student is the one with the lowest held-out loss, not the last")
    patience: Annotated[int, Field(ge=1)] | None = Field(
        None, description="end after so many in a row without a lower held-out loss"
    )
    restarts: Annotated[int, Field(ge=0, le=1000)] = Field(
        2, description="times that a worker may be lost: all then go on from the newest one"
    )

    @property
    def compares(self) -> bool:
        """Whether the held-out loss is measured with each."""
        return self.best or self.patience is not None


class Lora(Strict):
    """Low-rank adapters (arXiv 2106.09685): they alone are trained, and merged into the student that is saved."""

    r: Annotated[int, Field(ge=1, le=65_536)] = Field(16, description="rank")
    alpha: Annotated[float, Field(gt=0, le=1e6)] = Field(32.0, description="alpha / r scales what they add")
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    targets: list[Annotated[str, Field(min_length=1)]] | None = Field(
        None, description="names of linear modules, as in [q_proj, v_proj]; null: all but the vocabulary's"
    )


class FineTuning(Strict):
    """Cross-entropy on the responses, before the objective: what of it is not said here is as in the rest of the
    spec."""

    epochs: Annotated[float, Field(gt=0, le=1_000_000)] = Field(3, description="passes over the pairs")
    learning_rate: Annotated[float, Field(gt=0, le=100)] = Field(3.0e-4, description="its peak, after a short rise")


class TeacherTuning(FineTuning):
    """The same of the teacher, which has learned to write already: at a lower rate."""

    learning_rate: Annotated[float, Field(gt=0, le=100)] = Field(3.0e-5, description="its peak, after a short rise")


class TrainingSpec(Strict):
    recipe: str | None = Field(None, description="the settings of a paper below one's own: " + ", ".join(RECIPES))
    student: FromScratch | LayerCut | str = Field(description="scratch, {from, layers}, or a Hugging Face id or path")
    objective: AnyObjective = Field(Sft(), description="by name: " + ", ".join(OBJECTIVE_NAMES))
    data: TrainingData | None = Field(None, description="in a job spec: null, the run's own dataset")
    teacher: Name | None = Field(
        None,
        description="a Hugging Face id or path, a .gguf file, or smollm2-135m: whom white-box objectives learn from, "
        "and with any objective whom the student is compared with",
    )
    fine_tune_first: FineTuning | None = Field(
        None,
        description="fine-tune the student on the responses, then train it with the objective: for students that "
        "cannot write yet and objectives that sample from them; {} takes the usual settings",
    )
    fine_tune_teacher: TeacherTuning | None = Field(
        None,
        description="fine-tune the teacher on the responses before all else, and learn from that one, as MiniLLM and "
        "GKD do: another teacher leads away from the responses; {} takes the usual settings",
    )
    workers: Annotated[int, Field(ge=1, le=4096)] = Field(1, description="processes that train together")
    min_workers: Annotated[int, Field(ge=1, le=4096)] | None = Field(
        None, description="go on with as few where machines are lost or not free yet; null: all of workers are needed"
    )
    sharding: bool = Field(
        False, description="each worker holds a share of the weights (FSDP2); whole ones while responses are sampled"
    )
    epochs: Annotated[float, Field(gt=0, le=1_000_000)] = Field(1, description="passes over the pairs")
    steps: Annotated[int, Field(ge=1, le=10**9)] | None = Field(None, description="how many, instead of epochs")
    batch_size: Annotated[int, Field(ge=1, le=1_000_000)] = Field(8, description="rows at a time, per worker")
    accumulation: Annotated[int, Field(ge=1, le=1_000_000)] = Field(1, description="batches a step")
    learning_rate: Annotated[float, Field(gt=0, le=100)] = Field(3.0e-4, description="its peak, after a short rise")
    schedule: Literal["linear", "cosine", "constant"] = Field("linear", description="of the rate after its rise")
    warmup: Annotated[float, Field(ge=0, lt=1)] = Field(0.05, description="share of the steps in which the rate rises")
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.0
    betas: Annotated[list[Beta], Field(min_length=2, max_length=2)] = Field(
        [0.9, 0.999], description="of AdamW: the decay of a gradient's mean, and of its square's"
    )
    max_grad_norm: Annotated[float, Field(ge=0, le=1e9)] = Field(
        1.0, description="longer gradients are scaled down to it; 0: none are"
    )
    lora: Lora | None = Field(None, description="train adapters alone; {} takes the usual ones")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="of the arithmetic; weights stay float32. auto: bfloat16 on a GPU, float32 elsewhere"
    )
    activation_checkpointing: bool = Field(False, description="compute activations twice to hold fewer: less memory")
    max_length: Annotated[int, Field(ge=8, le=10_000_000)] = Field(
        512, description="tokens of prompt and response together"
    )
    packing: bool = Field(
        True,
        description="several pairs in one row; not where responses are sampled, nor in a student where pairs would see "
        "each other, as BART or Mamba (metrics.json says whether they were: packed)",
    )
    bucketing: bool = Field(False, description="rows of like length side by side, where they are not packed")
    eval_fraction: Annotated[float, Field(gt=0, lt=1)] = Field(0.1, description="share of the pairs that is held out")
    eval_rows: Annotated[int, Field(ge=1, le=10**9)] = Field(1000, description="held out at the most")
    checkpoints: Checkpoints = Checkpoints()
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(0, description="of the split, of new weights and of the order")

    @model_validator(mode="before")
    @classmethod
    def _recipe(cls, value: Any) -> Any:
        return with_recipe(value) if isinstance(value, dict) else value

    @field_validator("objective", mode="before")
    @classmethod
    def _objective(cls, value: Any) -> Any:
        return objective_of(value)

    @model_validator(mode="after")
    def _taught(self) -> "TrainingSpec":
        if self.lora is not None and isinstance(self.student, FromScratch):
            raise ValueError("lora goes with a student that has learned something, not with one from scratch")
        if teaches(self.objective) and self.teacher is None:
            raise ValueError(f"objective {self.objective.name!r} learns from a teacher: set teacher")
        for name in ("fine_tune_first", "fine_tune_teacher"):
            if getattr(self, name) is not None and not teaches(self.objective):
                raise ValueError(f"{name} goes with white-box objectives, not with {self.objective.name!r}")
        return self

    @model_validator(mode="after")
    def _splits(self) -> "TrainingSpec":
        if self.min_workers is None:
            return self
        if self.min_workers > self.workers:
            raise ValueError(f"min_workers {self.min_workers} is more than workers {self.workers}")
        batches = self.workers * self.accumulation
        if odd := [n for n in range(self.min_workers, self.workers) if batches % n]:
            least = math.lcm(*range(self.min_workers, self.workers + 1)) // self.workers
            raise ValueError(
                f"a step's {batches} batches (workers x accumulation) cannot be shared out over {odd[0]} workers: set "
                f"accumulation to a multiple of {least}, so that a step is the same with any number of them"
            )
        return self

    @field_validator("student", mode="before")
    @classmethod
    def _kind(cls, value: Any) -> Any:
        # A union of models would answer a typo with the errors of every branch; choose the branch first.
        if isinstance(value, dict):
            return (FromScratch if "scratch" in value else LayerCut).model_validate(value)
        if not isinstance(value, FromScratch | LayerCut | str):
            raise ValueError("must be {scratch: ...}, {from: ..., layers: N}, or a Hugging Face id or path")
        return value


def fine_tuning(spec: TrainingSpec, role: Role) -> TrainingSpec | None:
    """The training of the teacher or the student that comes before this one, where the spec asks for it. A student's
    keeps the teacher: one from scratch takes its tokenizer."""
    settings = spec.fine_tune_teacher if role == "teacher" else spec.fine_tune_first
    if settings is None:
        return None
    own = {"student": spec.teacher, "teacher": None} if role == "teacher" else {}
    alone = {"objective": Sft(), "steps": None, "recipe": None, "fine_tune_first": None, "fine_tune_teacher": None}
    how = {"epochs": settings.epochs, "learning_rate": settings.learning_rate}
    return spec.model_copy(update={**alone, **how, **own})


def advice(spec: TrainingSpec) -> str:
    """What a spec that is right may still get wrong; empty where there is nothing to say."""
    if samples(spec.objective) and not isinstance(spec.student, str) and spec.fine_tune_first is None:
        return (
            f"{spec.objective.name} learns from what the student writes, and a cut or new one cannot write yet: its "
            "paper starts from a fine-tuned student, as with fine_tune_first: {} or student: RUN/student"
        )
    return ""
