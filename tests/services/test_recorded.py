"""Answers that are looked up: by row id and sample, from a file on disk."""

import asyncio
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.call import Call, Sampling, VerdictKind, chat
from services.teachers import recorded
from services.teachers.adapter import decode
from services.teachers.recorded import RecordedAdapter, Recording, write_recording

TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
ANSWERS = st.lists(st.tuples(st.sampled_from(["a", "b", "c", "1", "ä"]), TEXTS))


@given(answers=ANSWERS)
@settings(deadline=None)
def test_every_sample_of_every_row_is_found(
    tmp_path_factory: pytest.TempPathFactory, answers: list[tuple[str, str]]
) -> None:
    place = tmp_path_factory.mktemp("index")
    assert write_recording(place, iter(answers)) == len(answers)
    found = Recording(place)
    for row in ("a", "b", "c", "1", "ä", "never"):
        assert list(found.samples(row)) == [text for name, text in answers if name == row]


def test_ids_whose_hashes_collide_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorded, "hash64", lambda row: 7)
    write_recording(tmp_path, [(f"r{i}", f"answer {i}") for i in range(2500)])
    assert Recording(tmp_path).find("r2400", 0) == "answer 2400" and Recording(tmp_path).find("r2500", 0) is None


def test_what_is_not_recorded_is_a_verdict_on_the_row(tmp_path: Path) -> None:
    write_recording(tmp_path, [("1", "first"), ("1", "second")])
    teacher = RecordedAdapter(tmp_path)

    def asked(row: str, sample: int) -> tuple[str, str | None]:
        reply = asyncio.run(teacher.send(Call(row, chat(("user", "?")), Sampling(), sample)))
        return reply.verdict.kind, decode("chat", reply.body).text if reply.body else None

    assert asked("1", 0) == (VerdictKind.ANSWERED, "first") and asked("1", 1) == (VerdictKind.ANSWERED, "second")
    assert asked("1", 2) == asked("2", 0) == (VerdictKind.NOT_RECORDED, None)
    assert not VerdictKind.NOT_RECORDED.retried and not VerdictKind.NOT_RECORDED.closes_lane
