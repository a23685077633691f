"""Trainings whose weights are shared out (FSDP2), as one process of two runs them, or one with the weights whole."""

from pathlib import Path
from typing import Any

import transformers
from parity import teacher_of
from tiny_students import rows_of, student, without_dropout

from schemas.student import TrainingSpec
from training.trainer import TokenTrainer, trainer_of

# `hidden` has weights of its own beside the student's; the last three sample responses, which end where they like. Of
# five rows one worker has none in its last batch, and so nothing to write.
TRAININGS: list[tuple[str, dict[str, Any], int]] = [
    ("llama", {"name": "hidden"}, 8), ("t5", {"name": "kd"}, 8),
    ("t5", {"name": "gkd", "lambda": 0.5, "max_new_tokens": 12}, 8),
    ("llama", {"name": "minillm", "max_new_tokens": 12, "rollouts": 8, "reuse": 2}, 8),
    ("llama", {"name": "gkd", "lambda": 1.0, "max_new_tokens": 12}, 5),
]  # fmt: skip


def trainer(
    arch: str, objective: dict[str, Any], count: int, out: Path, workers: int, stop_at: int = 0
) -> TokenTrainer:  # fmt: skip
    made, found = without_dropout(student(arch)), []
    spec = TrainingSpec.model_validate(
        {"student": "s", "teacher": "t", "objective": objective, "batch_size": 4 // workers, "accumulation": 2,
         "workers": workers, "sharding": workers > 1, "packing": False, "max_length": 64, "epochs": 8,
         "learning_rate": 0.01, "checkpoints": {"every": 3, "best": True}}
    )  # fmt: skip
    rows = rows_of(made, objective["name"])[:count]
    wished = lambda: found[0].state.global_step == stop_at  # noqa: E731
    teacher = teacher_of(arch)
    found.append(trainer_of(spec, made, teacher, rows, rows, out, (), wished))
    return found[0]


def outcome(done: TokenTrainer) -> dict[str, Any]:
    whole = [p.detach() for p in done.weights().values()]
    shares = sum(getattr(p, "_local_tensor", p).numel() for p in done.model.parameters())
    return {
        "losses": [line["loss"] for line in done.state.log_history if "loss" in line],
        "held_out": [line["eval_loss"] for line in done.state.log_history if "eval_loss" in line],
        "weights": sum(float(p.abs().sum()) for p in whole), "count": sum(p.numel() for p in whole), "here": shares,
    }  # fmt: skip


def outcomes(folder: str, workers: int) -> dict[str, Any]:
    """Of each training, and of the same stopped and resumed where the weights are shared out."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    found, place = {}, Path(folder)
    for arch, objective, count in TRAININGS:
        name = f"{objective['name']} {arch}"
        whole = trainer(arch, objective, count, place / name, workers)
        whole.go_on()
        found[name] = outcome(whole)
        if workers > 1:
            trainer(arch, objective, count, place / f"{name}-cut", workers, stop_at=4).go_on()
            second = trainer(arch, objective, count, place / f"{name}-cut", workers)
            assert second.go_on() == 4
            found[f"{name}, resumed"] = outcome(second)
    return found
