"""What a run says of itself while it runs, and at its end."""

import io
import json
import time
from pathlib import Path

import pytest
from rich.console import Console

from limbeck.progress import Progress, left_line, rate_line, student_line, summary, training_line
from schemas.manifest import Calls, Manifest
from schemas.student import FINE_TUNED


def manifest(stage: str, **calls: int) -> Manifest:
    return Manifest(name="cqa", pipeline="cot", stage=stage, calls=Calls(**calls))


def line_of(place: Path, now: Manifest, capsys: pytest.CaptureFixture[str]) -> str:
    with Progress(place, Console(file=io.StringIO())) as progress:
        progress(now)
    return capsys.readouterr().err.partition("] ")[2].strip()


def test_a_plain_line_says_what_is_done_of_how_much(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    waiting = line_of(tmp_path, manifest("answers", of=2000), capsys)
    assert waiting == "answers: calls 0 of 2,000, teachers starting"
    going = line_of(tmp_path, manifest("answers", sent=40, answered=30, done=50, of=2000, reused=20, failed=2), capsys)
    assert going.startswith("answers: calls 50 of 2,000, reused 20, retried 0") and going.endswith("failed 2")
    assert line_of(tmp_path, manifest("curate", answered=30), capsys) == "curate: calls 30 answered, spent $0.0000"
    assert line_of(tmp_path, manifest("ray"), capsys) == "ray: cluster connecting"


def test_the_time_that_is_left_follows_from_this_start_alone() -> None:
    now = manifest("answers", answered=150, done=200, of=1000)
    assert (rate_line(now, 10, answered_before=100), left_line(now, 10, answered_before=100)) == (
        "5.0 calls/s",
        "3 min",
    )
    assert (rate_line(now, 0.5, 100), left_line(now, 10, 150)) == ("-", "-")


def test_a_lane_that_its_server_asked_to_wait_is_named_and_no_time_is_promised(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paused = manifest("answers", sent=32, answered=31, done=31, of=60)
    paused.pauses = {"openai/m": time.mktime((2100, 1, 2, 3, 4, 5, 0, 0, -1))}
    line = line_of(tmp_path, paused, capsys)
    assert "left -" in line and line.endswith("paused openai/m until 03:04:05, as its server asks")
    shown = Console(file=io.StringIO(), width=200)
    shown.print(summary(paused, None, tmp_path))
    assert "until 03:04:05" in shown.file.getvalue()  # type: ignore[attr-defined]


def test_a_lane_that_does_not_work_is_named_with_the_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    resumed = manifest("answers", sent=32, answered=31, of=60)
    resumed.absent = {"embedded/m": "waits for free cores of the cluster"}
    assert (
        line_of(tmp_path, resumed, capsys)
        == "answers: calls 0 of 60, teachers embedded/m " + resumed.absent["embedded/m"]
    )
    going = manifest("answers", sent=40, answered=39, done=39, of=60)
    going.absent = {"openai/m": "closed, auth: HTTP 401"}
    assert line_of(tmp_path, going, capsys).endswith("absent openai/m closed, auth: HTTP 401")
    shown = Console(file=io.StringIO(), width=200)
    shown.print(summary(going, None, tmp_path))
    assert "closed, auth: HTTP 401" in shown.file.getvalue()  # type: ignore[attr-defined]


def test_a_training_is_followed_from_its_rows_to_its_student(tmp_path: Path) -> None:
    work = tmp_path / ".work"
    assert student_line(work) == "loading, measuring"
    for place, told, line in (
        (tmp_path / FINE_TUNED["teacher"] / ".work", {"tokenised": 900}, "fine-tuning the teacher: 900 rows in tokens"),
        (tmp_path / FINE_TUNED["student"] / ".work", {"measuring": "before"}, "fine-tuning first: measuring what the"),
        (work, {"tokenised": 12_000}, "12,000 rows in tokens"),
        (work, {"step": 3, "steps": 9, "loss": 2.0, "tokens_per_second": 800.0}, "step 3/9, loss 2.000, 800 tokens/s"),
    ):
        place.mkdir(parents=True, exist_ok=True)
        (place / "train-progress.json").write_text(json.dumps(told))
        assert student_line(work).startswith(line)
    assert training_line({"captured": 1, "shards": 4}) == "teacher written down: 1/4 shards"
    assert training_line({"going_on_from": 40}) == "going on from step 40"
    assert training_line({"crowded": (8, 2)}).startswith("8 workers share 2 cores")
    over = {"step": 9, "steps": 9, "loss": 1.0, "tokens_per_second": 800.0, "mfu": 0.25}
    assert training_line(over) == "trained 9 steps at 800 tokens/s, MFU 25.0%; measuring, saving"


def test_a_run_s_table_tells_where_it_stands(tmp_path: Path) -> None:
    now = manifest("answers", done=5, of=10, answered=5)
    now.rows.source, now.rows.rejected, now.spend.usd, now.spend.in_doubt_usd = 10, {"duplicate": 2}, 0.5, 0.1
    (tmp_path / "report.html").touch()
    metrics = {"loss_before": 9.0, "loss_after": 4.0, "rouge_l_before": 0.0, "rouge_l_after": 0.25}
    console = Console(file=io.StringIO(), width=300)
    console.print(summary(now, metrics, tmp_path))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    for words in ("cqa: running", "answers: 5 of 10 calls", "rejected: duplicate", "$0.5000, $0.1000 of it reserved",
                  "9.000 before, 4.000 after", "0.000 before, 0.250 after", str(tmp_path / "report.html")):  # fmt: skip
        assert words in shown
