"""Trainings whose weights are shared out (FSDP2), as one process of two runs them; prints what rank 0 found.

Started by `test_sharding`, in two processes of a torch.distributed group, or in one with the weights whole.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
from parity import teacher_of
from test_trainer import rows_of
from tiny_students import student, without_dropout

from schemas.student import TrainingSpec
from training.trainer import TokenTrainer, trainer_of

# `hidden` has weights of its own beside the student's.
TRAININGS: list[tuple[str, dict[str, Any]]] = [("llama", {"name": "hidden"}), ("t5", {"name": "kd"})]


def trainer(arch: str, objective: dict[str, Any], out: Path, workers: int, stop_at: int = 0) -> TokenTrainer:
    made, found = without_dropout(student(arch)), []
    spec = TrainingSpec.model_validate(
        {"student": "s", "teacher": "t", "objective": objective, "batch_size": 4 // workers, "accumulation": 2,
         "workers": workers, "sharding": workers > 1, "packing": False, "max_length": 64, "epochs": 8,
         "learning_rate": 0.01, "checkpoints": {"every": 3, "best": True}}
    )  # fmt: skip
    rows = rows_of(made, objective["name"])
    wished = lambda: found[0].state.global_step == stop_at  # noqa: E731
    teacher = teacher_of(arch)
    found.append(trainer_of(spec, made, teacher, rows, rows, out, (), wished))
    return found[0]


def outcome(done: TokenTrainer) -> dict[str, Any]:
    whole = [p.detach() for p in done.weights().values()]
    shares = sum(getattr(p, "_local_tensor", p).numel() for p in done.model.parameters())
    return {
        "losses": [line["loss"] for line in done.state.log_history if "loss" in line],
        "held_out": [line["eval_loss"] for line in done.state.log_history if "eval_loss" in line],
        "weights": sum(float(p.abs().sum()) for p in whole), "count": sum(p.numel() for p in whole), "here": shares,
    }  # fmt: skip


def main(folder: Path, workers: int) -> None:
    found = {}
    for arch, objective in TRAININGS:
        whole = trainer(arch, objective, folder / arch, workers)
        whole.go_on()
        found[arch] = outcome(whole)
        if workers > 1:
            trainer(arch, objective, folder / f"{arch}-cut", workers, stop_at=4).go_on()
            second = trainer(arch, objective, folder / f"{arch}-cut", workers)
            assert second.go_on() == 4
            found[f"{arch}, resumed"] = outcome(second)
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as alone:
        main(Path(sys.argv[2] if len(sys.argv) > 2 else alone), int(sys.argv[1]))
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
