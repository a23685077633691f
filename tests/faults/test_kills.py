"""Real kills of real processes: nothing that was paid for is lost, nothing but calls in flight is paid for twice."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

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


def wait_until(condition: Callable[[], bool], process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def half_way(limbeck: Limbeck, spec: Path, run: Path, teacher: RunningTeacher, calls: int) -> "subprocess.Popen[str]":
    """A run that has had `calls` answers."""
    process = limbeck.start("run", spec, "--out", run)
    wait_until(lambda: teacher.bill()["calls"] >= calls, process)
    return process


def test_kill_9_of_the_process_group_costs_only_the_calls_in_flight(
    limbeck: Limbeck, job: Write, jsonl: Write, tmp_path: Path
) -> None:
    rows = jsonl([{"id": i, "input": f"What is thing {i}?"} for i in range(400)])
    in_flight = 12
    with teacher_server("--latency", "0.1") as teacher:
        spec = job(rows, teachers=[lane(teacher, limits={"concurrency": in_flight})])
        run = tmp_path / "run"
        process = half_way(limbeck, spec, run, teacher, 150)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert manifest(run)["state"] == "running"
        done = limbeck("run", spec, "--out", run)
        assert done.returncode == 0, done.stderr
        bill = teacher.bill()
    said = manifest(run)
    assert said["rows"]["accepted"] == 400 == bill["unique"]
    assert bill["repeated"] <= in_flight
    assert said["calls"]["reused"] >= 150 - in_flight


def test_a_worker_that_is_killed_is_replaced_and_the_run_goes_on(
    limbeck: Limbeck, job: Write, jsonl: Write, tmp_path: Path
) -> None:
    import psutil

    rows = jsonl([{"id": i, "input": f"What is thing {i}?"} for i in range(300)])
    with teacher_server("--latency", "0.1") as teacher:
        spec = job(rows, teachers=[lane(teacher, limits={"concurrency": 12})])
        run = tmp_path / "run"
        process = half_way(limbeck, spec, run, teacher, 60)
        children = psutil.Process(process.pid).children(recursive=True)
        workers = [child for child in children if child.name().startswith("ray::Worker")]
        assert workers
        workers[0].kill()
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        assert teacher.bill()["repeated"] <= 12
    assert manifest(run)["rows"]["accepted"] == 300


def test_a_run_whose_feed_is_killed_says_so_and_goes_on_when_it_is_run_again(
    limbeck: Limbeck, job: Write, jsonl: Write, tmp_path: Path
) -> None:
    import psutil

    rows = jsonl([{"id": i, "input": f"What is thing {i}?"} for i in range(200)])
    with teacher_server("--latency", "0.1") as teacher:
        spec = job(rows, teachers=[lane(teacher, limits={"concurrency": 12})])
        run = tmp_path / "run"
        process = half_way(limbeck, spec, run, teacher, 60)
        children = psutil.Process(process.pid).children(recursive=True)
        next(child for child in children if child.name().startswith("ray::Feed")).kill()
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 1, errors
        assert "hint: run the same command again" in errors and "Traceback" not in errors
        assert manifest(run)["state"] == "failed"
        done = limbeck("run", spec, "--out", run)
        assert done.returncode == 0, done.stderr
        assert teacher.bill()["repeated"] <= 12
    assert manifest(run)["rows"]["accepted"] == 200


def test_ctrl_c_finishes_the_calls_in_flight_and_pays_for_none_twice(
    limbeck: Limbeck, job: Write, jsonl: Write, tmp_path: Path
) -> None:
    rows = jsonl([{"id": i, "input": f"What is thing {i}?"} for i in range(300)])
    with teacher_server("--latency", "0.1") as teacher:
        spec = job(rows, teachers=[lane(teacher, limits={"concurrency": 8})])
        run = tmp_path / "run"
        process = half_way(limbeck, spec, run, teacher, 60)
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 130, errors
        assert manifest(run)["state"] == "interrupted"
        assert limbeck("run", spec, "--out", run).returncode == 0
        assert teacher.bill()["repeated"] == 0
    assert manifest(run)["rows"]["accepted"] == 300


def test_a_stop_between_two_stages_ends_the_run(limbeck: Limbeck, job: Write, jsonl: Write, tmp_path: Path) -> None:
    seeds = jsonl([{"id": f"s{i}", "instruction": f"Do useful thing number {i}."} for i in range(6)])
    with teacher_server("--latency", "1") as teacher:
        spec = job(
            seeds,
            pipeline="instruct",
            source={"path": str(seeds), "fields": {"id": "id", "input": "instruction"}},
            teachers=[lane(teacher)],
            instruct={"generate": 2, "per_call": 2, "examples": 2},
        )
        run = tmp_path / "run"
        process = limbeck.start("run", spec, "--out", run)
        wait_until(lambda: teacher.bill()["first_at"] > 0, process)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 130, errors
        assert teacher.bill()["calls"] == 1  # the one call that writes instructions
        assert limbeck("run", spec, "--out", run).returncode == 0
        assert teacher.bill()["repeated"] == 0
    assert manifest(run)["rows"]["accepted"] == 8


@pytest.mark.parametrize("actor", ["Governor", "Cashier"])
def test_a_governor_or_a_cashier_that_is_killed_comes_back_and_the_run_goes_on(
    limbeck: Limbeck, job: Write, jsonl: Write, tmp_path: Path, actor: str
) -> None:
    import psutil

    rows = jsonl([{"id": i, "input": f"What is thing {i}?"} for i in range(300)])
    with teacher_server("--latency", "0.1", "--price", "1:1") as teacher:
        paid = {**lane(teacher, limits={"concurrency": 12}), "free": False, "price": {"input": 1, "output": 1}}
        run = tmp_path / "run"
        process = half_way(limbeck, job(rows, teachers=[paid], budget={"usd": 1.0}), run, teacher, 60)
        children = psutil.Process(process.pid).children(recursive=True)
        next(child for child in children if child.name().startswith(f"ray::{actor}")).kill()
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        bill = teacher.bill()
    said = manifest(run)
    assert bill["repeated"] == 0 and said["rows"]["accepted"] == 300
    assert said["spend"]["usd"] == bill["usd"]


def test_ctrl_c_while_the_student_is_trained_is_an_interrupt_that_can_be_resumed(
    limbeck: Limbeck, job: Write, jsonl: Write, tmp_path: Path
) -> None:
    rows = jsonl([{"id": i, "input": f"What is thing {i}?"} for i in range(60)])
    spec = job(rows, train={"student": {"scratch": {}}, "epochs": 2_000})
    run = tmp_path / "run"
    process = limbeck.start("run", spec, "--out", run)
    wait_until((run / ".work" / "train-progress.json").exists, process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=90)
    assert process.returncode == 130, errors
    assert "interrupted while the student was trained" in errors
    assert manifest(run)["state"] == "interrupted"
