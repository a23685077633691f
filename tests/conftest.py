"""Fixtures that several rooms share."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests" / room) for room in ("", "faults", "services", "training")]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What waits long for other processes goes first: at the end nothing would be left to run beside it."""
    items.sort(key=lambda item: item.get_closest_marker("first") is None)


@pytest.fixture
def jsonl(tmp_path: Path) -> Callable[..., Path]:
    """Write rows to a JSONL file."""

    def write(rows: list[Any], name: str = "rows.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
        return path

    return write


@pytest.fixture
def job(tmp_path: Path) -> Callable[..., Path]:
    """Write a job spec: a cot run on a scripted teacher, with the given sections in place of these."""

    def write(rows: Path | str, /, name: str = "job.yaml", **sections: Any) -> Path:
        spec = {
            "name": "test",
            "pipeline": "cot",
            "source": {"path": str(rows)},
            "teachers": [{"provider": "scripted"}],
            **sections,
        }
        path = tmp_path / name
        path.write_text(yaml.safe_dump(spec))
        return path

    return write


@pytest.fixture
def questions(jsonl: Callable[..., Path]) -> Path:
    """Forty questions with ids."""
    return jsonl([{"id": f"q{i}", "input": f"What is thing number {i}?"} for i in range(40)])


class Limbeck:
    """The command, as a user starts it."""

    def __init__(self, home: Path) -> None:
        self.environment = {**os.environ, "HOME": str(home), "XDG_CACHE_HOME": str(Path.home() / ".cache")}
        self.environment.pop("OPENAI_API_KEY", None)

    def __call__(self, *arguments: Any, **environment: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", "limbeck.cli", *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=280,
            env={**self.environment, **environment},
            cwd=ROOT,
            check=False,
        )

    def start(self, *arguments: Any, environment: Any = (), **options: Any) -> "subprocess.Popen[str]":
        """In a process group of its own."""
        return subprocess.Popen(
            [sys.executable, "-m", "limbeck.cli", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**self.environment, **dict(environment)},
            cwd=ROOT,
            start_new_session=True,
            **options,
        )


class Finished(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def command(ray_cluster: None) -> Iterator[Callable[..., Finished]]:
    """The command in this process, on the Ray that the tests share: as `limbeck`, but for the seconds of a start."""
    from typer.testing import CliRunner

    from limbeck.cli import app

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def run(*arguments: Any) -> Finished:
        done = CliRunner().invoke(app, [str(argument) for argument in arguments])
        return Finished(done.exit_code, done.stdout, done.stderr)

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def limbeck(tmp_path_factory: pytest.TempPathFactory) -> Limbeck:
    return Limbeck(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One local Ray for the tests that call Limbeck in their own process."""
    from services import cluster

    os.environ["RAY_AUTH_MODE"] = "disabled"
    cluster.connect(None)
    yield
    import ray

    ray.shutdown()


def wait_until(condition: Callable[[], bool], what: str, process: "subprocess.Popen[str] | None" = None) -> None:
    """Look until `what` holds, for two minutes at the most, and only while `process`, if any, runs."""
    deadline = time.monotonic() + 120
    while not condition():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, f"in vain waited for: {what}"
        time.sleep(0.02)
