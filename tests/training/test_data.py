"""Training data: what becomes a token, and which tokens have a loss."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import SpecError
from schemas.objective import AnyObjective, Icl, Sft, StepByStep
from schemas.student import TrainingData
from training import examples
from training.examples import MAIN, SECOND, Example, Pair
from training.held_out import held_out_numbers
from training.rows import IGNORED, Bins, Collator, TokenRow, pack, sizes_of, token_rows
from training.students import train_tokenizer

TOKENIZER = train_tokenizer(["What is one and one? It is two.", "Say hello. Hello!"], 300)
PAIRS = [Pair("What is one?", "It is one."), Pair("Say hello.", "Hello!")]


def check_data(data: TrainingData, objective: AnyObjective = Sft()) -> None:
    examples.check_data(data, objective)


def list_of(data: TrainingData, objective: AnyObjective) -> list[Example]:
    return list(examples.stream_examples(data, objective))


def load_pairs(data: TrainingData) -> list[Pair]:
    return [replace(pair, record="") for (pair,) in list_of(data, Sft())]


def test_the_loss_is_on_the_response_and_its_end_alone() -> None:
    rows, left_out = token_rows(PAIRS, TOKENIZER, 64, None, seq2seq=False)
    assert left_out == 0
    for row, pair in zip(rows, PAIRS, strict=True):
        learned = [label for label in row.labels if label != IGNORED]
        assert TOKENIZER.decode(learned) == pair.response + "</s>"
        assert TOKENIZER.decode(row.input_ids) == pair.prompt + pair.response + "</s>"
        assert len(row.labels) == len(row.input_ids)


def test_a_long_response_is_cut_and_a_prompt_that_fills_the_row_is_counted_and_left_out() -> None:
    long = Pair("Say hello.", "two " * 200)
    rows, left_out = token_rows([long, Pair("one " * 200, "two")], TOKENIZER, 32, None, seq2seq=False)
    assert (len(rows), left_out, len(rows[0].input_ids)) == (1, 1, 32)


@pytest.mark.parametrize("seq2seq", [False, True])
@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=40))
def test_packing_keeps_every_row_whole_and_within_its_length(seq2seq: bool, lengths: list[int]) -> None:
    rows = [TokenRow([n] * size, [n] * (31 - size if seq2seq else size)) for n, size in enumerate(lengths, 1)]
    bins = Bins(rows, pack(sizes_of(rows), 30))
    for group in bins:
        assert sum(len(row.input_ids) for row in group) <= 30
        assert sum(len(row.labels) for row in group) <= 30
    assert sorted(row.input_ids[0] for group in bins for row in group) == sorted(row.input_ids[0] for row in rows)


@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=60))
def test_no_two_bins_could_have_been_one(lengths: list[int]) -> None:
    rows = [TokenRow([1] * size, [1] * size) for size in lengths]
    full = sorted(sum(len(row.input_ids) for row in group) for group in Bins(rows, pack(sizes_of(rows), 30)))
    assert len(full) < 2 or full[0] + full[1] > 30


def test_padding_is_on_the_right_and_has_no_label() -> None:
    batch = Collator(pad_id=0, seq2seq=False)([[TokenRow([5, 6, 7], [IGNORED, 6, 7])], [TokenRow([8], [8])]])
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 0, 0]]
    assert batch["labels"].tolist() == [[IGNORED, 6, 7], [8, IGNORED, IGNORED]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


def test_in_a_packed_bin_positions_start_again_and_no_row_predicts_the_next() -> None:
    batch = Collator(pad_id=0, seq2seq=False)(
        [[TokenRow([5, 6], [5, 6]), TokenRow([7, 8], [7, 8])], [TokenRow([9], [9])]]
    )
    assert batch["position_ids"].tolist() == [[0, 1, 0, 1], [0, 0, 1, 2]]
    assert batch["labels"].tolist() == [[IGNORED, 6, IGNORED, 8], [9, IGNORED, IGNORED, IGNORED]]
    assert batch["owners"].tolist() == [[0, 0, 1, 1], [2, 0, 0, 0]]


@given(st.integers(2, 200), st.floats(0.01, 0.99), st.integers(0, 5), st.integers(1, 30))
def test_a_split_has_both_sides(count: int, fraction: float, seed: int, most: int) -> None:
    held = held_out_numbers(count, fraction, seed, most)
    assert 1 <= len(held) < count and len(held) <= most
    assert held <= set(range(count))
    assert held_out_numbers(count, fraction, seed, most) == held
    assert len(held) == min(count - 1, most, max(1, round(fraction * count)))


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"prompt": "a", "reply": "b"}] * 2, "absent field 'response'"),
        ([{"prompt": "a", "response": 5}] * 2, "must be text"),
        ([{"prompt": "a", "response": "b"}], "1 usable rows"),
        (["{oops"], "data"),
        ([], "data"),
    ],
)
def test_bad_training_data_is_one_line(jsonl: Callable[..., Path], rows: list[Any], words: str) -> None:
    data = TrainingData(path=str(jsonl(rows)))
    with pytest.raises(SpecError, match=words) as caught:
        check_data(data)
        load_pairs(data)
    assert "\n" not in caught.value.message


def test_fields_are_mapped(jsonl: Callable[..., Path]) -> None:
    path = jsonl([{"q": "a", "r": "b"}, {"q": "c", "r": "d"}])
    data = TrainingData(path=str(path), fields={"prompt": "q", "response": "r"})
    assert load_pairs(data) == [Pair("a", "b"), Pair("c", "d")]


def test_texts_stay_what_they_were(jsonl: Callable[..., Path], tmp_path: Path) -> None:
    """What looks like a date, a number or nothing is text all the same."""
    odd = [Pair("2024-01-31", "2024-01-31T10:00:00Z"), Pair("007", "NA"), Pair("1e5", "null")]
    lines = jsonl([{"prompt": p.prompt, "response": p.response} for p in odd])
    table = tmp_path / "rows.csv"
    table.write_text("prompt,response\n" + "".join(f"{p.prompt},{p.response}\n" for p in odd))
    assert load_pairs(TrainingData(path=str(lines))) == load_pairs(TrainingData(path=str(table))) == odd


def test_a_bad_row_is_named_by_its_line_wherever_it_stands(jsonl: Callable[..., Path]) -> None:
    good = [{"prompt": "a", "response": "b"}] * 5
    with pytest.raises(SpecError, match=r"rows\.jsonl:6: not valid JSON"):
        check_data(TrainingData(path=str(jsonl([*good, "{oops"]))))
    with pytest.raises(SpecError, match=r"rows\.jsonl:6: absent field 'response'"):
        check_data(TrainingData(path=str(jsonl([*good, {"prompt": "a"}]))))


@pytest.mark.parametrize("run", [False, True])
def test_parquet_is_read_by_the_columns_that_are_needed_and_an_empty_shard_is_no_fault(
    tmp_path: Path, run: bool
) -> None:
    folder = tmp_path / "dataset"
    folder.mkdir()
    whole = pa.table({"prompt": ["a", "b"], "response": ["x", "y"], "sound": [b"\xff", b"\xfe"]})
    pq.write_table(whole, folder / "a.parquet")
    pq.write_table(whole.slice(0, 0), folder / "b.parquet")
    fields = {"prompt": "prompt", "response": "response"}
    data = TrainingData(run=str(tmp_path), fields=fields) if run else TrainingData(path=str(folder))
    assert load_pairs(data) == [Pair("a", "x"), Pair("b", "y")]
    if run:
        with pytest.raises(SpecError, match="no column 'input'"):
            check_data(TrainingData(run=str(tmp_path)))


def test_a_blank_prompt_is_refused(jsonl: Callable[..., Path]) -> None:
    with pytest.raises(SpecError, match="'prompt' is blank"):
        check_data(TrainingData(path=str(jsonl([{"prompt": " ", "response": "b"}] * 2))))


def test_a_step_by_step_record_is_learned_twice_its_label_and_its_rationale(jsonl: Callable[..., Path]) -> None:
    rows = [{"id": f"q{i}", "input": "2 + 2?", "rationale": "Two and two.", "label": "4"} for i in range(2)]
    found = list_of(TrainingData(path=str(jsonl(rows))), StepByStep(name="step_by_step"))
    assert found[1] == (
        Pair("predict: 2 + 2?", "4", "q1", MAIN), Pair("explain: 2 + 2?", "Two and two.", "q1", SECOND)
    )  # fmt: skip
    with pytest.raises(SpecError, match="absent field 'rationale'"):
        check_data(TrainingData(path=str(jsonl([{"input": "a", "label": "b"}] * 2))), StepByStep(name="step_by_step"))


EPISODE = {
    "id": "e", "demonstrations": [{"input": "good film", "output": "positive"}], "input": "bad film",
    "output": "negative", "options": ["positive", "negative"], "option_probs": [0.2, 0.8],
}  # fmt: skip


def test_an_episode_is_its_demonstrations_and_its_query_hard_and_soft(jsonl: Callable[..., Path]) -> None:
    data = TrainingData(path=str(jsonl([EPISODE, {**EPISODE, "id": "f"}])))
    prompt = "good film\npositive\n\n\nbad film\n"
    assert list_of(data, Icl(name="icl"))[0] == (
        Pair(prompt, "negative", "e", MAIN, 1.0), Pair(prompt, "positive", "e", SECOND, 0.2),
        Pair(prompt, "negative", "e", SECOND, 0.8),
    )  # fmt: skip
    assert len(list_of(data, Icl(name="icl", soft=False))[0]) == 1
    with pytest.raises(SpecError, match="2 options and 1 option_probs"):
        check_data(TrainingData(path=str(jsonl([EPISODE, {**EPISODE, "option_probs": [1.0]}]))), Icl(name="icl"))
    with pytest.raises(SpecError, match="list of input and output"):
        check_data(TrainingData(path=str(jsonl([EPISODE, {**EPISODE, "demonstrations": ["x"]}]))), Icl(name="icl"))


def test_all_options_of_an_episode_are_asked_the_same() -> None:
    pairs = [Pair("What is one? " * 20, " It.", "r"), Pair("What is one? " * 20, " It is one and one and one.", "r")]
    short, long = token_rows(pairs, TOKENIZER, 48, None, False, cut_prompts=True)[0]
    asked = [
        [x for x, label in zip(row.input_ids, row.labels, strict=True) if label == IGNORED] for row in (short, long)
    ]
    assert asked[0] == asked[1] and len(long.input_ids) == 48


def test_a_long_episode_loses_its_first_demonstrations() -> None:
    (row,), left_out = token_rows([Pair("one " * 50 + "two", "red")], TOKENIZER, 16, None, False, cut_prompts=True)
    assert left_out == 0 and len(row.input_ids) == 16
    assert TOKENIZER.decode(row.input_ids).endswith("tworedd</s>".replace("dd", "d"))


def test_conversations_and_alpaca_rows_become_pairs(jsonl: Callable[..., Path]) -> None:
    turns = [
        {"role": "system", "content": "Be short."}, {"role": "user", "content": "Hi?"},
        {"role": "assistant", "content": "Hi."},
    ]  # fmt: skip
    chat = TrainingData(path=str(jsonl([{"messages": turns}, {"messages": turns[1:]}], "chat.jsonl")), form="messages")
    first, second = load_pairs(chat)
    assert (first.prompt, first.response) == ("Be short.\n\nHi?\n\n", "Hi.")
    assert first.turns == (("system", "Be short."), ("user", "Hi?")) and second.turns == (("user", "Hi?"),)
    rows = [{"instruction": "Add.", "input": "1 and 1", "output": "2"}, {"instruction": "Say hi.", "output": "Hi."}]
    with_input, without = load_pairs(TrainingData(path=str(jsonl(rows, "alpaca.jsonl")), form="alpaca"))
    assert with_input.prompt.endswith("### Instruction:\nAdd.\n\n### Input:\n1 and 1\n\n### Response:\n")
    assert with_input.turns == (("user", "Add.\n\n1 and 1"),) and with_input.response == "2"
    assert without.prompt.endswith("### Instruction:\nSay hi.\n\n### Response:\n") and "Input" not in without.prompt


@pytest.mark.parametrize(
    "turns",
    ["hello", [], [{"role": "user", "content": "Hi?"}], [{"role": "user"}, {"role": "assistant", "content": "x"}],
     [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": " "}],
     [{"role": "assistant", "content": "x"}, {"role": "user", "content": "Hi?"}]],
    ids=str,
)  # fmt: skip
def test_a_row_that_is_no_conversation_is_told_with_its_line(jsonl: Callable[..., Path], turns: Any) -> None:
    with pytest.raises(SpecError, match=r"rows\.jsonl:1: .*assistant"):
        check_data(TrainingData(path=str(jsonl([{"messages": turns}] * 2)), form="messages"))


@pytest.mark.parametrize(
    ("form", "row"),
    [("messages", {"messages": [{"role": "user", "content": "\ud800"}, {"role": "assistant", "content": "x"}]}),
     ("alpaca", {"instruction": "a", "input": "\ud800", "output": "b"}),
     ("pairs", {"id": "\ud800", "prompt": "a", "response": "b"})],
    ids=lambda x: x if isinstance(x, str) else "",
)  # fmt: skip
def test_a_lone_surrogate_is_told_wherever_it_stands(tmp_path: Path, form: Any, row: dict[str, Any]) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{json.dumps(row)}\n" * 2)
    with pytest.raises(SpecError, match=r"rows\.jsonl:1: not valid Unicode"):
        check_data(TrainingData(path=str(path), form=form), Sft())


@pytest.mark.parametrize(
    ("row", "said"),
    [({"demonstrations": [{"input": None, "output": "x"}]}, "demonstrations must be a list of input and output"),
     ({"demonstrations": "ab"}, "demonstrations must be a list of input and output"),
     ({"options": "bc", "option_probs": [0.5, 0.5]}, "options must be texts")],
)  # fmt: skip
def test_an_episode_that_is_none_is_told(jsonl: Callable[..., Path], row: dict[str, Any], said: str) -> None:
    rows = jsonl(
        [{"input": "a", "output": "b", "demonstrations": [], "options": ["b"], "option_probs": [1.0], **row}] * 2
    )
    with pytest.raises(SpecError, match=said):
        check_data(TrainingData(path=str(rows)), Icl(name="icl", soft=True))


def test_text_in_parts_is_text(jsonl: Callable[..., Path]) -> None:
    parts = [{"type": "text", "text": "Hi"}, {"type": "text", "text": "?"}]
    turns = [{"role": "user", "content": parts}, {"role": "assistant", "content": "Hi."}]
    chat = TrainingData(path=str(jsonl([{"messages": turns}] * 2)), form="messages")
    assert [(one.prompt, one.response) for one in load_pairs(chat)] == [("Hi?\n\n", "Hi.")] * 2


@pytest.mark.parametrize(
    ("turn", "holds"),
    [({"content": None, "tool_calls": [{"id": "1"}]}, "holds tool_calls"), ({"content": None}, "has no text"),
     ({"content": [{"type": "image_url", "image_url": {"url": "x"}}]}, "holds image_url")],
    ids=lambda x: x if isinstance(x, str) else "",
)  # fmt: skip
def test_a_turn_without_text_is_told_with_what_it_holds(
    jsonl: Callable[..., Path], turn: dict[str, Any], holds: str
) -> None:
    turns = [{"role": "user", "content": "Hi?"}, {"role": "assistant", **turn}, {"role": "assistant", "content": "x"}]
    with pytest.raises(SpecError, match=rf"rows\.jsonl:1: turn 2 of 'messages' {holds}: students learn text alone"):
        check_data(TrainingData(path=str(jsonl([{"messages": turns}] * 2)), form="messages"))


def test_what_an_encoder_reads_ends_as_its_tokenizer_ends_a_text() -> None:
    ending = train_tokenizer(["Say hello. Hello people!"], 300)
    ending.backend_tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", ending.eos_token_id)]
    )
    for cut_prompts in (False, True):
        (row,), _ = token_rows([Pair("one " * 50, "red")], ending, 16, None, True, cut_prompts)
        assert len(row.input_ids) == 16 and row.input_ids[-1] == ending.eos_token_id and row.cut


def test_ids_that_stand_twice_are_told_apart(jsonl: Callable[..., Path]) -> None:
    data = TrainingData(path=str(jsonl([{"id": "a", "prompt": "p", "response": "r"}] * 3)))
    assert [one.record for (one,) in list_of(data, Sft())] == ["a", "a#2", "a#3"]
    odd = jsonl([{"id": name, "prompt": "q", "response": "r"} for name in ("a", "a", "a#2")])
    records = [one.record for (one,) in list_of(TrainingData(path=str(odd)), Sft())]
    assert len(set(records)) == 3 and records[:2] == ["a", "a#2"]


def test_a_prompt_begins_as_the_tokenizer_begins_a_text() -> None:
    """As Llama's and Gemma's do: who asks the student later gets that token, too. A chat template says it itself."""
    plain, marked = (train_tokenizer(["Say hello. Hello people!"], 300) for _ in range(2))
    marked.add_special_tokens({"bos_token": "<s>"})
    marked.backend_tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", marked.bos_token_id), ("</s>", marked.eos_token_id)]
    )
    marked.chat_template = "{% for m in messages %}<s>{{ m.content }}{% endfor %}"
    pairs = [Pair("Say hello.", " Hello!")]
    (bare,), _ = token_rows(pairs, plain, 64, None, False)
    (row,), _ = token_rows(pairs, marked, 64, None, False)
    (chat,), _ = token_rows(pairs, marked, 64, "chat", False)
    assert row.input_ids == chat.input_ids == [marked.bos_token_id, *bare.input_ids]
    assert row.labels == [-100, *bare.labels]
    (read,), _ = token_rows(pairs, marked, 64, None, True)
    assert read.input_ids[-1] == marked.eos_token_id and read.input_ids[0] == marked.bos_token_id
