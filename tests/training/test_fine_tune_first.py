"""A student that is fine-tuned, and then learns from what it writes: one training spec, two students."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Finished
from pydantic import ValidationError
from tiny_students import PROMPTS, student

from limbeck.jobs import trained
from schemas.objective import Sft
from schemas.student import FINE_TUNED, TrainingSpec, fine_tuning
from training.compare import beside_teacher
from training.rows import rows_for
from training.store import load, prepare
from training.students import pretrained
from training.teacher import load_teacher

Command = Callable[..., Finished]
GKD = {"name": "gkd", "lambda": 1.0, "max_new_tokens": 4}


@pytest.fixture
def spec(jsonl: Callable[..., Path], tmp_path: Path) -> dict[str, Any]:
    teacher = student("llama")
    teacher.model.save_pretrained(tmp_path / "teacher")
    teacher.tokenizer.save_pretrained(tmp_path / "teacher")
    data = jsonl([{"id": f"p{i}", "prompt": q, "response": a} for i, (q, a) in enumerate(PROMPTS * 4)])
    return {
        "student": {"scratch": {"layers": 1, "hidden": 32, "heads": 2}}, "teacher": str(tmp_path / "teacher"),
        "objective": GKD, "fine_tune_first": {"epochs": 6, "learning_rate": 0.01}, "data": {"path": str(data)},
        "steps": 2, "batch_size": 4, "max_length": 64,
    }  # fmt: skip


def test_what_comes_first_is_the_same_training_by_cross_entropy(spec: dict[str, Any]) -> None:
    whole = TrainingSpec.model_validate(spec)
    first = fine_tuning(whole, "student")
    assert first is not None and first.objective == Sft()
    assert (first.epochs, first.steps, first.learning_rate) == (6, None, 0.01)
    assert (first.data, first.teacher, first.seed) == (whole.data, whole.teacher, whole.seed)
    assert fine_tuning(first, "student") is fine_tuning(first, "teacher") is fine_tuning(whole, "teacher") is None
    both = TrainingSpec.model_validate({**spec, "fine_tune_teacher": {"epochs": 2}})
    taught = fine_tuning(both, "teacher")
    assert taught is not None and (taught.student, taught.teacher) == (whole.teacher, None)
    assert (taught.objective, taught.epochs, taught.steps, taught.learning_rate) == (Sft(), 2, None, 3e-5)
    assert fine_tuning(taught, "student") is fine_tuning(taught, "teacher") is None
    for name in ("fine_tune_first", "fine_tune_teacher"):
        with pytest.raises(ValidationError, match=f"{name} goes with white-box objectives, not with 'sft'"):
            TrainingSpec.model_validate({**spec, "fine_tune_first": None, name: {}, "objective": {"name": "sft"}})


@pytest.mark.ray
def test_the_objective_goes_on_from_the_teacher_and_the_student_that_were_fine_tuned(
    command: Command, spec: dict[str, Any], tmp_path: Path
) -> None:
    spec["fine_tune_teacher"] = {"epochs": 8, "learning_rate": 0.01}
    place, out = tmp_path / "spec.yaml", tmp_path / "out"
    place.write_text(yaml.safe_dump(spec))
    done = command("train", place, "--out", out)
    assert done.returncode == 0, done.stderr
    assert "fine-tuning first: " in done.stderr and "cannot write yet" not in done.stderr
    assert done.stderr.index("fine-tuning the teacher: ") < done.stderr.index("fine-tuning first: ")
    teacher = json.loads((out / FINE_TUNED["teacher"] / "student" / "metrics.json").read_text())
    assert teacher["objective"] == "sft" and teacher["loss_after"] < teacher["loss_before"]
    first = json.loads((out / FINE_TUNED["student"] / "student" / "metrics.json").read_text())
    after = json.loads((out / "student" / "metrics.json").read_text())
    assert (first["objective"], after["objective"], after["steps"]) == ("sft", "gkd", 2)
    for name in ("loss", "rouge_l", "forward_kl", "reverse_kl"):
        assert after[f"{name}_before"] == first[f"{name}_before"]
        assert after[f"{name}_fine_tuned"] == pytest.approx(first[f"{name}_after"], rel=1e-5)
    assert after["loss_fine_tuned"] < after["loss_before"] and "loss_jsd" in after and "loss_ce" in first
    assert after["loss_after_low"] <= after["loss_after"] <= after["loss_after_high"]
    whole = TrainingSpec.model_validate({**spec, "teacher": str(out / FINE_TUNED["teacher"] / "student")})
    made = pretrained(str(out / "student"))
    prepare(whole, tmp_path / "rows")
    held, _ = rows_for(whole, load(whole, tmp_path / "rows").held, made.tokenizer, made.seq2seq)
    for name, found in beside_teacher(made, load_teacher(str(whole.teacher), made), held).items():
        told = [after[f"{name}_after{end}"] for end in ("", "_low", "_high")]
        assert told == pytest.approx(list(found), rel=1e-5)
    first_of = fine_tuning(whole.model_copy(update={"learning_rate": 1e-4}), "student")
    found = None if first_of is None else trained(first_of, out / FINE_TUNED["student"])
    assert found == first  # kept where what follows changes
