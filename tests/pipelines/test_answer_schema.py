"""A JSON schema for answers: refused before a call where it cannot be followed, and never fetched."""

from pathlib import Path
from typing import Any

import pytest

from pipelines.answer_schema import check_schema, misfit
from pipelines.instruct import read_answer
from pipelines.source import Row
from schemas.call import Answer
from schemas.errors import SpecError
from schemas.job import Validation
from schemas.record import Pair, Rejection

INNER = {"$defs": {"n": {"type": "integer"}}, "type": "object", "properties": {"n": {"$ref": "#/$defs/n"}}}


def test_an_answer_that_does_not_fit_the_schema_is_rejected_with_the_place() -> None:
    wanted = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    checks, row = Validation(json_schema=wanted), Row("r", "Give n.")
    assert isinstance(read_answer(row, Answer('{"n": 3}'), checks, "t", "k", ""), Pair)
    for text, words in (('{"n": "three"}', "$.n"), ("three", "not JSON"), ("[" * 100_000, "not JSON")):
        rejection = read_answer(row, Answer(text), checks, "t", "k", "")
        assert isinstance(rejection, Rejection)
        assert rejection.reason == "schema_mismatch" and words in rejection.detail


@pytest.mark.parametrize("number", ["1e400", "-1e999", "1" + "0" * 401, "1" + "0" * 5000])
def test_a_number_beyond_a_double_is_a_misfit_and_no_error(number: str) -> None:
    assert misfit(number, {"type": "number", "multipleOf": 0.5})


def test_a_schema_may_point_within_itself() -> None:
    named = {"$defs": {"part": {"$id": "part", "$defs": {"b": True}, "$ref": "#/$defs/b"}}, "$ref": "#/$defs/part"}
    tree = {"type": "object", "properties": {"kids": {"type": "array", "items": {"$ref": "#"}}}}
    for schema in (INNER, named, tree):
        check_schema(schema)
    assert misfit('{"n": 3}', INNER) == "" and "$.n" in misfit('{"n": "3"}', INNER)
    assert misfit('{"kids": [{"kids": []}]}', tree) == "" and misfit('{"kids": [3]}', tree)


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"$ref": "#/$defs/absent"}, "points nowhere"),
        ({"properties": {"default": {"$ref": "#/$defs/absent"}}}, "points nowhere"),
        ({"allOf": [{"$ref": "#/allOf/x"}]}, "points nowhere"),
        ({"$ref": "https://a.example/s.json"}, "lies elsewhere"),
        ({"type": "object", "properties": {"a": {"$ref": "#/type"}}}, "no schema"),
        ({"$ref": "#"}, "comes back to itself"),
        ({"$schema": 5}, "no address of a dialect"),
        ({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}, "comes back"),
    ],
)
def test_a_reference_that_cannot_be_followed_is_refused(schema: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        check_schema(schema)


def test_what_a_schema_points_to_is_never_fetched(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text("{}")
    for elsewhere in ((tmp_path / "s.json").as_uri(), "https://a.example/s.json"):
        assert "cannot be followed" in misfit("{}", {"properties": {}, "$ref": elsewhere})


def test_nan_is_no_json() -> None:
    assert misfit('{"n": NaN}', {"properties": {"n": {"type": "number"}}}).startswith("not JSON")
