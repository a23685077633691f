"""Instruction following: prompts by number, items out of an answer, records."""

from pipelines.instruct import Instructions, plan_of, read_answer, written_in
from pipelines.source import Row
from schemas.call import Answer, Sampling
from schemas.job import Instruct, JobSpec, Validation
from schemas.record import Pair, Rejection

POOL = tuple((f"s{i}", f"Do thing {i}.") for i in range(9))


def plan(first: int = 0, count: int = 4) -> Instructions:
    return Instructions(POOL, Instruct(generate=8, per_call=4, examples=3), Sampling(0.7, 64, 0), first, count)


def test_call_number_n_is_the_same_whatever_round_it_belongs_to() -> None:
    assert list(plan(0, 6).calls())[4:] == list(plan(4, 2).calls())
    assert len({call.content() for call in plan(0, 6).calls()}) == 6


def test_a_call_shows_its_examples_and_asks_for_as_many_as_the_spec_says() -> None:
    call = next(iter(plan().calls()))
    assert call.messages[1].content.count("<example>") == 3
    assert "Write 4 new instructions" in call.messages[2].content


def test_items_are_read_from_tags_and_the_one_that_was_cut_off_is_dropped() -> None:
    text = "<example>First\n one.</example> noise <EXAMPLE> Second? </EXAMPLE><example></example><example>Cut of"
    items = written_in(plan(), 2, text)
    assert [item.text for item in items] == ["First one.", "Second?"]
    assert [item.id[:13] for item in items] == ["gen-000002-00", "gen-000002-01"]
    assert items[0].example_ids == tuple(name for name, _ in plan().shown(2))


def test_nested_tags_are_no_instruction() -> None:
    assert written_in(plan(), 0, "<example>a <example>b</example> c</example>") == []


def test_a_response_becomes_a_pair_with_its_provenance() -> None:
    pair = read_answer(Row("g", "Say hi.", shown=("s1",)), Answer(" Hi. "), Validation(), "t", "k", "")
    assert isinstance(pair, Pair)
    assert (pair.response, pair.instruction_source, pair.example_ids) == ("Hi.", "example_guided", ["s1"])


def test_blank_and_cut_off_answers_are_rejected_where_the_spec_says_so() -> None:
    row = Row("r", "Say hi.")
    blank = read_answer(row, Answer(" \n"), Validation(), "t", "k", "")
    cut = read_answer(row, Answer("Hi th", finish="length"), Validation(finished=True), "t", "k", "")
    kept = read_answer(row, Answer("Hi th", finish="length"), Validation(), "t", "k", "")
    assert isinstance(blank, Rejection) and blank.reason == "empty_answer"
    assert isinstance(cut, Rejection) and cut.reason == "truncated"
    assert isinstance(kept, Pair)


def test_a_schema_goes_out_in_its_own_order_for_an_answer_is_written_in_it() -> None:
    properties = {"reasoning": {"type": "string"}, "answer": {"type": "string"}}
    spec = JobSpec.model_validate(
        {
            "name": "s", "pipeline": "instruct", "source": {"path": "q.jsonl"}, "teachers": [{"provider": "scripted"}],
            "validate": {"json_schema": {"type": "object", "properties": properties}},
        }
    )  # fmt: skip
    schema = plan_of(spec, frozenset()).call(Row("r", "why?")).schema
    assert schema is not None and schema.index("reasoning") < schema.index("answer")
