"""A local teacher whose logits a student learns from, and what makes two models comparable token by token."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from schemas.errors import SpecError
from schemas.student import FromScratch, LayerCut
from training.aligned import Aligned, aligned
from training.shape import vocabulary
from training.students import Student, config_of, is_seq2seq, is_unread, pretrained, tokenizer_of

# Texts whose tokens tell tokenizers apart that look alike: spaces, digits, accents, code, an emoji, other scripts.
PROBES = (
    "The answer is (b): 3.14 + 2,718 = 5.858.", "  two  spaces\tand a tab\n\nnew paragraph", "naïve café über Straße",
    "def f(x):\n    return x**2  # square", "日本語 русский עברית 🙂", "isn't it? \"quoted\" 'text' — dash",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Teacher:
    """A frozen model; `vocabulary` is how many of its logits are compared, the rest being padding."""

    model: Any
    vocabulary: int

    def __call__(self, batch: dict[str, Tensor], hidden: bool = False) -> Aligned:
        """What it says of a batch of the student's rows."""
        with torch.no_grad():
            return aligned(self.model, batch, hidden).cut(self.vocabulary)


def load_teacher(name: str, student: Student) -> Teacher:
    """The teacher `name` of a student. `SpecError` where their tokens cannot be compared."""
    found = pretrained(name, "teacher")
    size = _comparable(name, found.tokenizer, found.model.config, student)
    return Teacher(found.model.eval().requires_grad_(False), size)


def vocabulary_with(name: str, student: Student) -> int:
    """How many logits a student and the teacher `name` have in common, without loading the teacher's weights.
    `SpecError` as in `load_teacher`."""
    return _comparable(name, tokenizer_of(name), config_of(name), student)


def check_comparable(student: FromScratch | LayerCut | str, name: str | None) -> None:
    """`SpecError` as in `load_teacher`, before anything is started. Reads tokenizers and configurations, no weights; of
    a GGUF file that was never converted, which takes long, nothing: its training tells."""
    source = student.source if isinstance(student, LayerCut) else student
    if name is None or name == source or any(isinstance(one, str) and is_unread(one) for one in (name, source)):
        return
    if isinstance(source, FromScratch):
        _require_kind(name, bool(config_of(name).is_encoder_decoder), is_seq2seq(source))
        return
    _comparable(
        name, tokenizer_of(name), config_of(name),
        Student(SimpleNamespace(config=config_of(source)), tokenizer_of(source, "student")),
    )  # fmt: skip


def _require_kind(name: str, seq2seq: bool, student: bool) -> None:
    if seq2seq != student:
        kinds = ("decoder-only", "an encoder-decoder")
        raise SpecError(
            f"teacher {name}: it is {kinds[seq2seq]}, the student is {kinds[student]}",
            "choose a teacher of the student's kind",
        )


def _comparable(name: str, tokenizer: Any, config: Any, student: Student) -> int:
    _require_kind(name, bool(config.is_encoder_decoder), student.seq2seq)
    size = shared_vocabulary(tokenizer, student.tokenizer, name)
    return min(size, vocabulary(config), vocabulary(student.model.config))


def shared_vocabulary(teacher: Any, student: Any, name: str = "") -> int:
    """How many tokens both have. `SpecError` unless they are the same ones: equal widths prove nothing, unequal ones
    may be padding alone (Qwen2.5 pads its models of 1.5B and 7B differently)."""
    theirs, ours = teacher.get_vocab(), student.get_vocab()
    if theirs != ours:
        odd = next((t for t, i in ours.items() if theirs.get(t) != i), None) or next(t for t in theirs if t not in ours)
        raise SpecError(
            f"teacher {name}: another vocabulary ({len(theirs):,} tokens for {len(ours):,}; {odd!r} differs)",
            "a white-box objective needs one tokenizer for both: cut the student from the teacher, or use sft",
        )
    for text in PROBES:
        if teacher(text, add_special_tokens=False)["input_ids"] != student(text, add_special_tokens=False)["input_ids"]:
            raise SpecError(
                f"teacher {name}: it splits {text[:20]!r} into other tokens than the student",
                "a white-box objective needs one tokenizer for both",
            )
    return max(ours.values()) + 1
