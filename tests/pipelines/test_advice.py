"""What a run says of the rows that it lost."""

import pytest

from pipelines.advice import OURS, advice


def test_a_run_that_lost_few_rows_says_nothing() -> None:
    assert advice(90, {"near_duplicate": 5, "unparsable": 5, "bad_request": 3}) == []


@pytest.mark.parametrize(
    ("accepted", "rejected", "words"),
    [
        (10, {"near_duplicate": 90}, ["90 of 100 rows", "curate.dedup.near.threshold", "limbeck replay"]),
        (
            0,
            {"unparsable": 1_000, "empty_answer": 2},
            ["1,002 answers", "unparsable 1,000", "empty_answer 2", "replay"],
        ),
        (97, {"transient": 2, "timeout": 1}, ["3 rows", "transient 2, timeout 1", "limbeck run --retry-failed"]),
    ],
)
def test_a_loss_that_is_no_accident_is_told_with_the_next_step(
    accepted: int, rejected: dict[str, int], words: list[str]
) -> None:
    (line,) = advice(accepted, rejected)
    assert all(word in line for word in words) and any(mark in line for mark in OURS)
