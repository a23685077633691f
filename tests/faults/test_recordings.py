"""`provider: recorded`: the same pipeline on answers that somebody already has."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from runs import lane, run_it
from teacher_server import teacher_server

import limbeck
from schemas.errors import LaneUnusable, SpecError

Write = Callable[..., Path]
QUESTIONS = [{"id": i, "input": f"What is {i} and one?"} for i in range(30)]
ANSWERS = [{"id": i, "raw": f"One more than {i}. So the answer is {i + 1}."} for i in range(30)]


def recorded(path: Path, **settings: Any) -> dict[str, Any]:
    return {"provider": "recorded", "path": str(path), "free": True, **settings}


def labels(run: Path) -> dict[str, str]:
    return {row["id"]: row["label"] for row in pq.read_table(run / "dataset").to_pylist()}


@pytest.mark.ray
def test_recorded_answers_become_a_dataset_and_cost_nothing(job: Write, jsonl: Write, tmp_path: Path) -> None:
    answers = jsonl([{"row": one["id"], "said": one["raw"]} for one in ANSWERS], "answers.jsonl")
    teacher = recorded(answers, fields={"id": "row", "raw": "said"})
    said = run_it(job(jsonl(QUESTIONS), teachers=[teacher], budget={"usd": 0}), tmp_path / "run")
    assert said.rows.accepted == 30 == said.calls.answered and said.spend.usd == 0
    assert labels(tmp_path / "run") == {str(i): str(i + 1) for i in range(30)}


@pytest.mark.ray
def test_a_run_is_a_recording_too(job: Write, jsonl: Write, tmp_path: Path) -> None:
    first = job(jsonl(QUESTIONS), teachers=[recorded(jsonl(ANSWERS, "answers.jsonl"))])
    run_it(first, tmp_path / "first")
    again = job(jsonl(QUESTIONS), teachers=[recorded(tmp_path / "first")], prompt={"task": "arithmetic"})
    assert run_it(again, tmp_path / "second").rows.accepted == 30
    assert labels(tmp_path / "second") == labels(tmp_path / "first")


@pytest.mark.ray
def test_what_is_not_recorded_is_asked_of_another_lane_or_rejected(job: Write, jsonl: Write, tmp_path: Path) -> None:
    some = recorded(jsonl([*ANSWERS[:20], {"id": 20, "raw": None}], "answers.jsonl"))
    questions = jsonl(QUESTIONS)
    alone = run_it(job(questions, teachers=[some]), tmp_path / "alone")
    assert alone.rows.accepted == 20 and alone.rows.rejected == {"not_recorded": 10}
    with teacher_server() as server:
        both = run_it(job(questions, teachers=[some, lane(server, limits={"concurrency": 1})]), tmp_path / "both")
    assert both.rows.accepted == 30 and not both.rows.rejected


@pytest.mark.ray
def test_rows_that_ask_the_same_have_answers_of_their_own(job: Write, jsonl: Write, tmp_path: Path) -> None:
    questions = jsonl([{"id": name, "input": "What is it?"} for name in "abc"])
    answers = jsonl([{"id": name, "raw": f"Well. So the answer is {name}."} for name in "bc"], "answers.jsonl")
    said = run_it(job(questions, teachers=[recorded(answers)]), tmp_path / "run")
    assert labels(tmp_path / "run") == {"b": "b", "c": "c"} and said.rows.rejected == {"not_recorded": 1}


@pytest.mark.ray
def test_a_faithful_run_says_how_many_labels_are_blank(job: Write, jsonl: Write, tmp_path: Path) -> None:
    answers = recorded(jsonl([*ANSWERS[:29], {"id": 29, "raw": "I do not know."}], "answers.jsonl"))
    said = run_it(job(jsonl(QUESTIONS), teachers=[answers], faithful=True), tmp_path / "run")
    assert said.rows.accepted == 30
    assert any(line.startswith("1 of 30 rows have a blank label") for line in said.warnings)


@pytest.mark.ray
def test_a_recording_of_other_rows_says_so(job: Write, jsonl: Write, tmp_path: Path) -> None:
    answers = jsonl([{"id": f"other-{i}", "raw": "So the answer is 1."} for i in range(3)], "answers.jsonl")
    with pytest.raises(LaneUnusable) as caught:
        run_it(job(jsonl(QUESTIONS), teachers=[recorded(answers)]), tmp_path / "run")
    assert "the ids of teachers.path are none of the source's" in caught.value.hint


@pytest.mark.ray
def test_a_recording_that_changes_is_told(job: Write, jsonl: Write, tmp_path: Path) -> None:
    questions, answers = jsonl(QUESTIONS), jsonl(ANSWERS[:20], "answers.jsonl")
    spec = job(questions, teachers=[recorded(answers)])
    run_it(spec, tmp_path / "run")
    jsonl([{**one, "raw": "So the answer is 7."} for one in ANSWERS], "answers.jsonl")
    said = limbeck.run(spec, tmp_path / "run", retry_failed=True)
    assert any("recorded answers have changed: those that were taken are kept" in note for note in said.notes)
    assert labels(tmp_path / "run") == {str(i): str(i + 1) if i < 20 else "7" for i in range(30)}


@pytest.mark.parametrize(
    ("rows", "settings", "said"),
    [
        (None, {}, "teachers.path missing"),
        ([], {}, "teachers.path empty"),
        ([{"id": 1, "raw": "x"}, {"id": 2}], {}, r"answers\.jsonl:2: absent field 'raw' \(it has: id\)"),
        ([{"id": 1, "raw": "x"}], {"fields": {"raw": "said"}}, "absent field 'said'"),
        ([{"id": None, "raw": "x"}], {}, "absent field 'id'"),
        ([{"id": 1, "raw": ["x"]}], {}, "is no text"),
        ([["x"]], {}, "not an object"),
    ],
)  # fmt: skip
def test_a_recording_that_cannot_be_read_is_told_before_anything_starts(
    job: Write, jsonl: Write, tmp_path: Path, rows: list[Any] | None, settings: dict[str, Any], said: str
) -> None:
    path = tmp_path / "nowhere.jsonl" if rows is None else jsonl(rows, "answers.jsonl")
    with pytest.raises(SpecError, match=said):
        limbeck.run(job(jsonl(QUESTIONS), teachers=[recorded(path, **settings)]), tmp_path / "run")
    assert not (tmp_path / "run").exists()
