"""Chain of thought: prompts as the teacher sees them, answers as the paper reads them."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.cot import PAPER_MARKERS, Exemplar, load_exemplars, plan_of, read_answer, worked
from pipelines.parsing import PAPER, PARSERS, Parser
from pipelines.source import Row
from schemas.call import Answer
from schemas.errors import SpecError
from schemas.job import JobSpec, Prompt
from schemas.record import Rationale, Rejection
from services.teachers.adapter import decode

RECORDED = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "cqa_palm540b_train.jsonl.gz"
CHOICES = ("park", "math problem", "gravity")


@pytest.mark.skipif(not RECORDED.exists(), reason="the recorded answers are not on this machine")
@pytest.mark.parametrize("parser", [PAPER["multiple_choice"], PARSERS["multiple_choice"]], ids=["paper", "ours"])
def test_the_paper_s_answers_are_as_right_as_the_paper_s_loaders_find_them(parser: Parser) -> None:
    rows = [json.loads(line) for line in gzip.decompress(RECORDED.read_bytes()).splitlines()]
    labels = [parser.read(row["teacher_raw"], tuple(row["choices"]))[1] for row in rows]
    right = sum(label == row["answer"] for label, row in zip(labels, rows, strict=True))
    assert (len(rows), labels.count(None), f"{right / len(rows):.4f}") == (9741, 3, "0.7426")


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
    assert PARSERS[task].read(text, CHOICES) == (rationale, label)


@pytest.mark.parametrize(
    ("task", "text", "rationale", "label"),
    [
        ("multiple_choice", "Sums. So the answer is (b) math problem.\n\nQ: next", "Sums.", "math problem"),
        ("multiple_choice", "Sums. So the answer is (b).", "Sums.", None),
        ("multiple_choice", "Sums. so the answer is (b) sums.", None, None),
        ("multiple_choice", "Q: Sums. So the answer is (b) sums.", None, None),
        ("arithmetic", "Half. The answer is (84 / 2).", "Half.", "(84 / 2)"),
        ("arithmetic", "Half. The answer is (a) or (b).", "Half.", "(a) or (b)"),
        ("arithmetic", "Half. The answer is 42.", "Half.", None),
        ("nli", "It may. So the answer is neutral.\n\nPremise: next", "It may.", "neutral"),
        ("nli", "It may. So the answer is neutral", "It may.", "neutra"),
        ("nli", "It may. So the answer is", "It may.", None),
    ],
)  # fmt: skip
def test_the_paper_s_rules_take_its_own_form_alone(
    task: str, text: str, rationale: str | None, label: str | None
) -> None:
    assert PAPER[task].read(text) == (rationale, label)


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
    rejected = read_answer(row, Answer(text), spec(task=task), "t", "k", "raw")
    assert isinstance(rejected, Rejection)
    assert (rejected.reason, rejected.raw) == ("unparsable", text or "raw")
    kept = read_answer(row, Answer(text), spec({"validate": {"keep_unparsable": True}}, task=task), "t", "k", "raw")
    assert isinstance(kept, Rationale)
    assert kept.label == " "


def test_a_faithful_run_reads_as_the_paper_and_keeps_what_it_cannot_read() -> None:
    faithful, row = spec({"faithful": True}, task="arithmetic"), Row("r", "what?")
    for text, rationale, label in (("Half. The answer is 42.", "Half.", " "), ("It is 42.", " ", " ")):
        kept = read_answer(row, Answer(text), faithful, "t", "k", "raw")
        assert isinstance(kept, Rationale) and (kept.rationale, kept.label) == (rationale, label)


def test_a_body_that_is_no_answer_is_rejected_with_its_bytes() -> None:
    for answer, reason in (
        (decode("chat", b"<html>"), "malformed_answer"),
        (Answer(None, problem="blank"), "empty_answer"),
    ):
        bad = read_answer(Row("r", "q"), answer, spec(), "t", "k", "<html>")
        assert isinstance(bad, Rejection)
        assert (bad.reason, bad.raw) == (reason, "<html>")


def spec(how: dict[str, Any] | None = None, **prompt: Any) -> JobSpec:
    raw: dict[str, Any] = {
        "name": "n", "pipeline": "cot", "teachers": [{"provider": "scripted"}], "prompt": prompt,
        "source": {"path": "x", "fields": {"choices": "choices"}}, **(how or {}),
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


def test_a_faithful_run_asks_for_the_form_that_it_reads() -> None:
    asked = plan_of(spec({"faithful": True}, task="arithmetic"), frozenset()).messages(Row("r", "Two and two?"))
    assert 'finish with "The answer is" and the expression in brackets' in asked[-1].content
    shown = worked(Exemplar(input="q", rationale="Half.", label="(84 / 2)"), PAPER_MARKERS["arithmetic"])
    assert PAPER["arithmetic"].read(shown) == ("Half.", "(84 / 2)")
    for task in ("multiple_choice", "nli"):
        label = "neutral" if task == "nli" else "math problem"
        example = Exemplar(input="q", rationale="Half.", label=label, choices=() if task == "nli" else CHOICES)
        assert PAPER[task].read(worked(example)) == ("Half.", label)
