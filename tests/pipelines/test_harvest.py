"""Rejections: whatever a teacher said, it can be written down."""

from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.answer_schema import misfit
from pipelines.checks import unusable
from pipelines.harvest import REJECTED, Rejections, RowWriter
from pipelines.source import Row
from schemas.job import Validation
from schemas.record import Rejection
from services.teachers.adapter import decode

ANY = st.text(st.characters())  # lone surrogates, too, as JSON's escapes can write them


def written(*rejections: Rejection) -> list[dict[str, str]]:
    with TemporaryDirectory() as folder:
        rejected = Rejections(RowWriter(Path(folder) / "part.parquet", REJECTED))
        for rejection in rejections:
            rejected.add(rejection)
        rejected.writer.close()
        found: list[dict[str, str]] = pq.read_table(Path(folder) / "part.parquet").to_pylist()
        return found


@settings(deadline=None)  # each writes a file
@given(ANY, ANY, ANY)
def test_a_rejection_of_any_text_is_written(row_id: str, detail: str, raw: str) -> None:
    (found,) = written(Rejection(row_id, "answer", "refused", detail, raw))
    assert found["raw"].replace("?", "") == "".join(c for c in raw if not "\ud800" <= c <= "\udfff").replace("?", "")


def test_a_refusal_and_a_place_in_an_answer_are_quoted_though_utf_8_cannot_hold_them() -> None:
    body = b'{"choices":[{"message":{"content":null,"refusal":"No \\ud83d"}}]}'
    refused = unusable(Row("r", "hi"), decode("chat", body), Validation(), body.decode())
    assert refused is not None
    place = misfit('{"\\ud83d": "x"}', {"type": "object", "additionalProperties": {"type": "integer"}})
    found = written(refused, Rejection("s", "answer", "schema_mismatch", place, "raw"))
    assert found[0]["detail"] == "refused: No ?" and "'?'" in found[1]["detail"]
