"""From the journal to rows: every source row becomes a record or a rejection, in source order.

A pure function of the spec, the source and the journal. Whatever the number of workers, crashes or order of answers,
the same answers give the same rows.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import instruct
from pipelines.source import Malformed, Row
from schemas.call import Answer, Call, call_key
from schemas.record import Record, Rejection
from services.journal.index import JournalIndex
from services.teachers.adapter import decode

BATCH = 2_000
PER_REASON = 3  # rejections of each reason that the report shows
TEXT_LIST = pa.list_(pa.string())
SCHEMAS = {
    "cot": pa.schema(
        [(n, TEXT_LIST if n == "choices" else pa.string()) for n in
         ("id", "input", "choices", "rationale", "label", "gold", "teacher", "call_key")]
    ),
    "instruct": pa.schema(
        [(n, TEXT_LIST if n in ("example_ids", "topics") else pa.string()) for n in
         ("id", "instruction", "response", "instruction_source", "example_ids", "topics", "teacher", "call_key")]
    ),
}  # fmt: skip
REJECTED = pa.schema([(n, pa.string()) for n in ("id", "stage", "reason", "detail", "raw")])


class RowPlan(Protocol):
    """A plan whose calls belong to rows."""

    def rows(self) -> Iterator[Row | Malformed]: ...

    def call(self, row: Row) -> Call: ...


def sendable(plan: RowPlan) -> Iterator[tuple[Row, Call]]:
    """The rows of a plan that can be asked, with their calls."""
    return ((row, plan.call(row)) for row in plan.rows() if isinstance(row, Row))


Read = Callable[[Row, Answer, str, str, str], Record | Rejection]


class RowWriter:
    """Rows into one parquet file, a batch at a time."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._writer = pq.ParquetWriter(path, schema, compression="zstd")
        self._schema = schema
        self._rows: list[dict[str, Any]] = []
        self.count = 0

    def add(self, row: dict[str, Any]) -> None:
        self._rows.append(row)
        self.count += 1
        if len(self._rows) >= BATCH:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, self._schema))
            self._rows = []

    def close(self) -> None:
        self._flush()
        self._writer.close()


def stored_rows(path: Path, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """What `RowWriter` wrote, a batch at a time."""
    names = None if columns is None else list(columns)
    # In one thread: each of pyarrow's keeps a heap of its own (a million rows copied: 168 MB against 220).
    for batch in pq.ParquetFile(path).iter_batches(BATCH, columns=names, use_threads=False):
        yield from batch.to_pylist()


@dataclass(slots=True)
class Rejections:
    """The `rejected/` file and its counts."""

    writer: RowWriter
    reasons: Counter[str] = field(default_factory=Counter)
    failed: int = 0  # of calls that no lane answered, once for each row that has one
    open: int = 0  # of those that the next start asks again

    def add(self, rejection: Rejection) -> None:
        self.reasons[rejection.reason] += 1
        self.writer.add({name: getattr(rejection, name) for name in REJECTED.names})


def shown_rejections(path: Path) -> list[dict[str, str]]:
    """The first few rejections of each reason."""
    seen: dict[str, int] = defaultdict(int)
    shown = []
    for row in stored_rows(path):
        seen[row["reason"]] += 1
        if seen[row["reason"]] <= PER_REASON:
            shown.append({**row, "raw": row["raw"][:2_000]})
    return shown


def readable(body: bytes) -> str:
    """A raw body as text; what is not UTF-8 is kept as escapes."""
    return body.decode("utf-8", "backslashreplace")


@dataclass(slots=True)
class Answers:
    """Journalled answers of a plan's calls, whichever lane gave them."""

    index: JournalIndex
    models: Sequence[str]

    def _keys(self, call: Call) -> Iterator[tuple[bytes, str]]:
        """The call key of each lane, with the lane."""
        content = call.content()
        return ((call_key(model, content), model) for model in self.models)

    def frame(self, call: Call) -> tuple[Any, str, str] | None:
        """(answer frame, lane, call key in hex) for a call."""
        for key, model in self._keys(call):
            if frame := self.index.answer(key):
                return frame, model, key.hex()
        return None

    def text(self, key: str) -> str:
        """The text of the answer to a call key in hex, as its teacher wrote it."""
        frame = self.index.answer(bytes.fromhex(key))
        return "" if frame is None else decode(frame.meta["dialect"], frame.body).text or ""

    def has(self, call: Call) -> bool:
        """Whether a call is paid for."""
        return any(key in self.index for key, _ in self._keys(call))

    def is_settled(self, call: Call) -> bool:
        """Whether a call was given up, so that it is not asked again unless that is wished."""
        return any(self.index.is_settled(key) for key, _ in self._keys(call))

    def is_open(self, call: Call) -> bool:
        """Whether a call failed, and the next start asks it again."""
        return not self.has(call) and self.failure(call) is not None and not self.is_settled(call)

    def failure(self, call: Call) -> Any | None:
        """The last failure of a call that no lane answered."""
        return next((frame for key, _ in self._keys(call) if (frame := self.index.failure(key))), None)


Missing = Callable[[Row, Call], Rejection | None]


def harvest(
    plan: RowPlan, answers: Answers, read: Read, missing: Missing, accepted: RowWriter, rejected: Rejections
) -> tuple[int, int]:
    """Write every row of `plan` to one of the two; how many were left out because they have no answer yet, and how many
    have one.

    `missing` says what a row without an answer is rejected for, or None where its answer may still come.
    """
    pending = answered = 0
    for row in plan.rows():
        if isinstance(row, Malformed):
            rejected.add(Rejection(row.id, "source", row.reason, f"{row.where}: {row.detail}", row.raw))
            continue
        call = plan.call(row)
        outcome = _outcome(call, row, answers, read)
        answered += outcome is not None
        if outcome is None and (failure := answers.failure(call)):
            detail, raw = failure.meta["detail"], readable(failure.body)
            outcome = Rejection(row.id, "teacher", failure.meta["kind"], detail, raw)
            rejected.failed += 1
            rejected.open += answers.is_open(call)
        outcome = outcome or missing(row, call)
        if outcome is None:
            pending += 1
        elif isinstance(outcome, Rejection):
            rejected.add(outcome)
        else:
            accepted.add(outcome.model_dump())
    return pending, answered


def _outcome(call: Call, row: Row, answers: Answers, read: Read) -> Record | Rejection | None:
    found = answers.frame(call)
    if found is None:
        return None
    frame, teacher, key = found
    return read(row, decode(frame.meta["dialect"], frame.body), teacher, key, readable(frame.body))


def instructions_of(
    plan: instruct.Instructions, answers: Answers
) -> tuple[list[instruct.Written], list[Rejection]]:  # fmt: skip
    """Instructions of one round in call order, and the calls that brought none."""
    written, empty = [], []
    for number, call in enumerate(plan.calls(), plan.first):
        found = answers.frame(call)
        if found is None:
            if failure := answers.failure(call):
                detail, raw = failure.meta["detail"], readable(failure.body)
                empty.append(Rejection(call.row, "instructions", failure.meta["kind"], detail, raw))
            continue
        frame = found[0]
        answer = decode(frame.meta["dialect"], frame.body)
        items = instruct.written_in(plan, number, answer.text or "")
        written += items
        if not items:
            detail = answer.problem or "no <example> item in the answer"
            empty.append(Rejection(call.row, "instructions", "no_instruction", detail, readable(frame.body)))
    return written, empty


def texts(path: Path, columns: Sequence[str]) -> Iterator[str]:
    """The compared text of every staged row."""
    for row in stored_rows(path, columns):
        parts = (row[name] for name in columns)
        yield "\n".join(part if isinstance(part, str) else "\n".join(part) for part in parts)
