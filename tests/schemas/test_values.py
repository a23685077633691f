"""Money, call keys, errors."""

import math
import pickle
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import errors
from schemas.call import Call, Message, Sampling, call_key
from schemas.money import Price, Usage, micro_of, nano_usd

tokens = st.integers(0, 10**9)


@given(st.lists(st.tuples(tokens, tokens), max_size=30))
def test_the_sum_of_a_run_agrees_with_the_bill_to_the_micro_dollar(calls: list[tuple[int, int]]) -> None:
    price, whole = Price(0.40, 1.60), Usage()
    ledger = 0
    for asked, given_ in calls:
        ledger += price.cost(Usage(asked, given_))
        whole = whole + Usage(asked, given_)
    exact = Fraction(whole.input_tokens * 40 + whole.output_tokens * 160, 100)  # micro-dollars
    assert micro_of(ledger) == math.ceil(exact)


@given(tokens, tokens, st.integers(1, 10**8), st.integers(1, 10**8))
def test_the_ledger_is_never_below_the_bill_nor_a_nano_dollar_above(asked: int, given_: int, a: int, b: int) -> None:
    cost = Price(a / 10**6, b / 10**6).cost(Usage(asked, given_))
    exact = Fraction(asked * a + given_ * b, 1000)
    assert exact <= cost < exact + 1


def test_dollars_become_whole_nano_dollars() -> None:
    assert nano_usd(0.29) == 290_000_000


def call(**changes: object) -> Call:
    fields = {"row": "r", "messages": (Message("user", "hi"),), "sampling": Sampling(0.7, 10, 0), "sample": 0}
    return Call(**{**fields, **changes})  # type: ignore[arg-type]


def test_the_row_is_no_part_of_the_key_and_everything_else_is() -> None:
    base = call().content()
    assert call(row="other").content() == base
    changed = [
        call(messages=(Message("system", "hi"),)),
        call(messages=(Message("user", "hi"), Message("user", ""))),
        call(sampling=Sampling(0.8, 10, 0)),
        call(sampling=Sampling(0.7, 11, 0)),
        call(sampling=Sampling(0.7, 10, 1)),
        call(sample=1),
        call(schema="{}"),
    ]
    assert len({base, *(c.content() for c in changed)}) == len(changed) + 1
    assert call_key("a", base) != call_key("b", base)


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        (errors.LimbeckError, 1), (errors.SpecError, 2), (errors.BudgetExhausted, 3), (errors.LaneUnusable, 4),
        (errors.Interrupted, 130),
    ],
)  # fmt: skip
def test_errors_pickle_with_their_message_hint_and_status(kind: type[errors.LimbeckError], status: int) -> None:
    again = pickle.loads(pickle.dumps(kind("what", "next")))
    assert (type(again), again.message, again.hint, again.exit_status) == (kind, "what", "next", status)
