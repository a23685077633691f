"""A teacher's likeliest tokens, or some drawn from it, written down once: capture by Ray actors, lookup by record
while a student learns.

A cache is a folder of parquet shards, one row for each row of the training set, beside `about.json`, which says what
it was made of. 8 bytes for each of the k tokens of a position: 512 of them at k = 64, before compression.
"""

import itertools
import json
import uuid
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from schemas.errors import LimbeckError, SpecError
from schemas.objective import Kd
from schemas.student import FromScratch, LayerCut, TrainingSpec
from training.loop import outcome_of, use_assigned_cores
from training.rows import BLANK, TokenRow, predicted

ABOUT = "about.json"
NAMED = {"top_k": "top_k or tau", "sampled": "sampled or tau"}  # what `made_of` holds under one name
SHARD = 1024  # rows in a file: what a killed capture does again
BATCH = 8
POLL_S = 0.5
SCHEMA = pa.schema([
    ("record", pa.string()), ("task", pa.int32()), ("tokens", pa.uint32()),
    ("ids", pa.list_(pa.int32())), ("log_probs", pa.list_(pa.float32())),
])  # fmt: skip


def cache_of(spec: TrainingSpec) -> Path | None:
    """Where the teacher of a training is written down; None where it is asked while the student learns."""
    return Path(spec.objective.cache) if isinstance(spec.objective, Kd) and spec.objective.cache else None


def made_of(spec: TrainingSpec) -> dict[str, Any]:
    """What decides the contents of a cache: the teacher, the rows, how they are cut into tokens, k and tau."""
    from training.data import data_digest
    from training.students import named_weights_digest

    assert spec.data is not None and isinstance(spec.objective, Kd) and spec.teacher
    source = spec.student.source if isinstance(spec.student, LayerCut) else spec.student
    k, drawn, tau = spec.objective.top_k, spec.objective.sampled, spec.objective.tau
    return {
        "teacher": spec.teacher, "weights": named_weights_digest([spec.teacher]), "data": data_digest(spec.data),
        "fields": dict(spec.data.fields), "template": spec.data.template, "max_length": spec.max_length,
        "tokenizer": spec.teacher if isinstance(source, FromScratch) else source, "top_k": k and [k, tau],
        "sampled": drawn and [drawn, tau],
    }  # fmt: skip


def check_cache(spec: TrainingSpec, knows_teacher: bool = True) -> None:
    """`SpecError` where the folder holds something else, or a cache of another teacher or other rows: but where the
    teacher is not known yet, for it is fine-tuned first."""
    place = cache_of(spec)
    if place is None or not place.exists():
        return
    try:
        earlier = json.loads((place / ABOUT).read_text())
    except (OSError, ValueError):
        if any(not file.name.endswith(".new") for file in place.iterdir()):
            raise SpecError(f"objective.cache: {place} is there and no cache of ours", "name another folder") from None
        return
    if not knows_teacher:
        return
    now = made_of(spec)
    if odd := [NAMED.get(key, key) for key in now if earlier.get(key) != now[key]]:
        raise SpecError(
            f"objective.cache: {place} was made with another {' and '.join(odd)}", "name another folder, or remove it"
        )


def capture(
    spec: TrainingSpec, store: Path, watch: Callable[[dict[str, Any]], None], stopping: Callable[[], bool]
) -> bool:
    """Write down what the teacher says of all rows, on the Ray cluster that is connected; whether it is all there.

    The rows in tokens are written to `store` first, for the training that follows. Shards that are there are kept, so
    a pass that was ended goes on.
    """
    import ray

    place, workers = cache_of(spec), spec.workers
    assert place is not None
    place.mkdir(parents=True, exist_ok=True)
    _written(place / ABOUT, lambda new: new.write_text(json.dumps(made_of(spec), indent=2) + "\n"))
    told = spec.model_dump(mode="json", by_alias=True)
    outcome_of(ray.remote(max_retries=2, num_cpus=1)(_prepare).remote(told, store))
    share = {"num_cpus": ray.cluster_resources().get("CPU", 1) // workers or 1}
    if ray.cluster_resources().get("GPU"):
        share["num_gpus"] = 1
    actor = ray.remote(max_restarts=2, max_task_retries=2, **share)(CaptureActor)
    actors = [actor.remote(told, store) for _ in range(workers)]
    try:
        shards = outcome_of(actors[0].shards.remote())
        missing = [number for number in range(shards) if not _shard(place, number).exists()]
        done = shards - len(missing)
        turns = itertools.cycle(actors)
        waiting = [next(turns).capture.remote(number) for number in missing]
        while waiting and not stopping():
            ended, waiting = ray.wait(waiting, timeout=POLL_S)
            for ref in ended:
                outcome_of(ref)
                done += 1
                watch({"captured": done, "shards": shards})
    finally:
        for one in actors:
            ray.kill(one)
    if done == shards:
        for part in place.glob("*.new"):  # of passes that were killed
            part.unlink(missing_ok=True)
    return bool(done == shards)


def _written(file: Path, write: Callable[[Path], Any]) -> None:
    """Put a file there whole, beside another training that may write the same cache."""
    new = file.with_name(f"{file.name}.{uuid.uuid4().hex}.new")
    try:
        write(new)
        new.replace(file)
    except FileNotFoundError:  # the other one has all of it, and has tidied up
        if not file.exists():
            raise
    except OSError:
        new.unlink(missing_ok=True)
        raise


def _shard(place: Path, number: int) -> Path:
    return place / f"top-k-{number:05d}.parquet"


def _prepare(spec: dict[str, Any], store: Path) -> None:
    from training.store import prepare

    prepare(TrainingSpec.model_validate(spec), store)


class Capture:
    """One worker: it has loaded the teacher, and writes shards."""

    def __init__(self, spec: dict[str, Any], store: Path) -> None:
        self._refusal: LimbeckError | None = None
        try:
            self._load(spec, store)
        except LimbeckError as error:  # raised by the methods: of an actor that fails to start Ray keeps a text alone
            self._refusal = error

    def _load(self, spec: dict[str, Any], store: Path) -> None:
        import torch

        from training.rows import Collator
        from training.shape import vocabulary
        from training.store import load
        from training.students import pretrained
        from training.teacher import Teacher, shared_vocabulary

        self.spec = TrainingSpec.model_validate(spec)
        assert self.spec.teacher is not None
        self._place = cache_of(self.spec)
        found = pretrained(self.spec.teacher, "teacher")
        data = load(self.spec, store)
        ours = data.tokenizer
        size = shared_vocabulary(found.tokenizer, ours, self.spec.teacher)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        model = found.model.eval().requires_grad_(False).to(device)
        self._teacher = Teacher(model, min(size, vocabulary(model.config)))
        self._rows = data.every
        self._collate = Collator(ours.pad_token_id, found.seq2seq)

    def shards(self) -> int:
        if self._refusal is not None:
            raise self._refusal
        return -(-len(self._rows) // SHARD)

    def capture(self, number: int) -> int:
        """Write one shard, whole or not at all."""
        if self._refusal is not None:
            raise self._refusal
        assert self._place is not None
        rows = self._rows[number * SHARD : (number + 1) * SHARD]
        found = [line for at in range(0, len(rows), BATCH) for line in self._lines(rows[at : at + BATCH])]
        table = pa.Table.from_pylist(found, SCHEMA)
        _written(_shard(self._place, number), lambda new: pq.write_table(table, new, compression="zstd"))
        return len(rows)

    def _lines(self, rows: Sequence[TokenRow]) -> Iterator[dict[str, Any]]:
        import torch

        from training.divergences import drawn, top_k

        objective = self.spec.objective
        assert isinstance(objective, Kd)
        batch = {name: x.to(self._teacher.model.device) for name, x in self._collate([[r] for r in rows]).items()
                 if name != "rows"}  # fmt: skip
        said = self._teacher(batch)
        if objective.sampled is None:
            top = top_k(said.logits, objective.top_k or said.logits.shape[-1], objective.tau)
        else:
            seed = zlib.crc32(f"{self.spec.seed}:{rows[0].record}".encode())
            generator = torch.Generator(said.logits.device).manual_seed(seed)
            top = drawn(said.logits, objective.sampled, objective.tau, generator)
        for number, row in enumerate(rows):
            mine = said.owners == number
            yield {
                "record": row.record, "task": row.task, "tokens": tokens_digest(row),
                "ids": top.ids[mine].flatten().int().tolist(), "log_probs": top.log_probs[mine].flatten().tolist(),
            }  # fmt: skip


class CaptureActor(Capture):
    """`Capture` on the cores that Ray gave it."""

    def __init__(self, spec: dict[str, Any], store: Path) -> None:
        use_assigned_cores()
        super().__init__(spec, store)


def tokens_digest(row: TokenRow) -> int:
    """A checksum of a row's tokens: a signal belongs to them alone."""
    return zlib.crc32(np.array([*row.input_ids, -1, *row.labels], dtype=np.int64).tobytes())


class Signals:
    """A cache, memory-mapped by `datasets`: what the teacher said of a row, by its record."""

    def __init__(self, place: Path, seq2seq: bool) -> None:
        import datasets

        files = sorted(map(str, place.glob("top-k-*.parquet")))
        if not files:
            raise LimbeckError(f"objective.cache: {place} is empty", "run the same command again")
        datasets.disable_progress_bars()
        self._seq2seq = seq2seq
        self._table = datasets.Dataset.from_parquet(files, cache_dir=str(place / ".mapped")).with_format("numpy")
        named = self._table.select_columns(["record", "task"]).with_format("arrow")[:]
        pairs = zip(named["record"].to_pylist(), named["task"].to_pylist(), strict=True)
        self._at = {pair: number for number, pair in enumerate(pairs)}

    def of(self, rows: Sequence[TokenRow]) -> tuple[np.ndarray, np.ndarray]:
        """(ids, log-probabilities), each (tokens with a loss, k). `LimbeckError` for a row that the cache does not hold
        as it is now."""
        rows = [row for row in rows if row.task != BLANK]
        found = [self._line(row) for row in rows]
        sizes = [predicted(row, self._seq2seq) for row in rows]
        none = np.empty((0, 1))  # of a batch without a row
        ids = [line["ids"].reshape(n, -1) for line, n in zip(found, sizes, strict=True) if n]
        log_probs = [line["log_probs"].reshape(n, -1) for line, n in zip(found, sizes, strict=True) if n]
        return np.concatenate(ids or [none]).astype(np.int64), np.concatenate(log_probs or [none]).astype(np.float32)

    def _line(self, row: TokenRow) -> dict[str, Any]:
        at = self._at.get((row.record, row.task))
        line: dict[str, Any] | None = None if at is None else self._table[at]
        if line is None or int(line["tokens"]) != tokens_digest(row):
            raise LimbeckError(f"objective.cache: it does not know record {row.record}", "remove it to make it anew")
        return line
