"""Calls a function in the processes of a torch.distributed group."""

import json
import os
import tempfile
from collections.abc import Callable
from functools import cache
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import torch
from teacher_server import free_port


def in_group(function: Callable[..., Any], *arguments: Any, workers: int = 1) -> Any:
    """What the first of so many processes returned. They are forked from one that imported what a training needs: to
    import it in each took 6 s CPU."""
    _server()
    with tempfile.TemporaryDirectory() as place:
        said = Path(place) / "said.json"
        inputs = (function, arguments, workers, free_port(), said)
        torch.multiprocessing.start_processes(_member, inputs, workers, start_method="forkserver")
        return json.loads(said.read_text())


@cache
def _server() -> None:
    """Start it; with two threads a process these models took twice the CPU."""
    torch.multiprocessing.get_context("forkserver").set_forkserver_preload(["training.trainer"])
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    forkserver.ensure_running()
    del os.environ["OMP_NUM_THREADS"]
    if before is not None:
        os.environ["OMP_NUM_THREADS"] = before


def _member(rank: int, function: Callable[..., Any], arguments: tuple[Any, ...], workers: int, port: int,
            said: Path) -> None:  # fmt: skip
    own = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if workers > 1 else {}
    os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(workers), **own})
    torch.set_num_threads(1)
    found = function(*arguments)
    if rank == 0:
        said.write_text(json.dumps(found))
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
