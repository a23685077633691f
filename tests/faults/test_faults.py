"""Everything that can go wrong on the wire, all together: no row is lost, none is paid twice without need, and the
books agree with the teacher's bill."""

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from teacher_server import RunningTeacher, free_port, teacher_server

import limbeck
from schemas.errors import BudgetExhausted, LaneUnusable
from schemas.job import JobSpec, Publish
from schemas.lane import Limits
from schemas.manifest import Manifest
from services.teachers.credentials import credential_id

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]
PRICE = {"input": 0.40, "output": 1.60}
SERVER = ("--price", "0.40:1.60", "--latency", "0.02", "--hang", "60", "--words", "4:40")
FAULTS = ("429", "500", "503", "529", "400", "slow_down", "reset", "truncated", "hang", "html", "malformed", "refusal",
         "blank")  # fmt: skip


def spec(folder: Path, teacher: RunningTeacher, rows: int, provider: str = "openai", **sections: Any) -> JobSpec:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps({"id": i, "input": f"What is thing number {i}?"}) + "\n" for i in range(rows)))
    lane = {
        "provider": provider, "model": "m", "price": PRICE, "timeout_s": 1,
        "base_url": teacher.root if provider == "anthropic" else teacher.base_url,
    }  # fmt: skip
    whole = {
        "name": "faults", "pipeline": "cot", "source": {"path": str(path)}, "teachers": [lane],
        "sampling": {"max_tokens": 64}, "budget": {"usd": 100}, **sections,
    }  # fmt: skip
    return JobSpec.model_validate(whole)


def test_all_faults_together_on_two_lanes_of_two_dialects(tmp_path: Path) -> None:
    mixed = ",".join(f"{fault}:0.03" for fault in FAULTS)
    with teacher_server(*SERVER, "--faults", mixed) as one, teacher_server(*SERVER, "--faults", mixed) as two:
        job = spec(tmp_path, one, 400)
        both = [job.teachers[0], spec(tmp_path, two, 400, "anthropic").teachers[0]]
        paced = [lane.model_copy(update={"limits": Limits(rpm=2400)}) for lane in both]  # so that neither does it all
        manifest = limbeck.run(job.model_copy(update={"teachers": paced}), tmp_path / "run")
        bills = [one.bill(), two.bill()]
    assert manifest.rows.accepted + sum(manifest.rows.rejected.values()) == 400
    ends = {"bad_request", "malformed_answer", "refused", "unparsable", "in_doubt", "timeout"}
    assert set(manifest.rows.rejected) <= ends
    assert manifest.rows.rejected["refused"] and manifest.rows.rejected["malformed_answer"]
    assert manifest.calls.retried > 40
    for bill in bills:
        assert bill["calls"] > 10 and bill["repeated_unexplained"] == 0
    # To the micro-dollar for answers that say what they used; those that do not are booked at their most.
    told = round((manifest.spend.usd - manifest.spend.in_doubt_usd) * 1e6)
    assert abs(told - sum(bill["answered_micro_usd"] for bill in bills)) <= len(bills)
    assert manifest.spend.usd >= sum(bill["usd"] for bill in bills) - 1e-9


def test_calls_that_fail_every_time_lose_their_rows_and_are_not_asked_again(tmp_path: Path) -> None:
    poison = ("--poison", "400:0.1,hang:0.02")
    with teacher_server("--price", "0.40:1.60", "--hang", "60", "--words", "4:40", *poison) as teacher:
        job, out = spec(tmp_path, teacher, 400), tmp_path / "run"
        first = limbeck.run(job, out)
        lost, asked = first.rows.rejected, teacher.bill()["calls"]
        assert first.state == "finished" and {"bad_request", "timeout"} <= set(lost)
        assert any("--retry-failed asks all of them" in line for line in first.warnings)
        messages = job.model_copy(update={"publish": Publish(format=["parquet", "messages"])})
        published = limbeck.run(messages, out)
        assert (published.rows, published.dataset.sha256) == (first.rows, first.dataset.sha256)
        most = 3 * first.calls.open  # those after which nothing was sent: nobody can tell
        assert first.calls.open < 10 and published.calls.sent <= first.calls.sent + most
        again = limbeck.run(messages, out, retry_failed=True)
        assert again.rows == first.rows
        sent = lost["bad_request"] + 3 * lost["timeout"]
        assert again.calls.sent == published.calls.sent + sent and teacher.bill()["calls"] == asked


@pytest.mark.parametrize("instead", [None, "500", "400"], ids=["gone", "broken", "misled"])
def test_a_teacher_that_is_down_for_a_while_costs_no_row(instead: str | None, tmp_path: Path) -> None:
    port = ("--port", str(free_port()))
    with ExitStack() as server:
        job = spec(tmp_path, server.enter_context(teacher_server(*port, "--latency", "0.1")), 600)

        def watch(manifest: Manifest) -> None:
            if manifest.calls.answered >= 100 and len(down) == 0:
                server.close()
                down.append(server.enter_context(teacher_server(*port, "--status", instead)) if instead else None)

        down: list[object] = []
        with pytest.raises(LaneUnusable):
            limbeck.run(job, tmp_path / "run", watch=watch)
    with teacher_server(*port) as teacher:
        manifest = limbeck.run(job, tmp_path / "run")
        asked = teacher.bill()
    assert (manifest.rows.accepted, manifest.rows.rejected) == (600, {})
    assert asked["calls"] <= 500 and asked["repeated"] == 0


def test_what_a_broken_teacher_fails_another_one_answers(tmp_path: Path) -> None:
    with teacher_server("--status", "500") as broken, teacher_server("--latency", "0.2") as sound:
        job = spec(tmp_path, sound, 120)
        lanes = [spec(tmp_path, broken, 120).teachers[0].model_copy(update={"model": "broken"}), job.teachers[0]]
        limited = [lane.model_copy(update={"limits": Limits(concurrency=8)}) for lane in lanes]
        manifest = limbeck.run(job.model_copy(update={"teachers": limited}), tmp_path / "run")
    assert (manifest.rows.accepted, manifest.rows.rejected) == (120, {})
    calls = manifest.calls
    assert (calls.retried, calls.failed, calls.done) == (calls.sent - 120, 0, 120)


def test_rows_that_fail_side_by_side_and_last_keep_no_run_from_its_end(tmp_path: Path) -> None:
    with teacher_server() as teacher:
        job = spec(tmp_path, teacher, 60)
        lane = job.teachers[0].model_copy(update={"limits": Limits(concurrency=8)})
        job = job.model_copy(update={"teachers": [lane]})
        whole = Path(job.source.path).read_text()
        Path(job.source.path).write_text("".join(whole.splitlines(keepends=True)[:40]))
        limbeck.run(job, tmp_path / "run")
    Path(job.source.path).write_text(whole)  # twenty rows more, none of which is ever answered
    with teacher_server("--status", "500") as broken:
        job = job.model_copy(update={"teachers": [lane.model_copy(update={"base_url": broken.base_url})]})
        first = limbeck.run(job, tmp_path / "run")
        assert (first.state, first.rows.rejected, first.calls.open) == ("finished", {"transient": 20}, 20)
        assert any("the same command asks 20 of them again" in line for line in first.warnings)
    with teacher_server() as teacher:
        job = job.model_copy(update={"teachers": [lane.model_copy(update={"base_url": teacher.base_url})]})
        assert limbeck.run(job, tmp_path / "run").rows.accepted == 60


def test_no_quota_left_stops_the_lane_and_the_run_goes_on_when_there_is(tmp_path: Path) -> None:
    with teacher_server(*SERVER, "--faults", "quota:0.02") as teacher:
        job = spec(tmp_path, teacher, 400)
        with pytest.raises(LaneUnusable, match="out_of_money"):
            limbeck.run(job, tmp_path / "run")
        before = teacher.bill()["calls"]
        assert before < 400
    with teacher_server(*SERVER) as teacher:
        topped_up = job.model_copy(
            update={"teachers": [job.teachers[0].model_copy(update={"base_url": teacher.base_url})]}
        )
        manifest = limbeck.run(topped_up, tmp_path / "run")
        assert manifest.rows.accepted + manifest.rows.rejected.get("unparsable", 0) == 400
        assert teacher.bill()["calls"] == 400 - before


def test_when_one_account_is_out_of_money_the_other_takes_over(tmp_path: Path) -> None:
    with teacher_server(*SERVER, "--faults", "quota:0.05") as poor, teacher_server(*SERVER) as rich:
        job = spec(tmp_path, poor, 300)
        second = job.teachers[0].model_copy(update={"base_url": rich.base_url, "model": "other"})
        manifest = limbeck.run(job.model_copy(update={"teachers": [job.teachers[0], second]}), tmp_path / "run")
        assert manifest.rows.accepted + manifest.rows.rejected.get("unparsable", 0) == 300
        assert poor.bill()["calls"] + rich.bill()["calls"] == 300


def test_a_budget_is_never_passed_by_eight_workers_racing_with_unequal_answers(tmp_path: Path) -> None:
    with teacher_server(*SERVER, "--price", "200:800") as teacher:
        job = spec(tmp_path, teacher, 400, budget={"usd": 1.0})
        priced = job.teachers[0].model_dump() | {"price": {"input": 200, "output": 800}}
        job = JobSpec.model_validate(job.model_dump(by_alias=True) | {"teachers": [priced]})
        with pytest.raises(BudgetExhausted):
            limbeck.run(job, tmp_path / "run", workers=8)
        bill = teacher.bill()
    assert 0.85 <= bill["usd"] <= 1.0
    said = Manifest.model_validate_json((tmp_path / "run" / "manifest.json").read_bytes())
    assert said.state == "exhausted" and said.spend.usd == bill["usd"]


@pytest.mark.parametrize(
    ("odd", "told"),
    [(("--hidden", "20000"), "more input tokens"), (("--thoughts", "300:3000"), "more output tokens")],
    ids=["hidden input", "thoughts beyond max_tokens"],
)
def test_a_budget_holds_where_a_server_counts_more_than_can_be_foreseen(
    tmp_path: Path, odd: tuple[str, str], told: str
) -> None:
    """Texts of unequal length, for what a long one hides must not be what is reserved for a short one."""
    with teacher_server(*SERVER, "--price", "1:10", "--latency", "0.2", *odd) as teacher:
        job = spec(tmp_path, teacher, 900, budget={"usd": 1.0})
        priced = job.teachers[0].model_dump() | {"price": {"input": 1, "output": 10}, "timeout_s": 30}
        job = JobSpec.model_validate(job.model_dump(by_alias=True) | {"teachers": [priced]})
        rows = [{"id": i, "input": f"What is {'very ' * (i % 7 * 60)}odd number {i}?"} for i in range(900)]
        Path(job.source.path).write_text("".join(json.dumps(row) + "\n" for row in rows))
        with pytest.raises(BudgetExhausted):
            limbeck.run(job, tmp_path / "run", workers=2)
        assert 0.8 <= teacher.bill()["usd"] <= 1.0
        with pytest.raises(BudgetExhausted):
            limbeck.run(job, tmp_path / "run", workers=2)  # the next start knows what this one learned
        bill = teacher.bill()
    assert bill["usd"] <= 1.0
    said = Manifest.model_validate_json((tmp_path / "run" / "manifest.json").read_bytes())
    assert said.spend.usd == bill["usd"]
    assert any(told in warning for warning in said.warnings)


def test_a_budget_ends_a_run_of_more_workers_than_calls_may_be_in_flight(tmp_path: Path) -> None:
    with teacher_server("--price", "1:10", "--no-headers", "--concurrency", "1", "--latency", "0.1") as teacher:
        job = spec(tmp_path, teacher, 200, budget={"usd": 0.005})
        priced = job.teachers[0].model_dump() | {"price": {"input": 1, "output": 10}}
        job = JobSpec.model_validate(job.model_dump(by_alias=True) | {"teachers": [priced]})
        with pytest.raises(BudgetExhausted):
            limbeck.run(job, tmp_path / "run", workers=3)
        assert 0.003 <= teacher.bill()["usd"] <= 0.005


@pytest.mark.parametrize(("cap", "most"), [({"calls": 25}, 25), ({"tokens": 4_000}, 100)])
def test_calls_and_tokens_can_be_capped_too(tmp_path: Path, cap: dict[str, int], most: int) -> None:
    with teacher_server(*SERVER) as teacher:
        with pytest.raises(BudgetExhausted):
            limbeck.run(spec(tmp_path, teacher, 200, budget=cap), tmp_path / "run", workers=2)
        bill = teacher.bill()
    assert 0 < bill["calls"] <= most
    if "tokens" in cap:
        assert bill["input_tokens"] + bill["output_tokens"] <= cap["tokens"]


def test_calls_that_fit_no_lane_that_is_left_end_the_run_instead_of_waiting_for_ever(tmp_path: Path) -> None:
    with teacher_server("--status", "401") as closed, teacher_server(*SERVER) as teacher:
        job = spec(tmp_path, closed, 20)
        small = {"base_url": teacher.base_url, "model": "small", "limits": Limits(tpm=50)}
        two = [job.teachers[0], job.teachers[0].model_copy(update=small)]
        with pytest.raises(LaneUnusable, match="auth"):
            limbeck.run(job.model_copy(update={"teachers": two}), tmp_path / "run", workers=1)
        assert teacher.bill()["calls"] == 0


@pytest.mark.parametrize("asks", [None, "3600"], ids=["slow", "paused"])
def test_a_lane_that_has_nothing_to_do_takes_what_waits_for_a_slower_one(asks: str | None, tmp_path: Path) -> None:
    """At six calls a minute, or in an hour's pause, the calls that wait for the slow lane would take minutes."""
    refuses = ("--faults", "429:1", "--retry-after", asks) if asks else ("--rpm", "6")
    with teacher_server(*refuses) as slow, teacher_server("--latency", "0.1") as fast:
        job = spec(tmp_path, fast, 200, budget=None)
        one = {"base_url": slow.base_url, "model": "slow", "limits": Limits() if asks else Limits(rpm=6)}
        lanes = [
            job.teachers[0].model_copy(update=one),
            job.teachers[0].model_copy(update={"limits": Limits(rpm=1200)}),
        ]
        pauses: list[str] = []
        manifest = limbeck.run(
            job.model_copy(update={"teachers": lanes}), tmp_path / "run", watch=lambda m: pauses.extend(m.pauses)
        )
        bills = [slow.bill(), fast.bill()]
    assert (manifest.rows.accepted, manifest.rows.rejected) == (200, {})
    assert manifest.seconds["answers"] < 60
    assert sum(bill["calls"] for bill in bills) == 200 and bills[1]["calls"] > 180
    assert set(pauses) == ({"openai/slow"} if asks else set())


def test_a_limit_is_used_from_the_first_second_though_answers_take_long(tmp_path: Path) -> None:
    with teacher_server("--latency", "4", "--rpm", "6000", "--price", "0.40:1.60") as teacher:
        job = spec(tmp_path, teacher, 360)
        patient = job.teachers[0].model_copy(update={"limits": Limits(rpm=6000), "timeout_s": 30.0})
        limbeck.run(job.model_copy(update={"teachers": [patient]}), tmp_path / "run", workers=1)
        bill = teacher.bill()
    assert bill["peak_in_flight"] > 220  # 360 at the most; aiohttp's own pools would have let 200 out
    assert bill["refused_total"] <= 5


def test_a_governor_that_has_left_is_found_anew(tmp_path: Path) -> None:
    import ray

    with teacher_server(*SERVER, "--latency", "0.2") as teacher:
        job = spec(tmp_path, teacher, 300)
        # One second is too short for a busy machine: what is given up is asked again.
        patient = job.teachers[0].model_copy(update={"timeout_s": 30.0})
        job = job.model_copy(update={"teachers": [patient]})
        name = f"governor-{credential_id(job.teachers[0], None)}"
        left: list[bool] = []

        def watch(manifest: Manifest) -> None:
            if manifest.calls.answered > 30 and not left:
                left.append(True)
                ray.kill(ray.get_actor(name, namespace="limbeck"), no_restart=True)

        manifest = limbeck.run(job, tmp_path / "run", watch=watch)
        assert left and teacher.bill()["repeated"] == 0
    assert manifest.rows.accepted + manifest.rows.rejected.get("unparsable", 0) == 300
