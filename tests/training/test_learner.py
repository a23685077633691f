"""The loss of a step is one number, however its rows are split, packed or padded: all objectives, both kinds."""

from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from tiny_students import PROMPTS, student

from schemas.errors import SpecError
from schemas.objective import AnyObjective
from training.examples import Pair
from training.learner import Learner, counts_of, mapped_layers
from training.rows import Bins, Collator, TokenRow, pack, sizes_of, token_rows
from training.students import Student, train_tokenizer
from training.teacher import load_teacher, shared_vocabulary

SPECS: list[dict[str, Any]] = [
    {"name": "sft"},
    {"name": "step_by_step", "alpha": 0.3},
    {"name": "icl"},
    {"name": "kd", "tau": 2.0},
    {"name": "kd", "reduction": "batch", "top_k": 8},
    {"name": "hidden"},
    {"name": "hidden", "distance": "cosine", "layers": [[0, 0], [2, 1]]},
    {"name": "gkd", "beta": 0.3, "lambda": 0.0},
    {"name": "minillm"},
]
ALL = pytest.mark.parametrize(
    ("arch", "spec"),
    [(arch, spec) for arch in ("llama", "t5") for spec in SPECS],
    ids=lambda v: v if isinstance(v, str) else v["name"],
)


def learner(arch: str, spec: dict[str, Any], tmp: Any) -> tuple[Learner, Student]:
    made = student(arch)
    teacher = student(arch)
    torch.manual_seed(5)
    for parameter in teacher.model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    teacher.model.save_pretrained(tmp)
    teacher.tokenizer.save_pretrained(tmp)
    told = load_teacher(str(tmp), made) if spec["name"] in ("kd", "hidden", "gkd", "minillm") else None
    return Learner(made.model.eval(), TypeAdapter(AnyObjective).validate_python(spec), told), made


def rows_of(made: Student, spec: dict[str, Any]) -> list[TokenRow]:
    tasks = {"step_by_step": (0, 1), "icl": (0, 1)}.get(spec["name"], (0,))
    pairs = [
        Pair(f"{q} {i}", a * (1 + i % 3), str(i), tasks[i % len(tasks)], 1.0 - 0.1 * i)
        for i, (q, a) in enumerate(PROMPTS * 3)
    ]
    return token_rows(pairs[:8], made.tokenizer, 64, None, made.seq2seq)[0]


def batches(made: Student, spec: dict[str, Any], groups: list[list[list[TokenRow]]]) -> list[dict[str, torch.Tensor]]:
    collate = Collator(made.tokenizer.pad_token_id, made.seq2seq)
    found = [collate(group) for group in groups]
    if spec["name"] == "minillm":  # what a rollout adds: any numbers do, if they belong to the token
        for batch in found:
            labels = batch["labels"] if made.seq2seq else batch["labels"][:, 1:]
            tokens = labels[labels != -100]
            batch["mix"], batch["returns"] = -3 - tokens / 100, torch.sin(tokens.float())
    return found


def loss_and_norm(taught: Learner, made: Student, found: list[dict[str, torch.Tensor]]) -> tuple[float, float]:
    taught.zero_grad()
    counts = torch.stack([counts_of(batch, made.seq2seq) for batch in found]).sum(0)
    loss = torch.stack([taught(counts, 0.25, **batch).sum() for batch in found]).sum()
    loss.backward()
    norms = [p.grad.norm() for p in taught.parameters() if p.grad is not None]
    return loss.item(), torch.stack(norms).norm().item()


@ALL
def test_accumulation_packing_and_parts_change_neither_loss_nor_gradient(
    arch: str, spec: dict[str, Any], tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    taught, made = learner(arch, spec, tmp_path)
    rows = rows_of(made, spec)
    alone = [[row] for row in rows]
    whole = loss_and_norm(taught, made, batches(made, spec, [alone]))
    assert whole[1] > 0
    split = loss_and_norm(taught, made, batches(made, spec, [alone[:1], alone[1:4], alone[4:6], alone[6:]]))
    assert split == pytest.approx(whole, rel=1e-5)
    bins = list(Bins(rows, pack(sizes_of(rows), 64)))
    assert len(bins) < len(rows)
    packed = loss_and_norm(taught, made, batches(made, spec, [bins]))
    assert packed == pytest.approx(whole, rel=1e-5)
    monkeypatch.setattr("training.learner.MOST_LOGITS", 1_000)
    parts = loss_and_norm(taught, made, batches(made, spec, [alone]))
    assert parts == pytest.approx(whole, rel=1e-5)


def test_a_student_that_is_its_teacher_has_no_divergence(tmp_path: Any) -> None:
    made = student("llama")
    made.model.save_pretrained(tmp_path)
    made.tokenizer.save_pretrained(tmp_path)
    spec = TypeAdapter(AnyObjective).validate_python({"name": "gkd", "beta": 0.5})
    taught = Learner(made.model, spec, load_teacher(str(tmp_path), made))
    (batch,) = batches(made, {"name": "gkd"}, [[[row] for row in rows_of(made, {"name": "gkd"})]])
    loss = taught(counts_of(batch, False), **batch).sum()
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-6)
    assert max(float(p.grad.abs().max()) for p in made.model.parameters() if p.grad is not None) < 1e-6


def test_a_teacher_is_no_part_of_what_is_trained(tmp_path: Any) -> None:
    taught, made = learner("llama", {"name": "kd"}, tmp_path)
    assert {id(p) for p in taught.parameters()} == {id(p) for p in made.model.parameters()}


def test_padding_of_the_vocabulary_alone_is_no_mismatch(tmp_path: Any) -> None:
    made, teacher = student("llama"), student("llama")
    teacher.model.resize_token_embeddings(len(teacher.tokenizer) + 28)
    teacher.model.save_pretrained(tmp_path)
    teacher.tokenizer.save_pretrained(tmp_path)
    assert load_teacher(str(tmp_path), made).vocabulary == len(made.tokenizer)


def test_another_vocabulary_is_refused_with_the_token_that_differs() -> None:
    ours, theirs = train_tokenizer(["red green blue"] * 9, 300), train_tokenizer(["seven eight nine"] * 9, 300)
    with pytest.raises(SpecError, match="another vocabulary"):
        shared_vocabulary(theirs, ours, "big")


def test_a_tokenizer_that_splits_otherwise_is_refused() -> None:
    ours, theirs = train_tokenizer(["red green blue"] * 9, 300), train_tokenizer(["red green blue"] * 9, 300)
    from tokenizers.normalizers import Lowercase

    theirs.backend_tokenizer.normalizer = Lowercase()
    with pytest.raises(SpecError, match="other tokens"):
        shared_vocabulary(theirs, ours, "big")


def test_a_teacher_of_the_other_architecture_is_refused(tmp_path: Any) -> None:
    teacher = student("t5")
    teacher.model.save_pretrained(tmp_path)
    teacher.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(SpecError, match="encoder-decoder"):
        load_teacher(str(tmp_path), student("llama"))


def test_layers_are_mapped_by_depth_and_checked() -> None:
    spec = TypeAdapter(AnyObjective).validate_python({"name": "hidden"})
    assert mapped_layers(spec, 3, 12) == [(1, 4), (2, 8), (3, 12)]
    with pytest.raises(SpecError, match="the student has 3 layers"):
        mapped_layers(spec.model_copy(update={"layers": [[4, 1]]}), 3, 12)
