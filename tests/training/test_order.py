"""Bucketing: every row once an epoch, side by side with rows of like length, the same after a restart."""

from hypothesis import given
from hypothesis import strategies as st

from training.order import Bucketed

LENGTHS = st.lists(st.integers(1, 500), min_size=1, max_size=300)


@given(LENGTHS, st.integers(1, 9), st.integers(0, 3))
def test_every_row_comes_once_an_epoch(lengths: list[int], batch: int, epoch: int) -> None:
    order = Bucketed(lengths, batch, seed=0)
    order.set_epoch(epoch)
    assert sorted(order) == list(range(len(lengths)))
    assert list(order) == list(order)


def padded(lengths: list[int], order: list[int], batch: int) -> int:
    batches = [[lengths[i] for i in order[at : at + batch]] for at in range(0, len(order), batch)]
    return sum(max(one) * len(one) for one in batches)


def test_it_leaves_little_padding_and_still_shuffles() -> None:
    lengths = [(i * 7919) % 500 + 1 for i in range(4000)]
    order = Bucketed(lengths, 8, seed=0)
    first = list(order)
    assert padded(lengths, first, 8) < 1.05 * sum(lengths) < 0.7 * padded(lengths, list(range(4000)), 8)
    order.set_epoch(1)
    assert list(order) != first
    middle = [lengths[i] for i in first[:400]]
    assert min(middle) < 50 and max(middle) > 450  # lengths do not come in one rising line
