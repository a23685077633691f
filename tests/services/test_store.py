"""A journal on an object store: what is sealed, what a kill leaves behind, and who ships it."""

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.errors import Interrupted, LimbeckError, SpecError
from schemas.money import Amount
from services.journal import sealing
from services.journal.frame import Frame, Kind
from services.journal.index import JournalIndex
from services.journal.lease import Lease, sole
from services.journal.place import Journal
from services.journal.store import Store

WRITER = "000001-1-0000"


@pytest.fixture
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Journal:
    """A journal on a store, with this machine's logs in a folder of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "run").mkdir()
    return Journal(tmp_path / "run", f"file://{tmp_path / 'store'}")


def key_of(number: int) -> bytes:
    return hashlib.sha256(b"%d" % number).digest()


def answered(number: int, cost: int = 0) -> Frame:
    key = key_of(number)
    return Frame(Kind.ANSWERED, key, key[16:], {"nano_usd": cost, "in": 1, "out": 1}, b"x" * 100)


def sent(number: int, most: int) -> Frame:
    key = key_of(number)
    return Frame(Kind.SENT, key, key[16:], {"nano_usd": most, "tokens": 9})


@given(cuts=st.lists(st.booleans(), min_size=1, max_size=12))
@settings(max_examples=25, deadline=None)
def test_a_journal_in_many_segments_says_the_same_as_in_one(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[bool]
) -> None:
    """An attempt may begin before a seal and end after it."""
    place = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(place / "cache"))
        journals = [Journal(place / "one"), Journal(place / "two", f"file://{place / 'there'}")]
        for journal in journals:
            writer = journal.writer(WRITER)
            for number, cut in enumerate(cuts):
                writer.append(sent(number, 500))
                if cut:
                    writer.sync()
                if number % 3:
                    writer.append(answered(number, 300))
            writer.close()
        one, two = (JournalIndex(journal.read()) for journal in journals)
        assert one.totals == two.totals
        for number in range(len(cuts)):
            key = key_of(number)
            assert (key in one) == (key in two) == bool(number % 3)


def test_a_log_is_shipped_once_it_is_old_enough(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealing, "SEAL_S", 0.0)
    writer = journal.writer(WRITER)
    writer.append(answered(1))
    assert writer.tend(1)
    writer.sync()
    assert Store(journal.store or "").names() == {f"{WRITER}.0000.seg"}
    writer.close()
    assert not list(journal.logs.glob("*.seg"))


WRITE_UNTIL_KILLED = """
import hashlib, sys
from pathlib import Path
from services.journal import sealing
from services.journal.frame import Frame, Kind
from services.journal.lease import Lease, sole
from services.journal.place import Journal
sealing.SEAL_BYTES = 50_000
writer = Journal(Path(sys.argv[1]), sys.argv[2]).writer(sys.argv[3])
for number in range(10**9):
    key = hashlib.sha256(b"%d" % number).digest()
    writer.append(Frame(Kind.ANSWERED, key, key[16:], {"nano_usd": 7, "in": 1, "out": 1}, b"x" * 4000))
    print(number, flush=True)
"""


def test_kill_9_of_a_worker_loses_no_answer_for_its_log_is_found_and_shipped(journal: Journal) -> None:
    acknowledged: list[int] = []
    for start in range(6):
        name = f"{start + 1:06d}-1-0000"
        arguments = [sys.executable, "-c", WRITE_UNTIL_KILLED, str(journal.root), journal.store or "", name]
        worker = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
        assert worker.stdout is not None
        seen = [int(worker.stdout.readline()) for _ in range(5 + 23 * start)]
        assert journal.ship() >= 1  # its logs are not touched while it lives
        os.kill(worker.pid, signal.SIGKILL)
        seen += [int(line) for line in worker.stdout.read().splitlines()]
        worker.wait()
        assert journal.ship(patience_s=5) == 0
        acknowledged.append(len(seen))
    index = JournalIndex(journal.read())
    assert sum(acknowledged) <= index.totals.answered <= sum(acknowledged) + 6
    assert index.totals.amount == Amount(7 * index.totals.answered, 2 * index.totals.answered, index.totals.answered)
    assert not list(journal.logs.glob("*.seg"))


def test_a_store_that_fails_stops_the_sending_and_keeps_the_log(
    journal: Journal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    writer = journal.writer(WRITER)
    writer.append(answered(1))
    (tmp_path / "store").write_text("a file where the folder should be")
    with pytest.raises(LimbeckError, match="journal file://"):
        writer.sync()
    assert len(list(journal.logs.glob("*.seg"))) == 2  # the answer's, and the empty one after it
    (tmp_path / "store").unlink()
    writer.close()
    assert journal.ship() == 0
    assert JournalIndex(journal.read()).totals.answered == 1


@pytest.mark.parametrize("url", ["nosuch://bucket/x", "s3://", "file:///proc/nothing/can/be/written"])
def test_a_store_that_cannot_be_used_is_refused_before_the_first_call(tmp_path: Path, url: str) -> None:
    with pytest.raises(SpecError, match="journal"):
        Journal(tmp_path, url).check()


def beating(journal: Journal, name: str, beat_s: float = 0.05) -> Lease:
    return Lease(Store(journal.store or ""), name, f"run-{name}", beat_s)


def test_of_two_runs_on_one_store_the_later_is_refused_until_the_first_has_ended(journal: Journal) -> None:
    first, second = beating(journal, "b"), beating(journal, "a")
    first.take()
    with pytest.raises(SpecError, match=r"is being written by the run run-b on "):
        second.take(watch_s=5, look_s=0.01)
    assert Store(journal.store or "").names(".run") == {"b.run"}
    first.give_back()
    third = beating(journal, "a")
    third.take(watch_s=60)
    third.give_back()
    assert not Store(journal.store or "").names(".run") and not first.is_lost


@pytest.mark.parametrize("count", [2, 5])
def test_of_runs_that_arrive_at_once_one_goes_on(journal: Journal, count: int) -> None:
    leases = [beating(journal, f"{n}") for n in range(count)]
    gate = threading.Barrier(count)

    def arrive(lease: Lease) -> bool:
        gate.wait()
        try:
            lease.take(watch_s=5, look_s=0.01)
        except SpecError:
            return False
        return True

    with ThreadPoolExecutor(count) as pool:
        assert sum(pool.map(arrive, leases)) == 1
    assert len(Store(journal.store or "").names(".run")) == 1
    for lease in leases:
        lease.give_back()


def test_what_a_dead_run_left_is_removed_and_one_that_only_slept_is_told(journal: Journal) -> None:
    asleep, other = beating(journal, "a", beat_s=4.0), beating(journal, "b")
    asleep.take()
    other.take(watch_s=0.3, look_s=0.01)
    deadline = time.monotonic() + 60
    while not asleep.is_lost and time.monotonic() < deadline:
        time.sleep(0.02)
    assert asleep.is_lost and not other.is_lost
    asleep.give_back()
    other.give_back()


def test_a_stop_ends_the_wait_for_another_run(journal: Journal) -> None:
    store, lease = Store(journal.store or ""), beating(journal, "a")
    store.write("dead.run", b'{"held": true}')
    with pytest.raises(Interrupted):
        lease.take(watch_s=60, stopping=lambda: True)
    assert store.names(".run") == {"dead.run"}


def test_a_second_start_of_a_run_does_not_wait_for_the_first(journal: Journal) -> None:
    with sole(journal, "r") as first:
        pass
    with sole(journal, "r") as second, sole(Journal(journal.root), "r") as none:
        assert first is not None and second is not None and first.name == second.name and none is None
    elsewhere = Journal(journal.root.parent / "elsewhere", journal.store)
    elsewhere.root.mkdir()
    with sole(elsewhere, "r") as third:
        assert third is not None and third.name != first.name
