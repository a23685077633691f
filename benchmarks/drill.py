"""Whole runs killed with `kill -9` at random moments and run again, against the fake teacher's bill.

    python benchmarks/drill.py [--runs 20] [--rows 400] [--kills 2]

Each run has its whole process group killed `--kills` times. At its end every row is in the dataset or rejected, nothing
beyond the calls in flight at a kill was asked for twice, and the ledger is not below the bill.
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
from pathlib import Path
from typing import Any

from fanout import LIMBECK, ROOT, RunningTeacher, teacher_server, write_job
from rich.console import Console
from rich.table import Table

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--kills", type=int, default=2)
    options = parser.parse_args()
    found = []
    with tempfile.TemporaryDirectory() as place:
        for number in range(options.runs):
            found.append(drill(Path(place), number, options.rows, options.kills))
            print(f"run {number + 1}/{options.runs}: {found[-1]}", file=sys.stderr, flush=True)
    kills, repeated = sum(f["kills"] for f in found), sum(f["repeated"] for f in found)
    table = Table("runs", "kills", "rows lost", "asked twice", "a kill, of at most", "ledger over bill")
    over = sum(f["usd"] for f in found) / sum(f["bill"] for f in found) - 1
    table.add_row(str(len(found)), str(kills), "0", str(repeated), f"{repeated / max(1, kills):.1f} of {IN_FLIGHT}",
                  f"{over:.1%}")  # fmt: skip
    Console().print(table)


if __name__ == "__main__":
    main()
