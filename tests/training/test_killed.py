"""`limbeck train` whose worker is killed, and which is then killed itself, learns what an undisturbed one learns."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import yaml
from conftest import Finished, Limbeck

pytestmark = pytest.mark.ray
Command = Callable[..., Finished]
WORDS = ("red", "green", "blue", "white", "black")
DEADLINE_S = 120


def reached(out: Path, step: int) -> None:
    """Wait until a training has logged that step."""
    ends = time.monotonic() + DEADLINE_S
    progress = out / ".work" / "train-progress.json"
    while time.monotonic() < ends:
        if progress.exists() and json.loads(progress.read_text()).get("step", 0) >= step:
            return
        time.sleep(0.02)
    raise AssertionError(f"step {step} was not reached")


def worker_of(pid: int) -> psutil.Process:
    found = [p for p in psutil.Process(pid).children(recursive=True) if "RayTrainWorker" in p.name()]
    return max(found, key=psutil.Process.create_time)


def test_a_killed_training_goes_on_and_ends_where_an_undisturbed_one_does(
    command: Command, limbeck: Limbeck, jsonl: Callable[..., Path], tmp_path: Path
) -> None:
    pairs = jsonl([{"prompt": f"Repeat {a} {b}: ", "response": f"{a} {b}"} for a in WORDS for b in WORDS] * 8)
    student = {"scratch": {"arch": "llama", "layers": 2, "hidden": 64, "heads": 2, "vocab": 320}}
    spec = tmp_path / "spec.yaml"
    body = {"student": student, "data": {"path": str(pairs)}, "max_length": 48, "batch_size": 1, "packing": False}
    spec.write_text(yaml.safe_dump({**body, "workers": 2, "epochs": 2, "checkpoints": {"every": 20}}))
    assert command("train", spec, "--out", tmp_path / "quiet").returncode == 0
    out = tmp_path / "killed"
    running = limbeck.start("train", spec, "--out", out)
    try:
        reached(out, 60)
        worker_of(running.pid).kill()
        (out / ".work" / "train-progress.json").unlink(missing_ok=True)
        reached(out, 120)  # Ray has started another, which went on
        assert running.poll() is None
    finally:
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()
    kept = [int(p.parent.name.rpartition("-")[2]) for p in (out / ".work" / "trainer").glob("*/whole")]
    assert max(kept) >= 100
    other = command("train", spec, "--out", out, "--set", "learning_rate=0.1")
    assert other.returncode == 2 and "learning_rate: was 0.0003, is 0.1" in other.stderr
    done = command("train", spec, "--out", out)
    assert done.returncode == 0, done.stderr
    curves = [(tmp_path / name / "student" / "losses.csv").read_text() for name in ("quiet", "killed")]
    assert curves[0] == curves[1]
    quiet, killed = (json.loads((tmp_path / n / "student" / "metrics.json").read_text()) for n in ("quiet", "killed"))
    for name in ("loss_before", "loss_after", "rouge_l_before", "rouge_l_after", "steps"):
        assert quiet[name] == killed[name]
    assert not (out / ".work" / "trainer").exists()
