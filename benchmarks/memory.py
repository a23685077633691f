"""Memory of a run: the driver's by the number of rows, and the demo's in all.

    python benchmarks/memory.py [--rows 10000,1000000] [--demo] [--training]

Rows are generated on the fly, answered by the scripted teacher, and published. The driver's figure is its highest
resident set (VmHWM); the demo's is the sum of proportional set sizes (PSS) of all its processes, sampled twice a
second, so that pages shared by several processes count once. With `--training`: the first worker of a training that
writes so many rows in tokens, and every worker that maps them, packs them and reads a thousand bins.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import yaml
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
LIMBECK = [sys.executable, "-m", "limbeck.cli"]


def watched(command: list[str], whole: bool, every_s: float) -> tuple[int, float]:
    """(highest bytes of the driver, or of all processes where `whole`; seconds)."""
    started, most = time.perf_counter(), 0
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        most = max(most, everything(process.pid) if whole else high_water(process.pid))
        time.sleep(every_s)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return most, time.perf_counter() - started


def high_water(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def everything(pid: int) -> int:
    total = 0
    try:
        root = psutil.Process(pid)
        for process in [root, *root.children(recursive=True)]:
            total += process.memory_full_info().pss
    except psutil.NoSuchProcess:
        return total
    return total


TOKENS = """
import sys
from pathlib import Path
from schemas.student import TrainingSpec
from training.rows import Bins, pack
from training.store import load, prepare
spec = TrainingSpec.model_validate_json(Path(sys.argv[1]).read_text())
if sys.argv[3] == "write":
    prepare(spec, Path(sys.argv[2]))
else:
    learn = load(spec, Path(sys.argv[2])).learn
    bins = Bins(learn, pack(learn.sizes, spec.max_length))
    assert sum(len(bins[i]) for i in range(0, len(bins), max(1, len(bins) // 1000))) > 0
"""


def tokens(folder: Path, rows: int) -> list[tuple[int, float]]:
    """(highest bytes, seconds) of writing rows in tokens, and of mapping and packing them."""
    data, spec = folder / f"{rows}.jsonl", folder / f"{rows}.json"
    with data.open("w") as file:
        for i in range(rows):
            words = " ".join(f"word{(i * 7 + j) % 9973}" for j in range(4 + i % 40))
            file.write(json.dumps({"prompt": f"Tell me of {i}.", "response": words}) + "\n")
    student = {"scratch": {"vocab": 2000}}
    spec.write_text(json.dumps({"student": student, "data": {"path": str(data)}, "max_length": 512}))
    command = [sys.executable, "-c", TOKENS, str(spec), str(folder / f"rows-{rows}")]
    return [watched([*command, part], whole=False, every_s=0.02) for part in ("write", "map")]


def generation(folder: Path, rows: int) -> tuple[int, float]:
    source, spec = folder / f"{rows}.jsonl", folder / f"{rows}.yaml"
    with source.open("w") as file:
        for i in range(rows):
            file.write(json.dumps({"id": f"r{i}", "input": f"What is thing number {i}, and who needs it?"}) + "\n")
    spec.write_text(
        yaml.safe_dump(
            {
                "name": "memory",
                "pipeline": "cot",
                "source": {"path": str(source)},
                "teachers": [{"provider": "scripted"}],
            }
        )
    )
    return watched([*LIMBECK, "run", str(spec), "--out", str(folder / f"run-{rows}")], whole=False, every_s=0.05)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", default="10000,1000000")
    parser.add_argument("--demo", action="store_true", help="the quickstart's memory as well (about 4 minutes)")
    parser.add_argument("--training", action="store_true", help="a training's memory, and nothing else")
    options = parser.parse_args()
    table = Table("run", "memory", "seconds", "limit")
    counts = list(map(int, options.rows.split(",")))
    with tempfile.TemporaryDirectory() as place:
        for rows in counts if options.training else ():
            for part, (most, seconds) in zip(("written", "mapped, packed"), tokens(Path(place), rows), strict=True):
                table.add_row(f"{rows:,} rows in tokens, {part}", f"{most / 1e6:.0f} MB", f"{seconds:.0f}", "")
        first = 0
        for rows in () if options.training else counts:
            most, seconds = generation(Path(place), rows)
            first = first or most
            limit = f"{(first + 150e6) / 1e6:.0f} MB" if most is not first else ""
            table.add_row(f"driver, {rows:,} rows", f"{most / 1e6:.0f} MB", f"{seconds:.0f}", limit)
        if options.demo:
            command = [*LIMBECK, "run", "examples/quickstart.yaml", "--out", f"{place}/demo"]
            most, seconds = watched(command, whole=True, every_s=0.5)
            table.add_row("quickstart, all processes", f"{most / 2**20:.0f} MiB", f"{seconds:.0f}", "4096 MiB")
    Console(width=90).print(table)


if __name__ == "__main__":
    main()
