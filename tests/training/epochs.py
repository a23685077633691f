"""Trainings of several epochs, whole and in two parts, as one process of them takes them."""

from pathlib import Path
from typing import Any

import transformers
from parity import teacher_of
from tiny_students import rows_of, student, without_dropout

from schemas.student import TrainingSpec
from training.trainer import trainer_of

OBJECTIVES: dict[str, dict[str, Any]] = {
    "sft": {"name": "sft"},
    "minillm": {"name": "minillm", "reuse": 3, "rollouts": 4, "max_new_tokens": 6},
}
ROWS, BATCH, EPOCHS = 7, 4, 3


def losses_of(place: Path, name: str, workers: int, stop_at: int = 0) -> list[float]:
    """Of a training of seven rows, four a step however many workers take them; it is stopped at a step, and resumed."""
    made = without_dropout(student("llama"))
    teacher = teacher_of("llama") if name == "minillm" else None
    spec = TrainingSpec.model_validate(
        {"student": "s", "objective": OBJECTIVES[name], "teacher": "t" if teacher else None, "learning_rate": 0.01,
         "max_length": 64, "packing": False, "batch_size": BATCH // workers, "epochs": EPOCHS, "workers": workers}
    )  # fmt: skip
    rows, found = rows_of(made, "sft")[:ROWS], []
    found.append(trainer_of(spec, made, teacher, rows, rows, place, (), lambda: found[0].state.global_step == stop_at))
    found[0].go_on()
    if found[0].was_stopped:
        return losses_of(place, name, workers)
    return [line["loss"] for line in found[0].state.log_history if "loss" in line]


def losses(place: str, workers: int, stops: dict[str, int]) -> dict[str, list[list[float]]]:
    """Of each objective, (whole, stopped at a step and resumed)."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return {
        name: [
            losses_of(Path(place, name), name, workers),
            losses_of(Path(place, name + "-cut"), name, workers, at),
        ]
        for name, at in stops.items()
    }  # fmt: skip
