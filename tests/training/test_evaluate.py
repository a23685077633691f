"""`limbeck evaluate`: several students on one page, with intervals."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import Finished
from test_trainer import rows_of, trained
from tiny_students import student

from schemas.evaluation import EvaluationSpec
from training.compare import judged
from training.comparison import page

Command = Callable[..., Finished]


@pytest.fixture
def three(tmp_path: Path) -> dict[str, str]:
    """A student that learned eight rows, one that learned a little, one that learned nothing."""
    for name, epochs in (("good", 60), ("fair", 6), ("none", 0)):
        made = student("llama")
        if epochs:
            trained("llama", {"name": "sft"}, tmp_path / f"of-{name}", made=made, epochs=epochs)
        made.model.save_pretrained(tmp_path / name)
        made.tokenizer.save_pretrained(tmp_path / name)
    return {name: str(tmp_path / name) for name in ("good", "fair", "none")}


def spec_of(three: dict[str, str], data: Path, **sections: Any) -> dict[str, Any]:
    return {"students": three, "data": {"path": str(data)}, "max_new_tokens": 16, "seeds": [1, 2], "max_length": 64,
            **sections}  # fmt: skip


@pytest.mark.ray
def test_three_students_are_compared_on_one_page(
    command: Command, three: dict[str, str], jsonl: Callable[..., Path], tmp_path: Path
) -> None:
    made = student("llama")
    texts = [made.tokenizer.decode(row.input_ids).removesuffix("</s>").partition("?") for row in rows_of(made, "sft")]
    data = jsonl([{"prompt": f"{asked}?", "response": answer} for asked, _, answer in texts])
    spec = tmp_path / "evaluate.yaml"
    spec.write_text(yaml.safe_dump(spec_of(three, data, teacher=three["good"]), sort_keys=False))
    done = command("evaluate", spec, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())["students"]
    assert list(found) == ["good", "fair", "none"]
    losses = [found[name]["metrics"]["loss"] for name in found]
    assert losses[0][0] < losses[1][0] < losses[2][0]
    assert all(low <= mean <= high for mean, low, high in losses)
    assert found["good"]["metrics"]["exact_match"][0] == 1.0 == found["good"]["metrics"]["rouge_l"][0]
    assert found["good"]["metrics"]["forward_kl"][0] == pytest.approx(0, abs=1e-6)
    assert found["none"]["metrics"]["reverse_kl"][0] > 0.1
    assert {"rouge_l_sampled", "distinct_1", "calibration_error", "token_accuracy"} <= found["fair"]["metrics"].keys()
    written = (tmp_path / "out" / "evaluation.html").read_text()
    assert written.count("<section>") > 8 and "What is red?" in written
    assert "good" in done.stdout and "rouge_l" in done.stdout


def test_options_are_ranked_after_demonstrations_and_the_draws_vote(
    three: dict[str, str], jsonl: Callable[..., Path]
) -> None:
    rows = [
        {"task": "t", "input": f"What is {c}?", "output": a, "options": [" The apple.", " The leaf."]}
        for c, a in (("red", " The apple."), ("green", " The leaf."), ("red one", " The apple."))
    ]  # fmt: skip
    whole = spec_of(three, jsonl(rows), objective={"name": "icl", "soft": False}, k_shot={"k": 1, "draws": 3}, seeds=[])
    torch.manual_seed(0)
    metrics = judged(EvaluationSpec.model_validate(whole), "good")["metrics"]
    assert 0 <= metrics["accuracy"][0] <= 1 and 0 <= metrics["macro_f1"][0] <= 1
    assert "option_calibration_error" in metrics and "rouge_l_sampled" not in metrics


def test_what_a_model_writes_is_escaped(three: dict[str, str], jsonl: Callable[..., Path]) -> None:
    spec = EvaluationSpec.model_validate(spec_of(three, jsonl([{"prompt": "a", "response": "b"}] * 2)))
    sample = {"prompt": "<script>alert(1)</script>", "reference": "r", "written": "<img src=x>"}
    one = {"metrics": {"loss": [1.0, 0.5, 1.5]}, "rows": 1, "parameters": 5, "samples": [sample]}
    shown = page(spec, {"good": one, "fair": one, "none": one})
    assert "<script>" not in shown and "<img" not in shown and "&lt;img src=x&gt;" in shown


@pytest.mark.ray
@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"students": {"x": "/nowhere"}}, "no config.json there"), ({"students": []}, "students"),
        ({"students": ["a", 1]}, "students"),
        ({"data": {"path": "/nowhere.jsonl"}}, "no such file"), ({"rows": 0}, "rows"),
        ({"seedz": [1]}, "unknown key seedz"),
        ({"k_shot": {"k": 1}}, "k_shot goes with objective icl"),
    ],
    ids=str,
)  # fmt: skip
def test_bad_input(
    command: Command,
    three: dict[str, str],
    jsonl: Callable[..., Path],
    tmp_path: Path,
    change: dict[str, Any],
    told: str,
) -> None:
    spec = tmp_path / "evaluate.yaml"
    data = jsonl([{"prompt": "a", "response": "b"}] * 2)
    spec.write_text(yaml.safe_dump(spec_of(three, data) | change))
    done = command("evaluate", spec, "--out", tmp_path / "out")
    assert done.returncode == 2 and told in done.stderr and not (tmp_path / "out").exists()
