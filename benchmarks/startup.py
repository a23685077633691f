"""How long a user waits: for `limbeck --help`, and from `limbeck run` to the first call.

    python benchmarks/startup.py [--repeats 3]

The floor of a start is Ray's own, measured in the same run and written to its manifest.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
from teacher_server import RunningTeacher, teacher_server  # noqa: E402

LIMBECK = [sys.executable, "-m", "limbeck.cli"]


def timed(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    return time.perf_counter() - started


def first_call(folder: Path, number: int) -> tuple[float, float]:
    """Seconds from the command to its first request on the wire, and those of them that Ray took."""
    spec, out = folder / "job.yaml", folder / f"run-{number}"
    with teacher_server() as teacher:
        spec.write_text(yaml.safe_dump(job(folder, teacher)))
        started = time.time()
        subprocess.run([*LIMBECK, "run", str(spec), "--out", str(out)], check=True, capture_output=True, cwd=ROOT)
        waited = teacher.bill()["first_at"] - started
    return waited, json.loads((out / "manifest.json").read_text())["seconds"]["ray"]


def job(folder: Path, teacher: RunningTeacher) -> dict[str, object]:
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps({"id": i, "input": f"What is thing {i}?"}) + "\n" for i in range(100)))
    lane = {"provider": "openai", "model": "m", "base_url": teacher.base_url, "free": True}
    return {"name": "startup", "pipeline": "cot", "source": {"path": str(rows)}, "teachers": [lane]}


def demo_start(folder: Path) -> tuple[float, float]:
    """Seconds from the demo's command until its manifest tells of a call that left, at most 2 s after it did, and until
    the first answer, of eight that are written side by side, is on disk; the run is stopped there."""
    out = folder / "demo"
    started = time.perf_counter()
    command = [*LIMBECK, "run", "examples/quickstart.yaml", "--out", str(out)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    manifest, sent_at = out / "manifest.json", 0.0
    try:
        while not any(path.stat().st_size for path in out.glob("journal/*.seg")):
            if process.poll() is not None or time.perf_counter() - started > 120:
                raise SystemExit("the demo did not start")
            if not sent_at and manifest.is_file() and json.loads(manifest.read_text())["calls"]["sent"]:
                sent_at = time.perf_counter() - started
            time.sleep(0.02)
        return sent_at, time.perf_counter() - started
    finally:
        process.terminate()
        process.wait(60)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    table = Table("start", "median", "worst", "limit", title=f"{repeats} repeats each")

    def row(name: str, seconds: list[float], limit: str) -> None:
        table.add_row(name, f"{statistics.median(seconds):.2f} s", f"{max(seconds):.2f} s", limit)

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        row("limbeck --help", [timed([*LIMBECK, "--help"]) for _ in range(repeats)], "0.50 s")
        starts = [first_call(folder, number) for number in range(repeats)]
        row("Ray alone", [ray for _, ray in starts], "")
        row("limbeck run to its first call", [whole for whole, _ in starts], "")
        row("the same without Ray's part", [whole - ray for whole, ray in starts], "4.00 s")
        demos = [demo_start(folder / str(number)) for number in range(repeats)]
        row("quickstart to its first call", [sent for sent, _ in demos], "15.00 s")
        row("quickstart to its first answer", [answered for _, answered in demos], "")
    Console(width=90).print(table)


if __name__ == "__main__":
    main()
