"""Where a student is put, and when it has to be trained again. No Ray: what would train here would fail."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import limbeck
from limbeck import jobs
from limbeck.spec_file import spec_of
from schemas.student import TRAINED_ON, TrainingSpec
from training.loop import publish

Write = Callable[..., Path]


@pytest.fixture
def spec(jsonl: Write) -> TrainingSpec:
    data = jsonl([{"prompt": f"Say {i}.", "response": str(i)} for i in range(4)])
    return TrainingSpec.model_validate({"student": {"scratch": {}}, "data": {"path": str(data)}})


def built(place: Path, made_of: Any, loss: float) -> Path:
    """A student as a training leaves it."""
    place.mkdir(parents=True)
    (place / "model.safetensors").write_bytes(b"weights")
    (place / TRAINED_ON).write_text(json.dumps(made_of))
    (place / "metrics.json").write_text(json.dumps({"loss_after": loss}))
    return place


def test_a_new_student_takes_the_old_one_s_place_whole(tmp_path: Path) -> None:
    place, work = built(tmp_path / "student", {}, 2.0), tmp_path / ".work"
    (place / "left-over").touch()
    assert publish(built(work / "student", {}, 1.0), place)["loss_after"] == 1.0
    assert sorted(path.name for path in place.iterdir()) == ["metrics.json", "model.safetensors", TRAINED_ON]
    assert not list(work.iterdir())


def test_a_student_that_was_finished_when_its_run_was_killed_is_kept(spec: TrainingSpec, tmp_path: Path) -> None:
    built(tmp_path / ".work" / "student", jobs.origin_of(spec), 1.5)
    assert limbeck.train(spec, tmp_path)["loss_after"] == 1.5
    assert jobs.trained(spec, tmp_path) == {"loss_after": 1.5}


def test_a_student_of_other_data_or_another_spec_is_trained_again(spec: TrainingSpec, tmp_path: Path) -> None:
    built(tmp_path / "student", jobs.origin_of(spec), 1.5)
    assert jobs.trained(spec, tmp_path) is not None
    assert jobs.trained(spec.model_copy(update={"epochs": 2.0}), tmp_path) is None
    assert spec.data is not None and spec.data.path is not None
    Path(spec.data.path).write_text(Path(spec.data.path).read_text() + '{"prompt": "Say 5.", "response": "5"}\n')
    assert jobs.trained(spec, tmp_path) is None


def test_a_student_of_weights_that_were_replaced_is_trained_again(spec: TrainingSpec, tmp_path: Path) -> None:
    weights = built(tmp_path / "base", {}, 0.0)
    local = spec.model_copy(update={"student": str(weights)})
    built(tmp_path / "student", jobs.origin_of(local), 1.5)
    assert jobs.trained(local, tmp_path) is not None
    (weights / "model.safetensors").write_bytes(b"other weights")
    assert jobs.trained(local, tmp_path) is None


def test_a_spec_may_be_a_file_a_dict_or_validated(spec: TrainingSpec, tmp_path: Path) -> None:
    keys = spec.model_dump(mode="json", by_alias=True, exclude={"objective"})
    file = tmp_path / "spec.yaml"
    file.write_text(json.dumps(keys))
    assert spec_of(keys, TrainingSpec) == spec_of(file, TrainingSpec) == spec_of(str(file), TrainingSpec) == spec
    with pytest.raises(limbeck.LimbeckError, match="unknown key epoch"):
        limbeck.train({**keys, "epoch": 3}, tmp_path / "out")
    with pytest.raises(limbeck.LimbeckError, match="spec: of type int"):
        limbeck.plan(3)  # type: ignore[arg-type]


SOUND = {"steps": 40, "rows_train": 99, "token_accuracy_before_low": 0.1, "token_accuracy_after_high": 0.5,
         "rows_too_long": 0, "rows_cut": 0, "loss_before": 3.0, "loss_before_high": 3.2, "loss_after": 1.0,
         "loss_after_low": 0.9}  # fmt: skip


@pytest.mark.parametrize(
    ("told", "said"),
    [({}, None), ({"steps": 3}, "took 3 steps on 99 rows"), ({"steps_planned": 50}, "ended at step 40 of 50"),
     ({"token_accuracy_after_high": 0.05}, "foretells fewer tokens"), ({"rows_too_long": 2}, "2 rows took no part"),
     ({"rows_cut": 4}, "4 rows were cut"),
     ({"loss_after": 9.0, "loss_after_low": 8.5}, "held out rose from 3.00 to 9.00"),
     ({"loss_after": 3.3, "loss_after_low": 3.1}, None),  # the intervals meet
     ({"loss_fine_tuned": 0.5, "loss_fine_tuned_high": 0.6, "token_accuracy_fine_tuned_low": 0.2}, "rose from 0.5")],
)  # fmt: skip
def test_what_a_student_s_user_should_know_is_said(told: dict[str, Any], said: str | None) -> None:
    found = jobs.remarks({**SOUND, **told})
    assert len(found) == (said is not None) and (said or "") in "".join(found)
