"""`limbeck fake-teacher` in a process of its own, for a test or a benchmark."""

import json
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

LIFE_S = "900"  # it ends by itself, whatever becomes of the test


class RunningTeacher:
    """The server as a test sees it."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.base_url = f"{root}/v1"

    def bill(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self.root}/bill", timeout=10) as answer:
            found: dict[str, Any] = json.load(answer)
            return found


def free_port() -> int:
    """A port of loopback that nothing listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def teacher_server(*options: str) -> Iterator[RunningTeacher]:
    """Start the server, wait for its address, end it."""
    command = [sys.executable, "-m", "limbeck.cli", "fake-teacher", "--stop-after", LIFE_S, *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        root = process.stdout.readline().strip()
        assert root.startswith("http://127.0.0.1:"), "the fake teacher did not start"
        yield RunningTeacher(root)
    finally:
        process.kill()
        process.wait()
