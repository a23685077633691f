"""A cluster with fewer GPUs than a training needs is told before anything is loaded, captured or trained."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_students import student

pytestmark = pytest.mark.ray
SCRIPT = """
import sys
import ray
import limbeck

ray.init(address="local", num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False)
data, teacher, out = sys.argv[1:]
spec = {"data": {"path": data}, "student": {"scratch": {}}, "teacher": teacher,
        "objective": {"name": "kd", "top_k": 4, "tau": 1.0, "cache": f"{out}/cache"}}
for workers in ({"workers": 2}, {"workers": 4, "min_workers": 2, "accumulation": 3}):
    try:
        limbeck.train({**spec, **workers}, out)
    except limbeck.LimbeckError as error:
        print(error.message, "|", error.hint)
"""


def test_more_workers_than_gpus(tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "Say hi. ", "response": "Hi."}\n' * 8)
    teacher = student("llama")
    for part in (teacher.model, teacher.tokenizer):
        part.save_pretrained(tmp_path / "teacher")
    command = [sys.executable, "-c", SCRIPT, tmp_path / "pairs.jsonl", tmp_path / "teacher", tmp_path / "out"]
    env = {**os.environ, "RAY_AUTH_MODE": "disabled"}
    said = subprocess.run(command, check=True, timeout=120, stdout=subprocess.PIPE, text=True, env=env).stdout
    assert "workers: 2, the cluster has 1 GPUs | set workers lower, or add GPUs" in said
    assert "min_workers: 2, the cluster has 1 GPUs | set min_workers lower, or add GPUs" in said
    assert not (tmp_path / "out" / "cache").exists() and not (tmp_path / "out" / "student").exists()
