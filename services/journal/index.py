"""Find answers by the first 16 bytes of their call keys: 28 bytes a call, so a million answers cost 28 MB."""

import itertools
import mmap
import os
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.call import VerdictKind
from schemas.money import Amount
from services.journal.frame import HEAD, Frame, Kind, decode_payload, scan

MARK = 16  # bytes of a key that are compared; a false match among 10 million has a chance below 1e-24
ENTRY = np.dtype([("key", f"S{MARK}"), ("segment", "<u4"), ("offset", "<u8")])
Table = NDArray[Any]
RELEASE_BYTES = 32 * 2**20  # of a segment that was read; its pages would count as memory of this process


@dataclass(slots=True)
class Totals:
    """What the journal says was spent and done, exact after any crash."""

    calls: int = 0  # attempts
    answered: int = 0
    failed: int = 0
    nano_usd: int = 0  # calls in doubt counted at their reservation
    in_doubt: int = 0
    in_doubt_nano: int = 0  # of nano_usd
    in_doubt_tokens: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    models: set[str] = field(default_factory=set)  # that have answered
    over: dict[str, list[int]] = field(default_factory=dict)  # by model: most tokens in and out that none foresaw

    def add(self, other: "Totals") -> None:
        for name in self.__slots__:
            if name not in ("over", "models"):
                setattr(self, name, getattr(self, name) + getattr(other, name))
        self.models |= other.models
        for model, tokens in other.over.items():
            self.exceeded(model, tokens)

    def exceeded(self, model: str, tokens: Sequence[int]) -> None:
        """An answer took so many tokens beyond what was foreseen."""
        self.over[model] = [max(pair) for pair in zip(self.over.get(model, [0, 0]), tokens, strict=True)]

    @property
    def amount(self) -> Amount:
        """What of a budget is used up."""
        return Amount(self.nano_usd, self.input_tokens + self.output_tokens + self.in_doubt_tokens, self.calls)


def frames(path: Path) -> Iterator[tuple[int, Kind, memoryview]]:
    """(offset, kind, payload) of every intact frame of a segment."""
    if path.stat().st_size == 0:
        return
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        view = memoryview(mapped)
        try:
            released = 0
            for offset, kind, payload in scan(view, mapped):
                yield offset, Kind(kind), payload
                payload.release()
                if offset - released > RELEASE_BYTES:
                    released = offset - offset % mmap.PAGESIZE
                    mapped.madvise(mmap.MADV_DONTNEED, 0, released)
        finally:
            view.release()


class Entries:
    """Keys, segments and offsets, 28 bytes each while they are collected."""

    def __init__(self) -> None:
        self.keys = bytearray()
        self.segments = array("I")
        self.offsets = array("Q")

    def add(self, key: bytes, segment: int, offset: int) -> None:
        self.keys += key[:MARK]
        self.segments.append(segment)
        self.offsets.append(offset)

    def keyset(self) -> set[bytes]:
        """The first `MARK` bytes of every key."""
        return {bytes(self.keys[i : i + MARK]) for i in range(0, len(self.keys), MARK)}

    def table(self) -> Table:
        table = np.zeros(len(self.offsets), ENTRY)
        if self.offsets:
            table["key"] = np.frombuffer(self.keys, f"S{MARK}")
            table["segment"] = np.frombuffer(self.segments, "<u4")
            table["offset"] = np.frombuffer(self.offsets, "<u8")
        return table


def segments_by_writer(root: Path) -> dict[str, list[Path]]:
    """Segments of each writer in the order in which it wrote them, writers in name order.

    A segment is named WRITER.seg, or WRITER.NNNN.seg where its writer seals one after the other.
    """
    found = sorted(root.glob("*.seg")) if root.exists() else []
    return {writer: list(paths) for writer, paths in itertools.groupby(found, lambda p: p.name.partition(".")[0])}


class WriterReader:
    """One pass over the segments of a writer: its answers, and what they cost. `first` is the number of the first.

    An attempt may begin in one segment and end in a later one of the same writer.
    """

    def __init__(self, paths: Sequence[Path], first: int = 0) -> None:
        self.totals = Totals()
        self.answers = Entries()
        self.failures = Entries()
        self.schemas: list[str] = []
        self._open: dict[bytes, dict[str, int]] = {}
        for segment, path in enumerate(paths, first):
            for offset, kind, payload in frames(path):
                frame = decode_payload(kind, bytes(payload))
                if kind is Kind.SENT:
                    self._open[frame.attempt] = frame.meta
                    self.totals.calls += 1
                elif kind is Kind.SCHEMA:
                    self.schemas.append(frame.body.decode())
                else:
                    self._ended(frame, segment, offset)
        for meta in self._open.values():
            self.totals.nano_usd += meta["nano_usd"]
            self._doubt(meta)

    def _ended(self, frame: Frame, segment: int, offset: int) -> None:
        """An attempt came to its end; free lanes note only this end."""
        final = frame.kind is Kind.FAILED and frame.meta["final"]
        if self._open.pop(frame.attempt, None) is None and not final:
            self.totals.calls += 1
        if not final and frame.meta.get("kind") == VerdictKind.UNREACHABLE:
            self.totals.calls -= 1  # it never left
        self.totals.nano_usd += frame.meta.get("nano_usd", 0)
        self.totals.input_tokens += frame.meta.get("in", 0)
        self.totals.output_tokens += frame.meta.get("out", 0)
        if frame.meta.get("tokens"):
            self._doubt(frame.meta)
        if frame.meta.get("over"):
            self.totals.exceeded(frame.meta["teacher"], frame.meta["over"])
        if frame.kind is Kind.ANSWERED:
            self.answers.add(frame.key, segment, offset)
            self.totals.answered += 1
            self.totals.models.add(frame.meta.get("teacher", ""))
        elif final:
            self.failures.add(frame.key, segment, offset)
            self.totals.failed += not frame.meta.get("repeats")

    def _doubt(self, meta: dict[str, Any]) -> None:
        """An attempt that may have been answered and paid for, at its reservation."""
        self.totals.in_doubt += 1
        self.totals.in_doubt_nano += meta["nano_usd"]
        self.totals.in_doubt_tokens += meta["tokens"]


class JournalIndex:
    """Answers and final failures of all segments of a run, as sorted arrays.

    Of two answers with one key the first in segment-name order counts, in every process and after every restart.
    """

    def __init__(self, root: Path) -> None:
        self.segments: list[Path] = []
        self.totals = Totals()
        self.schemas: list[str | None] = []  # that calls went out with, the first first
        self._files: dict[int, int] = {}
        answers: list[Table] = []
        failures: list[Table] = []
        for paths in segments_by_writer(root).values():
            reader = WriterReader(paths, len(self.segments))
            self.segments += paths
            self.totals.add(reader.totals)
            self.schemas += (None if text == "null" else text for text in reader.schemas)
            answers.append(reader.answers.table())
            failures.append(reader.failures.table())
        self._answers = self._sorted(answers)
        self._failures = self._sorted(failures)

    @staticmethod
    def _sorted(parts: list[Table]) -> Table:
        whole = np.concatenate(parts) if parts else np.zeros(0, ENTRY)
        parts.clear()
        return whole[np.argsort(whole["key"], kind="stable")]

    def __contains__(self, key: bytes) -> bool:
        return self._find(self._answers, key) is not None

    def __len__(self) -> int:
        return len(self._answers)

    @property
    def ended(self) -> int:
        """Calls that were answered or given up, each counted once."""
        return len(np.unique(np.concatenate([self._answers["key"], self._failures["key"]])))

    def answer(self, key: bytes) -> Frame | None:
        """The paid answer for `key`."""
        at = self._find(self._answers, key)
        return None if at is None else self._frame(self._answers, at)

    def failure(self, key: bytes) -> Frame | None:
        """The last word on a call that never got an answer, as its teacher gave it."""
        first, last = self._find(self._failures, key), self._find(self._failures, key, last=True)
        if first is None or last is None:
            return None
        frames = (self._frame(self._failures, at) for at in range(last, first - 1, -1))
        return next((frame for frame in frames if not frame.meta.get("repeats")), None)

    def has_failed(self, key: bytes) -> bool:
        """Whether a call ran out of attempts, for whatever reason."""
        return self._find(self._failures, key) is not None

    def is_settled(self, key: bytes) -> bool:
        """Whether a call failed for good: it was itself to blame."""
        first, last = self._find(self._failures, key), self._find(self._failures, key, last=True)
        if first is None or last is None:
            return False
        frames = (self._frame(self._failures, at) for at in range(first, last + 1))
        return any(frame.meta.get("settled", True) for frame in frames)

    def _find(self, entries: Table, key: bytes, last: bool = False) -> int | None:
        # numpy strips trailing NULs on both sides of the comparison, so equality is kept.
        key = key[:MARK]
        at = int(np.searchsorted(entries["key"], np.bytes_(key), side="right" if last else "left")) - last
        if 0 <= at < len(entries) and entries["key"][at] == key.rstrip(b"\0"):
            return at
        return None

    def _frame(self, entries: Table, at: int) -> Frame:
        segment, offset = int(entries["segment"][at]), int(entries["offset"][at])
        if segment not in self._files:
            self._files[segment] = os.open(self.segments[segment], os.O_RDONLY | os.O_CLOEXEC)
        head = os.pread(self._files[segment], HEAD.size, offset)
        _, kind, length, _ = HEAD.unpack(head)
        return decode_payload(kind, os.pread(self._files[segment], length, offset + HEAD.size))

    def close(self) -> None:
        for file in self._files.values():
            os.close(file)
        self._files.clear()
