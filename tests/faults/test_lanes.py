"""Several lanes of which one fails, is slow, or loses an actor: the others take over, and every call counts once."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from runs import KillAt, Write, lane, questions, run_it
from teacher_server import teacher_server

from schemas.errors import BudgetExhausted, LaneUnusable
from schemas.manifest import Manifest

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]
PRICE = {"free": False, "price": {"input": 1, "output": 1}}
EMBEDDED = {"provider": "embedded", "model": "smollm2-135m", "free": True}


def answers(job: Write, rows: Path, tokens: int, **sections: Any) -> Path:
    """A job whose answers may say anything."""
    fields = {"id": "id", "input": "input"}
    source = {"path": str(rows), "fields": fields}
    return job(rows, pipeline="instruct", source=source, sampling={"max_tokens": tokens}, **sections)


def test_a_teacher_that_nobody_serves_is_told_and_what_never_left_is_no_repeat(
    job: Write, jsonl: Write, tmp_path: Path
) -> None:
    with teacher_server("--rpm", "600") as teacher:
        gone = {**lane(teacher), "model": "gone", "base_url": "http://127.0.0.1:9/v1"}
        said = run_it(job(questions(jsonl, 200), teachers=[gone, lane(teacher)]), tmp_path / "run")
        bill = teacher.bill()
    assert said.rows.accepted == 200 == bill["calls"]
    assert said.calls.retried == said.calls.sent - 200 == bill["refused_total"]
    assert said.absent.keys() == {"openai/gone"} and "unreachable" in said.absent["openai/gone"]
    assert [
        line
        for line in said.warnings
        if line.startswith("openai/gone did not see the run through: closed, unreachable")
    ]


def test_a_slow_lane_with_a_budget_that_nobody_serves_is_given_up(job: Write, jsonl: Write, tmp_path: Path) -> None:
    """One worker held the only request and no money, the other the money and no request, for ever."""
    gone = {"provider": "openai", "model": "gone", "base_url": "http://127.0.0.1:9/v1", "limits": {"rpm": 120}, **PRICE}
    spec = job(questions(jsonl, 60), teachers=[gone], budget={"usd": 1}, sampling={"max_tokens": 16})
    with pytest.raises(LaneUnusable, match="unreachable"):
        run_it(spec, tmp_path / "run", workers=2)


def test_a_row_that_the_only_lane_left_refuses_is_rejected_and_a_closed_lane_does_not_keep_the_run_from_its_end(
    job: Write, jsonl: Write, tmp_path: Path
) -> None:
    with teacher_server("--status", "401") as dead, teacher_server("--poison", "400:0.3") as choosy:
        lanes = [{**lane(dead), "model": "dead"}, lane(choosy)]
        said = run_it(job(questions(jsonl, 60), teachers=lanes), tmp_path / "run")
        bill = choosy.bill()
    refused = said.rows.rejected["bad_request"]
    assert said.rows.accepted + refused == 60 and said.rows.accepted == bill["calls"] and 5 < refused < 35
    assert said.absent.keys() == {"openai/dead"}


def test_a_lane_that_answers_with_pages_leaves_its_rows_to_the_others(job: Write, jsonl: Write, tmp_path: Path) -> None:
    with teacher_server("--faults", "html:1") as portal, teacher_server("--latency", "0.2") as slow:
        lanes = [{**lane(teacher), **PRICE, "limits": {"concurrency": 20}} for teacher in (portal, slow)]
        lanes[0]["model"] = "portal"
        spec = job(questions(jsonl, 300), teachers=lanes, budget={"usd": 1})
        said = run_it(spec, tmp_path / "run")
        assert (said.rows.accepted, slow.bill()["calls"]) == (300, 300)
        assert "malformed_answer" in said.absent["openai/portal"]
        # It has answered nothing, so a spec may leave it out.
        assert run_it(job(questions(jsonl, 300), teachers=lanes[1:], budget={"usd": 1}), tmp_path / "run").rows.accepted


def test_a_time_limit_below_what_a_teacher_takes_is_named(job: Write, jsonl: Write, tmp_path: Path) -> None:
    with teacher_server("--latency", "3") as slow, pytest.raises(LaneUnusable, match="timeout_s") as told:
        run_it(job(questions(jsonl, 40), teachers=[lane(slow, timeout_s=0.2)]), tmp_path / "run")
    assert "raise timeout_s" in told.value.hint


def test_once_the_address_is_right_the_rows_of_a_page_are_asked_for(job: Write, jsonl: Write, tmp_path: Path) -> None:
    rows, run = questions(jsonl, 60), tmp_path / "run"
    with teacher_server("--faults", "html:1") as portal, pytest.raises(LaneUnusable, match="malformed_answer") as told:
        run_it(job(rows, teachers=[lane(portal)]), run)
    assert "base_url" in told.value.hint
    said = pq.read_table(run / "rejected").to_pylist()
    assert said and all("<html>" in row["raw"] and row["reason"] == "malformed_answer" for row in said)
    with teacher_server() as sound:
        assert run_it(job(rows, teachers=[lane(sound)]), run).rows.accepted == 60 == sound.bill()["calls"]


def test_a_killed_worker_s_bad_requests_are_judged_by_the_next(job: Write, jsonl: Write, tmp_path: Path) -> None:
    kill = KillAt("Worker", 60)
    with teacher_server("--rpm", "1200", "--poison", "400:0.3") as choosy:
        said = run_it(job(questions(jsonl, 200), teachers=[lane(choosy)]), tmp_path / "run", watch=kill)
    assert kill.killed and said.rows.accepted + said.rows.rejected["bad_request"] == 200
    assert said.calls.done == 200


def test_a_local_teacher_that_does_not_load_leaves_the_work_to_the_others(
    job: Write, jsonl: Write, tmp_path: Path
) -> None:
    pytest.importorskip("xllamacpp")
    (tmp_path / "junk.gguf").write_bytes(b"GGUF" + bytes(64))
    junk = {"provider": "embedded", "model": str(tmp_path / "junk.gguf"), "free": True}
    with teacher_server() as teacher:
        said = run_it(answers(job, questions(jsonl, 10), 8, teachers=[junk, lane(teacher)]), tmp_path / "run")
    assert said.rows.accepted == 10 and "cannot load junk.gguf" in said.absent["embedded/junk"]


def test_a_row_that_is_too_large_for_one_teacher_is_answered_by_another(
    job: Write, jsonl: Write, tmp_path: Path
) -> None:
    pytest.importorskip("xllamacpp")
    # Digits are a token each, twice what is estimated: only the teacher itself can say that its context is too small.
    long = " ".join(str(n) for n in range(1000, 1900))
    rows = [{"id": i, "input": f"Say {i}." + (long if i % 10 == 0 else "")} for i in range(40)]
    with teacher_server("--latency", "1") as teacher:
        api = lane(teacher, limits={"concurrency": 2})
        said = run_it(answers(job, jsonl(rows), 8, teachers=[EMBEDDED, api]), tmp_path / "run")
    assert said.rows.accepted == 40 and not said.rows.rejected
    assert said.calls.answered == 40 == said.calls.sent - said.calls.retried and said.calls.failed == 0


def test_a_local_teacher_that_is_killed_leaves_its_calls_to_the_others(
    job: Write, jsonl: Write, tmp_path: Path
) -> None:
    pytest.importorskip("xllamacpp")
    kill = KillAt("LlamaServer", 30)
    with teacher_server("--price", "1:1", "--rpm", "240") as teacher:
        api = {**lane(teacher, limits={"rpm": 240}), **PRICE}
        spec = answers(job, questions(jsonl, 120), 16, teachers=[EMBEDDED, api], budget={"usd": 1})
        said = run_it(spec, tmp_path / "run", watch=kill)
        bill = teacher.bill()
    assert kill.killed and said.rows.accepted == 120 == said.calls.answered
    assert bill["repeated"] == 0 and said.spend.usd == bill["usd"]
    # The eight that the killed one had in hand, and as many again that its port still took while the process went.
    assert said.calls.retried == said.calls.sent - 120 <= 16
    assert said.absent.keys() == {"embedded/smollm2-135m"}


def test_more_local_teachers_than_cores_share_them(job: Write, jsonl: Write, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    spec = answers(job, questions(jsonl, 9), 4, teachers=[EMBEDDED] * 3)
    assert run_it(spec, tmp_path / "run").rows.accepted == 9


def test_limits_of_a_teacher_inside_limbeck_hold_too(job: Write, jsonl: Write, tmp_path: Path) -> None:
    scripted = {"provider": "scripted", "model": "s", "free": True, "limits": {"rpm": 120}}
    said = run_it(job(questions(jsonl, 20), teachers=[scripted]), tmp_path / "run")
    assert said.rows.accepted == 20 and said.calls.per_second < 3


@pytest.mark.parametrize("actor", ["Cashier", "Governor", "Worker"])
def test_where_calls_move_from_a_slow_lane_to_a_fast_one_a_killed_actor_costs_no_more_than_those_in_flight(
    job: Write, jsonl: Write, tmp_path: Path, actor: str
) -> None:
    kill, limits = KillAt(actor, 280), {"rpm": 6}
    with (
        teacher_server("--price", "1:1", "--rpm", "6") as slow,
        teacher_server("--price", "1:1", "--rpm", "1200") as fast,
    ):
        lanes = [
            {**lane(slow, limits=limits), **PRICE, "model": "slow"},
            {**lane(fast, limits={"rpm": 1200}), **PRICE, "model": "fast"},
        ]
        said = run_it(job(questions(jsonl, 300), teachers=lanes, budget={"usd": 1}), tmp_path / "run", watch=kill)
        bills = [slow.bill(), fast.bill()]
    billed = sum(bill["micro_usd"] for bill in bills)
    assert kill.killed and said.rows.accepted == 300
    assert sum(bill["calls"] for bill in bills) - 300 <= (6 if actor == "Worker" else 0)
    assert round(said.spend.usd * 1e6) == billed if actor != "Worker" else round(said.spend.usd * 1e6) >= billed


def test_failures_of_a_run_that_its_budget_ends_are_counted(job: Write, jsonl: Write, tmp_path: Path) -> None:
    with teacher_server("--poison", "400:0.3") as teacher:
        spec = job(questions(jsonl, 200), teachers=[lane(teacher)], budget={"calls": 60})
        with pytest.raises(BudgetExhausted):
            run_it(spec, tmp_path / "run")
    said = Manifest.model_validate_json((tmp_path / "run" / "manifest.json").read_bytes())
    assert said.calls.failed == sum(said.rows.rejected.values()) > 0
    assert said.calls.failed + said.calls.answered == 60 == said.calls.sent


def test_the_cap_that_a_run_has_reached_is_named(job: Write, jsonl: Write, tmp_path: Path) -> None:
    with teacher_server("--price", "1:1") as teacher, teacher_server("--status", "401") as dead:
        budget = {"usd": 1, "calls": 10}
        # Slow enough that the dead one is asked before the cap is reached, and once alone.
        lanes = [
            {**lane(teacher, limits={"rpm": 60}), **PRICE},
            {**lane(dead, limits={"concurrency": 1}), "model": "dead"},
        ]
        spec = job(questions(jsonl, 30), teachers=lanes, budget=budget)
        with pytest.raises(BudgetExhausted) as caught:
            run_it(spec, tmp_path / "run")
        assert teacher.bill()["calls"] + dead.bill()["refused_total"] == 10
    assert caught.value.hint.startswith("raise budget.calls and run")
    said = Manifest.model_validate_json((tmp_path / "run" / "manifest.json").read_text())
    assert said.state == "exhausted" and said.calls.sent == 10
    assert [
        line for line in said.warnings if line.startswith("openai/dead did not see the run through: closed, auth")
    ]  # of that, too
