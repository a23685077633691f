"""CPU and memory of a process and everything below it, for benchmarks."""

import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import psutil

SAMPLE_S = 0.05


class Tree:
    """Samples what the processes below `roots` use from now on; a process that ended keeps its last figure."""

    def __init__(self, *roots: int) -> None:
        self._roots = [psutil.Process(root) for root in roots]
        self._before: dict[tuple[int, float], float] = {}
        self._cpu: dict[tuple[int, float], tuple[str, float]] = {}
        self.peak_rss = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._stop.wait(SAMPLE_S):
            self._sample()

    def _sample(self) -> None:
        rss = 0
        for process in self._processes():
            try:
                with process.oneshot():
                    times, name = process.cpu_times(), process.name()
                    rss += process.memory_info().rss
                    key = (process.pid, process.create_time())
                    self._cpu[key] = (name, times.user + times.system - self._before.get(key, 0.0))
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        self.peak_rss = max(self.peak_rss, rss)

    def _processes(self) -> Iterator[psutil.Process]:
        for root in self._roots:
            with suppress(psutil.NoSuchProcess):
                yield from (root, *root.children(recursive=True))

    def by_name(self) -> dict[str, float]:
        """CPU seconds by process name."""
        found: dict[str, float] = {}
        for name, seconds in self._cpu.values():
            found[name] = found.get(name, 0.0) + seconds
        return found

    @property
    def cpu_s(self) -> float:
        return sum(seconds for _, seconds in self._cpu.values())

    def __enter__(self) -> "Tree":
        self._sample()
        self._before = {key: seconds for key, (_, seconds) in self._cpu.items()}
        self._sample()
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()
        self._sample()


@contextmanager
def measured(
    command: list[str], also: Sequence[int] = (), **options: object
) -> Iterator[tuple["subprocess.Popen[str]", Tree]]:
    """Start a command and measure its tree, and what runs below `also`, until the block is left, which waits for it."""
    process = subprocess.Popen(command, text=True, start_new_session=True, **options)  # type: ignore[call-overload]
    with Tree(process.pid, *also) as tree:
        yield process, tree
        process.wait()
