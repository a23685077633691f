"""Students of a few thousand weights, and what they learn."""

import copy
import dataclasses
import gc
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers

from schemas.student import Scratch, TrainingSpec
from training import learner
from training.compare import on_tokens
from training.examples import MAIN, SECOND, Pair
from training.rows import TokenRow, token_rows
from training.students import Student, from_scratch, train_tokenizer
from training.teacher import Teacher
from training.trainer import trainer_of

torch.set_num_threads(1)  # models this small are slower with two
gc.freeze()  # every training collects garbage: among all that torch and transformers import, 0.24 s each time

TEXTS = ["What is one and one? It is two.", "Say hello to the people. Hello people!", "Name a colour. Red."]
PROMPTS = [("What is one and one?", " It is two."), ("Say hello.", " Hello people!"), ("Name.", " Red.")]

EIGHT = (
    ("red", "apple"), ("green", "leaf"), ("blue", "sky"), ("white", "snow"), ("black", "coal"), ("yellow", "sun"),
    ("brown", "bear"), ("pink", "rose"),
)  # fmt: skip
TASKS = {"step_by_step": (MAIN, SECOND), "icl": (MAIN, SECOND)}


def student(arch: str) -> Student:
    """A Llama or T5 that is always the same."""
    torch.manual_seed(1)
    size = Scratch.model_validate({"arch": arch, "layers": 2, "hidden": 32, "heads": 2})
    made = from_scratch(size, train_tokenizer(TEXTS, 300))
    made.model.eval()
    return made


def loss_of(made: Student, rows: list[TokenRow]) -> float:
    """Its loss on rows, nats a response token."""
    return on_tokens(made, rows)["loss"].mean


def without_dropout(made: Student) -> Student:
    """The same student: what is dropped depends on the batch, and would tell any two ways of training apart."""
    learner.without_dropout(made.model)
    return made


def rows_of(made: Student, name: str) -> list[TokenRow]:
    pairs = [
        Pair(f"What is {colour}?", f" The {thing}.", f"r{i}", task)
        for i, (colour, thing) in enumerate(EIGHT)
        for task in TASKS.get(name, (MAIN,))
    ]
    return token_rows(pairs, made.tokenizer, 64, None, made.seq2seq)[0]


def trained(
    arch: str, objective: dict[str, Any], out: Path, teacher: Teacher | None = None, made: Student | None = None,
    **settings: Any,
) -> tuple[Student, list[TokenRow], list[dict[str, float]]]:  # fmt: skip
    transformers.logging.disable_progress_bar()
    made = made or student(arch)
    spec = TrainingSpec.model_validate(
        {"student": "s", "objective": objective, "teacher": "t" if teacher else None, "learning_rate": 0.01,
         "max_length": 64, "packing": False, **settings}
    )  # fmt: skip
    rows = rows_of(made, spec.objective.name)
    trainer = trainer_of(spec, made, teacher, rows, rows, out)
    trainer.train()
    return made, rows, trainer.state.log_history


@cache
def _once(arch: str, epochs: int) -> Student:
    with tempfile.TemporaryDirectory() as out:
        return trained(arch, {"name": "sft"}, Path(out), epochs=epochs)[0]


def after_sft(arch: str, epochs: int) -> Student:
    """One that was fine-tuned on the eight rows; each call gives another copy."""
    made = _once(arch, epochs)
    return dataclasses.replace(made, model=copy.deepcopy(made.model))


def taught(arch: str, epochs: int = 25) -> Teacher:
    """A teacher that was fine-tuned on the eight rows."""
    made = after_sft(arch, epochs)
    return Teacher(made.model.eval(), len(made.tokenizer))
