"""Instruction following: new instructions written by the teacher from examples, then a response for each.

After LaMini-LM (arXiv 2304.14402): three random examples a call, items between `<example>` tags, an unclosed last
item dropped because it is the one that was cut off.
"""

import hashlib
import json
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from pipelines.answer_schema import misfit
from pipelines.checks import unusable
from pipelines.source import Malformed, Row, usable
from schemas.call import Answer, Call, Message, Sampling
from schemas.errors import SpecError
from schemas.job import Instruct, JobSpec, Prompt, Source, Validation
from schemas.record import Pair, Rejection

POOL = 10_000  # source instructions that examples are drawn from; beyond that a seeded reservoir keeps memory flat
CONCISE = "You are a helpful assistant. Answer the instruction as concisely as you can."
ITEM = re.compile(r"<example>(.*?)</example>", re.DOTALL | re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Written:
    """An instruction that the teacher wrote, and the examples it had before it."""

    id: str
    text: str
    example_ids: tuple[str, ...]


def example_pool(source: Source, duplicates: frozenset[int], seed: int) -> tuple[tuple[str, str], ...]:
    """(id, instruction) pairs that examples are drawn from: the whole source up to `POOL` rows, else a sample."""
    rng = random.Random(f"pool:{seed}")
    pool: list[tuple[str, str]] = []
    rows = (row for row in usable(source, duplicates) if isinstance(row, Row))
    for seen, row in enumerate(rows):
        if seen < POOL:
            pool.append((row.id, row.input))
        elif (slot := rng.randrange(seen + 1)) < POOL:
            pool[slot] = (row.id, row.input)
    return tuple(pool)


@dataclass(frozen=True)
class Instructions:
    """The plan of the first stage: calls number `first` to `first + count - 1`, each a function of its number."""

    pool: tuple[tuple[str, str], ...]
    instruct: Instruct
    sampling: Sampling
    first: int
    count: int

    def shown(self, number: int) -> Sequence[tuple[str, str]]:
        """The examples of call `number`."""
        return random.Random(f"{self.sampling.seed or 0}:{number}").sample(self.pool, self.instruct.examples)

    def call(self, number: int) -> Call:
        examples = "\n".join(f"<example>{text}</example>" for _, text in self.shown(number))
        messages = (
            Message("user", asking_for(self.instruct.examples)),
            Message("assistant", examples),
            Message("user", asking_for(self.instruct.per_call)),
        )
        # Two calls may draw the same examples in the same order: the sample index keeps their answers apart.
        return Call(f"call-{number:06d}", messages, self.sampling, sample=number)

    def calls(self) -> Iterator[Call]:
        return (self.call(number) for number in range(self.first, self.first + self.count))


def first_round(spec: JobSpec, duplicates: frozenset[int]) -> Instructions:
    """The calls that would write all that is wanted if each wrote what it is asked for."""
    asked = spec.instruct or Instruct()
    pool = example_pool(spec.source, duplicates, spec.sampling.draws)
    return Instructions(pool, asked, sampling_of(spec), 0, -(-asked.generate // asked.per_call))


def asking_for(count: int) -> str:
    """A request for `count` instructions. An earlier turn that answers it shows the form: a 135 M teacher follows
    that in 8 of 8 tries, and the same words in one turn in 1 of 3."""
    plural = "instructions, each about a different topic" if count > 1 else "instruction, on any topic"
    return (
        f"Write {count} new {plural}, that could be given to an assistant. "
        "Each is an imperative sentence or a question. Do not answer them. "
        'Start each one with "<example>" and end it with "</example>".'
    )


def written_in(plan: Instructions, number: int, text: str) -> list[Written]:
    """The instructions in the answer to call `number`."""
    ids = tuple(name for name, _ in plan.shown(number))
    found = (re.sub(r"\s+", " ", item).strip() for item in ITEM.findall(text))
    items = [item for item in found if item and "<example>" not in item.lower()]
    return [Written(f"gen-{number:06d}-{k:02d}-{_mark(item, ids)}", item, ids) for k, item in enumerate(items)]


def _mark(item: str, ids: tuple[str, ...]) -> str:
    """Keeps the id apart from those of a source that an earlier run wrote."""
    return hashlib.sha256("\0".join((item, *ids)).encode()).hexdigest()[:8]


@dataclass(frozen=True)
class Borrowed:
    """Rows whose answer serves though their call went out with another schema: for each such schema the marks of their
    ids, sorted (8 bytes a row)."""

    rows: tuple[tuple[str | None, NDArray[np.uint64]], ...] = ()

    @staticmethod
    def mark(row: str) -> int:
        return int.from_bytes(hashlib.blake2b(row.encode("utf-8", "surrogatepass"), digest_size=8).digest())

    def schema(self, row: str, own: str | None) -> str | None:
        """The schema that a row's call goes out with: `own`, or another one."""
        mark = np.uint64(self.mark(row)) if self.rows else 0
        for schema, marks in self.rows:
            at = int(np.searchsorted(marks, mark))
            if at < len(marks) and marks[at] == mark:
                return schema
        return own


@dataclass(frozen=True)
class Responses:
    """The plan of the second stage: one call for each instruction, the source's first, then the written ones."""

    source: Source
    duplicates: frozenset[int]
    written: tuple[Written, ...]
    prompt: Prompt
    sampling: Sampling
    schema: str | None = None
    borrowed: Borrowed = Borrowed()
    by_row: bool = False

    def call(self, row: Row) -> Call:
        system = CONCISE if self.prompt.system is None else self.prompt.system
        turns = [Message("system", system)] if system else []
        schema = self.borrowed.schema(row.id, self.schema)
        own = row.id if self.by_row else ""
        return Call(row.id, (*turns, Message("user", row.input)), self.sampling, schema=schema, own=own)

    def rows(self) -> Iterator[Row | Malformed]:
        yield from usable(self.source, self.duplicates)
        yield from (Row(w.id, w.text, shown=w.example_ids) for w in self.written)

    def calls(self) -> Iterator[Call]:
        return (self.call(row) for row in self.rows() if isinstance(row, Row))


def plan_of(spec: JobSpec, duplicates: frozenset[int], written: tuple[Written, ...] = ()) -> Responses:
    sampling, schema = sampling_of(spec), schema_of(spec)
    return Responses(
        spec.source, duplicates, written, spec.prompt, sampling, schema, by_row=spec.answers_by_row
    )  # fmt: skip


def schema_of(spec: JobSpec) -> str | None:
    """The JSON schema that responses are asked for with, as compact text. In its own order, for providers write an
    object's properties in that of the schema: reasoning before an answer, or after it."""
    wanted = spec.validation.json_schema
    return None if wanted is None else json.dumps(wanted, separators=(",", ":"))


def sampling_of(spec: JobSpec) -> Sampling:
    return Sampling(spec.sampling.temperature, spec.sampling.max_tokens, spec.sampling.seed)


def check_pool(pool: Sequence[object], instruct: Instruct) -> None:
    """`SpecError` where the source has too few instructions to show."""
    if instruct.generate and len(pool) < instruct.examples:
        raise SpecError(
            f"instruct.examples: {instruct.examples} needed, the source has {len(pool)} usable rows",
            "give more rows, or set instruct.examples lower",
        )


def read_answer(
    row: Row, answer: Answer, validation: Validation, teacher: str, call_key: str, raw: str
) -> Pair | Rejection:
    """A record, or the reason why not."""
    if rejection := unusable(row, answer, validation, raw):
        return rejection
    assert answer.text is not None
    if validation.json_schema is not None and (problem := misfit(answer.text, validation.json_schema)):
        return Rejection(row.id, "answer", "schema_mismatch", problem, answer.text)
    try:
        return Pair(
            id=row.id, instruction=row.input, response=answer.text.strip(),
            instruction_source="source" if row.shown is None else "example_guided",
            example_ids=list(row.shown or ()), teacher=teacher, call_key=call_key,
        )  # fmt: skip
    except ValidationError:
        return Rejection(row.id, "answer", "empty_answer", "the answer is blank", raw)
