"""Trainings that are stopped, killed, resumed, or ended early."""

import json
import re
import resource
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny_students import loss_of, rows_of, student, taught

from schemas.errors import LimbeckError
from schemas.student import TrainingSpec
from training.checkpoints import WHOLE, newest, stale, step_of
from training.students import Student
from training.teacher import Teacher
from training.trainer import TokenTrainer, trainer_of

pytestmark = pytest.mark.slow
transformers.logging.disable_progress_bar()


def trainer(
    arch: str, out: Path, objective: dict[str, Any] | None = None, teacher: Teacher | None = None, stop_at: int = 0,
    held_apart: bool = False, **settings: Any,
) -> tuple[TokenTrainer, Student]:  # fmt: skip
    """A training of a fresh student on eight rows, which its user stops after some steps."""
    made = student(arch)
    spec = TrainingSpec.model_validate(
        {"student": "s", "objective": objective or {"name": "sft"}, "teacher": "t" if teacher else None,
         "learning_rate": 0.01, "max_length": 64, "packing": False, "batch_size": 2, "epochs": 3, **settings}
    )  # fmt: skip
    rows, found = rows_of(made, spec.objective.name), []
    learned, held = (rows[:4], rows[4:]) if held_apart else (rows, rows)
    wished = lambda: found[0].state.global_step == stop_at  # noqa: E731
    found.append(trainer_of(spec, made, teacher, learned, held, out, (), wished))
    return found[0], made


def curve(done: TokenTrainer) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in done.state.log_history if "loss" in line]


def weights(made: Student) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in made.model.parameters()])


OBJECTIVES: list[dict[str, Any]] = [
    {"name": "sft"}, {"name": "step_by_step"}, {"name": "icl"}, {"name": "kd"}, {"name": "hidden"},
    {"name": "gkd", "lambda": 0.5, "max_new_tokens": 6}, {"name": "minillm", "reuse": 3, "max_new_tokens": 6},
]  # fmt: skip


@pytest.mark.parametrize("arch", ["llama", "t5"])
@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: o["name"])
def test_stopped_and_resumed_equals_uninterrupted(arch: str, objective: dict[str, Any], tmp_path: Path) -> None:
    teacher = taught(arch) if objective["name"] in ("kd", "hidden", "gkd", "minillm") else None
    whole, at_once = trainer(arch, tmp_path / "whole", objective, teacher)
    assert whole.go_on() == 0
    first, _ = trainer(arch, tmp_path / "cut", objective, teacher, stop_at=5)
    first.go_on()
    assert first.was_stopped and first.state.global_step == 5
    second, in_two = trainer(arch, tmp_path / "cut", objective, teacher)
    assert second.go_on() == 5
    assert not second.was_stopped
    assert curve(second) == curve(whole)
    assert torch.equal(weights(in_two), weights(at_once))


def test_only_a_checkpoint_that_is_whole_is_resumed_from(tmp_path: Path) -> None:
    first, _ = trainer("llama", tmp_path, stop_at=8, checkpoints={"every": 3, "keep": 5})
    first.go_on()
    assert [step_of(p) for p in sorted(tmp_path.glob("checkpoint-*"), key=step_of)] == [3, 6, 8]
    (tmp_path / "checkpoint-8" / WHOLE).unlink()  # as if killed while it was written
    (tmp_path / "checkpoint-8" / "learner.safetensors").write_bytes(b"torn")
    second, _ = trainer("llama", tmp_path)
    assert second.go_on() == 6
    assert step_of(newest(tmp_path) or tmp_path) == 12


def test_the_newest_checkpoints_and_the_best_are_kept(tmp_path: Path) -> None:
    checkpoints = {"every": 2, "keep": 2, "best": True}
    done, made = trainer("llama", tmp_path, held_apart=True, checkpoints=checkpoints, epochs=20)
    done.go_on()
    losses = {line["step"]: line["eval_loss"] for line in done.state.log_history if "eval_loss" in line}
    best = min(losses, key=lambda step: losses[step])
    assert best < 38  # what is learned by heart helps other rows less and less
    assert {step_of(p) for p in tmp_path.glob("checkpoint-*")} == {best, 38, 40}
    assert loss_of(made, rows_of(made, "sft")[4:]) == pytest.approx(losses[best], rel=1e-5)


def test_a_training_ends_early_when_the_held_out_loss_stays(tmp_path: Path) -> None:
    patient: dict[str, Any] = {"checkpoints": {"every": 1, "patience": 3}, "epochs": 100}
    done, made = trainer("llama", tmp_path, held_apart=True, **patient)
    done.go_on()
    losses = [line["eval_loss"] for line in done.state.log_history if "eval_loss" in line]
    assert done.state.global_step < 200 and stale(losses) == 3
    assert not done.was_stopped
    again, same = trainer("llama", tmp_path, held_apart=True, **patient)  # killed while it is measured
    again.go_on()
    assert again.state.global_step == done.state.global_step and curve(again) == curve(done)
    assert torch.equal(weights(same), weights(made)) and not again.was_stopped


def test_a_checkpoint_of_another_model_is_told(tmp_path: Path) -> None:
    first, _ = trainer("llama", tmp_path, stop_at=2)
    first.go_on()
    second, _ = trainer("t5", tmp_path)
    with pytest.raises(LimbeckError, match="checkpoint-2: a checkpoint of another model"):
        second.go_on()


@pytest.mark.parametrize(
    "name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "rollouts-0.json"]
)
def test_a_damaged_checkpoint_is_told_and_the_one_before_it_goes_on(name: str, tmp_path: Path) -> None:
    sampling = {"name": "minillm", "reuse": 3, "max_new_tokens": 2}
    how: dict[str, Any] = {"objective": sampling, "teacher": taught("llama"), "checkpoints": {"every": 2, "keep": 2}}
    first, _ = trainer("llama", tmp_path, stop_at=4, **how)
    first.go_on()
    torn = tmp_path / "checkpoint-4" / name
    torn.write_bytes(torn.read_bytes()[:9])
    second, _ = trainer("llama", tmp_path, **how)
    with pytest.raises(LimbeckError, match=r"checkpoint-4: .*damaged") as caught:
        second.go_on()
    assert "remove it to go on from the one before it" in caught.value.hint
    shutil.rmtree(tmp_path / "checkpoint-4")
    third, _ = trainer("llama", tmp_path, **how)
    assert third.go_on() == 2 and third.state.global_step == 36


@pytest.mark.parametrize("name", ["optimizer.pt", "rng_state.pth", "rollouts-0.json"])
def test_a_part_that_is_gone_is_told_too(name: str, tmp_path: Path) -> None:
    how: dict[str, Any] = {"objective": {"name": "minillm", "max_new_tokens": 2}, "teacher": taught("llama")}
    first, _ = trainer("llama", tmp_path, stop_at=2, **how)
    first.go_on()
    (tmp_path / "checkpoint-2" / name).unlink()
    second, _ = trainer("llama", tmp_path, **how)
    with pytest.raises(LimbeckError, match=rf"checkpoint-2: .*damaged.*{re.escape(name)}"):
        second.go_on()


def test_the_time_and_the_work_of_all_starts_are_told(tmp_path: Path) -> None:
    whole, _ = trainer("llama", tmp_path / "whole")
    whole.go_on()
    first, _ = trainer("llama", tmp_path / "cut", stop_at=6)
    first.go_on()
    about = tmp_path / "cut" / "checkpoint-6" / WHOLE
    about.write_text(json.dumps({**json.loads(about.read_text()), "seconds": 3600.0}))  # an hour until then
    for _ in range(2):  # the second finds nothing left to do
        second, _ = trainer("llama", tmp_path / "cut")
        second.go_on()
        assert 3600 < second.seconds < 3660 and second.work.tolist() == whole.work.tolist()


def test_a_gradient_that_is_no_number_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    done, made = trainer("llama", tmp_path, checkpoints={"every": 1})
    spoil = lambda gradient: gradient * (float("nan") if done.state.global_step == 4 else 1.0)  # noqa: E731
    made.model.get_output_embeddings().weight.register_hook(spoil)
    with pytest.raises(LimbeckError, match="at step 5 a gradient was no number though the loss was; its records: r"):
        done.go_on()
    assert step_of(newest(tmp_path) or tmp_path) == 4
    second, _ = trainer("llama", tmp_path)
    assert second.go_on() == 4 and second.state.global_step == 12


def test_a_full_disk_is_told_and_the_checkpoint_before_is_kept(tmp_path: Path) -> None:
    first, _ = trainer("llama", tmp_path, checkpoints={"every": 3}, stop_at=3)
    first.go_on()
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    second, _ = trainer("llama", tmp_path, checkpoints={"every": 3})
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))  # no file may grow beyond: as a disk that is full
    try:
        with pytest.raises(LimbeckError, match="checkpoint of step 6 could not be written: ") as caught:
            second.go_on()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert "make room, then run the same command" in caught.value.hint
    assert step_of(newest(tmp_path) or tmp_path) == 3
    third, _ = trainer("llama", tmp_path)
    assert third.go_on() == 3 and third.state.global_step == 12
