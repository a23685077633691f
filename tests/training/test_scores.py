"""Scores: what they are by hand, and that no text can do more than be wrong."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.scores import (
    calibration_error,
    distinct,
    exact_match,
    interval,
    macro_f1,
    value_match,
    value_of,
    vote,
)  # fmt: skip


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("So the answer is 42.", 42), ("(3 + 4) * 2", 14), ("10 - 2 = 8", 8), ("$1,234.50", Fraction("1234.5")),
        ("about 3/4 of it", Fraction(3, 4)), ("-7", -7), ("first 3, then 5", 5), ("none at all", None), ("1/0", None),
        ("9**9**9", None), ("1" * 500, None), ("", None), ("costs 1,000,000 dollars", 1_000_000),
        ("10.\n\n2. The next", 2), ("42 (100%)", 100), ("3, 4", 4), ("1. 42", 42), ("x = 5, y = 6,7", 7),
        ("5 000", 5000), ("1.000.000", 1_000_000), ("3 1/2", Fraction(7, 2)), ("1e5", 100_000), ("007", 7),
        ("18. 3 friends", 3), ("((1 + 2) * 3", 9), ("2**8", None),
        ("( " * 50_000 + "7", 7), ("1 " * 50_000, 1), ("(" * 100_000, None),
    ],
)  # fmt: skip
def test_the_value_of_a_text(text: str, value: int | Fraction | None) -> None:
    assert value_of(text) == value


@given(st.text(alphabet="0123456789+-*/(). ,e_xj", max_size=300))
def test_whatever_the_text_it_is_a_number_or_nothing(text: str) -> None:
    found = value_of(text)
    assert found is None or (isinstance(found, Fraction) and any(c.isdigit() for c in text))


@given(st.integers(-(10**12), 10**12), st.integers(1, 10**6))
def test_a_number_is_read_as_it_was_written(whole: int, part: int) -> None:
    assert value_of(f"So it is {whole:,}.") == whole
    assert value_of(f"first 7, then {whole} / {part}") == Fraction(whole, part)


def test_matches() -> None:
    assert exact_match("-5", "5") == exact_match("50%", "50") == exact_match("$5", "5") == 0.0
    assert exact_match(" Paris. ", "paris") == 1.0 and exact_match("in Paris", "paris") == 0.0
    assert value_match("it is (2+3)*2", "10") == 1.0 and value_match("9", "10") == 0.0
    assert value_match("anything", "no number") is None


def test_sums_by_hand() -> None:
    assert distinct(["a b a b"], 1).mean == 0.5 and distinct(["a b a b"], 2).mean == pytest.approx(2 / 3)
    assert distinct([], 1).mean == 0 == distinct(["one"], 2).mean
    assert calibration_error([0.9, 0.9, 0.1], [True, False, False]).mean == pytest.approx((0.8 + 0.1) / 3)
    assert macro_f1(["a", "a", "b"], ["a", "b", "b"]).mean == pytest.approx((2 / 3 + 2 / 3) / 2)
    assert macro_f1(["x"], ["a"]).mean == 0.0
    two_tasks = macro_f1(["a", "a", "b", "z"], ["a", "b", "b", "c"], ["one", "one", "one", "two"])
    assert two_tasks.mean == pytest.approx((2 / 3 + 0) / 2)  # of its labels: 2/3 and 2/3 in one, 0 in the other
    assert vote(["b", "a", "a", "b"]) == "b"


def test_an_interval_holds_its_mean_and_narrows() -> None:
    few, many = interval([0.0, 1.0] * 10), interval([0.0, 1.0] * 1000)
    assert few.low < 0.5 == few.mean < few.high
    assert many.high - many.low < 0.3 * (few.high - few.low)
    assert interval([0.0, 1.0] * 10) == few


def test_every_score_has_an_interval_that_narrows_with_rows() -> None:
    texts = ["the cat sat", "the dog ran off", "a bird sang", "the cat ran"]
    for score in (
        lambda n: distinct([f"{text} {i}" for i in range(n) for text in texts], 1),
        lambda n: calibration_error([0.9, 0.8, 0.3] * n, [True, False, False] * n),
        lambda n: macro_f1(["a", "b", "b"] * n, ["a", "b", "a"] * n),
    ):
        few, many = score(5), score(500)
        assert few.low < few.mean < few.high and many.low <= many.mean <= many.high
        assert many.high - many.low < 0.4 * (few.high - few.low)


def test_tokens_of_one_row_stand_or_fall_together() -> None:
    sure, hits, owners = [0.75] * 400, ([True] * 10 + [False] * 10) * 20, [n // 10 for n in range(400)]
    alone, together = calibration_error(sure, hits), calibration_error(sure, hits, owners)
    assert alone.mean == together.mean == pytest.approx(0.25)
    assert together.high - together.low > 2 * (alone.high - alone.low)
