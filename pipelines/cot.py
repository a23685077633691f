"""Chain of thought: a question in, a rationale and an answer out (Distilling Step-by-Step, arXiv 2305.02301)."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from pipelines.checks import unusable
from pipelines.parsing import LETTERS, PAPER, PARSERS, UNLABELLED
from pipelines.source import Malformed, Row, usable
from schemas.call import Answer, Call, Message, Sampling
from schemas.errors import SpecError
from schemas.job import JobSpec, Prompt, Source
from schemas.record import Rationale, Rejection

MARKER = "So the answer is"
PAPER_MARKERS = {"arithmetic": "The answer is"}  # the paper's exemplars leave the "So" out there
ASK = {
    "multiple_choice": "Think step by step in one or two sentences, then finish with "
    '"So the answer is (x) choice." where (x) is the letter of your choice.',
    "arithmetic": 'Think step by step, then finish with "So the answer is" and the number.',
    "nli": "Does the premise entail the hypothesis? Think step by step, then finish with "
    '"So the answer is" and one of entailment, neutral, contradiction.',
    "free_text": 'Think step by step, then finish with "So the answer is" and the answer.',
}
PAPER_ASK = {
    "arithmetic": 'Think step by step, then finish with "The answer is" and the expression in brackets, as in (84 / 2).'
}


class Exemplar(BaseModel):
    """A worked example that is shown to the teacher."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    input: str
    rationale: str
    label: str
    choices: tuple[str, ...] = ()


def load_exemplars(prompt: Prompt) -> tuple[Exemplar, ...]:
    """The exemplars of a few-shot prompt. `SpecError` names the line that is wrong."""
    if prompt.exemplars is None:
        return ()
    path = Path(prompt.exemplars)
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"prompt.exemplars: {path}: {error}", "name a JSONL file") from None
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            exemplar = Exemplar.model_validate_json(line)
        except ValidationError as error:
            first = error.errors()[0]
            what = ".".join(map(str, first["loc"])) or "the line"
            raise SpecError(
                f"prompt.exemplars: {path}:{number}: {what}: {first['msg']}",
                "each line is an object with input, rationale and label",
            ) from None
        if not exemplar.rationale.strip() or not exemplar.label.strip():
            raise SpecError(f"prompt.exemplars: {path}:{number}: rationale and label must not be blank", "")
        if prompt.task == "multiple_choice" and exemplar.label not in exemplar.choices:
            raise SpecError(
                f"prompt.exemplars: {path}:{number}: label {exemplar.label!r} is not one of its choices", ""
            )
        found.append(exemplar)
    if not found:
        raise SpecError(f"prompt.exemplars: {path} is empty", "give at least one worked example")
    return tuple(found)


def digest_of(exemplars: Sequence[Exemplar]) -> str:
    """What tells other exemplars in the same file; empty for none."""
    text = json.dumps([exemplar.model_dump() for exemplar in exemplars])
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest() if exemplars else ""


def question(text: str, choices: tuple[str, ...]) -> str:
    """A question as the paper's exemplars write it."""
    if not choices:
        return f"Q: {text}"
    lines = [f"({LETTERS[i % 26]}) {choice}" for i, choice in enumerate(choices)]
    return "\n".join([f"Q: {text}", "Answer Choices:", *lines])


def worked(exemplar: Exemplar, marker: str = MARKER) -> str:
    """An exemplar's answer, ending in the marker and the label."""
    label = exemplar.label
    if exemplar.choices:
        label = f"({LETTERS[exemplar.choices.index(label) % 26]}) {label}"
    return f"{exemplar.rationale.strip()} {marker} {label}."


@dataclass(frozen=True)
class Rationales:
    """The plan of a cot run: one call a row."""

    source: Source
    duplicates: frozenset[int]
    prompt: Prompt
    exemplars: tuple[Exemplar, ...]
    sampling: Sampling
    faithful: bool = False
    by_row: bool = False

    def messages(self, row: Row) -> tuple[Message, ...]:
        """The shared prefix first, so that a provider's prompt cache applies."""
        system = [Message("system", self.prompt.system)] if self.prompt.system else []
        if not self.exemplars:
            asked = f"{question(row.input, row.choices)}\n\n{self._ask}"
            return (*system, Message("user", asked))
        shots: list[Message] = []
        for exemplar in self.exemplars:
            shots.append(Message("user", question(exemplar.input, exemplar.choices)))
            marker = PAPER_MARKERS.get(self.prompt.task, MARKER) if self.faithful else MARKER
            shots.append(Message("assistant", worked(exemplar, marker)))
        return (*system, *shots, Message("user", question(row.input, row.choices)))

    @property
    def _ask(self) -> str:
        """What is asked where no exemplar shows the form."""
        return (PAPER_ASK if self.faithful else ASK).get(self.prompt.task, ASK[self.prompt.task])

    def call(self, row: Row) -> Call:
        return Call(row.id, self.messages(row), self.sampling, own=row.id if self.by_row else "")

    def rows(self) -> Iterator[Row | Malformed]:
        return usable(self.source, self.duplicates)

    def calls(self) -> Iterator[Call]:
        return (self.call(row) for row in self.rows() if isinstance(row, Row))


def plan_of(spec: JobSpec, duplicates: frozenset[int]) -> Rationales:
    sampling = Sampling(spec.sampling.temperature, spec.sampling.max_tokens, spec.sampling.seed)
    shots = load_exemplars(spec.prompt)
    return Rationales(spec.source, duplicates, spec.prompt, shots, sampling, spec.faithful, spec.answers_by_row)


def read_answer(
    row: Row, answer: Answer, spec: JobSpec, teacher: str, call_key: str, raw: str
) -> Rationale | Rejection:
    """A record, or the reason why not."""
    if rejection := unusable(row, answer, spec.validation, raw):
        return rejection
    assert answer.text is not None
    parser = (PAPER if spec.faithful else PARSERS)[spec.prompt.task]
    rationale, label = parser.read(answer.text, row.choices)
    if label is None:
        if not spec.keeps_unparsable:
            detail = "no answer marker" if rationale is None else "nothing behind the marker fits the task"
            if not answer.text.strip():
                return Rejection(row.id, "answer", "unparsable", "the answer is blank", raw)
            return Rejection(row.id, "answer", "unparsable", detail, answer.text)
        label = UNLABELLED
    return Rationale(
        id=row.id, input=row.input, choices=list(row.choices), label=label,
        rationale=UNLABELLED if rationale is None else rationale, gold=row.gold, teacher=teacher, call_key=call_key,
    )  # fmt: skip
