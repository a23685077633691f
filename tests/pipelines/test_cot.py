"""Chain of thought: prompts as the teacher sees them, answers as the paper reads them."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.cot import label_of, load_exemplars, plan_of, read_answer, split_answer
from pipelines.source import Row
from schemas.call import Answer
from schemas.errors import SpecError
from schemas.job import JobSpec, Prompt, Validation
from schemas.record import Rationale, Rejection
from services.teachers.adapter import decode

RECORDED = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "cqa_palm540b_train.jsonl.gz"
CHOICES = ("park", "math problem", "gravity")


@pytest.mark.skipif(not RECORDED.exists(), reason="the recorded answers are not on this machine")
def test_the_paper_s_parser_gives_the_paper_s_accuracy() -> None:
    rows = [json.loads(line) for line in gzip.decompress(RECORDED.read_bytes()).splitlines()]
    right = unparsed = 0
    for row in rows:
        parts = split_answer(row["teacher_raw"], "multiple_choice")
        label = label_of(parts[1], "multiple_choice", tuple(row["choices"])) if parts else None
        unparsed += label is None
        right += label == row["answer"]
    assert (len(rows), unparsed, f"{right / len(rows):.4f}") == (9741, 3, "0.7426")


@pytest.mark.parametrize(
    ("task", "text", "rationale", "label"),
    [
        ("multiple_choice", "Sums are maths. So the answer is (b) math problem.", "Sums are maths.", "math problem"),
        ("multiple_choice", "X. So the answer is (b).\n\nQ: next\nA: So the answer is (a) park.", "X.", "math problem"),
        ("multiple_choice", "X. so the answer is gravity.", "X.", "gravity"),
        ("arithmetic", "Half of 84. The answer is (84 / 2).", "Half of 84.", "(84 / 2)"),
        ("arithmetic", "So. So the answer is $1,234.50.", "So.", "1,234.50"),
        ("arithmetic", "Bad. The answer is (84 / 0).", "Bad.", "(84 / 0)"),
        ("nli", "It follows. So the answer is Neutral.", "It follows.", "neutral"),
        ("free_text", "Because.\nSo the answer is: Paris.\nMore text", "Because.", "Paris"),
    ],
)
def test_rationale_and_label_are_split_at_the_marker(task: str, text: str, rationale: str, label: str) -> None:
    parts = split_answer(text, task)
    assert parts is not None
    assert (parts[0], label_of(parts[1], task, CHOICES)) == (rationale, label)


@pytest.mark.parametrize(
    ("task", "text"),
    [
        ("multiple_choice", "It is a math problem."), ("multiple_choice", "So the answer is on"), ("free_text", ""),
        ("arithmetic", "So the answer is some."), ("nli", "So the answer is maybe."),
        ("free_text", "So the answer is "),
    ],
)  # fmt: skip
def test_an_answer_without_a_label_is_rejected_with_its_raw_text_or_kept_blank(task: str, text: str) -> None:
    row = Row("r", "what?", choices=CHOICES)
    rejected = read_answer(row, Answer(text), task, Validation(), "t", "k", "raw")
    assert isinstance(rejected, Rejection)
    assert (rejected.reason, rejected.raw) == ("unparsable", text or "raw")
    kept = read_answer(row, Answer(text), task, Validation(keep_unparsable=True), "t", "k", "raw")
    assert isinstance(kept, Rationale)
    assert kept.label == " "


def test_a_body_that_is_no_answer_is_rejected_with_its_bytes() -> None:
    for answer, reason in (
        (decode("chat", b"<html>"), "malformed_answer"),
        (Answer(None, problem="blank"), "empty_answer"),
    ):
        bad = read_answer(Row("r", "q"), answer, "free_text", Validation(), "t", "k", "<html>")
        assert isinstance(bad, Rejection)
        assert (bad.reason, bad.raw) == (reason, "<html>")


def spec(**prompt: Any) -> JobSpec:
    raw: dict[str, Any] = {
        "name": "n", "pipeline": "cot", "teachers": [{"provider": "scripted"}], "prompt": prompt,
        "source": {"path": "x", "fields": {"choices": "choices"}},
    }  # fmt: skip
    return JobSpec.model_validate(raw)


def test_few_shot_exemplars_come_first_as_turns_and_the_question_last(jsonl: Callable[..., Path]) -> None:
    shown = {"input": "Two and two?", "choices": ["3", "4"], "rationale": "Count.", "label": "4"}
    plan = plan_of(
        spec(style="few-shot", task="multiple_choice", exemplars=str(jsonl([shown])), system="Be brief."), frozenset()
    )
    messages = plan.messages(Row("r", "Three?", choices=("3", "5")))
    assert [m.role for m in messages] == ["system", "user", "assistant", "user"]
    assert messages[2].content == "Count. So the answer is (b) 4."
    assert messages[3].content == "Q: Three?\nAnswer Choices:\n(a) 3\n(b) 5"


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"input": "q", "label": "a"}, "rationale"),
        ({"input": "q", "rationale": " ", "label": "a"}, "blank"),
        ({"input": "q", "rationale": "r", "label": "z", "choices": ["a", "b"]}, "'z' is not one of its choices"),
        ("{oops", "JSON"),
    ],
)
def test_a_bad_exemplar_is_named_by_line(jsonl: Callable[..., Path], row: Any, words: str) -> None:
    path = jsonl([row])
    with pytest.raises(SpecError, match=words) as caught:
        load_exemplars(Prompt(style="few-shot", task="multiple_choice", exemplars=str(path)))
    assert f"{path}:1" in caught.value.message


def test_a_line_of_exemplars_ends_where_json_lines_end(tmp_path: Path) -> None:
    path = tmp_path / "shown.jsonl"
    path.write_text('{"input": "Which\u2028one?", "rationale": "Because.", "label": "this"}\n', encoding="utf-8")
    assert [e.input for e in load_exemplars(Prompt(style="few-shot", exemplars=str(path)))] == ["Which\u2028one?"]
