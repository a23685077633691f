"""`limbeck train`: a student from scratch learns, is measured, saved, and loads."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
import yaml
from conftest import Finished

pytestmark = pytest.mark.ray
Command = Callable[..., Finished]
WORDS = ("red", "green", "blue", "white", "black")


def trained(command: Command, data: Path, out: Path, arch: str, **settings: Any) -> dict[str, Any]:
    """Metrics of a small student trained by the command."""
    student = {"scratch": {"arch": arch, "layers": 1, "hidden": 32, "heads": 2, "vocab": 320}}
    spec = out.with_suffix(".yaml")
    body = {"student": student, "data": {"path": str(data)}, "learning_rate": 0.01, "max_length": 48, **settings}
    spec.write_text(yaml.safe_dump(body))
    done = command("train", spec, "--out", out)
    assert done.returncode == 0, done.stderr
    metrics: dict[str, Any] = json.loads((out / "student" / "metrics.json").read_text())
    return metrics


@pytest.fixture
def repeats(jsonl: Callable[..., Path]) -> Path:
    """100 pairs that ask to repeat two words, and one whose prompt is longer than a student reads."""
    pairs = [{"prompt": f"Repeat {a} {b}: ", "response": f"{a} {b}"} for a in WORDS for b in WORDS] * 4
    return jsonl([*pairs, {"prompt": "Repeat " + "red " * 200, "response": "red"}])


def test_two_workers_take_the_same_steps_as_one_with_twice_the_batch(
    command: Command, repeats: Path, tmp_path: Path
) -> None:
    one = trained(command, repeats, tmp_path / "one", "llama", workers=1, batch_size=8, epochs=8)
    two = trained(command, repeats, tmp_path / "two", "llama", workers=2, batch_size=4, epochs=8)
    assert two["steps"] == one["steps"]
    assert two["loss_before"] == one["loss_before"]
    assert two["loss_after"] == pytest.approx(one["loss_after"], rel=0.03)  # the last batch of an epoch is uneven
    assert one["loss_after"] < 0.7 * one["loss_before"]
    assert one["packed"]
    assert one["rows_train"] + one["rows_eval"] == 100 and one["rows_too_long"] == 1
    student = tmp_path / "two" / "student"
    model = transformers.AutoModelForCausalLM.from_pretrained(student)
    assert model.config.vocab_size == len(transformers.AutoTokenizer.from_pretrained(student))


def test_an_encoder_decoder_learns_and_loads(command: Command, repeats: Path, tmp_path: Path) -> None:
    metrics = trained(command, repeats, tmp_path / "out", "t5", batch_size=8, epochs=6)
    student = tmp_path / "out" / "student"
    assert metrics["loss_after"] < 0.6 * metrics["loss_before"]
    assert metrics["rouge_l_after"] > metrics["rouge_l_before"]
    assert metrics["tokens_per_second"] > 0
    assert metrics["packed"]
    assert (student / "curve.png").read_bytes()[:4] == b"\x89PNG"
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(student)
    assert model.config.vocab_size == len(transformers.AutoTokenizer.from_pretrained(student))
