"""A teacher whose answers somebody already has: they are looked up by row id and sample, free, at any speed.

An index is a folder with `answers.arrow` (the texts in file order) and, sorted by a hash of the row id, where each id
stands. Everything is memory-mapped, so that a worker's memory does not grow with the answers.
"""

import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa

from schemas.call import Call, Reply, Verdict, VerdictKind
from schemas.money import Usage
from schemas.text import hash64

ANSWERS, HASHES, PLACES = "answers.arrow", "hashes.npy", "places.npy"
BATCH = 1024  # answers in a record batch
SCHEMA = pa.schema([("id", pa.string()), ("text", pa.large_string())])
NOT_RECORDED = Verdict(VerdictKind.NOT_RECORDED, "the recording holds no answer to this row")


def write_recording(place: Path, answers: Iterable[tuple[str, str]]) -> int:
    """Write (row id, text) to a folder; how many. Several answers to a row are its samples, in their order."""
    place.mkdir(parents=True, exist_ok=True)
    hashes: list[np.ndarray] = []
    with pa.OSFile(str(place / ANSWERS), "wb") as file, pa.ipc.new_file(file, SCHEMA) as writer:
        left = iter(answers)
        while some := list(islice(left, BATCH)):
            hashes.append(np.array([hash64(row) for row, _ in some], np.uint64))
            rows, texts = zip(*some, strict=True)
            writer.write_batch(pa.record_batch([pa.array(rows), pa.array(texts, pa.large_string())], schema=SCHEMA))
    found = np.concatenate(hashes) if hashes else np.zeros(0, np.uint64)
    order = np.argsort(found, kind="stable")
    np.save(place / HASHES, found[order])
    np.save(place / PLACES, order)
    return len(found)


class Recording:
    """What `write_recording` wrote."""

    def __init__(self, place: Path) -> None:
        self._file = pa.ipc.open_file(pa.memory_map(str(place / ANSWERS)))
        self._hashes, self._places = (np.load(place / name, mmap_mode="r") for name in (HASHES, PLACES))

    def samples(self, row: str) -> Iterator[str]:
        """The texts that are recorded for a row."""
        key = np.uint64(hash64(row))
        low, high = (int(np.searchsorted(self._hashes, key, side)) for side in ("left", "right"))
        for place in self._places[low:high].tolist():
            batch = self._file.get_batch(place // BATCH)
            if batch["id"][place % BATCH].as_py() == row:
                yield batch["text"][place % BATCH].as_py()

    def find(self, row: str, sample: int) -> str | None:
        return next((text for number, text in enumerate(self.samples(row)) if number == sample), None)


class RecordedAdapter:
    """Writes Chat Completions bodies from a recording."""

    def __init__(self, place: Path) -> None:
        self._recording = Recording(place)

    async def send(self, call: Call) -> Reply:
        text = self._recording.find(call.row, call.sample)
        if text is None:
            return Reply(NOT_RECORDED)
        choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        return Reply(Verdict(VerdictKind.ANSWERED), 200, json.dumps({"choices": [choice]}).encode(), Usage())

    async def close(self) -> None:
        """Nothing to close: the mapping ends with the process."""
