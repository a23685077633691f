"""The run directory: whose it is, and whether there is room."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from limbeck import jobs
from pipelines.rundir import RunDirectory, locked
from schemas.errors import SpecError
from schemas.job import JobSpec
from schemas.student import TRAINED_ON, TrainingSpec


def spec(**changes: Any) -> JobSpec:
    base = {"name": "n", "pipeline": "cot", "source": {"path": "/rows.jsonl"}, "teachers": [{"provider": "scripted"}]}
    return JobSpec.model_validate({**base, **changes})


def test_a_directory_made_by_another_spec_is_refused_and_the_difference_named(tmp_path: Path) -> None:
    first = RunDirectory(tmp_path / "run")
    first.open(spec())
    first.close()
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").iterdir()}
    with pytest.raises(SpecError, match=r"sampling.temperature: was 0.7, is 0.1"):
        RunDirectory(tmp_path / "run").check(spec(sampling={"temperature": 0.1}))
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "run").iterdir()}
    RunDirectory(tmp_path / "run").check(spec(budget={"usd": 9}))


def test_a_folder_of_something_else_and_a_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for place in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(SpecError):
            RunDirectory(place).check(spec())


def test_a_folder_that_holds_a_spec_of_the_users_own_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(
        "name: n\npipeline: cot\nsource: {path: /rows.jsonl}\nteachers: [{provider: scripted}]\n"
    )
    with pytest.raises(SpecError, match="not empty and not a run directory"):
        RunDirectory(tmp_path).check(spec())


def test_no_free_disk_is_said_before_anything_is_written(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "deep" / "run")
    with pytest.raises(SpecError, match="no free disk"):
        directory.require_space(1000, free=lambda path: 10 * 2**20)
    directory.require_space(1000, free=lambda path: 10 * 2**30)
    assert list(tmp_path.iterdir()) == []


def test_one_process_at_a_time(tmp_path: Path) -> None:
    first = RunDirectory(tmp_path / "run")
    first.open(spec())
    with pytest.raises(SpecError, match="in use"):
        RunDirectory(tmp_path / "run").open(spec())
    assert first.is_in_use()
    first.close()
    assert not first.is_in_use()


def test_one_training_at_a_time(tmp_path: Path, jsonl: Callable[..., Path]) -> None:
    data = {"path": str(jsonl([{"prompt": "a", "response": "b"}] * 4))}
    training = TrainingSpec.model_validate({"student": {"scratch": {}}, "data": data})
    with locked(tmp_path / ".train.lock"), pytest.raises(SpecError, match="in use"):
        jobs.train(training, tmp_path)


def test_a_student_is_of_the_rows_that_it_learned_from(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    assert not run.has_student_of_other_rows("new")
    run.student.mkdir()
    (run.student / TRAINED_ON).write_text(json.dumps({"data": "old", "train": {"data": None}}))
    assert run.has_student_of_other_rows("new") and not run.has_student_of_other_rows("old")
    (run.student / TRAINED_ON).write_text(json.dumps({"data": "of a file", "train": {"data": {"path": "pairs.jsonl"}}}))
    assert not run.has_student_of_other_rows("new")


def test_the_resolved_spec_holds_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "sk-canary")
    directory = RunDirectory(tmp_path / "run")
    directory.open(spec(teachers=[{"provider": "openai", "model": "m", "free": True, "api_key": "env:MY_KEY"}]))
    directory.close()
    text = directory.spec_file.read_text()
    assert "env:MY_KEY" in text and "canary" not in text
