"""Whole trainings without Ray: every objective learns, and what is no number ends a training."""

from pathlib import Path
from typing import Any

import pytest
from tiny_students import after_sft, loss_of, rows_of, student, taught, trained

from schemas.errors import LimbeckError
from training.compare import beside_teacher
from training.examples import MAIN

pytestmark = pytest.mark.slow


BY_HEART: list[tuple[dict[str, Any], int, dict[str, Any]]] = [
    ({"name": "sft"}, 0, {}), ({"name": "step_by_step"}, 0, {}), ({"name": "icl"}, 0, {}), ({"name": "kd"}, 0, {}),
    ({"name": "kd", "top_k": 16}, 0, {}), ({"name": "hidden"}, 0, {}),
    ({"name": "gkd", "beta": 1.0, "max_new_tokens": 12}, 40, {"learning_rate": 0.005, "epochs": 2}),
    ({"name": "minillm", "max_new_tokens": 12, "reuse": 2}, 40, {"learning_rate": 0.003}),
]  # fmt: skip


@pytest.mark.parametrize("arch", ["llama", "t5"])
@pytest.mark.parametrize(
    ("objective", "start", "how"), BY_HEART, ids=lambda o: o.get("name", "") if isinstance(o, dict) else str(o)
)
def test_eight_rows_are_learned_by_heart(
    arch: str, objective: dict[str, Any], start: int, how: dict[str, Any], tmp_path: Path
) -> None:
    """By white-box objectives from a teacher that knows them; those that sample go on from a student that can write."""
    epochs = 100 if arch == "llama" else 160
    white = objective["name"] in ("kd", "hidden", "gkd", "minillm")
    teacher, made = taught(arch, epochs) if white else None, after_sft(arch, start) if start else None
    if made is not None:
        assert loss_of(made, rows_of(made, objective["name"])) > 0.5
    how = {**how, "epochs": epochs * how.get("epochs", 1)}
    made, rows, _ = trained(arch, objective, tmp_path, teacher, made, **how)
    assert loss_of(made, [row for row in rows if row.task == MAIN]) < 0.05


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
    teacher, made = taught(arch), after_sft(arch, 8)  # as the papers start: from an SFT student
    rows = rows_of(made, objective["name"])
    before = beside_teacher(made, teacher, rows)["reverse_kl"].mean
    trained(arch, objective, tmp_path, teacher, made, epochs=40, learning_rate=0.003)
    after = beside_teacher(made, teacher, rows)["reverse_kl"].mean
    assert after < 0.65 * before, (before, after)


def test_a_loss_that_is_no_number_ends_the_training_with_its_records(tmp_path: Path) -> None:
    made = student("llama")
    made.model.get_output_embeddings().weight.data[7] = float("nan")
    with pytest.raises(LimbeckError, match=r"at step 1 the loss is nan at records r\d"):
        trained("llama", {"name": "sft"}, tmp_path, made=made, batch_size=2)


def test_the_terms_of_an_objective_are_logged_beside_its_loss(tmp_path: Path) -> None:
    kd = {"name": "kd", "alpha": 0.3, "beta": 0.7}
    _, _, history = trained("llama", kd, tmp_path, taught("llama"), epochs=2)
    losses = [line for line in history if "loss" in line]
    assert losses
    for line in losses:
        assert line["loss"] == pytest.approx(line["loss_ce"] + line["loss_kd"], rel=1e-3)


def test_a_teacher_that_is_there_for_comparison_alone_is_not_asked_while_the_student_learns(tmp_path: Path) -> None:
    _, _, one = trained("llama", {"name": "sft"}, tmp_path / "alone", epochs=2)
    silent = taught("llama")
    silent.model.forward = None  # would fail
    _, _, other = trained("llama", {"name": "sft"}, tmp_path / "beside", silent, epochs=2)
    assert [line["loss"] for line in one if "loss" in line] == [line["loss"] for line in other if "loss" in line]
