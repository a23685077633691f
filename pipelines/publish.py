"""Staged rows into the published dataset: parquet shards, the conversational form, the content hash."""

import hashlib
import json
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pipelines.curate import Dropped
from pipelines.dedup import Duplicate
from pipelines.harvest import SCHEMAS, Answers, Rejections, RowWriter, stored_rows
from pipelines.rundir import RunDirectory, move_folder
from schemas.job import JobSpec
from schemas.record import COLUMNS, Rejection, conversation

SHARD_ROWS = 250_000
SAMPLES = 12


@dataclass(slots=True)
class Published:
    """What went into the dataset, and what the report shows of it."""

    rows: int = 0
    sha256: str = ""
    files: list[str] = field(default_factory=list)
    talks: list[tuple[int, int, str]] = field(default_factory=list)  # words asked and answered, first words asked
    samples: list[dict[str, Any]] = field(default_factory=list)
    clusters: list[tuple[str, str, float]] = field(default_factory=list)
    agree: int = 0
    judged: int = 0


OPENING = 2  # words that tell one kind of question from another


class Sampler:
    """A seeded reservoir."""

    def __init__(self, size: int, seed: int) -> None:
        self._rng, self._size, self._seen = random.Random(seed), size, 0
        self.kept: list[Any] = []

    def add(self, item: Any) -> None:
        self._seen += 1
        if len(self.kept) < self._size:
            self.kept.append(item)
        elif (slot := self._rng.randrange(self._seen)) < self._size:
            self.kept[slot] = item


def publish(
    spec: JobSpec, run: RunDirectory, staged: Path, dropped: Dropped, rejected: Rejections, answers: Answers
) -> Published:
    """Write `dataset/` (and `dataset.jsonl`), each moved into place whole. Dropped rows go to `rejected`, with what
    `answers` holds for them."""
    total = pq.ParquetFile(staged).metadata.num_rows - len(dropped.by_position)
    shards = max(1, -(-total // SHARD_ROWS))
    folder = run.scratch("dataset")
    messages = (run.work / "dataset.jsonl").open("w", encoding="utf-8") if "messages" in spec.publish.format else None
    digest, out, talks = hashlib.sha256(), Published(), Sampler(5_000, spec.sampling.draws)
    samples = Sampler(SAMPLES, spec.sampling.draws)
    kept_text = _texts_of(staged, {d.kept for d in dropped.by_position.values()})
    writer: RowWriter | None = None
    for position, row in enumerate(stored_rows(staged)):
        if (drop := dropped.by_position.get(position)) is not None:
            kept = kept_text[drop.kept]
            rejected.add(_duplicate(row, drop, kept["id"], answers))
            if len(out.clusters) < SAMPLES and drop.reason == "near_duplicate":
                out.clusters.append((_asked(kept), _asked(row), drop.score))
            continue
        if writer is None or writer.count == SHARD_ROWS:
            writer = _next_shard(folder, writer, len(out.files), shards, spec.pipeline, out)
        writer.add(row)
        out.rows += 1
        digest.update(json.dumps([row[c] for c in COLUMNS[spec.pipeline]], ensure_ascii=True).encode())
        talk = conversation(row)
        asked, answered = (turn["content"].split() for turn in talk)
        talks.add((len(asked), len(answered), " ".join(asked[:OPENING])))
        samples.add(row)
        _agreement(row, out)
        if messages:
            messages.write(json.dumps({"id": row["id"], "messages": talk}, ensure_ascii=False) + "\n")
    if writer is None:
        writer = _next_shard(folder, None, 0, shards, spec.pipeline, out)
    writer.close()
    move_folder(folder, run.dataset)
    if messages:
        messages.close()
        Path(messages.name).replace(run.messages)
    else:
        run.messages.unlink(missing_ok=True)  # of an earlier start: other rows
    out.sha256, out.talks, out.samples = digest.hexdigest(), talks.kept, samples.kept
    return out


def _next_shard(
    folder: Path, before: RowWriter | None, number: int, shards: int, pipeline: str, out: Published
) -> RowWriter:
    if before is not None:
        before.close()
    name = f"train-{number:05d}-of-{shards:05d}.parquet"
    out.files.append(f"dataset/{name}")
    return RowWriter(folder / name, SCHEMAS[pipeline])


def _texts_of(staged: Path, positions: set[int]) -> dict[int, dict[str, Any]]:
    """The rows that duplicates repeat."""
    if not positions:
        return {}
    return {position: row for position, row in enumerate(stored_rows(staged)) if position in positions}


def _asked(row: dict[str, Any]) -> str:
    text: str = row["instruction"] if "instruction" in row else row["input"]
    return text


def _duplicate(row: dict[str, Any], drop: Duplicate, kept_id: str, answers: Answers) -> Rejection:
    detail = f"repeats {kept_id} (similarity {drop.score:.3f})"
    return Rejection(row["id"], "curate", drop.reason, detail, answers.text(row["call_key"]))


def _agreement(row: dict[str, Any], out: Published) -> None:
    gold = row.get("gold")
    if gold is not None:
        out.judged += 1
        out.agree += row["label"].strip().casefold() == gold.strip().casefold()
