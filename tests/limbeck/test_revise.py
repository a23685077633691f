"""A changed spec on the same run: what is reused, what is asked again and why, and what costs nothing at all."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from conftest import Limbeck
from teacher_server import RunningTeacher, teacher_server

pytestmark = pytest.mark.ray
Write = Callable[..., Path]


def manifest(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "manifest.json").read_text())
    return found


def lane(teacher: RunningTeacher, **options: Any) -> dict[str, Any]:
    return {"provider": "openai", "model": "m", "base_url": teacher.base_url, "free": True, **options}


def test_a_changed_prompt_asks_again_and_says_so_and_the_old_prompt_is_still_paid_for(
    limbeck: Limbeck, job: Write, questions: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with teacher_server() as teacher:
        spec = job(questions, teachers=[lane(teacher)])
        assert limbeck("run", spec, "--out", run).returncode == 0
        first = manifest(run)["dataset"]["sha256"]
        changed = limbeck("run", spec, "--out", run, "--set", "prompt.system=Be brief.")
        assert changed.returncode == 0, changed.stderr
        assert "0 of 40 rows are reused" in changed.stderr
        assert "prompt.system: was null" in changed.stderr
        assert teacher.bill()["calls"] == 80
        back = limbeck("run", spec, "--out", run)
        assert back.returncode == 0 and "40 of 40 rows are reused and cost nothing" in back.stderr
        assert teacher.bill()["calls"] == 80
    assert manifest(run)["dataset"]["sha256"] == first


def test_new_rows_and_changed_rows_alone_are_paid_for(
    limbeck: Limbeck, job: Write, jsonl: Write, tmp_path: Path
) -> None:
    run, rows = tmp_path / "run", [{"id": i, "input": f"What is thing {i}?"} for i in range(30)]
    with teacher_server() as teacher:
        spec = job(jsonl(rows), teachers=[lane(teacher)])
        assert limbeck("run", spec, "--out", run).returncode == 0
        rows[3]["input"] = "What is quite another thing?"
        jsonl([*rows, {"id": 30, "input": "What is a new thing?"}])
        revised = limbeck("run", spec, "--out", run, "--set", "validate.finished=true")
        assert revised.returncode == 0, revised.stderr
        assert "29 of 31 rows are reused" in revised.stderr and "2 not asked before" in revised.stderr
        assert teacher.bill()["calls"] == 32
    assert manifest(run)["rows"]["accepted"] == 31


def test_replay_curates_the_same_answers_by_another_rule_and_calls_nobody(
    limbeck: Limbeck, job: Write, jsonl: Write, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    rows = jsonl([{"id": i, "input": f"What is thing number {i} good for?"} for i in range(20)])
    with teacher_server() as teacher:
        spec = job(rows, teachers=[lane(teacher, price={"input": 1, "output": 1}, free=False)])
        assert limbeck("run", spec, "--out", run).returncode == 0
        calls, before = teacher.bill()["calls"], manifest(run)
    # The teacher is gone: whatever happens now, nobody is asked.
    near = job(rows, "near.yaml", teachers=[lane(teacher, price={"input": 1, "output": 1}, free=False)],
               curate={"dedup": {"exact": True, "near": {"threshold": 0.5}}})  # fmt: skip
    done = limbeck("replay", run, "--job", near)
    assert done.returncode == 0, done.stderr
    after = manifest(run)
    assert after["rows"]["rejected"]["near_duplicate"] > 0
    assert after["rows"]["accepted"] + sum(after["rows"]["rejected"].values()) == 20
    assert after["spend"] == before["spend"] and after["calls"]["answered"] == calls
    assert pq.read_table(run / "dataset").num_rows == after["rows"]["accepted"]


def test_replay_of_a_prompt_that_was_never_sent_rejects_the_rows_and_a_run_asks_for_them(
    limbeck: Limbeck, job: Write, questions: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    spec = job(questions)
    assert limbeck("run", spec, "--out", run).returncode == 0
    other = job(questions, "other.yaml", prompt={"system": "Be brief."})
    assert limbeck("replay", run, "--job", other).returncode == 0
    assert manifest(run)["rows"]["rejected"] == {"unanswered": 40}
    assert limbeck("run", other, "--out", run).returncode == 0
    assert manifest(run)["rows"] == {"source": 40, "generated": 0, "accepted": 40, "rejected": {}}


def test_a_run_of_another_source_is_refused_and_nothing_is_touched(
    limbeck: Limbeck, job: Write, questions: Path, jsonl: Write, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert limbeck("run", job(questions), "--out", run).returncode == 0
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    other = job(jsonl([{"id": 1, "input": "What else?"}], "other.jsonl"), "other.yaml")
    for command in (("run", other, "--out", run), ("replay", run, "--job", other)):
        done = limbeck(*command)
        assert done.returncode == 2
        assert "made by another spec" in done.stderr and "source.path" in done.stderr
    assert before == {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}


def test_rows_too_large_for_every_lane_are_named_before_anything_is_paid(
    limbeck: Limbeck, job: Write, jsonl: Write, tmp_path: Path
) -> None:
    rows = jsonl([{"id": "short", "input": "What?"}, {"id": "long", "input": "What is " + "this and " * 3_000 + "?"}])
    run = tmp_path / "run"
    with teacher_server() as teacher:
        small = lane(teacher, limits={"tpm": 3_000})
        spec = job(rows, teachers=[small])
        for command in (("plan", spec), ("run", spec, "--out", run)):
            done = limbeck(*command)
            assert done.returncode == 2 and "long" in done.stderr and "too large" in done.stderr
        assert not run.exists() and teacher.bill()["calls"] == 0
        kept = job(rows, "kept.yaml", source={"path": str(rows), "on_error": "reject"}, teachers=[small])
        assert limbeck("run", kept, "--out", run).returncode == 0
        assert manifest(run)["rows"]["rejected"] == {"too_large": 1}
        wide = job(rows, "wide.yaml", teachers=[small, lane(teacher, model="wide", limits={"tpm": 60_000})])
        done = limbeck("run", wide, "--out", tmp_path / "two")
        assert done.returncode == 0, done.stderr
    by_teacher = {row["id"]: row["teacher"] for row in pq.read_table(tmp_path / "two" / "dataset").to_pylist()}
    assert by_teacher["long"] == "openai/wide"
