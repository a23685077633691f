"""Whole runs with everything that can go wrong, against the fake teacher's bill.

    python benchmarks/drill.py [kills] [faults] [--runs 20] [--rows 400] [--kills 2]

`kills`: each run has its whole process group killed with `kill -9` `--kills` times, at random moments. `faults`: one
run of 2,000 rows in each dialect in which 5 % of the calls meet each fault that the fake teacher knows, but for the
one that ends a run (no quota left). At its end every row is in the dataset or rejected with a reason, nothing beyond
the calls in flight at a kill (or those whose answer was lost on the wire) was asked for twice, and the ledger agrees
with the bill to the micro-dollar for answers that say what they used, and is never below it.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fanout import LIMBECK, ROOT, RunningTeacher, teacher_server, write_job
from rich.console import Console
from rich.table import Table

from schemas.money import micro_of
from services.fake_teacher.faults import NAMES

FAULTS = [name for name in NAMES if name != "quota"]
IN_FLIGHT, LATENCY = 20, 0.4  # seconds: long enough that a kill finds calls in flight


def start(spec: Path, out: Path) -> "subprocess.Popen[bytes]":
    command = [*LIMBECK, "run", str(spec), "--out", str(out)]
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, cwd=ROOT, start_new_session=True, **silent)


def killed_at(teacher: RunningTeacher, spec: Path, out: Path, calls: int) -> int | None:
    """Run until the teacher has answered `calls`, then kill; its answers by then, None where the run was over."""
    process = start(spec, out)
    while (now := teacher.bill()["calls"]) < calls:
        if process.poll() is not None:
            return None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return int(now)


def drill(folder: Path, number: int, rows: int, kills: int) -> dict[str, Any]:
    rng = random.Random(number)
    with teacher_server("--latency", str(LATENCY), "--price", "0.40:1.60", "--seed", str(number)) as teacher:
        spec = write_job(folder, teacher, rows, {"concurrency": IN_FLIGHT}, "drill")
        out = folder / f"drill-{number}"
        moments = sorted(rng.randint(1, rows - 2 * IN_FLIGHT) for _ in range(kills))
        found = [killed_at(teacher, spec, out, moment) for moment in moments]
        at = [calls for calls in found if calls is not None]
        assert start(spec, out).wait() == 0
        bill = teacher.bill()
    said = json.loads((out / "manifest.json").read_text())
    kept = said["rows"]["accepted"] + sum(said["rows"]["rejected"].values())
    assert kept == rows == bill["unique"], (kept, bill["unique"])
    assert bill["repeated"] <= len(at) * IN_FLIGHT, bill["repeated"]
    assert said["spend"]["usd"] >= bill["usd"] - 1e-12, (said["spend"], bill["usd"])
    return {"kills": len(at), "at": at, "repeated": bill["repeated"], "usd": said["spend"]["usd"], "bill": bill["usd"]}


def mixed(folder: Path, provider: str, rows: int = 2_000, share: float = 0.05) -> dict[str, Any]:
    faults = ",".join(f"{fault}:{share}" for fault in FAULTS)
    with teacher_server("--latency", "0.05", "--price", "0.40:1.60", "--faults", faults, "--hang", "60") as teacher:
        spec = write_job(folder, teacher, rows, {}, f"mixed-{provider}", lane={
            "provider": provider, "timeout_s": 2,
            "base_url": teacher.root if provider == "anthropic" else teacher.base_url,
        })  # fmt: skip
        out, begun = folder / f"mixed-{provider}", time.monotonic()
        assert start(spec, out).wait() == 0
        seconds, bill = time.monotonic() - begun, teacher.bill()
    said = json.loads((out / "manifest.json").read_text())
    rejected, spend = said["rows"]["rejected"], said["spend"]
    assert said["rows"]["accepted"] + sum(rejected.values()) == rows, said["rows"]
    assert bill["repeated_unexplained"] == 0, bill["repeated_unexplained"]
    told = micro_of(round((spend["usd"] - spend["in_doubt_usd"]) * 1e9))
    assert told == bill["answered_micro_usd"], (told, bill["answered_micro_usd"])
    assert spend["usd"] >= bill["usd"], (spend, bill["usd"])
    return {**said["rows"], "usd": spend["usd"], "told": told, "bill": bill, "seconds": seconds}


def fault_table(folder: Path) -> Table:
    dialects = ("openai", "anthropic")
    found = [mixed(folder, provider) for provider in dialects]
    table = Table("2,000 rows, each fault at 5 %", *dialects)

    def row(what: str, shown: Callable[[dict[str, Any], dict[str, Any]], str]) -> None:
        table.add_row(what, *(shown(one, one["bill"]) for one in found))

    row("accepted", lambda one, bill: f"{one['accepted']:,}")
    row("rejected", lambda one, bill: "\n".join(f"{reason} {n}" for reason, n in one["rejected"].items()))
    row("answers lost on the wire", lambda one, bill: str(bill["lost"]))
    row("asked twice without need", lambda one, bill: str(bill["repeated_unexplained"]))
    row("answers with usage: ledger", lambda one, bill: f"{one['told']:,} micro-dollars")
    row("answers with usage: bill", lambda one, bill: f"{bill['answered_micro_usd']:,} micro-dollars")
    row("in all: ledger", lambda one, bill: f"${one['usd']:.6f}")
    row("in all: bill", lambda one, bill: f"${bill['usd']:.6f}")
    row("seconds", lambda one, bill: f"{one['seconds']:.0f}")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=["kills", "faults"], default=["kills", "faults"])
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--kills", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        if "kills" in options.parts:
            Console().print(kill_table(Path(place), options))
        if "faults" in options.parts:
            Console().print(fault_table(Path(place)))


def kill_table(folder: Path, options: argparse.Namespace) -> Table:
    found = []
    for number in range(options.runs):
        found.append(drill(folder, number, options.rows, options.kills))
        print(f"run {number + 1}/{options.runs}: {found[-1]}", file=sys.stderr, flush=True)
    kills, repeated = sum(f["kills"] for f in found), sum(f["repeated"] for f in found)
    table = Table("runs", "kills", "rows lost", "asked twice", "a kill, of at most", "ledger over bill")
    over = sum(f["usd"] for f in found) / sum(f["bill"] for f in found) - 1
    table.add_row(str(len(found)), str(kills), "0", str(repeated), f"{repeated / max(1, kills):.1f} of {IN_FLIGHT}",
                  f"{over:.1%}")  # fmt: skip
    return table


if __name__ == "__main__":
    main()
