"""The same rows make the same step however they are split over micro-batches and workers: to five digits."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from teacher_server import free_port

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).with_name("parity.py")
Steps = dict[str, list[list[float]]]


def measured(*ways: str, workers: int = 1) -> Steps:
    """What the first of so many processes measured of each way, BATCHxACCUMULATIONxWORKERS."""
    shared = {
        **os.environ, "PYTHONPATH": f"{ROOT}:{SCRIPT.parent}", "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(workers),
    }  # fmt: skip
    started = []
    for rank in range(workers):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if workers > 1 else {}
        command = [sys.executable, str(SCRIPT), *ways]
        started.append(subprocess.Popen(command, env={**shared, **own}, stdout=subprocess.PIPE, text=True))
    said = [process.communicate(timeout=280)[0] for process in started]
    assert [process.returncode for process in started] == [0] * workers
    found: Steps = json.loads(said[0].splitlines()[-1])
    return found


def test_one_step_is_the_same_in_one_batch_in_four_and_on_two_workers() -> None:
    alone = measured("16x1x1", "4x4x1")
    together = measured("4x2x2", workers=2)
    assert len(alone) == 22 and alone.keys() == together.keys()
    for name, ((loss, norm), four) in alone.items():
        assert four == pytest.approx([loss, norm], rel=1e-5), name
        assert together[name][0] == pytest.approx([loss, norm], rel=1e-5), name
        assert norm > 1e-4, name
