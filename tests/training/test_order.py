"""Every row comes once an epoch, the same after a restart; bucketed, side by side with rows of like length."""

from hypothesis import given
from hypothesis import strategies as st

from training.order import Shuffled

LENGTHS = st.lists(st.integers(1, 500), min_size=1, max_size=300)


@given(LENGTHS, st.integers(1, 9), st.integers(0, 3), st.booleans())
def test_every_row_comes_once_an_epoch_and_whole_batches_of_numbers(
    lengths: list[int], batch: int, epoch: int, bucketed: bool
) -> None:
    order = Shuffled(len(lengths), batch, seed=0, lengths=lengths if bucketed else None)
    order.set_epoch(epoch)
    found = list(order)
    assert sorted(found) == list(range(len(order))) and found == list(order)
    assert len(order) % batch == 0 and 0 <= len(order) - len(lengths) < batch
    assert all(number < len(lengths) for number in found[: len(lengths)])  # what stands for no row comes last


@given(st.integers(1, 60), st.integers(1, 4), st.integers(1, 3), st.integers(1, 4), st.integers(1, 40))
def test_rows_that_are_visited_again_come_together_and_stay_in_their_batch(
    rows: int, batch: int, workers: int, visits: int, together: int
) -> None:
    whole = batch * workers
    order = list(Shuffled(rows, batch, 0, whole=whole, visits=visits, together=together))
    batches = [tuple(order[at : at + whole]) for at in range(0, len(order), whole)]
    assert all(batches.count(one) == visits for one in batches)
    span = max(1, together // whole) * visits  # batches that are done with before others come
    for start in range(0, len(batches), span):
        assert set(batches[start : start + span]).isdisjoint(batches[start + span :])


def test_epochs_differ() -> None:
    order = Shuffled(100, 8, seed=0)
    first = list(order)
    order.set_epoch(1)
    assert list(order) != first


def padded(lengths: list[int], order: list[int], batch: int) -> int:
    batches = [[lengths[i] for i in order[at : at + batch]] for at in range(0, len(order), batch)]
    return sum(max(one) * len(one) for one in batches)


def test_it_leaves_little_padding_and_still_shuffles() -> None:
    lengths = [(i * 7919) % 500 + 1 for i in range(4000)]
    order = Shuffled(4000, 8, seed=0, lengths=lengths)
    first = list(order)
    assert padded(lengths, first, 8) < 1.05 * sum(lengths) < 0.7 * padded(lengths, list(range(4000)), 8)
    order.set_epoch(1)
    assert list(order) != first
    middle = [lengths[i] for i in first[:400]]
    assert min(middle) < 50 and max(middle) > 450  # lengths do not come in one rising line
