"""Low-rank adapters (LoRA, arXiv 2106.09685) by `peft`: put into a student, and merged into it once it is trained."""

from typing import Any

from schemas.errors import SpecError
from schemas.student import Lora
from training.students import Student


def attach(student: Student, spec: Lora) -> Any:
    """Put adapters into the student's model, in place; only they learn from then on. `SpecError` for targets that the
    model does not have. The result is for `merge`."""
    import peft

    kind = peft.TaskType.SEQ_2_SEQ_LM if student.seq2seq else peft.TaskType.CAUSAL_LM
    config = peft.LoraConfig(
        task_type=kind, r=spec.r, lora_alpha=spec.alpha, lora_dropout=spec.dropout,
        target_modules=spec.targets or "all-linear",
    )  # fmt: skip
    try:
        return peft.get_peft_model(student.model, config)
    except ValueError as error:
        line = str(error).strip().splitlines()[0][:200]
        raise SpecError(f"lora.targets: {line}", "name modules as in [q_proj, v_proj]; null: all linear ones") from None


def merge(student: Student, adapters: Any) -> None:
    """Add what the adapters learned to the weights that they stand beside; the model is a plain one again."""
    student.model = adapters.merge_and_unload()
