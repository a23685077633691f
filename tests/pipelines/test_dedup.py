"""Deduplication: nothing is missed, nothing is dropped that is not close to a kept row."""

from itertools import combinations

from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.dedup import exact_duplicates, near_duplicates
from pipelines.words import bigrams, canonical

words = st.sampled_from("the a cat dog runs sleeps over under fence moon bright slowly".split())
texts = st.lists(st.lists(words, min_size=0, max_size=12).map(" ".join), max_size=25)
thresholds = st.sampled_from([0.3, 0.5, 0.7, 0.8, 1.0])


def jaccard(one: str, other: str) -> float:
    a, b = bigrams(one), bigrams(other)
    return len(a & b) / len(a | b) if a | b else 0.0


@given(texts, thresholds)
@settings(max_examples=300, deadline=None)
def test_the_kept_rows_are_those_of_brute_force_greedy_keep_first(rows: list[str], threshold: float) -> None:
    kept: list[int] = []
    for i, text in enumerate(rows):
        if not any(jaccard(text, rows[j]) >= threshold - 1e-12 for j in kept):
            kept.append(i)
    dropped = near_duplicates(rows, threshold)
    assert sorted({*range(len(rows))} - {d.position for d in dropped}) == kept
    for duplicate in dropped:
        assert duplicate.kept in kept
        assert abs(duplicate.score - jaccard(rows[duplicate.position], rows[duplicate.kept])) < 1e-12


@given(texts, thresholds)
@settings(max_examples=100, deadline=None)
def test_no_two_kept_rows_are_near_duplicates(rows: list[str], threshold: float) -> None:
    gone = {d.position for d in near_duplicates(rows, threshold)}
    kept = [text for i, text in enumerate(rows) if i not in gone]
    assert all(jaccard(a, b) < threshold for a, b in combinations(kept, 2))


def test_a_chain_of_similar_rows_drops_only_what_is_close_to_a_kept_row() -> None:
    chain = ["a b c d e f g h i j", "b c d e f g h i j k", "c d e f g h i j k l", "d e f g h i j k l m"]
    gone = {d.position for d in near_duplicates(chain, 0.7)}
    assert gone == {1, 3}


def test_case_width_and_spacing_do_not_make_a_row_new_and_a_sign_does() -> None:
    rows = ["What is 3 + 5?", "what  IS 3 + 5?", "What is ３ + ５?", "What is 3 - 5?", "Whatis 3 + 5?"]
    assert [(d.position, d.kept) for d in exact_duplicates(rows)] == [(1, 0), (2, 0)]
    assert canonical(" A\tb\n C ") == "a b c"


def test_rows_that_are_dropped_already_drop_no_others() -> None:
    rows = ["one two three four", "one two three four", "one two three four five"]
    dropped = near_duplicates(rows, 0.7, skip=frozenset({0, 1}))
    assert dropped == []
