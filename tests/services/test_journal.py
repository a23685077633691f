"""The journal: what a crash may cost, and what it may not."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from schemas.errors import LimbeckError, SpecError
from schemas.money import Amount
from services.journal.frame import Frame, Kind, encode
from services.journal.index import JournalIndex, Totals
from services.journal.writer import RESERVE, JournalWriter, wait_for_writers

KEYS = st.binary(min_size=32, max_size=32)
BODIES = st.one_of(st.binary(max_size=200), st.just(b"LBJ1" * 7))


def answered(key: bytes, body: bytes, attempt: bytes = b"a" * 16, cost: int = 0) -> Frame:
    return Frame(Kind.ANSWERED, key, attempt, {"nano_usd": cost, "in": 3, "out": 2}, body)


def segment(root: Path, data: bytes, name: str = "000001-1-0000") -> None:
    root.mkdir(exist_ok=True)
    (root / f"{name}.seg").write_bytes(data)


@given(st.dictionaries(KEYS, BODIES, max_size=20))
@settings(max_examples=60, deadline=None)
def test_every_answer_that_was_appended_is_found_by_its_key(
    tmp_path_factory: pytest.TempPathFactory, bodies: dict[bytes, bytes]
) -> None:
    root = tmp_path_factory.mktemp("journal")
    writer = JournalWriter(root, "000001-1-0000")
    for key, body in bodies.items():
        writer.append(answered(key, body))
    writer.close()
    index = JournalIndex(root)
    assert len(index) == len(bodies)
    for key, body in bodies.items():
        frame = index.answer(key)
        assert frame is not None and frame.body == body
    assert index.answer(b"\x01" * 31 + b"\x02") is None


@given(st.lists(BODIES, min_size=1, max_size=6), st.data())
@settings(max_examples=150, deadline=None)
def test_a_segment_cut_anywhere_keeps_every_frame_before_the_cut(
    tmp_path_factory: pytest.TempPathFactory, bodies: list[bytes], data: st.DataObject
) -> None:
    root = tmp_path_factory.mktemp("journal")
    frames = [encode(answered(bytes([i]) * 32, body)) for i, body in enumerate(bodies, 1)]
    whole = b"".join(frames)
    cut = data.draw(st.integers(0, len(whole)))
    segment(root, whole[:cut])
    index = JournalIndex(root)
    ends = [sum(map(len, frames[: i + 1])) for i in range(len(frames))]
    assert [bytes([i]) * 32 in index for i in range(1, len(frames) + 1)] == [end <= cut for end in ends]


class Recovery(RuleBasedStateMachine):
    """Writers append, end, are killed between two frames or within one, and others come after them: whatever was
    written whole is found, and nothing that may have been paid is missing from the sum."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="journal-"))
        self.starts, self.calls = 0, 0
        self.writer: JournalWriter | None = None
        self.bodies: dict[bytes, bytes] = {}
        self.failed: set[bytes] = set()
        self.settled: dict[bytes, int] = {}
        self.open: dict[bytes, int] = {}
        self.mine: list[bytes] = []  # attempts that the writer of now has in flight
        self.start()

    def start(self) -> None:
        self.starts += 1
        self.mine = []
        self.writer = JournalWriter(self.root, f"{self.starts:06d}-1-0000")

    @rule(most=st.integers(1, 10**9))
    def send(self, most: int) -> None:
        assert self.writer is not None
        self.calls += 1
        attempt = self.calls.to_bytes(16, "big")
        self.writer.append(Frame(Kind.SENT, attempt * 2, attempt, {"nano_usd": most, "tokens": 9}))
        self.open[attempt] = most
        self.mine.append(attempt)

    @precondition(lambda self: self.mine)
    @rule(share=st.floats(0, 1), body=BODIES)
    def answer(self, share: float, body: bytes) -> None:
        assert self.writer is not None
        attempt = self.mine.pop()
        cost = int(self.open.pop(attempt) * share)
        self.writer.append(answered(attempt * 2, body, attempt, cost))
        self.bodies[attempt * 2], self.settled[attempt] = body, cost

    @precondition(lambda self: self.mine)
    @rule()
    def fail(self) -> None:
        assert self.writer is not None
        attempt = self.mine.pop()
        del self.open[attempt]
        meta = {"final": True, "kind": "bad_request", "detail": "", "status": 400, "nano_usd": 0, "tokens": 0}
        self.writer.append(Frame(Kind.FAILED, attempt * 2, attempt, meta))
        self.failed.add(attempt * 2)

    @rule()
    def end(self) -> None:
        assert self.writer is not None
        self.writer.close()
        self.start()

    @precondition(lambda self: self.mine)
    @rule(share=st.floats(0, 1, exclude_max=True), body=BODIES)
    def die_within_a_frame(self, share: float, body: bytes) -> None:
        assert self.writer is not None
        torn = encode(answered(self.mine[-1] * 2, body, self.mine[-1], 1))
        with self.writer.path.open("ab") as file:
            file.write(torn[: int(len(torn) * share)])
        self.writer.close()
        self.start()

    @invariant()
    def what_was_written_is_found_and_paid_for(self) -> None:
        index = JournalIndex(self.root)
        assert len(index) == len(self.bodies)
        for key, body in self.bodies.items():
            found = index.answer(key)
            assert found is not None and found.body == body
        assert index.totals.nano_usd == sum(self.settled.values()) + sum(self.open.values())
        assert index.totals.in_doubt_nano == sum(self.open.values())
        assert index.totals.calls == self.calls

    def teardown(self) -> None:
        assert self.writer is not None
        self.writer.close()
        shutil.rmtree(self.root)


TestRecovery = Recovery.TestCase
TestRecovery.settings = settings(max_examples=50, stateful_step_count=25, deadline=None)


@given(st.lists(st.binary(max_size=60), min_size=2, max_size=6), st.data())
@settings(max_examples=150, deadline=None)
def test_a_damaged_byte_costs_its_own_frame_alone(
    tmp_path_factory: pytest.TempPathFactory, bodies: list[bytes], data: st.DataObject
) -> None:
    root = tmp_path_factory.mktemp("journal")
    frames = [encode(answered(bytes([i]) * 32, body)) for i, body in enumerate(bodies, 1)]
    whole = bytearray(b"".join(frames))
    at = data.draw(st.integers(0, len(whole) - 1))
    whole[at] ^= data.draw(st.integers(1, 255))
    segment(root, bytes(whole))
    index = JournalIndex(root)
    starts = [sum(map(len, frames[:i])) for i in range(len(frames) + 1)]
    for i in range(len(frames)):
        if not starts[i] <= at < starts[i + 1]:
            assert bytes([i + 1]) * 32 in index


def test_a_call_that_was_sent_and_never_came_back_counts_as_spent(tmp_path: Path) -> None:
    writer = JournalWriter(tmp_path, "000001-1-0000")
    writer.append(Frame(Kind.SENT, b"k" * 32, b"1" * 16, {"nano_usd": 700, "tokens": 9}))
    writer.append(answered(b"k" * 32, b"{}", b"1" * 16, cost=300))
    writer.append(Frame(Kind.SENT, b"l" * 32, b"2" * 16, {"nano_usd": 900, "tokens": 50}))
    totals = JournalIndex(tmp_path).totals
    assert (totals.in_doubt, totals.answered) == (1, 1)
    assert totals.amount == Amount(1200, 5 + 50, 2)
    writer.close()


def test_a_writer_that_could_not_begin_or_end_holds_nothing_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        with pytest.raises(LimbeckError):
            JournalWriter(tmp_path, "000001-1-0000")
    writer = JournalWriter(tmp_path, "000001-1-0001")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", full)
        with pytest.raises(OSError, match="full"):
            writer.close()
    wait_for_writers(tmp_path, patience_s=0.0)


def test_schemas_that_calls_went_out_with_are_told_in_the_order_of_their_first_use_and_count_for_nothing(
    tmp_path: Path,
) -> None:
    for start, texts in enumerate((["null", '{"type":"object"}'], ['{"b":1,"a":2}']), 1):
        writer = JournalWriter(tmp_path, f"{start:06d}-1-0000-schema")
        for text in texts:
            writer.append(Frame(Kind.SCHEMA, b"s" * 32, b"1" * 16, {}, text.encode()))
        writer.close()
    index = JournalIndex(tmp_path)
    assert index.schemas == [None, '{"type":"object"}', '{"b":1,"a":2}']
    assert index.totals == Totals() and len(index) == index.ended == 0


def test_of_two_answers_to_one_call_the_first_in_segment_order_counts(tmp_path: Path) -> None:
    segment(tmp_path, encode(answered(b"k" * 32, b"second")), "000002-9-0000")
    segment(tmp_path, encode(answered(b"k" * 32, b"first")), "000001-1-0000")
    frame = JournalIndex(tmp_path).answer(b"k" * 32)
    assert frame is not None and frame.body == b"first"


def test_a_segment_is_never_written_twice(tmp_path: Path) -> None:
    JournalWriter(tmp_path, "000001-1-0000").close()
    with pytest.raises(FileExistsError):
        JournalWriter(tmp_path, "000001-1-0000")


WRITE_UNTIL_KILLED = """
import sys
from pathlib import Path
from services.journal.frame import Frame, Kind
from services.journal.writer import JournalWriter
writer = JournalWriter(Path(sys.argv[1]), sys.argv[2])
for number in range(10**9):
    key = number.to_bytes(32, "big")
    writer.append(Frame(Kind.ANSWERED, key, b"a" * 16, {"nano_usd": 0}, b"x" * 4000))
    print(number, flush=True)
"""


def test_kill_9_loses_no_answer_that_was_acknowledged(tmp_path: Path) -> None:
    for round_number in range(8):
        root = tmp_path / str(round_number)
        arguments = [sys.executable, "-c", WRITE_UNTIL_KILLED, str(root), "000001-1-0000"]
        writer = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        acknowledged = [int(writer.stdout.readline()) for _ in range(5 + 17 * round_number)]
        os.kill(writer.pid, signal.SIGKILL)
        acknowledged += [int(line) for line in writer.stdout.read().splitlines()]
        writer.wait()
        index = JournalIndex(root)
        assert all(number.to_bytes(32, "big") in index for number in acknowledged)


def test_a_new_start_waits_until_the_writers_of_the_last_one_are_gone(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    wait_for_writers(journal, patience_s=0)
    writer = JournalWriter(journal, "000001-1-0000")
    with pytest.raises(SpecError, match="another limbeck run"):
        wait_for_writers(journal, patience_s=0)
    writer.close()
    wait_for_writers(journal, patience_s=0)


def test_a_write_that_the_system_cuts_short_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer, write = JournalWriter(tmp_path, "000001-1-0000"), os.write
    monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:7]))
    writer.append(Frame(Kind.ANSWERED, b"k" * 32, b"a" * 16, {"nano_usd": 1}, b"body" * 20))
    monkeypatch.undo()
    writer.close()
    index = JournalIndex(tmp_path)
    assert b"k" * 32 in index and index.totals.answered == 1
    index.close()


def test_an_answer_that_finds_the_disk_full_takes_the_reserve_and_is_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, write, full = JournalWriter(tmp_path, "000001-1-0000"), os.write, [True]

    def fills_up(file: int, data: bytes) -> int:
        if full.pop() if full else False:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, data)

    assert os.fstat(writer._reserve or -1).st_blocks * 512 >= RESERVE
    assert writer.tend(1)
    monkeypatch.setattr(os, "write", fills_up)
    writer.append(Frame(Kind.ANSWERED, b"k" * 32, b"a" * 16, {"nano_usd": 1}, b"body"))
    assert not writer.tend(1)
    full.append(True)
    with pytest.raises(LimbeckError, match="the disk is full"):
        writer.append(Frame(Kind.ANSWERED, b"j" * 32, b"b" * 16, {"nano_usd": 1}, b"body"))
    monkeypatch.undo()
    writer.close()
    assert [path.name for path in tmp_path.glob("*.seg")] == ["000001-1-0000.seg"]
    assert not list(tmp_path.glob(".reserve*"))


def test_what_no_reservation_foresaw_is_told_by_model(tmp_path: Path) -> None:
    writer = JournalWriter(tmp_path, "000001-1-0000")
    for number, over in enumerate(([5_000, 0], [4_000, 70])):
        meta = {"teacher": "openai/m", "nano_usd": 1, "in": 1, "out": 1, "over": over}
        writer.append(Frame(Kind.ANSWERED, bytes([number]) * 32, bytes([number]) * 16, meta, b"x"))
    writer.close()
    assert JournalIndex(tmp_path).totals.over == {"openai/m": [5_000, 70]}
