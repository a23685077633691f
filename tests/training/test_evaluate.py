"""`limbeck evaluate`: several students on one page, with intervals."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from conftest import Finished
from rich.console import Console
from tiny_students import PROMPTS, after_sft, rows_of, student

from limbeck.evaluation import check_models, check_of_job, evaluate
from limbeck.progress import comparison
from schemas.errors import Interrupted, LimbeckError, SpecError
from schemas.evaluation import EvaluationSpec
from schemas.job import JobSpec
from schemas.student import TrainingData
from training.compare import as_taught, chosen, judged
from training.comparison import page
from training.data import data_digest
from training.evaluate import responses
from training.examples import Pair
from training.held_out import held_out_by, held_out_numbers
from training.students import Student, pretrained, train_tokenizer

Command = Callable[..., Finished]


@pytest.fixture
def three(tmp_path: Path) -> dict[str, str]:
    """A student that learned eight rows, one that learned a little, one that learned nothing."""
    for name, epochs in (("good", 60), ("fair", 6), ("none", 0)):
        made = after_sft("llama", epochs) if epochs else student("llama")
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


@pytest.mark.ray
def test_who_was_judged_before_an_interruption_is_not_judged_again(
    three: dict[str, str], jsonl: Callable[..., Path], tmp_path: Path, ray_cluster: None
) -> None:
    spec = spec_of(three, jsonl([{"prompt": "What is red?", "response": " The apple."}] * 4))
    seen: list[int] = []
    with pytest.raises(Interrupted):
        evaluate(spec, tmp_path / "out", watch=lambda judged, of: seen.append(judged), stopping=lambda: bool(seen))
    before = seen.pop()
    found = evaluate(spec, tmp_path / "out", watch=lambda judged, of: seen.append(judged))
    assert seen == list(range(before + 1, 4)) and list(found) == ["good", "fair", "none"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["evaluation.html", "evaluation.json"]


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
    sample = {"id": "0", "prompt": "<script>alert(1)</script>", "reference": "r", "written": "<img src=x>"}
    one = {"metrics": {"loss": [1.0, 0.5, 1.5]}, "rows": 1, "parameters": 5, "samples": [sample], "notes": []}
    shown = page(spec, {"good": one, "fair": one, "none": one})
    assert "<script>" not in shown and "<img" not in shown and "&lt;img src=x&gt;" in shown


@pytest.mark.ray
@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"students": {"x": "/nowhere"}}, "no config.json there"), ({"students": []}, "students"),
        ({"students": ["a", 1]}, "students"),
        ({"data": {"path": "/nowhere.jsonl"}}, "no such file"), ({"rows": 0}, "rows"),
        ({"seedz": [1]}, "unknown key seedz"), ({"rows": "few"}, "limbeck schema --evaluation"),
        ({"k_shot": {"k": 1}}, "k_shot goes with objective icl"), ({"max_length": 4096}, "reads 2048 tokens"),
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


@pytest.mark.ray
def test_a_student_whose_weights_are_cut_short_is_told_before_any_is_judged(
    command: Command, three: dict[str, str], jsonl: Callable[..., Path], tmp_path: Path
) -> None:
    weights = next(Path(list(three.values())[-1]).glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:1000])
    spec = tmp_path / "evaluate.yaml"
    spec.write_text(yaml.safe_dump(spec_of(three, jsonl([{"prompt": "a", "response": "b"}] * 2))))
    done = command("evaluate", spec, "--out", tmp_path / "out")
    assert done.returncode == 2 and "model.safetensors is damaged" in done.stderr and not (tmp_path / "out").exists()


def test_a_teacher_of_other_words_is_told_before_anyone_is_judged_or_paid(
    three: dict[str, str], jsonl: Callable[..., Path], tmp_path: Path
) -> None:
    other = student("llama")
    other.model.save_pretrained(tmp_path / "other")
    train_tokenizer(["Other words altogether, 1234!"], 300).save_pretrained(tmp_path / "other")
    data = jsonl([{"prompt": "a", "response": "b", "input": "c"}] * 2)
    with pytest.raises(SpecError, match="another vocabulary"):
        evaluate(spec_of(three, data, teacher=str(tmp_path / "other")), tmp_path / "out")
    mixed = {"good": three["good"], "other": str(tmp_path / "other")}
    whole = EvaluationSpec.model_validate(spec_of(mixed, data, teacher=str(tmp_path / "other")))
    check_models(whole)  # one of them can be compared
    found = {name: judged(whole, name) for name in mixed}
    assert "forward_kl" in found["other"]["metrics"] and "forward_kl" not in found["good"]["metrics"]
    assert "no KL: teacher" in found["good"]["notes"][0] and "another vocabulary" in page(whole, found)
    for sample in found["other"]["samples"]:  # as one that reads prompts in another form
        sample["prompt"] = f"predict: {sample['prompt']}"
    assert "too long for it" not in page(whole, found)
    shown = Console(file=io.StringIO(), width=200)
    shown.print(comparison(found, tmp_path))
    assert "nan" not in shown.file.getvalue()  # type: ignore[attr-defined]
    job = {"name": "j", "pipeline": "instruct", "source": {"path": str(data)}, "teachers": [{"provider": "scripted"}],
           "train": {"student": three["good"]}, "evaluate": {"teacher": str(tmp_path / "other")}}  # fmt: skip
    with pytest.raises(SpecError, match="another vocabulary"):
        check_of_job(JobSpec.model_validate(job))
    scratch = {"student": {"scratch": {}}}
    with pytest.raises(SpecError, match="a student from scratch has words of its own"):
        check_of_job(JobSpec.model_validate({**job, "train": scratch}))
    taught = {**scratch, "teacher": three["good"]}
    check_of_job(JobSpec.model_validate({**job, "train": taught, "evaluate": {"teacher": three["fair"]}}))


def learned(place: str, data: Path, **how: Any) -> None:
    """As if the student in `place` had been trained by us on `data`."""
    digest = data_digest(TrainingData(path=str(data)))
    train = {"eval_fraction": 0.2, "seed": 3, "eval_rows": 100, **how}
    Path(place, "trained_on.json").write_text(json.dumps({"data": digest, "train": train}))


def test_of_data_that_a_student_learned_only_what_it_held_out_is_asked(
    three: dict[str, str], jsonl: Callable[..., Path]
) -> None:
    data = jsonl([{"prompt": f"Say {n}.", "response": "Yes."} for n in range(20)])
    spec = EvaluationSpec.model_validate(spec_of(three, data))
    assert held_out_by(spec) is None and len(chosen(spec, student("llama"))[0]) == 20
    learned(three["good"], data)
    pairs, _ = chosen(spec, student("llama"))
    assert {pair.prompt for pair in pairs} == {f"Say {n}." for n in held_out_numbers(20, 0.2, 3, 100)}
    learned(three["fair"], data, seed=4)
    with pytest.raises(SpecError, match="good and fair learned from it and held out different rows"):
        held_out_by(spec)


def test_in_context_too_only_what_was_held_out_is_asked(three: dict[str, str], jsonl: Callable[..., Path]) -> None:
    held = held_out_numbers(10, 0.2, 3, 100)
    rows = [
        {"input": f"What is {n}?", "output": " no" if n in held else " yes", "options": [" yes", " yes"]}
        for n in range(10)
    ]
    data = jsonl(rows)
    spec = EvaluationSpec.model_validate(
        spec_of(three, data, objective={"name": "icl", "soft": False}, k_shot={"k": 2, "draws": 1}, seeds=[])
    )
    assert judged(spec, "good")["metrics"]["accuracy"][0] == pytest.approx(0.8)
    learned(three["good"], data)
    assert judged(spec, "good")["metrics"]["accuracy"][0] == 0.0


def test_prompts_are_written_as_when_a_student_learned(three: dict[str, str], jsonl: Callable[..., Path]) -> None:
    data = jsonl([{"prompt": "Say yes.", "response": "Yes."}] * 2)
    made_of = {"data": "", "train": {"data": {"template": "chat"}, "objective": {"name": "sft"}}}
    Path(three["good"], "trained_on.json").write_text(json.dumps(made_of))
    spec = EvaluationSpec.model_validate(spec_of(three, data))
    assert [as_taught(spec, name)[0].data.template for name in ("good", "fair")] == ["chat", None]
    named = EvaluationSpec.model_validate(spec_of(three, data) | {"data": {"path": str(data), "template": None}})
    assert as_taught(named, "good")[0].data.template is None


@pytest.mark.parametrize("arch", ["llama", "t5"])
def test_a_long_episode_is_judged_by_its_end(arch: str) -> None:
    made, (asked, _) = after_sft(arch, 60), PROMPTS[0]
    length = len(made.tokenizer(asked, add_special_tokens=made.seq2seq)["input_ids"])
    (alone,) = responses(made, [Pair(asked, "")], None, 64)
    long = [Pair("Demonstrations come first. " * 9 + asked, "")]
    assert responses(made, long, None, length, cut_prompts=True) == [alone] != [""]
    assert made.seq2seq == (responses(made, long, None, length) != [alone])  # as an instruction is cut in training


@pytest.mark.parametrize("objective", ["sft", "step_by_step"])
def test_each_student_is_asked_by_its_own_prefix(
    objective: str, three: dict[str, str], jsonl: Callable[..., Path]
) -> None:
    row = {"prompt": "Is it?", "response": "yes", "input": "Is it?", "rationale": "It is.", "label": "yes"}
    for name, learned in (("good", {"name": "step_by_step", "predict": "tell: "}), ("fair", {"name": "sft"})):
        made_of = {"data": "", "train": {"data": {"template": None}, "objective": learned}}
        Path(three[name], "trained_on.json").write_text(json.dumps(made_of))
    spec = EvaluationSpec.model_validate(spec_of(three, jsonl([row] * 2), objective=objective))
    asked = [chosen(*_of(spec, name))[0][0].prompt for name in three]
    unknown = "predict: Is it?" if objective == "step_by_step" else "Is it?"
    assert asked == ["tell: Is it?", "Is it?", unknown]


def _of(spec: EvaluationSpec, name: str) -> tuple[EvaluationSpec, Student, str]:
    known, prefix = as_taught(spec, name)
    return known, pretrained(spec.students[name]), prefix


def test_a_run_is_known_by_its_rows(three: dict[str, str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "dataset").mkdir(parents=True)
    pq.write_table(pa.table({"id": ["a"], "instruction": ["b"], "response": ["c"]}), run / "dataset" / "a.parquet")
    (run / "manifest.json").write_text(json.dumps({"dataset": {"sha256": "ab" * 32}}))
    spec = EvaluationSpec.model_validate({"students": three, "data": {"run": str(run)}})
    assert held_out_by(spec) is None
    train = {"eval_fraction": 0.2, "seed": 3, "eval_rows": 100}
    Path(three["none"], "trained_on.json").write_text(json.dumps({"data": "ab" * 32, "train": train}))
    assert held_out_by(spec) == (0.2, 3, 100)


def test_tasks_of_the_harness_are_run_where_it_is_installed(
    three: dict[str, str], jsonl: Callable[..., Path], tmp_path: Path
) -> None:
    pytest.importorskip("lm_eval")
    asked = [
        {"question": f"What is {c}?", "choices": [" The apple.", " The leaf."], "gold": 0} for c in ("red", "fire")
    ]
    task = {
        "task": "colours", "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(jsonl(asked, "t.jsonl"))}},
        "test_split": "test", "output_type": "multiple_choice", "doc_to_text": "{{question}}",
        "doc_to_choice": "choices", "doc_to_target": "gold", "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }  # fmt: skip
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "colours.yaml").write_text(yaml.safe_dump(task))
    data = jsonl([{"prompt": "a", "response": "b"}] * 2)
    whole = spec_of(three, data, lm_eval=["colours"], lm_eval_tasks=str(tmp_path / "tasks"), seeds=[])
    found = judged(EvaluationSpec.model_validate(whole), "good")["metrics"]
    assert 0 <= found["colours: acc"][0] <= 1 and "colours: acc_norm" in found
    with pytest.raises(LimbeckError, match="it knows no task 'nope'"):
        judged(EvaluationSpec.model_validate({**whole, "lm_eval": ["nope"]}), "good")
