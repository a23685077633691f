"""A training set in tokens, on disk: written once, and memory-mapped by every worker, so that what a worker holds in
memory does not grow with the texts."""

import itertools
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from schemas.errors import LimbeckError
from schemas.student import TrainingSpec
from training.examples import Example, Pair, language_modelling, stream_examples, stream_text
from training.held_out import held_out_numbers
from training.rows import IGNORED, TokenRow, rows_for
from training.students import is_seq2seq, require_chat_template, tokenizer_for, tokenizer_in

ABOUT, LEARN, HELD, TOKENIZER = "about.json", "learn.npy", "held.jsonl", "tokenizer"
CHUNK = 1_000  # examples that are tokenised at a time
PART = 100_000  # rows in a file
SCHEMA = pa.schema([
    ("prompt", pa.list_(pa.int32())), ("response", pa.list_(pa.int32())), ("record", pa.string()), ("task", pa.int8()),
    ("weight", pa.float64()),
])  # fmt: skip


class Rows(Sequence[TokenRow]):
    """Some rows of a store, by their numbers in it. Each is read from the disk when it is asked for.

    sizes: (rows, 2), the tokens that a model reads and those with a loss.
    """

    def __init__(self, table: Any, seq2seq: bool, numbers: np.ndarray) -> None:
        self._table, self._seq2seq, self._numbers = table, seq2seq, numbers
        read, learned = (pc.list_value_length(table.data[name]).to_numpy() for name in ("prompt", "response"))
        self.sizes = np.stack([read if seq2seq else read + learned, learned], -1)[numbers]

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, at: int) -> TokenRow: ...
    @overload
    def __getitem__(self, at: slice) -> list[TokenRow]: ...
    def __getitem__(self, at: int | slice) -> TokenRow | list[TokenRow]:
        if isinstance(at, slice):
            return [self[number] for number in range(*at.indices(len(self)))]
        line = self._table[int(self._numbers[at])]
        prompt, response, about = line["prompt"], line["response"], (line["record"], line["task"], line["weight"])
        if self._seq2seq:
            return TokenRow(prompt, response, *about)
        return TokenRow(prompt + response, [IGNORED] * len(prompt) + response, *about)


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """What a training works on. every: all rows; learn: those that are learned from; held: what is asked of the student
    before and after; counts: rows_train, rows_eval, rows_too_long, rows_cut."""

    tokenizer: Any
    every: Rows
    learn: Rows
    held: list[Pair]
    counts: dict[str, int]


def load(spec: TrainingSpec, place: Path) -> TrainingSet:
    """What `prepare` wrote."""
    import datasets

    parts = [datasets.Dataset.from_file(str(part)) for part in sorted(place.glob("rows-*.arrow"))]
    table, seq2seq = datasets.concatenate_datasets(parts), is_seq2seq(spec.student)
    held = [_pair(json.loads(line)) for line in (place / HELD).read_text().splitlines()]
    return TrainingSet(
        tokenizer=tokenizer_in(place / TOKENIZER), every=Rows(table, seq2seq, np.arange(len(table))),
        learn=Rows(table, seq2seq, np.load(place / LEARN)), held=held,
        counts=json.loads((place / ABOUT).read_text()),
    )  # fmt: skip


def _pair(line: dict[str, Any]) -> Pair:
    return Pair(**{**line, "turns": tuple((role, text) for role, text in line["turns"])})


def prepare(spec: TrainingSpec, place: Path, told: Callable[[int], None] = lambda examples: None) -> None:
    """Write the data of a training to the folder `place` in tokens; nothing where that was done. Examples are read one
    after the other. `told` hears how many are done.

    `LimbeckError` where no prompt fits into max_length.
    """
    if (place / ABOUT).is_file():
        return
    assert spec.data is not None
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    count = sum(1 for _ in stream_examples(spec.data, spec.objective))
    held = held_out_numbers(count, spec.eval_fraction, spec.seed, spec.eval_rows)
    tokenizer = tokenizer_for(spec.student, _texts(spec, held), spec.teacher)
    if spec.data.template:
        require_chat_template(tokenizer)
    with _Writer(spec, tokenizer, place) as writer:
        for done, chunk in enumerate(_chunks(stream_examples(spec.data, spec.objective)), 1):
            writer.take([(number in held, example) for number, example in chunk])
            told(min(count, done * CHUNK))
        writer.counts["rows_train"] = len(writer.learn)
        if not writer.learn or not writer.held:
            which = "held-out prompt" if writer.learn else "prompt"
            raise LimbeckError(
                f"no {which} is shorter than max_length {spec.max_length}",
                "raise max_length, or hold more rows out with eval_fraction" if writer.learn else "raise max_length",
            )
        if (lm := language_modelling(spec.objective)) is not None:
            for texts in _chunks(stream_text(lm, is_seq2seq(spec.student))):
                writer.take([(False, (text,)) for _, text in texts], counted=False)
    tokenizer.save_pretrained(place / TOKENIZER)
    np.save(place / LEARN, np.array(writer.learn, dtype=np.int64))
    (place / HELD).write_text("".join(json.dumps(asdict(pair)) + "\n" for pair in writer.held))
    new = place / "about.new"
    new.write_text(json.dumps({**writer.counts, "rows_eval": len(writer.held)}))
    new.replace(place / ABOUT)  # the last thing written: a store that is whole


def _texts(spec: TrainingSpec, held: set[int]) -> Iterator[str]:
    """What a student from scratch learns to spell from."""
    assert spec.data is not None
    for number, example in enumerate(stream_examples(spec.data, spec.objective)):
        if number not in held:
            for pair in example:
                yield pair.prompt
                yield pair.response


def _chunks(items: Iterable[Any]) -> Iterator[list[tuple[int, Any]]]:
    numbered = enumerate(items)
    while chunk := list(itertools.islice(numbered, CHUNK)):
        yield chunk


class _Writer(AbstractContextManager["_Writer"]):
    """Tokenises examples and writes their rows, part by part."""

    def __init__(self, spec: TrainingSpec, tokenizer: Any, place: Path) -> None:
        self._spec, self._tokenizer, self._place, self._seq2seq = spec, tokenizer, place, is_seq2seq(spec.student)
        self._out: Any = None
        self._in_part = self._written = 0
        self.learn: list[int] = []
        self.held: list[Pair] = []
        self.counts = {"rows_too_long": 0, "rows_cut": 0}

    def __exit__(self, *exc: object) -> None:
        if self._out is not None:
            self._out.close()

    def take(self, examples: Sequence[tuple[bool, Example]], counted: bool = True) -> None:
        """Write (whether it is held out, example), in their order; `counted`: in the figures about the data."""
        for held, group in itertools.groupby(examples, lambda one: one[0]):
            found = [example for _, example in group]
            if held:
                self._hold(found)
            else:
                self._learn([pair for example in found for pair in example], counted)

    def _learn(self, pairs: Sequence[Pair], counted: bool) -> None:
        rows, left_out = self._rows(pairs)
        self.learn += range(self._written, self._written + len(rows))
        self._write(rows)
        if counted:
            self.counts["rows_too_long"] += left_out
            self.counts["rows_cut"] += sum(row.cut for row in rows)

    def _hold(self, examples: Sequence[Example]) -> None:
        """Rows that are not learned are written too: what a teacher says of all serves any split."""
        for example in examples:
            self._write(self._rows(example)[0])
            fits = bool(self._rows(example[:1])[0])
            self.held += example[:1] if fits else ()
            self.counts["rows_too_long"] += not fits

    def _rows(self, pairs: Sequence[Pair]) -> tuple[list[TokenRow], int]:
        return rows_for(self._spec, pairs, self._tokenizer, self._seq2seq)

    def _write(self, rows: Sequence[TokenRow]) -> None:
        if not rows:
            return
        if self._out is None or self._in_part >= PART:
            self.__exit__()
            number = self._written // PART
            self._out = pa.ipc.new_stream(str(self._place / f"rows-{number:05d}.arrow"), SCHEMA)
            self._in_part = 0
        lines = [_line(row, self._seq2seq) for row in rows]
        self._out.write_batch(pa.RecordBatch.from_pylist(lines, SCHEMA))
        self._in_part += len(rows)
        self._written += len(rows)


def _line(row: TokenRow, seq2seq: bool) -> dict[str, Any]:
    asked = 0 if seq2seq else sum(label == IGNORED for label in row.labels)  # all of them come first
    return {
        "prompt": row.input_ids if seq2seq else row.input_ids[:asked], "response": row.labels[asked:],
        "record": row.record, "task": row.task, "weight": row.weight,
    }  # fmt: skip
