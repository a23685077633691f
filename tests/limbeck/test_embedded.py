"""The road of `make demo`, short: a real model answers, and its own weights, cut, are the student."""

import json
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest
import transformers
from conftest import Finished

pytest.importorskip("xllamacpp")
pytestmark = [pytest.mark.ray, pytest.mark.first]
SEEDS = ("Name a colour.", "Say hello.", "Name an animal.", "Count to three.", "Name a fruit.", "Name a day.")


def test_an_embedded_teacher_answers_and_its_cut_weights_learn(
    command: Callable[..., Finished], job: Callable[..., Path], jsonl: Callable[..., Path], tmp_path: Path
) -> None:
    rows = jsonl([{"id": f"s{i}", "instruction": seed} for i, seed in enumerate(SEEDS)])
    spec = job(
        rows, pipeline="instruct", source={"path": str(rows), "fields": {"id": "id", "input": "instruction"}},
        teachers=[{"provider": "embedded", "model": "smollm2-135m", "free": True}], sampling={"max_tokens": 24},
        train={"student": {"from": "smollm2-135m", "layers": 2}, "max_length": 64, "batch_size": 2},
        evaluate={"seeds": [], "max_new_tokens": 8, "max_length": 64},
    )  # fmt: skip
    run = tmp_path / "run"
    done = command("run", spec, "--out", run)
    assert done.returncode == 0, done.stderr
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["calls"]["answered"] == 6 and manifest["spend"]["output_tokens"] > 6
    dataset = datasets.load_dataset("parquet", data_dir=str(run / "dataset"), split="train")
    assert sorted(dataset["id"]) == [f"s{i}" for i in range(6)] and all(dataset["response"])
    metrics = json.loads((run / "student" / "metrics.json").read_text())
    assert metrics["steps"] >= 1 and metrics["loss_after"] < metrics["loss_before"]
    student = transformers.AutoModelForCausalLM.from_pretrained(run / "student")
    assert student.config.num_hidden_layers == 2 and not hasattr(student.config, "quantization_config")
    assert transformers.AutoTokenizer.from_pretrained(run / "student")("hello")["input_ids"]
    judged = json.loads((run / "evaluation.json").read_text())["students"]
    assert list(judged) == ["student"] and judged["student"]["rows"] == 1  # the one of six that it did not learn
    assert judged["student"]["metrics"]["loss"][0] == pytest.approx(metrics["loss_after"], rel=0.02)
    assert "that none of them has learned" in (run / "evaluation.html").read_text()
    again = command("run", spec, "--out", run)
    assert again.returncode == 0 and "nothing was changed" in again.stderr
