"""A teacher written down once: what is learned from it is what is learned from the teacher itself."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from conftest import Finished
from tiny_students import PROMPTS, student

from schemas.errors import LimbeckError, SpecError
from schemas.student import FromScratch, Scratch, TrainingSpec
from training.checkpoints import held_out
from training.divergences import top_k
from training.rows import BLANK_ROW, Collator
from training.signals import Capture, Signals, cache_of
from training.store import load, prepare
from training.students import pretrained, train_tokenizer
from training.teacher import check_comparable, load_teacher
from training.trainer import trainer_of

Command = Callable[..., Finished]
K = 8


@pytest.fixture
def pairs(jsonl: Callable[..., Path]) -> Path:
    """Twelve pairs, of which all share four ids."""
    return jsonl([{"id": f"p{i % 4}", "prompt": q, "response": f"{a} {i}"} for i, (q, a) in enumerate(PROMPTS * 4)])


def spec_of(arch: str, pairs: Path, place: Path, **settings: Any) -> TrainingSpec:
    """KD from a saved tiny teacher into one like it with other weights."""
    for name, noise in (("teacher", 0.2), ("student", 0.0)):
        made = student(arch)
        torch.manual_seed(5)
        for parameter in made.model.parameters():
            parameter.data += noise * torch.randn_like(parameter)
        made.model.save_pretrained(place / name)
        made.tokenizer.save_pretrained(place / name)
    objective = {"name": "kd", "top_k": K, "cache": str(place / "cache")}
    return TrainingSpec.model_validate(
        {"student": str(place / "student"), "teacher": str(place / "teacher"), "objective": objective,
         "data": {"path": str(pairs)}, "max_length": 64, "batch_size": 2, "epochs": 3, "learning_rate": 0.003,
         **settings}
    )  # fmt: skip


def written_down(spec: TrainingSpec, store: Path) -> Capture:
    """One worker of a capture, here: it has written all shards."""
    prepare(spec, store)
    worker = Capture(spec.model_dump(mode="json", by_alias=True), store)
    Path(str(cache_of(spec))).mkdir(parents=True, exist_ok=True)
    assert sum(worker.capture(number) for number in range(worker.shards())) == 12
    return worker


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["llama", "t5"])
def test_what_is_written_down_is_what_the_teacher_says(arch: str, pairs: Path, tmp_path: Path) -> None:
    spec, store = spec_of(arch, pairs, tmp_path), tmp_path / "store"
    written_down(spec, store)
    made = pretrained(str(spec.student))
    assert spec.data is not None and isinstance(spec.student, str)
    rows = load(spec, store).every[:]
    signals = Signals(tmp_path / "cache", made.seq2seq)
    teacher = load_teacher(str(spec.teacher), made)
    collate = Collator(made.tokenizer.pad_token_id, made.seq2seq, signals)
    batch = collate([rows[:3], rows[3:8]])  # packed
    said = top_k(teacher({n: x for n, x in batch.items() if isinstance(x, torch.Tensor)}).logits, K, 2.0)
    assert torch.equal(batch["top_ids"], said.ids)
    assert torch.allclose(batch["top_log_probs"], said.log_probs, atol=1e-5)
    # Of a row that only fills a batch nothing is said.
    assert torch.equal(collate([[rows[0]], [BLANK_ROW]])["top_ids"], collate([[rows[0]]])["top_ids"])
    assert len(collate([[BLANK_ROW]])["top_ids"]) == 0

    curves = []
    for objective in ({"name": "kd", "top_k": K}, {"name": "kd", "top_k": K, "cache": str(tmp_path / "cache")}):
        ours, this = pretrained(str(spec.student)), spec.model_copy(update={"objective": spec.objective})
        this = TrainingSpec.model_validate({**spec.model_dump(mode="json", by_alias=True), "objective": objective})
        live = None if cache_of(this) else load_teacher(str(spec.teacher), ours)
        trainer = trainer_of(this, ours, live, rows, rows, tmp_path / str(len(curves)))
        trainer.go_on()
        curves.append([line["loss"] for line in trainer.state.log_history if "loss" in line])
        assert held_out(trainer.state.log_history) == []
    assert curves[1] == pytest.approx(curves[0], rel=1e-4)

    changed = rows[0].__class__([*rows[0].input_ids, 5], [*rows[0].labels, 5], rows[0].record)
    with pytest.raises(LimbeckError, match="does not know record p0"):
        signals.of([changed])


@pytest.mark.slow
def test_tokens_that_are_drawn_once_teach_in_their_place(pairs: Path, tmp_path: Path) -> None:
    drawn = {"name": "kd", "tau": 1.0, "sampled": 256, "cache": str(tmp_path / "cache")}
    spec, store = spec_of("llama", pairs, tmp_path, objective=drawn), tmp_path / "store"
    written_down(spec, store)
    curves = []
    for objective in ({"name": "kd", "tau": 1.0}, drawn):
        this = TrainingSpec.model_validate({**spec.model_dump(mode="json", by_alias=True), "objective": objective})
        ours = pretrained(str(spec.student))
        live = None if cache_of(this) else load_teacher(str(spec.teacher), ours)
        trainer = trainer_of(this, ours, live, load(spec, store).every, [], tmp_path / str(len(curves)))
        trainer.go_on()
        curves.append([line["loss"] for line in trainer.state.log_history if "loss" in line])
    assert curves[1] == pytest.approx(curves[0], rel=0.1) and curves[1] != curves[0]


@pytest.mark.ray
def test_a_training_writes_its_teacher_down_once(command: Command, pairs: Path, tmp_path: Path) -> None:
    spec = tmp_path / "spec.yaml"
    objective = {"name": "kd", "alpha": 0.0, "beta": 1.0, "top_k": K, "cache": str(tmp_path / "cache")}
    whole = spec_of("t5", pairs, tmp_path, objective=objective)
    spec.write_text(yaml.safe_dump(whole.model_dump(mode="json", by_alias=True)))
    first = command("train", spec, "--out", tmp_path / "one")
    assert first.returncode == 0, first.stderr
    assert "teacher written down: 1/1 shards" in first.stderr
    student = tmp_path / "one" / "student"
    metrics = json.loads((student / "metrics.json").read_text())
    assert metrics["forward_kl_after"] < metrics["forward_kl_before"]
    assert metrics["loss_kd"] > 0 and metrics["packed"] and metrics["tokens_per_second"] > 0
    assert transformers.AutoModelForSeq2SeqLM.from_pretrained(student).num_parameters() == metrics["parameters"]
    other = command("train", spec, "--out", tmp_path / "three", "--set", "max_length=32")
    assert other.returncode == 2 and "was made with another max_length" in other.stderr
    odd = command("train", spec, "--out", tmp_path / "three", "--set", f"objective.cache={tmp_path}")
    assert odd.returncode == 2 and "no cache of ours" in odd.stderr


@pytest.mark.slow
def test_a_teacher_of_other_words_or_another_kind_is_told_before_anything_starts(
    command: Command, pairs: Path, tmp_path: Path
) -> None:
    spec = spec_of("llama", pairs, tmp_path)
    t5 = student("t5")
    t5.model.save_pretrained(tmp_path / "t5")
    t5.tokenizer.save_pretrained(tmp_path / "t5")
    with pytest.raises(SpecError, match="it is an encoder-decoder, the student is decoder-only"):
        check_comparable(spec.student, str(tmp_path / "t5"))
    with pytest.raises(SpecError, match="it is an encoder-decoder, the student is decoder-only"):
        check_comparable(FromScratch(scratch=Scratch()), str(tmp_path / "t5"))
    check_comparable(spec.student, spec.teacher)
    train_tokenizer(["Other words altogether, 1234!"], 300).save_pretrained(tmp_path / "teacher")
    place = tmp_path / "spec.yaml"
    place.write_text(yaml.safe_dump(spec.model_dump(mode="json", by_alias=True)))
    done = command("train", place, "--out", tmp_path / "out")
    assert done.returncode == 2 and "another vocabulary" in done.stderr and not (tmp_path / "out").exists()


def test_a_teacher_with_another_vocabulary_is_told_plainly(pairs: Path, tmp_path: Path) -> None:
    spec = spec_of("llama", pairs, tmp_path)
    train_tokenizer(["Other words altogether, 1234!"], 300).save_pretrained(tmp_path / "teacher")
    prepare(spec, tmp_path / "store")
    worker = Capture(spec.model_dump(mode="json", by_alias=True), tmp_path / "store")
    with pytest.raises(SpecError, match="another vocabulary"):
        worker.shards()
