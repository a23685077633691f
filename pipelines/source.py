"""Read source rows as a stream, and find everything that is wrong with them before a teacher is called.

Every pass over a source yields the same rows in the same order, so plans and harvests agree without keeping rows.
"""

import contextlib
import hashlib
import json
import math
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from schemas.errors import SpecError
from schemas.hub import hub_rows
from schemas.job import Source
from schemas.text import hash64
from schemas.text_files import TooManyCells, files_of, is_unicode, parsed, text_entries

MOST_CHOICES = 26  # they are shown as (a) to (z)


@dataclass(frozen=True, slots=True)
class Row:
    """A row with our names for its fields; `gold` and `choices` where the pipeline has them."""

    id: str
    input: str
    gold: str | None = None
    choices: tuple[str, ...] = ()
    named: bool = True  # False: the source gave no id, so this one is made from the content
    shown: tuple[str, ...] | None = None  # ids of the examples that a teacher had before it when it wrote the row
    where: str = field(default="", compare=False)  # file and line


@dataclass(frozen=True, slots=True)
class Malformed:
    """A row that cannot be used: the reason code, where it stands, and what is wrong, in one line.

    Its text may be anything, so what UTF-8 cannot hold is kept as escapes.
    """

    id: str
    reason: str
    where: str
    detail: str
    raw: str = ""

    def __post_init__(self) -> None:
        for name in ("id", "detail", "raw"):
            object.__setattr__(self, name, getattr(self, name).encode("utf-8", "backslashreplace").decode())


def _parquet(file: Path, what: str) -> Iterator[tuple[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        table = pq.ParquetFile(file)
        names = table.schema_arrow.names
        if twice := {name for name in names if names.count(name) > 1}:
            raise SpecError(f"{what} malformed: {file}: column {min(twice)!r} stands twice", "rename one of them")
        for batch in table.iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                yield f"{file} row {number}", row
                number += 1
    except (pa.ArrowInvalid, UnicodeDecodeError, OSError) as error:
        where = f"{file} from row {number}"
        raise SpecError(f"{what} malformed: {where}: {error}", "is it a whole parquet file, its text UTF-8?") from None


def entries(path: str, what: str = "source") -> Iterator[tuple[str, Any]]:
    """(where, raw line or object) of every entry. `what` says which part of a spec named the path."""
    if path.startswith("hf:"):
        import datasets

        yield from hub_rows(path.removeprefix("hf:"), what, datasets.load_dataset)
        return
    for file in files_of(path, what):
        yield from _parquet(file, what) if file.suffix == ".parquet" else text_entries(file, what)


class RowReader:
    """Turns entries into rows by the spec's field names."""

    def __init__(self, source: Source) -> None:
        names: Mapping[str, str] = dict(source.fields)
        self.path = source.path
        self._id = names.get("id", "id")
        self._id_needed = "id" in names
        self._input = names.get("input", "input")
        self._gold = names.get("label")
        self._choices = names.get("choices")

    def __iter__(self) -> Iterator[Row | Malformed]:
        for where, entry in entries(self.path):
            yield self._row(where, entry)

    def _row(self, where: str, entry: Any) -> Row | Malformed:
        raw = entry.decode("utf-8", "replace").strip() if isinstance(entry, bytes) else ""
        at = where.rsplit("/", 1)[-1]
        try:
            values = parsed(entry)
        except (ValueError, RecursionError) as error:
            # Its own words name a line, too: of the row, which has but one.
            place = f"{error.msg} in column {error.pos + 1}" if isinstance(error, json.JSONDecodeError) else str(error)
            return Malformed(at, "malformed", where, f"not valid JSON: {place}", raw)
        raw = raw or json.dumps(values, ensure_ascii=False, default=str)
        if isinstance(values, TooManyCells):
            return Malformed(at, "malformed", where, str(values), json.dumps(values.cells, ensure_ascii=False))
        if not isinstance(values, dict):
            return Malformed(at, "malformed", where, f"a {type(values).__name__}, not an object", raw)
        problem = self._problem(values)
        if problem:
            given = values.get(self._id)
            name = str(given) if isinstance(given, str | int) and str(given).strip() else at
            return Malformed(name, problem[0], where, problem[1], raw)
        text = values[self._input]
        choices = tuple(listed(values[self._choices])) if self._choices else ()
        gold = values.get(self._gold) if self._gold else None
        return Row(
            id=str(values[self._id]) if values.get(self._id) is not None else content_id(text, choices),
            input=text,
            gold=None if gold is None else gold if isinstance(gold, str) else json.dumps(gold),
            choices=choices,
            named=values.get(self._id) is not None,
            where=where,
        )

    def _problem(self, values: dict[str, Any]) -> tuple[str, str] | None:
        """(reason, detail) of the first thing that is wrong."""
        needed = [
            self._input,
            *(n for n in (self._gold, self._choices) if n),
            *([self._id] * self._id_needed),
        ]
        for name in needed:
            if values.get(name) is None:
                columns = ", ".join(map(str, list(values)[:8]))
                why = "here it is null, or its cell is missing" if name in values else f"it has: {columns}"
                return "absent_field", f"absent field {name!r} ({why})"
        text, given = values[self._input], values.get(self._id)
        if not isinstance(text, str):
            return "not_text", f"field {self._input!r} is not text: {type(text).__name__}"
        if not text.strip():
            return "blank", f"field {self._input!r} is blank"
        for name in (self._input, self._id, self._gold):
            if name and isinstance(values.get(name), str) and not is_unicode(values[name]):
                return "not_text", f"field {name!r} is not valid Unicode (no UTF-8, or a lone surrogate)"
        if given is not None and (isinstance(given, bool) or not isinstance(given, str | int)):
            return (
                "not_text",
                f"field {self._id!r} is neither text nor a whole number: {type(given).__name__}",
            )
        if isinstance(given, str) and not given.strip():
            return "blank", f"field {self._id!r} is blank"
        if self._gold and (problem := self._gold_problem(values[self._gold])):
            return problem
        return self._choices_problem(values)

    def _gold_problem(self, gold: Any) -> tuple[str, str] | None:
        if (
            isinstance(gold, bool)
            or not isinstance(gold, str | int | float)
            or (isinstance(gold, float) and math.isnan(gold))
        ):
            return "not_text", f"field {self._gold!r} is neither text nor a number: {gold!r:.40}"
        if isinstance(gold, str) and not gold.strip():
            return "blank", f"field {self._gold!r} is blank"
        return None

    def _choices_problem(self, values: dict[str, Any]) -> tuple[str, str] | None:
        if not self._choices:
            return None
        choices = listed(values[self._choices])
        if not isinstance(choices, list | tuple) or not all(isinstance(c, str) and is_unicode(c) for c in choices):
            return "not_text", f"field {self._choices!r} is not a list of texts (in CSV: as JSON in one cell)"
        if not all(choice.strip() for choice in choices):
            return "blank", f"field {self._choices!r} has a blank choice"
        if len(choices) < 2:
            return "absent_field", f"field {self._choices!r} has fewer than two choices"
        if len(choices) > MOST_CHOICES:
            return (
                "too_many_choices",
                f"field {self._choices!r} has {len(choices)} choices, more than there are letters",
            )
        return None


def listed(choices: Any) -> Any:
    """A list as it is, or as JSON text, which is how a cell of a CSV file holds one."""
    if isinstance(choices, str) and choices.lstrip().startswith("["):
        with contextlib.suppress(ValueError, RecursionError):
            return json.loads(choices)
    return choices


def content_id(text: str, choices: tuple[str, ...] = ()) -> str:
    """The id of a row that brings none."""
    return hashlib.sha256("\0".join([text, *choices]).encode()).hexdigest()[:16]


@dataclass(slots=True)
class Scan:
    """What one pass over a source found. Duplicates by position, so a million rows cost 8 MB while it runs."""

    rows: int = 0
    good: int = 0
    longest: int = 0
    bytes: int = 0
    digest: str = ""  # of ids and inputs, so that an edited or a longer source is noticed
    malformed: int = 0
    first_problem: Malformed | None = None
    duplicates: frozenset[int] = field(default_factory=frozenset)


def _duplicate_positions(reader: RowReader, hashes: "array[int]") -> dict[int, Row]:
    """Positions whose id stood before, with the row. The second pass settles what 64-bit hashes suggest."""
    values = np.frombuffer(hashes, np.uint64) if hashes else np.zeros(0, np.uint64)
    unique, counts = np.unique(values, return_counts=True)
    suspects = set(unique[counts > 1].tolist())
    if not suspects:
        return {}
    seen: set[str] = set()
    found: dict[int, Row] = {}
    for position, row in enumerate(reader):
        if isinstance(row, Row) and hash64(row.id) in suspects:
            if row.id in seen:
                found[position] = row
            seen.add(row.id)
    return found


def scan(source: Source) -> Scan:
    """Read the whole source once. `SpecError` for the first problem where `on_error` is `fail`, and for no rows."""
    reader, found, hashes = RowReader(source), Scan(), array("Q")
    content = hashlib.blake2b(digest_size=16)
    fail = source.on_error == "fail"
    for row in reader:
        found.rows += 1
        if isinstance(row, Malformed):
            if fail:
                raise _row_error(row)
            found.malformed += 1
            found.first_problem = found.first_problem or row
            continue
        found.good += 1
        content.update("\0".join((row.id, row.input, *row.choices)).encode() + b"\1")
        size = sum(len(text.encode()) for text in (row.input, *row.choices))
        found.longest, found.bytes = max(found.longest, size), found.bytes + size
        hashes.append(hash64(row.id))
    found.digest = content.hexdigest()
    if not found.rows:
        raise SpecError(f"source empty: {source.path} has no rows", "is it the right file?")
    twice = _duplicate_positions(reader, hashes)
    found.duplicates = frozenset(twice)
    named = [position for position, row in twice.items() if row.named]
    if named and fail:
        first = named[0]
        raise SpecError(
            f"duplicate ids: {twice[first].where}: {twice[first].id!r} stood before"
            + (f" and {len(named) - 1} more" if len(named) > 1 else ""),
            "give every row its own id, or set source.on_error: reject to keep the first of each",
        )
    found.good -= len(named)
    if not found.good:
        problem = found.first_problem
        why = f"; {problem.where}: {problem.detail}" if problem else ""
        raise SpecError(f"source malformed: {source.path} has no usable row{why}", "check source.fields")
    return found


def _row_error(row: Malformed) -> SpecError:
    words = {"absent_field": "absent field", "malformed": "source malformed"}
    kind = words.get(row.reason, "source malformed")
    detail = row.detail if row.detail.startswith(kind) else f"{kind}: {row.detail}"
    hint = (
        "map it in source.fields, as in fields: {input: question}"
        if row.reason == "absent_field"
        else "mend the row, or set source.on_error: reject"
    )
    return SpecError(f"{row.where}: {detail}", hint)


def usable(source: Source, duplicates: frozenset[int]) -> Iterator[Row | Malformed]:
    """Every entry once: good rows, and the rest as malformed, duplicates among them."""
    for position, row in enumerate(RowReader(source)):
        if position not in duplicates or not isinstance(row, Row):
            yield row
        elif row.named:
            yield Malformed(row.id, "duplicate_id", row.where, "the id stood before", row.input)
        else:
            # The same text twice, without ids of its own: two rows, told apart by where they stand.
            yield replace(row, id=f"{row.id}-{position}")
