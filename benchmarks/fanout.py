"""What a call costs and how much of a limit is used, against the fake teacher on this machine.

    python benchmarks/fanout.py [cost] [limits] [--repeats 5]

`cost`: CPU a call over all of Limbeck's processes (journal, validation and publishing included) as the slope between
two sizes of job, and calls a second at 200 ms latency and 200 in flight, where 1,000 is the ceiling; beside it, in the
same rounds, the provider's package in one bare asyncio process, and the peers that `make peers` installed. `limits`:
the share of a request and of a token limit that is used from the fifth second on, and of calls that are refused.
"""

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import psutil
import yaml
from processes import measured
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "benchmarks" / "peers")]
from installed import installed  # noqa: E402
from teacher_server import RunningTeacher, free_port, teacher_server  # noqa: E402

LIMBECK = [sys.executable, "-m", "limbeck.cli"]
SMALL, LARGE = 500, 4_500
PEER_SMALL, PEER_LARGE = 200, 1_000  # they take several times as long
IN_FLIGHT, LATENCY = 200, 0.2
PRICE = {"input": 0.40, "output": 1.60}
SERVER = ["--latency", str(LATENCY), "--price", "0.40:1.60"]


def rows(folder: Path, count: int) -> Path:
    path = folder / f"rows-{count}.jsonl"
    if not path.exists():
        text = "Explain in two sentences what makes item number {} of the long list worth keeping, and for whom."
        path.write_text("".join(json.dumps({"id": i, "input": text.format(i)}) + "\n" for i in range(count)))
    return path


def write_job(
    folder: Path, teacher: RunningTeacher, count: int, limits: dict[str, Any], name: str,
    lane: Mapping[str, Any] = MappingProxyType({}), **more: Any,
) -> Path:  # fmt: skip
    """A cot job on the fake teacher; `lane` and `more` in place of what the benchmarks share."""
    lane = {
        "provider": "openai", "model": "m", "base_url": teacher.base_url, "price": PRICE, "limits": limits, **lane,
    }  # fmt: skip
    spec = {
        "name": name, "pipeline": "cot", "source": {"path": str(rows(folder, count))}, "teachers": [lane],
        "sampling": {"max_tokens": 64}, "budget": {"usd": 1000}, **more,
    }  # fmt: skip
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(spec))
    return path


def run_job(folder: Path, count: int, number: int, address: str, port: int) -> tuple[float, float, dict[str, float]]:
    """(CPU seconds, calls a second between the first and the last answer, CPU by process) on the cluster at `address`,
    all of whose processes count, against a teacher that is always at `port`: it then has one governor throughout."""
    ray_processes = [process.pid for process in psutil.Process().children()]
    with teacher_server(*SERVER, "--port", str(port)) as teacher:
        spec = write_job(folder, teacher, count, {"concurrency": IN_FLIGHT}, f"cost-{count}")
        command = [*LIMBECK, "run", str(spec), "--out", str(folder / f"run-{count}-{number}"), "--address", address]
        with measured(command, ray_processes, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as (
            process, tree,
        ):  # fmt: skip
            process.wait()
        assert process.returncode == 0
        bill = teacher.bill()
    assert bill["calls"] == count and bill["repeated"] == 0
    return tree.cpu_s, count / (bill["last_at"] + LATENCY - bill["first_at"]), tree.by_name()


BARE = """
import asyncio, sys
import httpx2, openai
async def main(base_url, count, in_flight):
    client = openai.AsyncOpenAI(api_key="none", base_url=base_url, max_retries=0,
                                http_client=openai.DefaultAioHttpClient())
    numbers = iter(range(count))
    async def worker():
        for i in numbers:
            body = {"model": "m", "messages": [{"role": "user", "content": f"Question number {i}"}], "max_tokens": 64}
            await client.post("/chat/completions", body=body, cast_to=httpx2.Response)
    await asyncio.gather(*(worker() for _ in range(in_flight)))
    await client.close()
asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
"""


def run_bare(count: int) -> tuple[float, float]:
    """The floor: the package's client alone; nothing is kept, parsed or published."""
    with teacher_server(*SERVER) as teacher:
        command = [sys.executable, "-c", BARE, teacher.base_url, str(count), str(IN_FLIGHT)]
        with measured(command) as (process, tree):
            process.wait()
        bill = teacher.bill()
    return tree.cpu_s, count / (bill["last_at"] + LATENCY - bill["first_at"])


def run_peer(command: list[str], folder: Path, count: int, rpm: int = 0) -> tuple[float, dict[str, Any]]:
    """(CPU seconds, the teacher's bill) of a peer on the same rows."""
    limits = ["--rpm", str(rpm)] if rpm else []
    with teacher_server(*SERVER, *limits) as teacher, tempfile.TemporaryDirectory(dir=folder) as out:
        arguments = [teacher.base_url, str(rows(folder, count)), out, str(IN_FLIGHT), str(rpm)]
        with measured([*command, *arguments], cwd=out, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as (
            process, tree,
        ):  # fmt: skip
            process.wait()
        assert process.returncode == 0, command
        return tree.cpu_s, teacher.bill()


def speed(bill: dict[str, Any]) -> float:
    """Calls a second from the first to the last."""
    return float(bill["calls"] / (bill["last_at"] + LATENCY - bill["first_at"]))


class Costs:
    """CPU a call and calls a second, round by round, by who."""

    def __init__(self) -> None:
        self.slopes: dict[str, list[float]] = defaultdict(list)
        self.speeds: dict[str, list[float]] = defaultdict(list)

    def add(self, who: str, cpu_s: float, calls: int, calls_a_second: float) -> None:
        self.slopes[who].append(cpu_s / calls * 1000)
        self.speeds[who].append(calls_a_second)
        print(f"{who}: {self.slopes[who][-1]:.2f} ms, {calls_a_second:.0f}/s", file=sys.stderr, flush=True)


def cost(folder: Path, repeats: int, address: str) -> Table:
    """One cluster for all rounds: its start costs several times what is measured, and never twice the same."""
    found, parts, port = Costs(), [], free_port()
    for number in range(repeats):
        small, _, before = run_job(folder, SMALL, number, address, port)
        large, calls_a_second, after = run_job(folder, LARGE, number, address, port)
        found.add("limbeck", large - small, LARGE - SMALL, calls_a_second)
        parts.append({name: (after[name] - before.get(name, 0.0)) / (LARGE - SMALL) * 1000 for name in after})
        bare_small, _ = run_bare(SMALL)
        bare_large, bare_speed = run_bare(LARGE)
        found.add("bare client", bare_large - bare_small, LARGE - SMALL, bare_speed)
        for name, command in installed().items():
            peer_small, _ = run_peer(command, folder, PEER_SMALL)
            peer_large, bill = run_peer(command, folder, PEER_LARGE)
            found.add(name, peer_large - peer_small, PEER_LARGE - PEER_SMALL, speed(bill))
    table = Table("", "CPU ms a call", "calls/s", "CPU against Limbeck's", title=f"median of {repeats}")
    ours = statistics.median(found.slopes["limbeck"])
    for who in found.slopes:
        slope = statistics.median(found.slopes[who])
        table.add_row(who, f"{slope:.2f}", f"{statistics.median(found.speeds[who]):.0f}", f"{slope / ours:.1f} x")
    names = sorted({n for p in parts for n in p}, key=lambda n: -statistics.median(p.get(n, 0.0) for p in parts))
    for name in names[:7]:
        table.add_row(f"  of it {name}", f"{statistics.median(p.get(name, 0.0) for p in parts):.2f}", "", "")
    return table


def used(bill: dict[str, Any], limit: float, column: int) -> tuple[float, float]:
    """(share of the limit from the fifth second to the last whole one, share of calls refused)."""
    first = bill["seconds"][0][0]
    seconds = bill["seconds"][5:-1]
    share = sum(second[column] for second in seconds) / (limit / 60 * (bill["seconds"][-1][0] - first - 5))
    return share, bill["refused_total"] / max(1, bill["calls"] + bill["refused_total"])


@contextmanager
def cluster() -> Iterator[str]:
    """A Ray of its own, for the runs of one measurement."""
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, logging_level="error", log_to_driver=False)
    try:
        yield str(ray.get_runtime_context().gcs_address)
    finally:
        ray.shutdown()


def limits(folder: Path, seconds: int) -> Table:
    table = Table("limit", "workers", "used", "refused", title=f"{seconds} s at the limit, 200 ms latency")
    cases = [
        ("6,000 requests a minute", {"rpm": 6000}, ["--rpm", "6000"], 2, 6000, 1),
        ("6,000 requests a minute", {"rpm": 6000}, ["--rpm", "6000"], 4, 6000, 1),
        ("6,000 requests, answers after 4 s", {"rpm": 6000}, ["--rpm", "6000", "--latency", "4"], 2, 6000, 1),
        ("600,000 tokens, unequal", {"tpm": 600_000}, ["--tpm", "600000", "--words", "4:60"], 2, 600_000, 2),
        ("600,000 tokens, unequal", {"tpm": 600_000}, ["--tpm", "600000", "--words", "4:60"], 4, 600_000, 2),
        ("600,000, as used", {"tpm": 600_000}, ["--tpm", "600000", "--words", "4:60", "--charge", "actual"], 2,
         600_000, 2),
    ]  # fmt: skip
    for name, spec_limits, server, workers, limit, column in cases:
        count = int(100 * seconds) if column == 1 else int(165 * seconds if "used" in name else 105 * seconds)
        with teacher_server(*SERVER, "--spread", "0.3", *server) as teacher:
            spec = write_job(folder, teacher, count, spec_limits, "limits")
            out = folder / f"limits-{time.monotonic_ns()}"
            subprocess.run([*LIMBECK, "run", str(spec), "--out", str(out), "--workers", str(workers)],
                           check=True, capture_output=True, cwd=ROOT)  # fmt: skip
            share, refused = used(teacher.bill(), limit, column)
        table.add_row(name, str(workers), f"{share:.1%}", f"{refused:.2%}")
        print(f"{name}, {workers} workers: {share:.1%} used, {refused:.2%} refused", file=sys.stderr, flush=True)
    for name, command in installed().items():
        _, bill = run_peer(command, folder, 100 * seconds, rpm=6000)
        share, refused = used(bill, 6000, 1)
        table.add_row(f"6,000 requests a minute: {name}", "1", f"{share:.1%}", f"{refused:.2%}")
    share, refused, halves = two_runs(folder, seconds)
    table.add_row("6,000 requests, two runs", "2 + 2", f"{share:.1%} ({halves})", f"{refused:.2%}")
    return table


def two_runs(folder: Path, seconds: int) -> tuple[float, float, str]:
    """Two runs on one key and one cluster; each one's share of the calls while both were sending."""
    with teacher_server(*SERVER, "--rpm", "6000") as teacher, cluster() as address:
        processes = []
        for name in ("first", "second"):
            more = {"sampling": {"max_tokens": 64 if name == "first" else 63}}
            spec = write_job(folder, teacher, int(50 * seconds), {"rpm": 6000}, name, **more)
            out = folder / f"{name}-{time.monotonic_ns()}"
            command = [*LIMBECK, "run", str(spec), "--out", str(out), "--address", address]
            processes.append((out, subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL,
                                                    stderr=subprocess.DEVNULL)))  # fmt: skip
        answered = asyncio.run(half_way([out for out, _ in processes], int(30 * seconds)))
        for _, process in processes:
            assert process.wait() == 0
        share, refused = used(teacher.bill(), 6000, 1)
    return share, refused, " : ".join(f"{a / sum(answered):.0%}" for a in answered)


async def half_way(places: list[Path], calls: int) -> list[int]:
    """Answers of each run between the time when both are under way and the time when one has `calls` more."""

    def now() -> list[int]:
        found = []
        for place in places:
            path = place / "manifest.json"
            found.append(json.loads(path.read_text())["calls"]["answered"] if path.is_file() else 0)
        return found

    while min(start := now()) < 50:
        await asyncio.sleep(0.2)
    while max(a - b for a, b in zip(now(), start, strict=True)) < calls:
        await asyncio.sleep(0.2)
    return [a - b for a, b in zip(now(), start, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=["cost", "limits"], default=["cost", "limits"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=40)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        if "cost" in options.parts:
            with cluster() as address:
                Console().print(cost(Path(place), options.repeats, address))
        if "limits" in options.parts:
            Console().print(limits(Path(place), options.seconds))


if __name__ == "__main__":
    main()
