"""What a running job shows: a live panel on a terminal, one plain line every few seconds elsewhere."""

import contextlib
import datetime
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import rich.progress
from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from schemas.manifest import ASKING, Manifest
from schemas.student import FINE_TUNED

PLAIN_EVERY_S = 3.0


def rate_line(manifest: Manifest, seconds: float, answered_before: int) -> str:
    """Calls a second of this start."""
    calls = manifest.calls.answered - answered_before
    return f"{calls / seconds:.1f} calls/s" if seconds > 1 and calls else "-"


def left_line(manifest: Manifest, seconds: float, answered_before: int) -> str:
    """The time that the stage's other calls take at the rate of this start."""
    answered = manifest.calls.answered - answered_before
    if seconds <= 1 or not answered or pause_lines(manifest):
        return "-"
    left = (manifest.calls.of - manifest.calls.done) * seconds / answered
    return f"{left:.0f} s" if left < 100 else f"{left / 60:.0f} min" if left < 6000 else f"{left / 3600:.1f} h"


def absent_lines(manifest: Manifest) -> list[str]:
    """Lanes that do not work, and why."""
    return [f"{name} {why}" for name, why in manifest.absent.items()]


def pause_lines(manifest: Manifest) -> list[str]:
    """Lanes that wait because their server asked for it, and until when (local time)."""
    coming = {name: epoch for name, epoch in manifest.pauses.items() if epoch > time.time()}
    until = {name: datetime.datetime.fromtimestamp(epoch) for name, epoch in coming.items()}
    return [f"{name} until {when:%H:%M:%S}, as its server asks" for name, when in until.items()]


def student_line(work: Path) -> str:
    """Where the student's training stands, or the one before it, from the file that its first worker writes."""
    before = {role: work.parent / folder / ".work" for role, folder in FINE_TUNED.items()}
    for first, place in ((None, work), ("student", before["student"]), ("teacher", before["teacher"])):
        with contextlib.suppress(FileNotFoundError, ValueError):
            return training_line({"first": first, **json.loads((place / "train-progress.json").read_text())})
    return "loading, measuring"


def training_line(now: dict[str, Any]) -> str:
    """What a training says of itself, in words."""
    if now.get("first"):
        what = "fine-tuning the teacher" if now["first"] == "teacher" else "fine-tuning first"
        return f"{what}: {training_line({**now, 'first': None})}"
    if "going_on_from" in now:
        return f"going on from step {now['going_on_from']}"
    if "crowded" in now:
        return "{} workers share {} cores: fewer would be faster, and take less memory".format(*now["crowded"])
    if "captured" in now:
        return f"teacher written down: {now['captured']}/{now['shards']} shards"
    if "measuring" in now:
        return f"measuring what the student is worth, {now['measuring'].replace('_', '-')}"
    if "tokenised" in now:
        return f"{now['tokenised']:,} rows in tokens"
    speed = f"{now['tokens_per_second']:,.0f} tokens/s" + (f", MFU {now['mfu']:.1%}" if "mfu" in now else "")
    if now["step"] >= now["steps"]:
        return f"trained {now['steps']} steps at {speed}; measuring, saving"
    return f"step {now['step']}/{now['steps']}, loss {now['loss']:.3f}, {speed}"


def metric_lines(metrics: dict[str, Any]) -> Iterator[str]:
    """A student's metrics in words, each with its interval where it has one."""
    for name, value in metrics.items():
        if name.endswith(("_low", "_high")):
            continue
        shown = f"{value:,.4f}" if isinstance(value, float) else str(value)
        if f"{name}_low" in metrics:
            shown += f"  [{metrics[f'{name}_low']:,.4f}, {metrics[f'{name}_high']:,.4f}]"
        yield f"{name:24} {shown}"


class TrainingProgress:
    """Use as a context manager, call it with what a training says of itself. Writes to standard error: a bar with the
    time that is left on a terminal, elsewhere a line for each step that is logged."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TextColumn("left"),
                   TimeRemainingColumn(elapsed_when_finished=False))  # fmt: skip
        self._bar = rich.progress.Progress(*columns, console=self._console, transient=True)
        self._task, self._line = self._bar.add_task("loading, measuring", total=None), ""

    def __enter__(self) -> "TrainingProgress":
        if self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._bar.stop()

    def __call__(self, now: dict[str, Any]) -> None:
        line = training_line(now)
        if "going_on_from" in now or "crowded" in now:
            self._console.print(f"note: {line}", soft_wrap=True, highlight=False)
        elif self._console.is_terminal:
            done, of = (now["step"], now["steps"]) if "step" in now else (now.get("captured", 0), now.get("shards"))
            self._bar.update(self._task, description=line, completed=done, total=of)
        elif line != self._line:
            print(line, file=sys.stderr, flush=True)
        self._line = line


class Progress:
    """Use as a context manager, call it with the manifest. Writes to standard error."""

    def __init__(self, work: Path, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._work = work
        self._live: Live | None = None
        self._noted = 0
        self._stage, self._stage_at, self._line_at = "", time.monotonic(), 0.0
        self._before = self._sent = 0  # answered and sent when the stage began

    def __enter__(self) -> "Progress":
        if self._console.is_terminal:
            self._live = Live(console=self._console, refresh_per_second=4, transient=True)
            self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._live is not None:
            self._live.stop()

    def __call__(self, manifest: Manifest) -> None:
        now = time.monotonic()
        for note in manifest.notes[self._noted :]:
            self._console.print(f"note: {note}", markup=False, soft_wrap=True)
        self._noted = len(manifest.notes)
        entered = manifest.stage != self._stage
        if entered:
            self._stage, self._stage_at = manifest.stage, now
            self._before, self._sent = manifest.calls.answered, manifest.calls.sent
        if self._live is not None:
            self._live.update(self._panel(manifest, now))
        elif entered or now - self._line_at > PLAIN_EVERY_S:
            self._line_at = now
            pairs = ", ".join(f"{name} {value}" for name, value in self._facts(manifest, now))
            stage = manifest.stage or manifest.state
            print(f"[{now - self._stage_at:6.1f} s] {stage}: {pairs}", file=sys.stderr, flush=True)

    def _facts(self, manifest: Manifest, now: float) -> list[tuple[str, str]]:
        if manifest.stage == "ray":
            return [("cluster", "connecting")]
        if manifest.stage == "journal":
            return [("journal", "making sure that no other run writes there")]
        if manifest.stage == "evaluate":
            return [("students", "judging")]
        if manifest.stage == "train":
            return [("student", student_line(self._work))]
        calls, spend = manifest.calls, manifest.spend
        if manifest.stage not in ASKING:
            return [("calls", f"{calls.answered:,} answered"), ("spent", f"${spend.usd:.4f}")]
        if calls.sent == self._sent and not calls.done:
            said = "; ".join(absent_lines(manifest)) or "starting"  # a local one reads its weights first
            return [("calls", f"0 of {calls.of:,}"), ("teachers", said)]
        seconds = now - self._stage_at
        facts = [
            ("calls", f"{calls.done:,} of {calls.of:,}"),
            ("reused", f"{calls.reused:,}"),
            ("retried", f"{calls.retried:,}"),
            ("rate", rate_line(manifest, seconds, self._before)),
            ("left", left_line(manifest, seconds, self._before)),
            ("tokens", f"{spend.input_tokens + spend.output_tokens:,}"),
            ("spent", f"${spend.usd:.4f}"),
        ]
        facts += [("failed", f"{calls.failed:,}")] if calls.failed else []
        facts += [("paused", line) for line in pause_lines(manifest)]
        return facts + [("absent", line) for line in absent_lines(manifest)]

    def _panel(self, manifest: Manifest, now: float) -> Table:
        table = Table.grid(padding=(0, 2))
        table.add_row(f"[bold]{manifest.name}[/]", f"{manifest.stage}  {now - self._stage_at:.0f} s")
        for name, value in self._facts(manifest, now):
            table.add_row(name, value)
        return table


def summary(manifest: Manifest, metrics: dict[str, Any] | None, out: Path, state: str = "") -> Table:
    """The table that ends a run; `state` in place of the manifest's."""
    table = Table(
        title=f"{manifest.name}: {state or manifest.state}", title_justify="left", show_header=False, min_width=46
    )
    rows, spend = manifest.rows, manifest.spend
    if manifest.state == "running":
        calls = manifest.calls
        at = student_line(out / ".work") if manifest.stage == "train" else ""
        at = f"{calls.done:,} of {calls.of:,} calls" if manifest.stage in ASKING else at
        table.add_row("stage", f"{manifest.stage}: {at}" if at else manifest.stage)
        for line in pause_lines(manifest):
            table.add_row("paused", line)
        for line in absent_lines(manifest):
            table.add_row("absent", line)
    table.add_row("rows in", f"{rows.source:,}" + (f" + {rows.written:,} written" if rows.written else ""))
    table.add_row("accepted", f"{rows.accepted:,}")
    for reason, count in rows.rejected.items():
        table.add_row(f"rejected: {reason}", f"{count:,}{' calls' if reason == 'no_instruction' else ''}")
    table.add_row("calls", f"{manifest.calls.answered:,} answered, {manifest.calls.reused:,} reused")
    if manifest.calls.per_second:
        table.add_row("calls/s", f"{manifest.calls.per_second:.2f}")
    table.add_row("tokens", f"{spend.input_tokens:,} in, {spend.output_tokens:,} out")
    doubt = (
        f", ${spend.in_doubt_usd:.4f} of it reserved for calls lost or answered without usage"
        if spend.in_doubt_usd
        else ""
    )
    table.add_row("spent", f"${spend.usd:.4f}{doubt}")
    if metrics:
        for label, name in (("student loss", "loss"), ("student ROUGE-L", "rouge_l")):
            table.add_row(label, f"{metrics[name + '_before']:.3f} before, {metrics[name + '_after']:.3f} after")
    if (report := out / "report.html").is_file():
        table.add_row("report", Text(str(report)))
    if (page := out / "evaluation.html").is_file():
        table.add_row("students judged", Text(str(page)))
    return table


def comparison(found: dict[str, Any], out: Path) -> Table:
    """The table that ends an evaluation: a column for each student."""
    table = Table("", *found, title="students compared", title_justify="left", caption=str(out / "evaluation.html"))
    for name in dict.fromkeys(name for one in found.values() for name in one["metrics"]):
        cells = []
        for one in found.values():
            if name not in one["metrics"]:
                cells.append("-")
                continue
            mean, low, high = one["metrics"][name]
            cells.append(f"{mean:.3f}" + (f" +-{(high - low) / 2:.3f}" if high != low else ""))
        table.add_row(name, *cells)
    return table
