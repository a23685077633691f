"""Real kills of real processes: nothing that was paid for is lost, nothing but calls in flight is paid for twice."""

import errno
import json
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import ray
from conftest import Finished, Limbeck, wait_until
from runs import KillAt, Write, lane, newest, questions, run_it
from teacher_server import RunningTeacher, teacher_server

from schemas.errors import BudgetExhausted, Interrupted, LaneUnusable, LimbeckError, SpecError
from schemas.manifest import Manifest
from services.journal.lease import Lease
from services.journal.store import Store

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


def state(run: Path) -> str:
    found: str = json.loads((run / "manifest.json").read_text())["state"]
    return found


def half_way(limbeck: Limbeck, spec: Path, run: Path, teacher: RunningTeacher, calls: int) -> "subprocess.Popen[str]":
    """A run in a process group of its own that has had `calls` answers."""
    process = limbeck.start("run", spec, "--out", run)
    wait_until(lambda: teacher.bill()["calls"] >= calls, f"{calls} calls", process)
    return process


@contextmanager
def interrupt_when(condition: Callable[[], bool]) -> Iterator[None]:
    """Ctrl-C in this process as soon as the condition holds, if that is before the end of the block."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.02):
            if condition():
                os.kill(os.getpid(), signal.SIGINT)
                return

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def test_kill_9_of_the_process_group_costs_only_the_calls_in_flight(
    limbeck: Limbeck, job: Write, jsonl: Write, tmp_path: Path
) -> None:
    in_flight = 12
    with teacher_server("--latency", "0.1") as teacher:
        spec = job(questions(jsonl, 400), teachers=[lane(teacher, limits={"concurrency": in_flight})])
        run = tmp_path / "run"
        process = half_way(limbeck, spec, run, teacher, 150)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert state(run) == "running"
        shown = limbeck("status", run).stdout
        assert "no process works on it" in shown and "journal/ may hold more" in shown
        said = run_it(spec, run)
        bill = teacher.bill()
    assert said.rows.accepted == 400 == bill["unique"]
    assert bill["repeated"] <= in_flight
    assert said.calls.reused >= 150 - in_flight


@pytest.mark.parametrize(("number", "repeated"), [(signal.SIGINT, 0), (signal.SIGTERM, 8)], ids=["ctrl-c", "sigterm"])
def test_a_signal_to_the_whole_group_is_an_interrupt_that_can_be_resumed(
    limbeck: Limbeck, job: Write, jsonl: Write, tmp_path: Path, number: signal.Signals, repeated: int
) -> None:
    """Ctrl-C finishes the calls in flight, and none is paid for twice. A SIGTERM, as of `timeout` or a batch system at
    its end, takes Ray's own processes with it, and so at most what was in flight."""
    with teacher_server("--latency", "0.1") as teacher:
        spec = job(questions(jsonl, 300), teachers=[lane(teacher, limits={"concurrency": 8})])
        run = tmp_path / "run"
        process = half_way(limbeck, spec, run, teacher, 60)
        os.killpg(process.pid, number)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 130 and "run the same command again" in errors, errors
        assert state(run) == "interrupted"
        said = run_it(spec, run)
        assert teacher.bill()["repeated"] <= repeated
    assert said.rows.accepted == 300


def test_ctrl_c_while_the_student_is_trained_is_an_interrupt_that_can_be_resumed(
    command: Callable[..., Finished], job: Write, jsonl: Write, tmp_path: Path
) -> None:
    small = {"scratch": {"layers": 1, "hidden": 32, "heads": 2, "vocab": 320}}
    spec = job(questions(jsonl, 60), train={"student": small, "epochs": 2_000, "max_length": 128})
    run = tmp_path / "run"
    with interrupt_when((run / ".work" / "train-progress.json").exists):
        done = command("run", spec, "--out", run, "--workers", 1)
    assert done.returncode == 130, done.stderr
    assert "interrupted while the student was trained" in done.stderr
    assert state(run) == "interrupted"
    said = run_it(spec, run, "train.epochs=8", "train.learning_rate=0.01")
    assert said.calls.answered == 60 and said.state == "finished"
    assert any("train.epochs: was 2000.0, is 8.0" in note for note in said.notes)
    metrics = json.loads((run / "student" / "metrics.json").read_text())
    assert metrics["loss_after"] < metrics["loss_before"]
    assert "data:image/png;base64," in (run / "report.html").read_text()


def test_a_worker_that_is_killed_is_replaced_and_the_run_goes_on(job: Write, jsonl: Write, tmp_path: Path) -> None:
    kill = KillAt("Worker", 60)
    with teacher_server("--latency", "0.1") as teacher:
        paid = {**lane(teacher, limits={"concurrency": 12}), "free": False, "price": {"input": 1, "output": 1}}
        said = run_it(job(questions(jsonl, 300), teachers=[paid]), tmp_path / "run", watch=kill)
        assert kill.killed and teacher.bill()["repeated"] <= said.calls.retried <= 12
    assert said.rows.accepted == 300


def test_a_run_whose_feed_is_killed_says_so_and_goes_on_when_it_is_run_again(
    job: Write, jsonl: Write, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with teacher_server("--latency", "0.1") as teacher:
        spec = job(questions(jsonl, 200), teachers=[lane(teacher, limits={"concurrency": 12})])
        with pytest.raises(LimbeckError) as caught:
            run_it(spec, run, watch=KillAt("Feed", 60))
        assert caught.value.hint.startswith("run the same command again")
        assert state(run) == "failed"
        said = run_it(spec, run)
        assert teacher.bill()["repeated"] <= 12
    assert said.rows.accepted == 200


def test_a_governor_and_a_cashier_that_are_killed_come_back_and_the_run_goes_on(
    job: Write, jsonl: Write, tmp_path: Path
) -> None:
    kills = [KillAt("Governor", 60), KillAt("Cashier", 160)]

    def watch(manifest: Manifest) -> None:
        for kill in kills:
            kill(manifest)

    with teacher_server("--latency", "0.1", "--price", "1:1") as teacher:
        paid = {**lane(teacher, limits={"concurrency": 12}), "free": False, "price": {"input": 1, "output": 1}}
        spec = job(questions(jsonl, 300), teachers=[paid], budget={"usd": 1.0})
        said = run_it(spec, tmp_path / "run", watch=watch)
        bill = teacher.bill()
    assert all(kill.killed for kill in kills) and bill["repeated"] == 0 and said.rows.accepted == 300
    assert said.spend.usd == bill["usd"]


def test_a_worker_whose_disk_fails_lets_the_others_finish_what_they_have_paid_for(
    job: Write, jsonl: Write, tmp_path: Path
) -> None:
    failed: list[psutil.Process] = []

    def watch(manifest: Manifest) -> None:
        if not failed and manifest.calls.answered >= 40:
            failed.append(newest("Worker"))
            failed[0].rlimit(psutil.RLIMIT_FSIZE, (1, 1))  # nothing can be appended any more

    with teacher_server("--latency", "0.5", "--spread", "0.5", "--price", "1:1") as teacher:
        paid = {**lane(teacher, limits={"concurrency": 12}), "free": False, "price": {"input": 1, "output": 1}}
        spec = job(questions(jsonl, 120), teachers=[paid], budget={"usd": 1.0})
        with pytest.raises(LimbeckError, match="journal"):
            run_it(spec, tmp_path / "run", watch=watch)
        bill = teacher.bill()
        told = Manifest.model_validate_json((tmp_path / "run" / "manifest.json").read_text())
        assert told.state == "failed" and told.spend.usd >= bill["usd"]
        said = run_it(spec, tmp_path / "run")
        assert teacher.bill()["repeated"] <= 6  # half of those in flight: the failed worker's
    assert said.rows.accepted == 120


def test_a_manifest_that_cannot_be_written_ends_the_run_after_the_calls_in_flight(
    job: Write, jsonl: Write, tmp_path: Path
) -> None:
    def watch(manifest: Manifest) -> None:
        if manifest.calls.answered >= 40:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with teacher_server("--latency", "0.5", "--spread", "0.5", "--price", "1:1") as teacher:
        paid = {**lane(teacher, limits={"concurrency": 12}), "free": False, "price": {"input": 1, "output": 1}}
        spec = job(questions(jsonl, 120), teachers=[paid], budget={"usd": 1.0})
        with pytest.raises(OSError, match="No space"):
            run_it(spec, tmp_path / "run", watch=watch)
        told = Manifest.model_validate_json((tmp_path / "run" / "manifest.json").read_text())
        assert told.state == "failed" and told.spend.usd == teacher.bill()["usd"]
        assert told.calls.done == told.calls.answered == teacher.bill()["calls"]
        said = run_it(spec, tmp_path / "run")
        assert teacher.bill()["repeated"] == 0
    assert said.rows.accepted == 120


def test_a_stop_between_two_stages_ends_the_run(job: Write, jsonl: Write, tmp_path: Path) -> None:
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
        with pytest.raises(Interrupted):
            run_it(spec, run, workers=1, stopping=lambda: bool(teacher.bill()["first_at"] > 0))
        assert teacher.bill()["calls"] == 1  # the one call that writes instructions
        said = run_it(spec, run, workers=1)
        assert teacher.bill()["repeated"] == 0
    assert said.rows.accepted == 8


def test_with_its_journal_on_an_object_store_a_run_survives_the_loss_of_a_worker_and_of_its_own_folder(
    job: Write, jsonl: Write, tmp_path: Path
) -> None:
    kill, run = KillAt("Worker", 60), tmp_path / "run"
    with teacher_server("--latency", "0.1", "--price", "1:1") as teacher:
        paid = {**lane(teacher, limits={"concurrency": 12}), "free": False, "price": {"input": 1, "output": 1}}
        sections = {"teachers": [paid], "budget": {"usd": 1.0}, "journal": f"file://{tmp_path / 'store'}"}
        spec = job(questions(jsonl, 300), **sections)
        said = run_it(spec, run, watch=kill)
        bill = teacher.bill()
        assert kill.killed and bill["repeated"] <= 12 and said.rows.accepted == 300
        assert said.spend.usd >= bill["usd"]
        assert len(list((tmp_path / "store").glob("*.seg"))) >= 2
        shutil.rmtree(run)
        again = run_it(spec, run)
        assert teacher.bill()["calls"] == bill["calls"]
    assert again.calls.reused == 300 and again.dataset.sha256 == said.dataset.sha256


def test_what_a_killed_driver_left_on_other_machines_is_counted_before_a_cent_is_spent(
    limbeck: Limbeck, job: Write, jsonl: Write, tmp_path: Path
) -> None:
    """The driver's machine and those of the cluster have caches of their own, where unsealed logs are."""
    limbeck.environment["XDG_CACHE_HOME"] = str(tmp_path / "cache-of-the-driver")
    address = ray.get_runtime_context().gcs_address
    with teacher_server("--latency", "0.1", "--price", "0:100000") as teacher:
        paid = {**lane(teacher), "free": False, "price": {"input": 0, "output": 100_000}}
        budget = {"budget": {"usd": 400.0}, "sampling": {"max_tokens": 16}}
        spec = job(questions(jsonl, 2000), teachers=[paid], journal=f"file://{tmp_path / 'store'}", **budget)
        run = tmp_path / "run"
        process = limbeck.start("run", spec, "--out", run, "--address", address)
        wait_until(lambda: teacher.bill()["calls"] >= 100, "100 calls", process)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        before = teacher.bill()["usd"]
        again = limbeck("run", spec, "--out", run, "--address", address, XDG_CACHE_HOME=str(tmp_path / "another"))
        bill = teacher.bill()
    assert again.returncode == 3, again.stderr
    assert before < bill["usd"] <= 400.0
    told = Manifest.model_validate_json((run / "manifest.json").read_bytes())
    assert told.spend.usd >= bill["usd"]


def test_a_run_of_another_machine_on_the_same_journal_is_refused_before_it_asks(
    limbeck: Limbeck, job: Write, jsonl: Write, tmp_path: Path
) -> None:
    with teacher_server("--latency", "0.2") as teacher:
        few = lane(teacher, limits={"concurrency": 4})
        spec = job(questions(jsonl, 2000), teachers=[few], journal=f"file://{tmp_path / 'store'}")
        limbeck.environment["XDG_CACHE_HOME"] = str(tmp_path / "cache-of-one")
        first = half_way(limbeck, spec, tmp_path / "one", teacher, 20)
        other = limbeck("run", spec, "--out", tmp_path / "other", XDG_CACHE_HOME=str(tmp_path / "cache-of-the-other"))
        os.killpg(first.pid, signal.SIGINT)
        _, errors = first.communicate(timeout=60)
        assert first.returncode == 130, errors
        assert other.returncode == 2 and "is being written by the run test on " in other.stderr
        assert not list((tmp_path / "store").glob("*.run"))
        lease = Lease(Store(f"file://{tmp_path / 'store'}"), "another", "another", beat_s=0.2)
        lease.take()
        with pytest.raises(
            SpecError, match="is being written by the run another"
        ):  # of a run that has asked before, too
            run_it(spec, tmp_path / "one")
        lease.give_back()
        assert teacher.bill()["repeated"] == 0


def test_a_run_whose_journal_another_has_taken_over_stops_and_keeps_what_it_paid_for(
    job: Write, jsonl: Write, tmp_path: Path
) -> None:
    def watch(now: Manifest) -> None:  # as whoever takes over removes it, since it did not change for long
        if now.calls.answered >= 30:
            for lease in (tmp_path / "store").glob("*.run"):
                lease.unlink()

    with teacher_server("--latency", "0.1") as teacher:
        few = lane(teacher, limits={"concurrency": 4})
        spec = job(questions(jsonl, 2000), teachers=[few], journal=f"file://{tmp_path / 'store'}")
        with pytest.raises(LimbeckError, match="another run has taken over the journal"):
            run_it(spec, tmp_path / "run", watch=watch)
        bill = teacher.bill()
    said = Manifest.model_validate_json((tmp_path / "run" / "manifest.json").read_bytes())
    assert said.state == "failed" and "taken over" in said.error
    assert said.calls.answered == bill["calls"] < 2000


def test_a_store_that_is_gone_in_mid_run_costs_nothing_once_it_is_back(
    limbeck: Limbeck, job: Write, jsonl: Write, tmp_path: Path
) -> None:
    store, run = tmp_path / "store", tmp_path / "run"

    def watch(now: Manifest) -> None:
        if now.calls.answered >= 30 and store.is_dir():
            store.rename(tmp_path / "away")
            store.touch()

    with teacher_server("--latency", "0.1") as teacher:
        few = lane(teacher, limits={"concurrency": 4})
        spec = job(questions(jsonl, 800), teachers=[few], journal=f"file://{store}")
        with pytest.raises(LimbeckError, match="journal file://"):
            run_it(spec, run, watch=watch)
        assert state(run) == "failed" and "journal/ may hold more" in limbeck("status", run).stdout
        store.unlink()
        (tmp_path / "away").rename(store)
        said = run_it(spec, run)
        assert said.rows.accepted == 800 and teacher.bill()["repeated"] == 0


def test_a_key_that_the_clusters_nodes_do_not_have_is_named(
    job: Write, jsonl: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEY_OF_THE_DRIVER_ALONE", "sk-driver")  # the tests' cluster was started without it
    monkeypatch.setattr("services.cluster.CONNECTED", {})  # one of Limbeck's own would be started anew
    with teacher_server() as teacher:
        spec = job(questions(jsonl, 20), teachers=[lane(teacher, api_key="env:KEY_OF_THE_DRIVER_ALONE")])
        with pytest.raises(SpecError, match="api_key env:KEY_OF_THE_DRIVER_ALONE: the variable is not set") as said:
            run_it(spec, tmp_path / "run")
    assert "every node" in said.value.hint


def test_a_run_goes_on_with_a_second_account_and_another_model(job: Write, jsonl: Write, tmp_path: Path) -> None:
    rows, run = questions(jsonl, 60), tmp_path / "run"
    with teacher_server() as first, teacher_server() as second:
        spec = job(rows, teachers=[lane(first)], budget={"calls": 20})
        with pytest.raises(BudgetExhausted):
            run_it(spec, run, workers=1)
        more = [lane(second, model="n"), lane(second), lane(first)]
        said = run_it(job(rows, teachers=more), run, workers=1)
        assert first.bill()["calls"] + second.bill()["calls"] == 60
        with pytest.raises(SpecError, match="teachers: was"):  # its first model has answered
            run_it(job(rows, teachers=[lane(second, model="n")]), run, workers=1)
    assert said.calls.reused == 20 and said.rows.accepted == 60


def test_a_model_that_never_answered_may_be_dropped_again(job: Write, jsonl: Write, tmp_path: Path) -> None:
    rows, run = questions(jsonl, 30), tmp_path / "run"
    with teacher_server() as good, teacher_server("--status", "401") as closed:
        with pytest.raises(LaneUnusable):
            run_it(job(rows, teachers=[lane(closed, model="n")]), run, workers=1)
        assert run_it(job(rows, teachers=[lane(good)]), run, workers=1).rows.accepted == 30
