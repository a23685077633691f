"""Whole runs of the command against a real server on loopback."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from conftest import ROOT, Finished
from teacher_server import RunningTeacher, teacher_server

import limbeck as api
from limbeck.spec_file import load_job
from schemas.manifest import Manifest

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]
Write = Callable[..., Path]
Command = Callable[..., Finished]


def manifest(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "manifest.json").read_text())
    return found


def table(run: Path, folder: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(run / folder).to_pylist()
    return rows


def lane(teacher: RunningTeacher, **options: Any) -> dict[str, Any]:
    return {"provider": "openai", "model": "m", "base_url": teacher.base_url, "free": True, **options}


def instruct_job(job: Write, jsonl: Write, teacher: RunningTeacher, **instruct: int) -> Path:
    """Twelve instructions to answer, and more to write from two examples each."""
    seeds = jsonl([{"id": f"s{i}", "instruction": f"Do useful thing number {i}."} for i in range(12)])
    source = {"path": str(seeds), "fields": {"id": "id", "input": "instruction"}}
    asked = {"examples": 2, **instruct}
    return job(seeds, pipeline="instruct", source=source, teachers=[lane(teacher)], instruct=asked)


def test_a_cot_run_publishes_every_row_once_and_says_what_it_did(
    command: Command, job: Write, jsonl: Write, tmp_path: Path
) -> None:
    rows = [{"id": i, "q": f"What is thing number {i}?", "gold": "x"} for i in range(60)]
    rows += [
        {"id": "again", "q": "what IS thing  number 3?", "gold": "x"},
        {"id": "near", "q": "What is thing number 3, then?", "gold": "x"},
    ]
    rows += [{"id": "bad", "q": 5, "gold": "x"}]
    fields = {"id": "id", "input": "q", "label": "gold"}
    with teacher_server() as teacher:
        spec = job(
            "rows.jsonl",
            source={"path": str(jsonl(rows)), "fields": fields, "on_error": "reject"},
            teachers=[{**lane(teacher), "free": False, "price": {"input": 1, "output": 2}}],
            curate={"dedup": {"exact": True, "near": {"threshold": 0.7}}},
            publish={"format": ["parquet", "messages"]},
        )
        run = tmp_path / "run"
        done = command("run", spec, "--workers", 1, "--out", run)
        assert done.returncode == 0, done.stderr
        bill = teacher.bill()
    said = manifest(run)
    assert said["state"] == "finished"
    assert said["rows"]["source"] == 63
    assert said["rows"]["rejected"] == {"exact_duplicate": 1, "near_duplicate": 1, "not_text": 1}
    assert said["rows"]["accepted"] == 60 == said["dataset"]["rows"]
    assert said["calls"]["answered"] == bill["calls"] == said["calls"]["done"] == said["calls"]["of"] == 62
    exact = (bill["input_tokens"] + 2 * bill["output_tokens"]) / 1e6
    assert said["spend"]["usd"] == pytest.approx(exact, abs=1e-9)
    accepted, rejected = table(run, "dataset"), table(run, "rejected")
    assert [row["id"] for row in accepted] == [str(i) for i in range(60)]
    assert list(accepted[0]) == ["id", "input", "choices", "rationale", "label", "gold", "teacher", "call_key"]
    assert {row["id"]: row["reason"] for row in rejected}["near"] == "near_duplicate"
    assert all(row["raw"] for row in rejected)
    as_it_came = {row["id"]: row["raw"] for row in rejected if row["stage"] == "curate"}  # one paragraph, here
    assert len(as_it_came) == 2 and all(". So the answer is " in raw for raw in as_it_came.values())
    talk = [json.loads(line) for line in (run / "dataset.jsonl").read_text().splitlines()]
    assert len(talk) == 60 and [m["role"] for m in talk[0]["messages"]] == ["user", "assistant"]
    page = (run / "report.html").read_text()
    assert "near_duplicate" in page and "http://" not in page and "https://" not in page
    assert "<script" not in page
    assert (run / "README.md").read_text().startswith("---\n")
    status = command("status", run, "--json")
    assert json.loads(status.stdout)["state"] == "finished"


def test_the_published_rows_load_as_a_dataset_and_do_not_depend_on_workers_or_order(
    command: Command, job: Write, questions: Path, tmp_path: Path
) -> None:
    import datasets

    spec = job(questions)
    for workers, name in ((1, "one"), (4, "four")):
        assert command("run", spec, "--out", tmp_path / name, "--workers", workers).returncode == 0
    one, four = manifest(tmp_path / "one"), manifest(tmp_path / "four")
    assert one["dataset"]["sha256"] == four["dataset"]["sha256"]
    loaded = datasets.load_dataset("parquet", data_dir=str(tmp_path / "one" / "dataset"))
    assert loaded["train"].num_rows == 40


def test_instructions_are_written_answered_and_accounted_for(
    command: Command, job: Write, jsonl: Write, tmp_path: Path
) -> None:
    with teacher_server() as teacher:
        spec = instruct_job(job, jsonl, teacher, generate=10, per_call=4)
        run = tmp_path / "run"
        done = command("run", spec, "--workers", 1, "--out", run)
        assert done.returncode == 0, done.stderr
        calls = teacher.bill()["calls"]
    rows, said = table(run, "dataset"), manifest(run)
    expected = {"source": 12, "generated": 12, "written": 12, "accepted": 22, "rejected": {"surplus": 2}}
    assert said["rows"] == expected
    assert calls == 3 + 22 == said["calls"]["answered"]
    assert [r["instruction_source"] for r in rows] == ["source"] * 12 + ["example_guided"] * 10
    assert all(len(r["example_ids"]) == 2 for r in rows[12:])
    assert list(rows[0]) == [
        "id", "instruction", "response", "instruction_source", "example_ids", "topics", "teacher", "call_key",
    ]  # fmt: skip


def test_the_example_of_rationales_runs(tmp_path: Path) -> None:
    """With a scripted teacher, who names option (a) each time, in place of the embedded model."""
    teachers = 'teachers=[{"provider": "scripted"}]'
    said = api.run(load_job(ROOT / "examples" / "cot.yaml", [teachers]), tmp_path / "run", workers=1)
    assert said.rows.accepted + sum(said.rows.rejected.values()) == said.rows.source == 24
    row = table(tmp_path / "run", "dataset")[0]
    assert row["rationale"] and row["label"] and row["gold"] in row["choices"]


def test_calls_that_write_no_instruction_are_among_the_rejected_and_the_sum_holds(
    command: Command, job: Write, jsonl: Write, tmp_path: Path
) -> None:
    with teacher_server("--faults", "refusal:0.4") as teacher:
        spec = instruct_job(job, jsonl, teacher, generate=12, per_call=2)
        run = tmp_path / "run"
        assert command("run", spec, "--workers", 1, "--out", run).returncode == 0
    said = manifest(run)["rows"]
    assert said["source"] + said["generated"] == said["accepted"] + sum(said["rejected"].values())
    assert said["generated"] == said["written"] + said["rejected"]["no_instruction"]
    assert len(table(run, "rejected")) == sum(said["rejected"].values())


def test_faults_on_the_wire_lose_no_row_and_garbage_is_kept_raw(
    command: Command, job: Write, jsonl: Write, tmp_path: Path
) -> None:
    rows = jsonl([{"id": i, "input": f"What is thing {i}?"} for i in range(200)])
    faults = "500:0.05,429:0.1,503:0.05,html:0.05,blank:0.05"
    with teacher_server("--faults", faults) as teacher:
        run = tmp_path / "run"
        done = command("run", job(rows, teachers=[lane(teacher)]), "--workers", 1, "--out", run)
        assert done.returncode == 0, done.stderr
        bill = teacher.bill()
    said = manifest(run)
    assert said["rows"]["accepted"] + sum(said["rows"]["rejected"].values()) == 200
    assert set(said["rows"]["rejected"]) == {"malformed_answer", "unparsable"}
    assert bill["repeated"] == 0 and bill["calls"] == 200
    assert said["calls"]["retried"] == bill["refused_total"] > 0
    raw = [row["raw"] for row in table(run, "rejected") if row["reason"] == "malformed_answer"]
    assert raw and all("Please log in" in text for text in raw)


def test_a_budget_stops_before_it_is_overshot_and_a_larger_one_goes_on(
    command: Command, job: Write, jsonl: Write, tmp_path: Path
) -> None:
    rows = jsonl([{"id": i, "input": f"What is thing {i}?"} for i in range(120)])
    with teacher_server("--latency", "0.01", "--price", "100:100") as teacher:
        paid = {**lane(teacher), "free": False, "price": {"input": 100, "output": 100}}
        spec = job(rows, teachers=[paid], budget={"usd": 0.5}, sampling={"max_tokens": 64})
        run = tmp_path / "run"
        stopped = command("run", spec, "--workers", 1, "--out", run)
        assert stopped.returncode == 3, stopped.stderr
        bill = teacher.bill()
        said = manifest(run)
        assert 0 < bill["usd"] <= 0.5
        assert said["spend"]["usd"] == bill["usd"]
        assert said["state"] == "exhausted"
        assert 0 < said["rows"]["accepted"] == len(table(run, "dataset")) < 120
        more = command("run", spec, "--workers", 1, "--out", run, "--set", "budget.usd=9")
        assert more.returncode == 0, more.stderr
        assert teacher.bill()["repeated"] == 0
    assert manifest(run)["rows"]["accepted"] == 120


@pytest.mark.parametrize(("status", "word"), [(401, "auth"), (404, "misdirected")])
def test_a_lane_that_refuses_everything_ends_the_run_with_status_4(
    command: Command, job: Write, questions: Path, tmp_path: Path, status: int, word: str
) -> None:
    with teacher_server("--status", str(status)) as teacher:
        run = tmp_path / "run"
        done = command("run", job(questions, teachers=[lane(teacher)]), "--workers", 1, "--out", run)
        assert done.returncode == 4, done.stderr
        assert word in done.stderr and "hint:" in done.stderr
        assert teacher.bill()["refused_total"] <= 16  # no more than was in flight when the first one came back
    assert manifest(run)["state"] == "failed"


def test_weights_that_were_cut_off_end_the_run_before_the_first_call(
    command: Command, job: Write, questions: Path, tmp_path: Path
) -> None:
    pytest.importorskip("xllamacpp")
    (tmp_path / "cut.gguf").write_bytes(b"GGUF" + bytes(100))
    teacher = {"provider": "embedded", "model": str(tmp_path / "cut.gguf")}
    done = command("run", job(questions, teachers=[teacher]), "--out", tmp_path / "run")
    assert done.returncode == 2 and "llama.cpp cannot load cut.gguf" in done.stderr


def test_a_finished_run_is_left_alone(command: Command, job: Write, questions: Path, tmp_path: Path) -> None:
    spec, run = job(questions), tmp_path / "run"
    assert command("run", spec, "--workers", 1, "--out", run).returncode == 0
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    again = command("run", spec, "--workers", 1, "--out", run)
    assert again.returncode == 0 and "finished" in again.stdout
    assert before == {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}


def test_an_error_that_nobody_foresaw_is_written_down_with_what_was_spent(
    job: Write, questions: Path, tmp_path: Path
) -> None:
    def watch(now: Manifest) -> None:
        if now.stage == "harvest":
            raise TypeError("a watcher's own fault")

    with teacher_server("--price", "1:1") as teacher:
        priced = {**lane(teacher), "free": False, "price": {"input": 1, "output": 1}}
        with pytest.raises(TypeError):
            api.run(load_job(job(questions, teachers=[priced], budget={"usd": 1}), []), tmp_path / "run", watch=watch)
        bill = teacher.bill()
    said = manifest(tmp_path / "run")
    assert said["state"] == "failed" and said["error"] == "TypeError: a watcher's own fault"
    assert said["spend"]["usd"] == bill["usd"] > 0


def test_a_key_that_was_mended_between_two_runs_of_one_process_is_the_one_that_is_sent(
    job: Write, questions: Path, tmp_path: Path
) -> None:
    script = """
import os, sys
import limbeck
spec, out = sys.argv[1:]
for number, key in enumerate(["sk-first-of-two", "sk-first-of-two", "sk-second-of-two"]):
    os.environ["KEY_OF_THE_TEST"] = key
    limbeck.run(spec, f"{out}-{number}")
os.environ["KEY_OF_THE_TEST"] = "sk-third"

def third():  # while the other run is at work
    try:
        limbeck.run(spec, f"{out}-third")
    except limbeck.LimbeckError as error:
        print(error)

seen = []
def watch(manifest):
    if manifest.calls.answered and not seen:
        seen.append(manifest)
        os.environ["KEY_OF_THE_TEST"] = "sk-fourth"
        third()

limbeck.run(spec, f"{out}-last", watch=watch)
import ray
ray.shutdown()
os.environ["KEY_OF_THE_TEST"] = "sk-second-of-two"
ray.init(address="local", include_dashboard=False, log_to_driver=False)
os.environ["KEY_OF_THE_TEST"] = "sk-fifth"
third()
"""
    with teacher_server() as teacher:
        spec = job(questions, teachers=[lane(teacher, api_key="env:KEY_OF_THE_TEST")])
        command = [sys.executable, "-c", script, spec, tmp_path / "run"]
        said = subprocess.run(command, check=True, timeout=120, stdout=subprocess.PIPE, text=True).stdout
        bill = teacher.bill()
    assert "KEY_OF_THE_TEST has changed while another run of this process is under way" in said
    assert "the key of openai/m is another one where Ray's workers run than in this process" in said
    assert bill["calls"] == 160
    keys = ("sk-first-of-two", "sk-second-of-two", "sk-third")
    assert bill["keys"] == sorted(hashlib.sha256(key.encode()).hexdigest()[:16] for key in keys)


HOLDER = """
import sys
import ray
from services import cluster
cluster.connect(None)
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
"""
MOVING = """
import sys
import ray
from schemas.errors import SpecError
from services import cluster

def at(address):
    try:
        with cluster.connected(address):
            here = ray.get_runtime_context().gcs_address
            return here, cluster.is_own(), cluster.shares_keys()
    except SpecError as error:
        return error.message

first, second = sys.argv[1:]
assert at(first) == (first, False, False)
assert at(first) == (first, False, False)
assert at(second) == (second, False, False), "a run goes where it was told to"
with cluster.connected(second):
    assert "another run of this process is under way" in at(first)
    assert "another run of this process is under way" in at(None)
here, own, shares = at(None)
assert here not in (first, second) and own and shares, "without an address a run starts a Ray of its own"
assert at(first) == (first, False, False)
ray.shutdown()
ray.init(address=second, log_to_driver=False)
assert f"{first} was asked for, and this process is connected to the Ray at {second}" in at(first)
assert ray.is_initialized(), "what the program itself connected to is not taken from it"
assert at("127.0.0.1:" + second.rpartition(":")[2])[0] == second
"""


def test_runs_of_one_process_go_to_the_cluster_that_each_was_told() -> None:
    start = [sys.executable, "-c", HOLDER]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(start, **pipes) as one, subprocess.Popen(start, **pipes) as other:
        addresses = [holder.stdout.readline().strip() for holder in (one, other) if holder.stdout]
        moved = subprocess.run([sys.executable, "-c", MOVING, *addresses], check=False, timeout=120)
        for holder in (one, other):
            holder.communicate(timeout=60)
    assert moved.returncode == 0
