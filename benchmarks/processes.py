"""CPU and memory of a process and everything below it, for benchmarks."""

import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

SAMPLE_S = 0.05


class Tree:
    """Samples a process tree; a process that ended keeps its last figure."""

    def __init__(self, root: int) -> None:
        self._root = psutil.Process(root)
        self._cpu: dict[tuple[int, float], tuple[str, float]] = {}
        self.peak_rss = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._stop.wait(SAMPLE_S):
            self._sample()

    def _sample(self) -> None:
        rss = 0
        try:
            processes = [self._root, *self._root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return
        for process in processes:
            try:
                with process.oneshot():
                    times, name = process.cpu_times(), process.name()
                    rss += process.memory_info().rss
                    self._cpu[process.pid, process.create_time()] = (name, times.user + times.system)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        self.peak_rss = max(self.peak_rss, rss)

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
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()


@contextmanager
def measured(command: list[str], **options: object) -> Iterator[tuple["subprocess.Popen[str]", Tree]]:
    """Start a command and measure its tree until the block is left, which waits for it."""
    process = subprocess.Popen(command, text=True, start_new_session=True, **options)  # type: ignore[call-overload]
    with Tree(process.pid) as tree:
        yield process, tree
        process.wait()
