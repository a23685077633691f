"""Whole trainings without Ray: every objective learns, and what is no number ends a training."""

from pathlib import Path
from typing import Any

import pytest
import transformers
from tiny_students import student

from schemas.errors import LimbeckError
from schemas.student import TrainingSpec
from training.evaluate import divergences, held_out_loss
from training.examples import MAIN, SECOND, Pair
from training.rows import TokenRow, token_rows
from training.students import Student
from training.teacher import Teacher
from training.trainer import trainer_of

pytestmark = pytest.mark.slow

EIGHT = (
    ("red", "apple"), ("green", "leaf"), ("blue", "sky"), ("white", "snow"), ("black", "coal"), ("yellow", "sun"),
    ("brown", "bear"), ("pink", "rose"),
)  # fmt: skip
TASKS = {"step_by_step": (MAIN, SECOND), "icl": (MAIN, SECOND)}


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


@pytest.mark.parametrize("arch", ["llama", "t5"])
@pytest.mark.parametrize(
    "objective",
    [{"name": "sft"}, {"name": "step_by_step"}, {"name": "icl", "hard_to": 1.0}, {"name": "kd", "beta": 0.0}],
    ids=lambda o: o["name"],
)
def test_eight_rows_are_learned_by_heart(arch: str, objective: dict[str, Any], tmp_path: Path) -> None:
    teacher = taught(arch, tmp_path) if objective["name"] == "kd" else None
    made, rows, _ = trained(arch, objective, tmp_path, teacher, epochs=100 if arch == "llama" else 200)
    assert held_out_loss(made, [row for row in rows if row.task == MAIN]) < 0.05


def taught(arch: str, out: Path) -> Teacher:
    """A teacher that knows the eight rows."""
    made, _, _ = trained(arch, {"name": "sft"}, out, epochs=25)
    return Teacher(made.model.eval(), len(made.tokenizer))


WHITE_BOX: list[dict[str, Any]] = [
    {"name": "kd", "alpha": 0.0, "beta": 1.0, "tau": 1.0},
    {"name": "kd", "alpha": 0.0, "beta": 1.0, "tau": 1.0, "top_k": 16},
    {"name": "hidden", "alpha": 0.0, "beta": 1.0, "tau": 1.0, "gamma": 0.1},
    {"name": "gkd", "beta": 0.5, "lambda": 0.0},
    {"name": "gkd", "beta": 1.0, "lambda": 0.5, "max_new_tokens": 12},
    {"name": "minillm", "max_new_tokens": 12, "reuse": 2},
    {"name": "minillm", "max_new_tokens": 12, "reuse": 2, "variant": "released"},
]


@pytest.mark.parametrize("arch", ["llama", "t5"])
@pytest.mark.parametrize("objective", WHITE_BOX, ids=lambda o: o["name"])
def test_a_white_box_objective_brings_the_student_to_its_teacher(
    arch: str, objective: dict[str, Any], tmp_path: Path
) -> None:
    teacher = taught(arch, tmp_path)
    made, rows, _ = trained(arch, {"name": "sft"}, tmp_path, epochs=8)  # as the papers start: from an SFT student
    before = divergences(made, teacher, rows)
    trained(arch, objective, tmp_path, teacher, made, epochs=40, learning_rate=0.003)
    after = divergences(made, teacher, rows)
    assert after[1] < 0.65 * before[1], (before, after)


def test_a_loss_that_is_no_number_ends_the_training_with_its_records(tmp_path: Path) -> None:
    made = student("llama")
    made.model.get_output_embeddings().weight.data[7] = float("nan")
    with pytest.raises(LimbeckError, match=r"at step 1 the loss is nan at records r\d"):
        trained("llama", {"name": "sft"}, tmp_path, made=made, batch_size=2)


def test_the_terms_of_an_objective_are_logged_beside_its_loss(tmp_path: Path) -> None:
    teacher = taught("llama", tmp_path)
    _, _, history = trained("llama", {"name": "kd", "alpha": 0.3, "beta": 0.7}, tmp_path, teacher, epochs=2)
    losses = [line for line in history if "loss" in line]
    assert losses
    for line in losses:
        assert line["loss"] == pytest.approx(line["loss_ce"] + line["loss_kd"], rel=1e-3)
