"""What a run says of the rows that it lost."""

import pytest

from pipelines.advice import OURS, advice


def test_a_run_that_lost_few_rows_says_nothing() -> None:
    assert advice(90, {"near_duplicate": 5, "unparsable": 5, "refused": 3, "duplicate_id": 2}) == []


@pytest.mark.parametrize(
    ("accepted", "rejected", "words"),
    [
        (10, {"near_duplicate": 90}, ["90 of 100 rows", "curate.dedup.near.threshold", "limbeck replay"]),
        (
            0,
            {"unparsable": 1_000, "empty_answer": 2},
            ["1,002 answers", "unparsable 1,000", "empty_answer 2", "replay"],
        ),
        (97, {"transient": 2, "bad_request": 1}, ["3 rows", "transient 2, bad_request 1", "--retry-failed asks all"]),
    ],
)
def test_a_loss_that_is_no_accident_is_told_with_the_next_step(
    accepted: int, rejected: dict[str, int], words: list[str]
) -> None:
    (line,) = advice(accepted, rejected)
    assert all(word in line for word in words) and any(mark in line for mark in OURS)


def test_calls_that_are_still_open_are_asked_again_by_the_same_command() -> None:
    (line,) = advice(90, {"transient": 5}, still_open=3)
    assert "the same command asks 3 of them again, --retry-failed asks all" in line
