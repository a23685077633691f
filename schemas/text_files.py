"""Rows of JSONL, JSON and CSV files as their writers meant them: every CSV cell is text, and no text becomes a date."""

import csv
import glob
import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from schemas.errors import SpecError

csv.field_size_limit(64 * 2**20)
SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".csv", ".parquet")


class TooManyCells(NamedTuple):
    """A CSV row that an unquoted comma has cut into more cells than its header has."""

    cells: list[str]

    def __str__(self) -> str:
        return "more cells than the header has; quote texts that hold commas"


def files_of(path: str, what: str) -> list[Path]:
    """The files that a path, a pattern or a folder names, in name order. `SpecError` where there is none; `what` says
    which part of a spec named them."""
    if Path(path).is_dir():
        found = sorted(p for p in Path(path).iterdir() if p.name.endswith(SUFFIXES))
        if not found:
            raise SpecError(f"{what} missing: {path} holds no {', '.join(SUFFIXES)} file", "name a file")
    elif any(mark in path for mark in "*?[") and not Path(path).exists():
        found = sorted(Path(p) for p in glob.glob(path, recursive=True))  # noqa: PTH207 - Path.glob refuses absolute patterns
        if not found:
            raise SpecError(f"{what} missing: nothing matches {path}", "check the pattern and the folder")
    elif Path(path).is_file():
        found = [Path(path)]
    else:
        raise SpecError(f"{what} missing: {path}: no such file", "paths are relative to the spec's folder")
    for file in found:
        if not file.name.endswith(SUFFIXES):
            raise SpecError(f"{what} {file}: unknown kind of file", f"known: {', '.join(SUFFIXES)}")
    return found


def text_entries(file: Path, what: str) -> Iterator[tuple[str, Any]]:
    """(where, raw JSONL line or object) of every entry, streamed. Bytes of a CSV file that are no UTF-8 come as lone
    surrogates."""
    try:
        if file.suffix == ".csv":
            yield from _csv(file, what)
        elif file.suffix == ".json":
            yield from _whole_json(file, what)
        else:
            yield from _jsonl(file)
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise SpecError(f"{what} malformed: {file}: {error}", "is the file whole and UTF-8?") from None


def parsed(entry: Any) -> Any:
    """The object of a raw JSONL line; other entries are objects already. Raises `ValueError` or `RecursionError`."""
    return json.loads(entry) if isinstance(entry, bytes) else entry


def is_unicode(text: str) -> bool:
    """False for text with lone surrogates: JSON can hold it, UTF-8 cannot."""
    return text.isascii() or not any("\ud800" <= c <= "\udfff" for c in text)


def _jsonl(file: Path) -> Iterator[tuple[str, Any]]:
    with gzip.open(file, "rb") if file.suffix == ".gz" else file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield f"{file}:{number}", line


def _whole_json(file: Path, what: str) -> Iterator[tuple[str, Any]]:
    try:
        rows = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise SpecError(f"{what} malformed: {file}: {error}", "a .json file is one list of objects") from None
    if not isinstance(rows, list):
        raise SpecError(f"{what} malformed: {file}: not a list of objects", "one object a line belongs in .jsonl")
    yield from ((f"{file}[{i}]", row) for i, row in enumerate(rows))


def _csv(file: Path, what: str) -> Iterator[tuple[str, Any]]:
    with file.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as handle:
        reader = csv.DictReader(handle, strict=True)
        try:
            header = reader.fieldnames or []
            if twice := {name for name in header if header.count(name) > 1}:
                raise SpecError(f"{what} malformed: {file}: column {min(twice)!r} stands twice", "rename one of them")
            for row in reader:
                extra = row.pop(None, None)  # where the reader puts what is beyond the header
                yield f"{file}:{reader.line_num}", row if extra is None else TooManyCells([*row.values(), *extra])
        except csv.Error as error:
            where = f"{file}:{reader.line_num + 1}"
            raise SpecError(f"{what} malformed: {where}: {error}", "is every quote closed?") from None
