"""A changed spec on the same run: what is reused, what is asked again and why, and what costs nothing at all."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from conftest import Finished
from teacher_server import RunningTeacher, teacher_server

import limbeck as api
from limbeck.spec_file import load_job
from schemas.errors import BudgetExhausted, SpecError
from schemas.manifest import Manifest

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]
Write = Callable[..., Path]
Command = Callable[..., Finished]


def run_it(spec: Path, out: Path, *settings: str) -> Manifest:
    """`limbeck run`, on the Ray that the tests share; nothing here depends on how many workers there are."""
    return api.run(load_job(spec, list(settings)), out, workers=1)


def replay(out: Path, spec: Path) -> Manifest:
    return api.replay(load_job(spec, []), out)


def lane(teacher: RunningTeacher, **options: Any) -> dict[str, Any]:
    return {"provider": "openai", "model": "m", "base_url": teacher.base_url, "free": True, **options}


def test_a_changed_prompt_asks_again_and_says_so_and_the_old_prompt_is_still_paid_for(
    job: Write, questions: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with teacher_server() as teacher:
        spec = job(questions, teachers=[lane(teacher)])
        first = run_it(spec, run)
        changed = run_it(spec, run, "prompt.system=Be brief.")
        assert "0 of 40 rows are reused" in changed.notes[0]
        assert "prompt.system: was null" in changed.notes[0]
        assert teacher.bill()["calls"] == 80
        back = run_it(spec, run)
        assert back.notes == ["40 of 40 rows are reused and cost nothing"]
        assert teacher.bill()["calls"] == 80
    assert back.dataset.sha256 == first.dataset.sha256 != changed.dataset.sha256


def test_new_rows_and_changed_rows_alone_are_paid_for(job: Write, jsonl: Write, tmp_path: Path) -> None:
    run, rows = tmp_path / "run", [{"id": i, "input": f"What is thing {i}?"} for i in range(30)]
    with teacher_server() as teacher:
        spec = job(jsonl(rows), teachers=[lane(teacher)])
        run_it(spec, run)
        rows[3]["input"] = "What is quite another thing?"
        jsonl([*rows, {"id": 30, "input": "What is a new thing?"}])
        revised = run_it(spec, run, "validate.finished=true")
        assert "29 of 31 rows are reused" in revised.notes[0] and "2 not asked before" in revised.notes[0]
        assert "validate" not in revised.notes[0]  # which asks for nothing anew
        assert teacher.bill()["calls"] == 32
    assert revised.rows.accepted == 31


def test_replay_curates_the_same_answers_by_another_rule_and_calls_nobody(
    job: Write, jsonl: Write, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    rows = jsonl([{"id": i, "input": f"What is thing number {i} good for?"} for i in range(20)])
    with teacher_server() as teacher:
        (key := tmp_path / "key").write_text("sk-of-the-teacher")
        paid = lane(teacher, price={"input": 1, "output": 1}, free=False, api_key=f"file:{key}")
        before = run_it(job(rows, teachers=[paid]), run)
        calls = teacher.bill()["calls"]
    key.unlink()  # the teacher is gone, and so is its key: whatever happens now, nobody is asked
    near = {"dedup": {"exact": True, "near": {"threshold": 0.5}}}
    after = replay(run, job(rows, "near.yaml", teachers=[paid], curate=near))
    assert after.rows.rejected["near_duplicate"] > after.rows.accepted
    assert any("dropped as near duplicates" in line and "threshold" in line for line in after.warnings)
    assert after.rows.accepted + sum(after.rows.rejected.values()) == 20
    assert after.spend == before.spend and after.calls.answered == calls and after.calls.reused == 20
    assert pq.read_table(run / "dataset").num_rows == after.rows.accepted


def test_replay_of_a_prompt_that_was_never_sent_rejects_the_rows_and_a_run_asks_for_them(
    job: Write, questions: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run_it(job(questions), run)
    other = job(questions, "other.yaml", prompt={"system": "Be brief."})
    replayed = replay(run, other)
    assert replayed.rows.rejected == {"unanswered": 40} and "40 rows have no answer" in replayed.notes[-1]
    assert "prompt.system: was null" in replayed.notes[-1]
    assert replayed.calls.reused == 0
    asked = run_it(other, run)
    assert asked.rows.accepted == 40
    assert asked.notes == ["0 of 40 rows are reused and cost nothing; 40 are asked (40 not asked before)"]


def test_replay_holds_the_answers_that_are_there_against_another_schema(
    job: Write, questions: Path, tmp_path: Path
) -> None:
    """The schema goes out with a call, too; a replay sends none, so that it is only what answers must satisfy."""
    run, properties = tmp_path / "run", {"answer": {"type": "string"}, "sure": {"type": "boolean"}}

    def asked(schema: dict[str, Any] | None) -> Path:
        return job(questions, pipeline="instruct", teachers=[lane(teacher)], validate={"json_schema": schema})

    with teacher_server() as teacher:
        whole = {"type": "object", "properties": properties, "required": ["answer", "sure"]}
        first = run_it(asked(whole), run)
        for schema in ({**whole, "required": ["answer"]}, None, {"type": "object"}, whole):
            again = replay(run, asked(schema))
            assert (again.rows.accepted, again.dataset.sha256) == (40, first.dataset.sha256)
        strict = {**whole, "properties": {**properties, "answer": {"type": "integer"}}}
        assert replay(run, asked(strict)).rows.rejected == {"unanswered": 40}
        back = run_it(asked(whole), run)
        assert back.rows.accepted == 40 == teacher.bill()["calls"]
        assert "finished before" in run_it(asked(whole), run).notes[-1]


def test_a_run_under_a_changed_schema_asks_for_what_a_replay_found_no_answer_to_and_for_nothing_else(
    job: Write, questions: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    answers = {"type": "object", "properties": {"answer": {"type": "string"}}, "required": ["answer"]}
    some = {**answers, "properties": {"answer": {"type": "string", "pattern": "^[A-M]"}}}

    def asked(schema: dict[str, Any] | None) -> Path:
        return job(questions, pipeline="instruct", teachers=[lane(teacher)], validate={"json_schema": schema})

    with teacher_server() as teacher:
        run_it(asked(None), run)
        assert replay(run, asked(answers)).rows.rejected == {"unanswered": 40}  # prose, all of it
        assert run_it(asked(answers), run).rows.accepted == 40 and teacher.bill()["calls"] == 80
        preview = replay(run, asked(some))
        left = preview.rows.rejected["unanswered"]
        assert preview.rows.accepted == 40 - left and 0 < left < 40
        assert f"{left} rows have no answer" in preview.notes[-1] and "validate.json_schema" in preview.notes[-1]
        paid = run_it(asked(some), run)
        assert f"{left} asked with another validate.json_schema" in paid.notes[0]
        assert f"{40 - left} of 40 rows are reused" in paid.notes[0]
        assert teacher.bill()["calls"] == 80 + left and paid.rows.accepted >= preview.rows.accepted
        wide = replay(run, asked({"type": "object"}))  # what was asked with either schema serves, the prose does not
        assert wide.rows.accepted == 40


def test_a_run_that_stops_with_fewer_rows_than_an_earlier_spec_had_says_so(
    job: Write, questions: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with teacher_server() as teacher:
        run_it(job(questions, teachers=[lane(teacher)]), run)
        other = job(questions, "other.yaml", teachers=[lane(teacher)], prompt={"system": "Be brief."})
        with pytest.raises(BudgetExhausted, match=r"dataset/ has 10 rows where it had 40") as stopped:
            run_it(other, run, "budget.calls=50")
        assert "limbeck replay" in stopped.value.message
        assert replay(run, job(questions, teachers=[lane(teacher)])).rows.accepted == 40


def test_rows_that_an_earlier_source_had_are_not_promised_from_a_replay(
    job: Write, jsonl: Write, tmp_path: Path
) -> None:
    def rows(words: str) -> list[dict[str, str]]:
        return [{"id": f"r{n}", "input": f"{words} {n}?"} for n in range(30)]

    run = tmp_path / "run"
    with teacher_server() as teacher:
        spec = job(jsonl(rows("How many are")), teachers=[lane(teacher)])
        run_it(spec, run)
        jsonl(rows("What is"))
        with pytest.raises(BudgetExhausted, match=r"dataset/ has 5 rows where it had 30") as stopped:
            run_it(spec, run, "budget.calls=35")
        said = replay(run, spec).notes[-1]
    assert "25 rows have no answer" in said and "limbeck run with the same spec asks for them" in said
    assert "replay" not in stopped.value.message and "replay" not in said


def test_whoever_has_the_journal_alone_finds_the_answers_that_went_out_with_another_schema(
    job: Write, questions: Path, tmp_path: Path
) -> None:
    schema = {"type": "object", "properties": {"why": {"type": "string"}, "answer": {"type": "string"}}}
    sections = {"pipeline": "instruct", "journal": f"file://{tmp_path / 'store'}"}
    with teacher_server() as teacher:
        asked = job(questions, teachers=[lane(teacher)], validate={"json_schema": schema}, **sections)
        run_it(asked, tmp_path / "run")
        other = {"json_schema": {"type": "object"}}
        wider = job(questions, "wider.yaml", teachers=[lane(teacher)], validate=other, **sections)
        first = run_it(wider, tmp_path / "run")
        (tmp_path / "run" / "manifest.json").unlink()
        for place in ("run", "another"):
            again = run_it(wider, tmp_path / place)
            assert (again.dataset.sha256, again.rows.accepted) == (first.dataset.sha256, 40)
        assert teacher.bill()["calls"] == 40


@pytest.mark.parametrize("damaged", ["job.yaml", "manifest.json"])
def test_a_damaged_file_of_a_run_may_be_deleted_and_costs_nothing(
    job: Write, questions: Path, tmp_path: Path, damaged: str
) -> None:
    run = tmp_path / "run"
    with teacher_server() as teacher:
        spec = job(questions, teachers=[lane(teacher)])
        first = run_it(spec, run)
        (run / damaged).write_text("{")
        with pytest.raises(SpecError, match=damaged) as told:
            run_it(spec, run)
        assert "delete it" in told.value.hint
        (run / damaged).unlink()
        again = run_it(spec, run)
        assert teacher.bill()["calls"] == 40
    assert again.dataset == first.dataset


def test_a_source_that_grew_after_the_run_had_finished_is_asked_for_the_new_rows(
    job: Write, jsonl: Write, tmp_path: Path
) -> None:
    run, rows = tmp_path / "run", [{"id": i, "input": f"What is thing {i}?"} for i in range(10)]
    spec = job(jsonl(rows))
    assert run_it(spec, run).rows.accepted == 10
    jsonl([*rows, {"id": 10, "input": "What is one more?"}])
    again = run_it(spec, run)
    assert (again.rows.source, again.rows.accepted) == (11, 11)
    said = "10 of 11 rows are reused and cost nothing; 1 is asked (1 not asked before, and the content of source"
    assert again.notes == [f"{said} has changed)"]


def test_edited_exemplars_are_another_prompt_though_the_spec_is_the_same(
    job: Write, questions: Path, jsonl: Write, tmp_path: Path
) -> None:
    run, shown = tmp_path / "run", {"input": "What is up?", "rationale": "It is not down.", "label": "the sky"}
    exemplars = jsonl([shown, {**shown, "input": "What is high up?"}], "exemplars.jsonl")
    with teacher_server() as teacher:
        few_shot = {"style": "few-shot", "exemplars": str(exemplars)}
        spec = job(questions, pipeline="cot", teachers=[lane(teacher)], prompt=few_shot)
        first = run_it(spec, run)
        assert "finished before" in run_it(spec, run).notes[-1] and teacher.bill()["calls"] == 40
        jsonl([shown], "exemplars.jsonl")
        edited = run_it(spec, run)
        assert "0 of 40 rows are reused" in edited.notes[0] and "prompt.exemplars has changed" in edited.notes[0]
        assert teacher.bill()["calls"] == 80
        assert "finished before" in run_it(spec, run).notes[-1]
    assert first.dataset.sha256 != edited.dataset.sha256


def test_what_is_published_may_change_after_the_run_has_finished(job: Write, questions: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    first = run_it(job(questions), run)
    again = run_it(job(questions, "more.yaml", publish={"format": ["parquet", "messages"]}), run)
    assert (run / "dataset.jsonl").read_text().count("\n") == 40
    assert again.dataset.sha256 == first.dataset.sha256
    run_it(job(questions), run)
    assert not (run / "dataset.jsonl").exists()


def test_a_run_of_another_source_is_refused_and_nothing_is_touched(
    job: Write, questions: Path, jsonl: Write, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run_it(job(questions), run)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    other = job(jsonl([{"id": 1, "input": "What else?"}], "other.jsonl"), "other.yaml")
    for start in (lambda: run_it(other, run), lambda: replay(run, other)):
        with pytest.raises(SpecError, match=r"made by another spec: source.path"):
            start()
    assert before == {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}


def test_rows_too_large_for_every_lane_are_named_before_anything_is_paid(
    command: Command, job: Write, jsonl: Write, tmp_path: Path
) -> None:
    rows = jsonl([{"id": "short", "input": "What?"}, {"id": "long", "input": "What is " + "this and " * 3_000 + "?"}])
    run = tmp_path / "run"
    with teacher_server() as teacher:
        small = lane(teacher, limits={"tpm": 3_000})
        spec = job(rows, teachers=[small])
        for arguments in (("plan", spec), ("run", spec, "--out", run)):
            done = command(*arguments)
            assert done.returncode == 2 and "long" in done.stderr and "too large" in done.stderr
        assert not run.exists() and teacher.bill()["calls"] == 0
        kept = job(rows, "kept.yaml", source={"path": str(rows), "on_error": "reject"}, teachers=[small])
        assert run_it(kept, run).rows.rejected == {"too_large": 1}
        wide = job(rows, "wide.yaml", teachers=[small, lane(teacher, model="wide", limits={"tpm": 60_000})])
        run_it(wide, tmp_path / "two")
    by_teacher = {row["id"]: row["teacher"] for row in pq.read_table(tmp_path / "two" / "dataset").to_pylist()}
    assert by_teacher["long"] == "openai/wide"


def test_answers_of_an_earlier_server_are_kept_and_it_is_said(job: Write, questions: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with teacher_server() as rehearsal, teacher_server() as real:
        run_it(job(questions, teachers=[lane(rehearsal)]), run)
        notes = run_it(job(questions, teachers=[lane(real)]), run).notes
        assert real.bill()["calls"] == 0
    assert f"came from {rehearsal.base_url} are kept" in notes[0] and "finished before" in notes[1]
