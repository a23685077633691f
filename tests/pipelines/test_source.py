"""Sources: what is read, and what is found wrong before a teacher is called."""

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.source import Malformed, Row, content_id, scan, usable
from schemas.errors import SpecError
from schemas.job import Source

ROWS = [{"id": "a", "q": "one?"}, {"id": "b", "q": "two?"}]


def source(path: Path | str, **options: Any) -> Source:
    return Source(path=str(path), **{"fields": {"id": "id", "input": "q"}, **options})


def written(kind: str, folder: Path) -> Path:
    path = folder / f"rows.{kind}"
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    if kind == "jsonl":
        path.write_text(lines + "\n")
    elif kind == "jsonl.gz":
        path.write_bytes(gzip.compress(lines.encode()))
    elif kind == "json":
        path.write_text(json.dumps(ROWS))
    elif kind == "csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["id", "q"])
            writer.writeheader()
            writer.writerows(ROWS)
    else:
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    return path


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "json", "csv", "parquet"])
def test_every_kind_of_file_gives_the_same_rows(kind: str, tmp_path: Path) -> None:
    found = source(written(kind, tmp_path))
    assert scan(found).rows == 2
    assert list(usable(found, frozenset())) == [Row("a", "one?"), Row("b", "two?")]


def test_a_folder_and_a_pattern_read_their_files_in_name_order(tmp_path: Path) -> None:
    for name, row in (("2.jsonl", ROWS[1]), ("1.jsonl", ROWS[0])):
        (tmp_path / name).write_text(json.dumps(row) + "\n")
    for path in (tmp_path, tmp_path / "*.jsonl"):
        assert [r.id for r in usable(source(path), frozenset())] == ["a", "b"]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (['{"id": "a", "q": "x"}', "{oops"], ["rows.jsonl:2", "malformed"]),
        (['{"id": "a", "q": "x"}', '["list"]'], ["rows.jsonl:2", "not an object"]),
        (['{"id": "a", "question": "x"}'], ["rows.jsonl:1", "absent field 'q'"]),
        (['{"q": "x"}'], ["rows.jsonl:1", "absent field 'id'"]),
        (['{"id": "a", "q": 3}'], ["rows.jsonl:1", "'q' is not text"]),
        (['{"id": "a", "q": "  "}'], ["rows.jsonl:1", "blank"]),
        (['{"id": "a", "q": "\\ud800"}'], ["rows.jsonl:1", "Unicode"]),
        (['{"id": ["a"], "q": "x"}'], ["rows.jsonl:1", "'id'"]),
        (['{"id": "a", "q": "x"}', "", '{"id": "a", "q": "y"}'], ["duplicate ids", "rows.jsonl:3: 'a'"]),
        (['{"id": "a", "q": null}'], ["absent field 'q' (here it is null"]),
        (['{"id": "a", "q": '], ["rows.jsonl:1", "Expecting value in column 19"]),
        ([], ["empty"]),
        ([""], ["empty"]),
    ],
)
def test_a_bad_source_is_one_line_that_says_where(
    jsonl: Callable[..., Path], lines: list[str], words: list[str]
) -> None:
    path = jsonl(lines)
    with pytest.raises(SpecError) as caught:
        scan(source(path))
    assert all(word in caught.value.message for word in words), caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("path", ["absent.jsonl", "none/*.jsonl", "rows.txt"])
def test_a_missing_file_and_an_unknown_kind_are_named(path: str, tmp_path: Path) -> None:
    (tmp_path / "rows.txt").write_text("x")
    with pytest.raises(SpecError, match=r"source .*(absent|none|rows)"):
        scan(source(tmp_path / path))


def test_malformed_rows_are_set_aside_where_the_spec_says_so(jsonl: Callable[..., Path]) -> None:
    lines = ['{"id": "a", "q": "x"}', "{oops", '{"id": "b"}', '{"id": "a", "q": "again"}', '{"id": "c", "q": "y"}']
    found = source(jsonl(lines), on_error="reject")
    seen = scan(found)
    rows = list(usable(found, seen.duplicates))
    assert (seen.rows, seen.good) == (5, 2)
    assert [r.id for r in rows if isinstance(r, Row)] == ["a", "c"]
    assert [r.reason for r in rows if isinstance(r, Malformed)] == ["malformed", "absent_field", "duplicate_id"]
    assert "{oops" in [r.raw for r in rows if isinstance(r, Malformed)]


def test_a_source_of_malformed_rows_alone_is_refused(jsonl: Callable[..., Path]) -> None:
    with pytest.raises(SpecError, match="no usable row"):
        scan(source(jsonl(["{oops", "{}"]), on_error="reject"))


def test_rows_without_ids_get_one_from_their_content_and_repeats_stay_apart(jsonl: Callable[..., Path]) -> None:
    found = source(jsonl([{"q": "x"}, {"q": "y"}, {"q": "x"}]), fields={"input": "q"})
    seen = scan(found)
    ids = [r.id for r in usable(found, seen.duplicates)]
    assert ids == [content_id("x"), content_id("y"), f"{content_id('x')}-2"]


def test_numbers_serve_as_ids_and_gold_labels(jsonl: Callable[..., Path]) -> None:
    found = source(jsonl([{"id": 7, "q": "x", "a": 4.5}]), fields={"id": "id", "input": "q", "label": "a"})
    assert list(usable(found, scan(found).duplicates)) == [Row("7", "x", gold="4.5")]


def test_a_csv_row_that_is_no_utf8_is_set_aside_alone(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes("id,q\na,good\nb,caf\xe9\nc,good too\n".encode("latin-1"))
    with pytest.raises(SpecError, match=r"rows\.csv:3.*Unicode"):
        scan(source(path))
    rows = list(usable(source(path, on_error="reject"), frozenset()))
    assert [(r.id, isinstance(r, Row)) for r in rows] == [("a", True), ("b", False), ("c", True)]


def test_a_csv_cell_holds_choices_as_json(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('id,q,options\n1,Which?,"[""red"", ""blue""]"\n2,Which?,red or blue\n')
    fields = {"id": "id", "input": "q", "choices": "options"}
    first, second = usable(source(path, fields=fields, on_error="reject"), frozenset())
    assert isinstance(first, Row) and first.choices == ("red", "blue")
    assert isinstance(second, Malformed) and "as JSON in one cell" in second.detail


def test_a_csv_row_with_too_many_cells_keeps_what_it_said(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("id,q\na,good\nb,cut, in two\n")
    rows = list(usable(source(path, on_error="reject"), frozenset()))
    assert isinstance(rows[1], Malformed) and json.loads(rows[1].raw) == ["b", "cut", " in two"]
