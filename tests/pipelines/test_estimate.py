"""`limbeck plan`: what a job will take, before anything is spent."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Limbeck
from rich.console import Console

from limbeck import run
from limbeck.outlook import outlook
from limbeck.spec_file import load_job
from schemas.errors import SpecError

Write = Callable[..., Path]


def planned(spec: Path) -> Any:
    from limbeck import plan

    return plan(load_job(spec, []))


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-not-a-real-key")


def test_the_range_of_dollars_holds_the_worst_case_and_an_answer_of_one_token(
    job: Write, jsonl: Write, key: None
) -> None:
    rows = jsonl([{"id": i, "input": "x" * 500} for i in range(100)])
    found = planned(job(rows, teachers=[{"provider": "openai", "model": "gpt-4.1-mini"}], sampling={"max_tokens": 200}))
    (lane,) = found.lanes
    assert found.calls == lane.calls == 1  # the same question a hundred times is sent once
    assert lane.output_tokens.low == 1 and lane.output_tokens.high == 200
    assert 0 < lane.usd.low < lane.usd.high
    assert lane.usd.high == pytest.approx((lane.input_tokens.high * 0.40 + 200 * 1.60) / 1e6, rel=0.01)


def test_a_schema_that_goes_out_with_each_call_is_counted(job: Write, questions: Path) -> None:
    schema = {"type": "object", "description": "d" * 4_000}
    plain = planned(job(questions, pipeline="instruct"))
    with_schema = planned(job(questions, pipeline="instruct", validate={"json_schema": schema}))
    assert with_schema.lanes[0].input_tokens.low > plain.lanes[0].input_tokens.low + 40 * 4_000 / 8


def test_rows_are_spread_by_what_the_lanes_limits_let_through(job: Write, questions: Path) -> None:
    lanes = [
        {"provider": "openai", "model": name, "base_url": "http://127.0.0.1:9/v1", "free": True, "limits": {"rpm": rpm}}
        for name, rpm in (("fast", 300), ("slow", 100))
    ]
    found = planned(job(questions, teachers=lanes))
    assert [lane.calls for lane in found.lanes] == [30, 10]
    assert found.hours is not None and found.hours.high == pytest.approx(0.1 / 60)


def test_two_accounts_of_one_model_are_told_apart(job: Write, questions: Path) -> None:
    account = {"provider": "openai", "model": "m", "base_url": "http://127.0.0.1:9/v1", "free": True}
    found = planned(job(questions, teachers=[account, account, {**account, "model": "n"}]))
    assert [lane.teacher for lane in found.lanes] == ["openai/m (teachers.0)", "openai/m (teachers.1)", "openai/n"]


def test_instructions_that_are_yet_to_be_written_are_counted(job: Write, jsonl: Write) -> None:
    seeds = jsonl([{"id": i, "instruction": f"Do useful thing {i}."} for i in range(12)])
    spec = job(
        seeds, pipeline="instruct", source={"path": str(seeds), "fields": {"input": "instruction"}},
        instruct={"generate": 40, "per_call": 20},
    )  # fmt: skip
    assert planned(spec).calls == 12 + 2 + 40


def test_calls_that_the_whole_budget_does_not_cover_are_named(job: Write, jsonl: Write, key: None) -> None:
    rows = jsonl([{"id": "short", "input": "What?"}, {"id": "long", "input": "What is " + "this and " * 3_000 + "?"}])
    lane = {"provider": "openai", "model": "gpt-4.1-mini"}
    assert planned(job(rows, teachers=[lane], budget={"usd": 0.005})).too_dear == ["long"]
    assert planned(job(rows, teachers=[lane], budget={"usd": 0.05})).too_dear == []
    assert planned(job(rows, teachers=[lane], budget={"calls": 0})).too_dear == ["short", "long"]


@pytest.mark.parametrize(
    ("budget", "line"),
    [
        ({"usd": 0.0}, "budget.usd 0 covers every call at its reservation"),  # free: nothing is reserved
        ({"calls": 39}, "budget.calls 39 will stop the run"),
        ({"calls": 40}, "budget.calls 40 covers every call, if none is repeated"),
        ({"tokens": 100}, "budget.tokens 100 will stop the run"),
        ({"tokens": 9_000}, "budget.tokens 9,000 may stop the run: calls are reserved for at"),
        ({"tokens": 10**6}, "budget.tokens 1,000,000 covers every call at its reservation"),
    ],
)
def test_plan_says_for_each_cap_whether_it_holds_the_job(
    job: Write, questions: Path, budget: dict[str, float], line: str
) -> None:
    spec = load_job(job(questions, budget=budget), [])
    assert line in str(outlook(spec, planned(job(questions, budget=budget))).caption)


def test_a_call_that_writes_instructions_and_fits_no_lane_is_named_before_anything_is_paid(
    job: Write, jsonl: Write
) -> None:
    seeds = jsonl([{"id": i, "instruction": f"Do useful thing {i}. " + "At length. " * 40} for i in range(6)])
    lane = {"provider": "openai", "model": "m", "base_url": "http://127.0.0.1:9/v1", "free": True}
    spec = job(
        seeds, pipeline="instruct", source={"path": str(seeds), "fields": {"id": "id", "input": "instruction"}},
        teachers=[{**lane, "limits": {"tpm": 500}}], instruct={"generate": 4, "per_call": 4},
    )  # fmt: skip
    assert planned(spec).too_large == ["call-000000"]
    with pytest.raises(SpecError, match=r"too large for every lane.*call-000000"):
        run(load_job(spec, []), seeds.parent / "run")
    assert not (seeds.parent / "run").exists()


def test_a_row_that_no_local_teacher_s_context_holds_is_named_and_its_time_is_not_made_up(
    job: Write, jsonl: Write
) -> None:
    rows = jsonl([{"id": i, "input": "One word more. " * (1_000 if i == 2 else 1)} for i in range(4)])
    local = {"provider": "embedded", "model": "smollm2-135m", "free": True}
    api = {"provider": "openai", "model": "m", "base_url": "http://127.0.0.1:9/v1", "free": True, "limits": {"rpm": 60}}
    assert planned(job(rows, teachers=[local])).too_large == ["2"]
    both = job(rows, teachers=[local, api])
    found = planned(both)
    assert not found.too_large and found.lanes[1].calls >= 1
    text = io.StringIO()
    Console(file=text, width=140).print(outlook(load_job(both, []), found))
    assert "min, without embedded/smollm2-135m" in text.getvalue()


def test_plan_prints_a_table_or_json_and_spends_nothing(limbeck: Limbeck, job: Write, questions: Path) -> None:
    spec = job(questions, budget={"usd": 1.0})
    shown = limbeck("plan", spec)
    assert shown.returncode == 0 and "scripted" in shown.stdout and "budget.usd 1 covers" in shown.stdout
    assert json.loads(limbeck("plan", spec, "--json").stdout)["calls"] == 40


def test_an_unknown_price_is_refused_and_a_listed_one_is_not(limbeck: Limbeck, job: Write, questions: Path) -> None:
    unknown = job(questions, teachers=[{"provider": "anthropic", "model": "claude-of-tomorrow"}])
    done = limbeck("plan", unknown, ANTHROPIC_API_KEY="sk-not-a-real-key")
    assert done.returncode == 2 and "price of 'claude-of-tomorrow' is unknown" in done.stderr
    listed = job(questions, teachers=[{"provider": "anthropic", "model": "claude-haiku-4-5"}])
    assert limbeck("plan", listed, ANTHROPIC_API_KEY="sk-not-a-real-key").returncode == 0


def test_hours_at_openai_itself_count_max_tokens_however_short_the_answers(job: Write, jsonl: Write, key: None) -> None:
    rows = jsonl([{"id": i, "input": f"question {i}"} for i in range(1_000)])

    def hours(**lane: Any) -> float:
        teacher = {"provider": "openai", "model": "gpt-4.1-mini", "limits": {"tpm": 100_000}, **lane}
        found = planned(job(rows, teachers=[teacher], sampling={"max_tokens": 600})).hours
        assert found is not None
        return found.low

    assert hours() >= 1_000 * 600 / 100_000 / 60
    elsewhere = {"base_url": "http://127.0.0.1:9/v1", "price": {"input": 0.4, "output": 1.6}}
    assert hours(**elsewhere) < 0.1 * hours()  # a server that counts what is used
