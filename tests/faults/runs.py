"""Runs in this process, on the Ray that the tests share, and kills of their actors."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from teacher_server import RunningTeacher

import limbeck as api
from limbeck.spec_file import load_job
from schemas.manifest import Manifest

Write = Callable[..., Path]


def run_it(spec: Path, out: Path, *settings: str, **options: Any) -> Manifest:
    """`limbeck run`, on the Ray that the tests share."""
    return api.run(load_job(spec, list(settings)), out, **options)


def lane(teacher: RunningTeacher, **options: Any) -> dict[str, Any]:
    return {"provider": "openai", "model": "m", "base_url": teacher.base_url, "free": True, **options}


def newest(actor: str) -> psutil.Process:
    """The process of the actor of this class that was started last."""
    found = [p for p in psutil.Process().children(recursive=True) if p.name().startswith(f"ray::{actor}")]
    return max(found, key=psutil.Process.create_time)


class KillAt:
    """Kills an actor's process once a run has had so many answers. To be given to a run as `watch`."""

    def __init__(self, actor: str, answered: int) -> None:
        self.actor, self.answered, self.killed = actor, answered, False

    def __call__(self, manifest: Manifest) -> None:
        if not self.killed and manifest.calls.answered >= self.answered:
            newest(self.actor).kill()
            self.killed = True


def questions(jsonl: Write, count: int) -> Path:
    return jsonl([{"id": i, "input": f"What is thing {i}?"} for i in range(count)])
