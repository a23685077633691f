"""Answers that somebody already has, for a recorded teacher: of a file, or of the journal of an earlier run."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pipelines import cot, instruct
from pipelines.harvest import Answers, RowPlan, sendable
from pipelines.rundir import RunDirectory
from pipelines.source import entries, scan
from schemas.errors import SpecError
from schemas.job import JobSpec
from schemas.lane import Teacher
from schemas.text_files import TooManyCells, is_unicode, parsed
from services.journal.index import JournalIndex
from services.journal.place import Journal
from services.teachers.adapter import decode
from services.teachers.recorded import write_recording


def index_recordings(teachers: Sequence[Teacher], directory: RunDirectory) -> dict[int, str]:
    """Write what is recorded below a run's working directory; by number of lane, where its workers look it up."""
    found = {}
    for number, teacher in enumerate(teachers):
        if teacher.provider == "recorded":
            place = directory.scratch(f"recorded-{number}")
            write_recording(place, recorded(teacher))
            found[number] = str(place)
    return found


def recordings_digest(teachers: Sequence[Teacher]) -> str:
    """What tells other answers at the same places; empty where no teacher is recorded. Reads and checks all."""
    return " ".join(_digest(recorded(teacher)) for teacher in teachers if teacher.provider == "recorded")


def recorded(teacher: Teacher) -> Iterator[tuple[str, str]]:
    """(row id, text) of every recorded answer, in order.

    `SpecError` for a file that is missing, malformed or lacks a field, and for a run whose source is gone.
    """
    assert teacher.path is not None
    earlier = RunDirectory(Path(teacher.path)).earlier()
    return _of_files(teacher) if earlier is None else _of_run(teacher.path, earlier)


def _digest(answers: Iterator[tuple[str, str]]) -> str:
    content = hashlib.blake2b(digest_size=16)
    for row, text in answers:
        content.update("\0".join((row, text)).encode() + b"\1")
    return content.hexdigest()


def _of_files(teacher: Teacher) -> Iterator[tuple[str, str]]:
    assert teacher.path is not None
    names = teacher.fields.get("id", "id"), teacher.fields.get("raw", "raw")
    found = 0
    for where, entry in entries(teacher.path, "teachers.path"):
        try:
            values = parsed(entry)
        except (ValueError, RecursionError) as error:
            raise SpecError(f"teachers.path malformed: {where}: not valid JSON: {error}", "mend the row") from None
        found += 1
        if (one := _answer(where, values, *names)) is not None:
            yield one
    if not found:
        raise SpecError(f"teachers.path empty: {teacher.path} has no rows", "is it the right file?")


def _answer(where: str, values: Any, id_: str, raw: str) -> tuple[str, str] | None:
    """None for a row whose answer is null: it has none."""
    if not isinstance(values, dict) or isinstance(values, TooManyCells):
        raise SpecError(f"teachers.path malformed: {where}: not an object", "each row holds a row's id and its answer")
    for name in (id_, raw):
        if name not in values or (name == id_ and values[name] is None):
            columns = ", ".join(map(str, list(values)[:8]))
            raise SpecError(
                f"teachers.path: {where}: absent field {name!r} (it has: {columns})",
                "map it in the teacher's fields, as in fields: {id: id, raw: answer}",
            )
    row, text = values[id_], values[raw]
    if isinstance(row, bool) or not isinstance(row, str | int) or not isinstance(text, str | None):
        raise SpecError(f"teachers.path: {where}: {id_!r} or {raw!r} is no text", "mend the row or leave it out")
    if not is_unicode(str(row)) or not is_unicode(text or ""):
        raise SpecError(f"teachers.path: {where}: not valid Unicode", "mend the row or leave it out")
    return None if text is None else (str(row), text)


def _of_run(path: str, earlier: JobSpec) -> Iterator[tuple[str, str]]:
    """Every row of the run's source that its journal answers."""
    journal = Journal(RunDirectory(Path(path)).journal, earlier.journal)
    plan_of = cot.plan_of if earlier.pipeline == "cot" else instruct.plan_of
    plan: RowPlan = plan_of(earlier, scan(earlier.source).duplicates)
    index = JournalIndex(journal.read())
    found = 0
    try:
        answers = Answers(index, [teacher.name for teacher in earlier.teachers])
        for row, call in sendable(plan):
            if (frame := answers.frame(call)) is not None:
                text = decode(frame[0].meta["dialect"], frame[0].body).text
                found += 1
                yield from [(row.id, text)] if text is not None else []
    finally:
        index.close()
    if not found:
        raise SpecError(f"teachers.path: {path}: its journal answers no row of its source", "is its source as it was?")
