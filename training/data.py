"""The rows of a training set: of files, or of a run's dataset, with their columns under our names."""

import functools
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from schemas.errors import SpecError
from schemas.hub import hub_rows
from schemas.student import TrainingData
from schemas.text_files import TooManyCells, files_of, is_unicode, parsed, text_entries


def _files(data: TrainingData) -> list[Path]:
    if data.path is not None and data.path.startswith("hf:"):
        return []
    if data.path is not None:
        return files_of(data.path, "data")
    if data.run is None:
        raise SpecError("data is required", "data: {path: pairs.jsonl} or data: {run: RUN}")
    found = sorted(Path(data.run, "dataset").glob("*.parquet"))
    if not found:
        raise SpecError(f"data.run: {data.run} holds no published dataset", "finish the run first")
    return found


def data_digest(data: TrainingData) -> str:
    """SHA-256 of what the files hold, wherever they lie, or a dataset's name on the Hub: while it is the same, so are
    the pairs."""
    if data.path and data.path.startswith("hf:"):
        return data.path
    stats = ((path, path.stat()) for path in _files(data))
    return hashlib.sha256("".join(_contents(p, s.st_size, s.st_mtime_ns) for p, s in stats).encode()).hexdigest()


@functools.lru_cache(1024)
def _contents(path: Path, size: int, changed_ns: int) -> str:
    """SHA-256 of a file. Known while size and time are the same: it is asked several times in a start, and a gigabyte
    takes a second."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_digest(paths: Iterable[Path]) -> str:
    """SHA-256 of names, sizes and times; from whichever folder they are named."""
    stats = ((str(path.resolve()), path.stat()) for path in paths)
    return hashlib.sha256(repr([(name, s.st_size, s.st_mtime_ns) for name, s in stats]).encode()).hexdigest()


def raw_rows(
    data: TrainingData, columns: Sequence[str] | None = None, needed: Sequence[str] = ()
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, row) of every row. Of parquet files only `columns` are read, for others may hold pictures or sound, and
    those of `needed`, by our names, are looked for at once."""
    for where, entry in _entries(data, columns, needed):
        try:
            row = parsed(entry)
        except (ValueError, RecursionError) as error:
            raise SpecError(f"data malformed: {where}: not valid JSON: {error}", "mend the row") from None
        if not isinstance(row, dict):
            what = row if isinstance(row, TooManyCells) else f"a {type(row).__name__}, not an object"
            raise SpecError(f"data malformed: {where}: {what}", "mend the row")
        if not _is_unicode(row if columns is None else [row.get(name) for name in columns]):
            raise SpecError(f"data: {where}: not valid Unicode (a lone surrogate)", "mend the row or leave it out")
        yield where, row


def _is_unicode(value: Any) -> bool:
    """Whether every text in a value is; JSON can hold what UTF-8 cannot."""
    if isinstance(value, str):
        return is_unicode(value)
    if isinstance(value, dict):
        return all(map(_is_unicode, value.values()))
    return all(map(_is_unicode, value)) if isinstance(value, list) else True


def _entries(data: TrainingData, columns: Sequence[str] | None, needed: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """(where, raw line or object) of every entry."""
    if data.path is not None and data.path.startswith("hf:"):
        import datasets

        yield from hub_rows(data.path.removeprefix("hf:"), "data", datasets.load_dataset)
    for file in _files(data):
        yield from _parquet(file, data, columns, needed) if file.suffix == ".parquet" else text_entries(file, "data")


def _parquet(
    file: Path, data: TrainingData, columns: Sequence[str] | None, needed: Sequence[str]
) -> Iterator[tuple[str, Any]]:
    import pyarrow.parquet as pq

    number = 0
    try:
        table = pq.ParquetFile(file)
        names = table.schema_arrow.names
        if twice := {name for name in names if names.count(name) > 1}:
            raise SpecError(f"data malformed: {file}: column {min(twice)!r} stands twice", "rename one of them")
        check_columns(names, data, needed, f"{file}: ")
        wanted = [name for name in names if columns is None or name in columns]
        for batch in table.iter_batches(1024, columns=wanted):
            for row in batch.to_pylist():
                yield f"{file} row {number}", row
                number += 1
    except (ValueError, OSError) as error:
        line = str(error).strip().splitlines() or ["unreadable"]
        raise SpecError(
            f"data malformed: {file} from row {number}: {line[0][:200]}", "is it a whole parquet file?"
        ) from None


def is_mapped(data: TrainingData) -> bool:
    """Whether columns are taken as they are named; else a run's rows are put into words."""
    return data.run is None or bool(data.fields)


def check_columns(columns: Sequence[str], data: TrainingData, needed: Sequence[str], where: str = "") -> None:
    """`SpecError` for a field that is not among `columns`."""
    for ours in needed:
        name = data.fields.get(ours, ours)  # type: ignore[call-overload]
        if name not in columns:
            shown = ", ".join(map(str, columns[:8]))
            raise SpecError(f"data: {where}absent field {name!r} (it has: {shown})", "map it in data.fields")


def mapped_rows(
    data: TrainingData, texts: Sequence[str], others: Sequence[str] = ()
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, row) with the columns `texts`, which must be there and be text that is not blank, and those of `others`
    that are there."""
    names = {ours: data.fields.get(ours, ours) for ours in (*texts, *others)}  # type: ignore[call-overload]
    for where, row in raw_rows(data, list(names.values()), texts):
        check_columns(list(row), data, texts, f"{where}: ")
        for ours in texts:
            value = row[names[ours]]
            if not isinstance(value, str):
                raise SpecError(f"data: {where}: field {names[ours]!r} must be text", "mend the row")
            if not value.strip():
                raise SpecError(f"data: {where}: field {names[ours]!r} is blank", "mend the row or leave it out")
        yield where, {ours: row[name] for ours, name in names.items() if name in row}
