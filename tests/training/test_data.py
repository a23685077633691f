"""Training data: what becomes a token, and which tokens have a loss."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import SpecError
from schemas.student import TrainingData
from training.data import IGNORED, Collator, Pair, TokenRow, check_data, load_pairs, pack, split, token_rows
from training.students import train_tokenizer

TOKENIZER = train_tokenizer(["What is one and one? It is two.", "Say hello. Hello!"], 300)
PAIRS = [Pair("What is one?", "It is one."), Pair("Say hello.", "Hello!")]


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


@given(st.lists(st.integers(1, 30), min_size=1, max_size=40))
def test_packing_keeps_every_token_and_no_row_sees_a_label_of_another(sizes: list[int]) -> None:
    rows = [TokenRow([n] * size, [IGNORED] + [n] * (size - 1)) for n, size in enumerate(sizes, 1)]
    packed = pack(rows, 30)
    assert all(len(row.input_ids) <= 30 for row in packed)
    assert sorted(i for row in packed for i in row.input_ids) == sorted(i for row in rows for i in row.input_ids)
    assert sum(row.trained_tokens for row in packed) == sum(row.trained_tokens for row in rows)
    for row in packed:
        assert row.position_ids is not None
        starts = [at for at, position in enumerate(row.position_ids) if position == 0]
        assert all(row.labels[at] == IGNORED for at in starts)


def test_padding_is_on_the_right_and_has_no_label() -> None:
    batch = Collator(pad_id=0, seq2seq=False)([TokenRow([5, 6, 7], [IGNORED, 6, 7]), TokenRow([8], [8])])
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 0, 0]]
    assert batch["labels"].tolist() == [[IGNORED, 6, 7], [8, IGNORED, IGNORED]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


@given(st.integers(2, 200), st.floats(0.01, 0.99), st.integers(0, 5))
def test_a_split_has_both_sides_and_no_row_on_both(count: int, fraction: float, seed: int) -> None:
    pairs = [Pair(str(i), "x") for i in range(count)]
    learn, held = split(pairs, fraction, seed)
    assert learn and held
    assert sorted(p.prompt for p in (*learn, *held)) == sorted(p.prompt for p in pairs)
    assert split(pairs, fraction, seed) == (learn, held)


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
