"""Starts one script in the processes of a torch.distributed group."""

import os
import subprocess
import sys
from pathlib import Path

from conftest import ROOT
from teacher_server import free_port


def last_line(script: Path, *arguments: str, workers: int = 1) -> str:
    """What the first of so many processes printed last."""
    shared = {
        **os.environ, "PYTHONPATH": f"{ROOT}:{script.parent}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(workers),
    }  # fmt: skip
    started = []
    for rank in range(workers):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if workers > 1 else {}
        command = [sys.executable, str(script), *arguments]
        started.append(subprocess.Popen(command, env={**shared, **own}, stdout=subprocess.PIPE, text=True))
    said = [process.communicate(timeout=280)[0] for process in started]
    assert [process.returncode for process in started] == [0] * workers
    return said[0].splitlines()[-1]
