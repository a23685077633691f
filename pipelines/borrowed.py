"""A changed JSON schema and the answers that are there: one that fits may have been asked for with another."""

import hashlib
import json
import os
from array import array
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from pipelines.answer_schema import misfit
from pipelines.harvest import Answers, sendable
from pipelines.instruct import Borrowed, Responses
from schemas.call import Call
from services.fanout.fleet import tag_for
from services.journal.frame import Frame, Kind
from services.journal.place import Journal
from services.teachers.adapter import decode


def borrowing(plan: Responses, schemas: Sequence[str | None], answers: Answers) -> Responses:
    """The plan with, for rows whose own call has no answer that fits, the call with one of `schemas` that has: the
    first of them, so that answers to come change nothing. A schema goes out with a call, so that the call key changes
    with it. Reads every answer."""
    wanted = None if plan.schema is None else json.loads(plan.schema)
    found = [array("Q") for _ in schemas]
    for row, call in sendable(plan):
        if _serves(call, wanted, answers):
            continue
        for rows, schema in zip(found, schemas, strict=True):
            if _serves(call._replace(schema=schema), wanted, answers):
                rows.append(Borrowed.mark(row.id))
                break
    parts = [(schema, np.sort(np.array(rows, np.uint64))) for schema, rows in zip(schemas, found, strict=True)]
    return replace(plan, borrowed=Borrowed(tuple((schema, rows) for schema, rows in parts if len(rows))))


def note_schema(journal: Journal, schema: str | None) -> None:
    """Put on disk that calls go out with a schema from here on: in the journal, so that whoever has that alone finds
    their answers."""
    text = (schema or "null").encode()
    writer = journal.writer(f"{tag_for(journal.read())}-schema")
    try:
        writer.append(Frame(Kind.SCHEMA, hashlib.sha256(text).digest(), os.urandom(16), {}, text))
    finally:
        writer.close()


def _serves(call: Call, wanted: dict[str, Any] | None, answers: Answers) -> bool:
    if (found := answers.frame(call)) is None:
        return False
    text = decode(found[0].meta["dialect"], found[0].body).text
    return bool(text and text.strip()) and (wanted is None or not misfit(text or "", wanted))
