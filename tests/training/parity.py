"""One step of every objective on both architectures, as one process of a training takes it."""

import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
from tiny_students import student, without_dropout

from schemas.student import TrainingSpec
from training import learner
from training.examples import MAIN, SECOND, TEXT, Pair
from training.rows import token_rows
from training.teacher import Teacher
from training.trainer import trainer_of

OBJECTIVES: dict[str, dict[str, Any]] = {
    "sft": {"name": "sft"},
    "step_by_step": {"name": "step_by_step", "alpha": 0.3},
    "icl": {"name": "icl", "lm": {"path": "x", "weight": 0.2}},
    "kd": {"name": "kd", "alpha": 0.3, "beta": 0.7},
    "kd, batch mean": {"name": "kd", "reduction": "batch"},
    "kd, top 8": {"name": "kd", "top_k": 8},
    "hidden": {"name": "hidden", "gamma": 0.5},
    "gkd": {"name": "gkd", "lambda": 1.0, "max_new_tokens": 6},
    "gkd, fixed": {"name": "gkd", "lambda": 0.0, "beta": 0.3},
    "minillm": {"name": "minillm", "max_new_tokens": 6, "lm": {"path": "x"}},
    "minillm, released": {"name": "minillm", "variant": "released", "max_new_tokens": 6, "lm": {"path": "x"}},
}


def teacher_of(arch: str) -> Teacher:
    made = student(arch)
    torch.manual_seed(5)
    for parameter in made.model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return Teacher(made.model.eval().requires_grad_(False), len(made.tokenizer))


def first_step(
    arch: str, objective: dict[str, Any], batch: int, accumulation: int, workers: int, count: int,
    most_logits: int = learner.MOST_LOGITS,
) -> list[float]:  # fmt: skip
    """[loss, gradient norm] of the step that takes all `count` rows."""
    learner.MOST_LOGITS = most_logits
    made = without_dropout(student(arch))
    tasks = (MAIN, MAIN, SECOND, TEXT) if "lm" in objective else (MAIN, SECOND)
    tasks = tasks if objective["name"] in ("step_by_step", "icl", "minillm") else (MAIN,)
    if objective["name"] == "minillm":
        tasks = (MAIN, TEXT)
    pairs = [
        Pair("Name." if i % 3 else "Say hello to the people.", " red" * (1 + i % 5), str(i), tasks[i % len(tasks)], 0.5)
        for i in range(count)
    ]
    rows, _ = token_rows(pairs, made.tokenizer, 64, None, made.seq2seq)
    spec = TrainingSpec.model_validate(
        {"student": "s", "teacher": "t", "objective": objective, "batch_size": batch, "accumulation": accumulation,
         "workers": workers, "packing": False, "max_length": 64, "warmup": 0.0, "learning_rate": 1e-9}
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as out:
        trainer = trainer_of(spec, made, teacher_of(arch), rows, rows[:2], Path(out))
        trainer.train()
        told = next(line for line in trainer.state.log_history if "loss" in line)
    return [told["loss"], told["grad_norm"]]


def first_steps(ways: list[tuple[int, ...]]) -> dict[str, list[list[float]]]:
    """What each way, (batch, accumulation, workers, rows, logits at once), measured, by architecture and objective."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return {
        f"{arch}: {name}": [first_step(arch, objective, *way) for way in ways]
        for arch in ("llama", "t5")
        for name, objective in OBJECTIVES.items()
    }
