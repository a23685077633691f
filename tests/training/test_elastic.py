"""A training whose machine is lost goes on with those that are left."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from conftest import Finished, Limbeck
from pydantic import ValidationError
from test_killed import WORDS, reached

from schemas.student import TrainingSpec

Command = Callable[..., Finished]


@pytest.mark.ray
def test_with_fewer_workers_a_training_learns_the_same(
    command: Command, limbeck: Limbeck, jsonl: Callable[..., Path], tmp_path: Path
) -> None:
    from ray.cluster_utils import Cluster

    pairs = jsonl([{"prompt": f"Repeat {a} {b}: ", "response": f"{a} {b}"} for a in WORDS for b in WORDS] * 8)
    student = {"scratch": {"arch": "llama", "layers": 2, "hidden": 64, "heads": 2, "vocab": 320}}
    spec = tmp_path / "spec.yaml"
    body = {"student": student, "data": {"path": str(pairs)}, "max_length": 48, "batch_size": 2, "packing": False}
    spec.write_text(yaml.safe_dump({**body, "workers": 2, "min_workers": 1, "epochs": 3, "checkpoints": {"every": 10}}))
    one = ("--set", "workers=1", "--set", "accumulation=2")
    assert command("train", spec, "--out", tmp_path / "one", *one).returncode == 0
    machines = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        second = machines.add_node(num_cpus=1)
        machines.wait_for_nodes()
        out = tmp_path / "two"
        soon = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20"}
        running = limbeck.start("train", spec, "--out", out, "--address", machines.address, environment=soon)
        reached(out, 30)
        machines.remove_node(second, allow_graceful=False)
        _, said = running.communicate(timeout=240)
    finally:
        machines.shutdown()
    assert running.returncode == 0, said
    steps, losses = [], []
    for name in ("one", "two"):
        lines = (tmp_path / name / "student" / "losses.csv").read_text().splitlines()[1:]
        steps.append([int(line.split(",")[0]) for line in lines])
        losses.append([float(line.split(",")[1]) for line in lines])
    assert steps[0] == steps[1] and losses[1] == pytest.approx(losses[0], rel=1e-3)
    metrics = json.loads((out / "student" / "metrics.json").read_text())
    assert metrics["steps"] == steps[0][-1] == 135


def test_a_step_must_be_the_same_with_any_number_of_workers() -> None:
    with pytest.raises(ValidationError, match=r"4 batches .* over 3 workers: set accumulation to a multiple of 3"):
        TrainingSpec.model_validate({"student": "s", "workers": 4, "min_workers": 2})
    TrainingSpec.model_validate({"student": "s", "workers": 4, "min_workers": 2, "accumulation": 3})
    with pytest.raises(ValidationError, match="min_workers 3 is more than workers 2"):
        TrainingSpec.model_validate({"student": "s", "workers": 2, "min_workers": 3})
