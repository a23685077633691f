"""From a dataset to token rows whose loss is on the response alone."""

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schemas.errors import SpecError
from schemas.record import conversation
from schemas.student import TrainingData
from schemas.text_files import TooManyCells, files_of, is_unicode, parsed, text_entries

IGNORED = -100  # label of a token without a loss


@dataclass(frozen=True, slots=True)
class Pair:
    """A prompt and the response to learn."""

    prompt: str
    response: str


@dataclass(frozen=True, slots=True)
class TokenRow:
    """input_ids (n,) and labels (n,); for an encoder-decoder labels (m,) are the decoder's."""

    input_ids: list[int]
    labels: list[int]
    position_ids: list[int] | None = None

    @property
    def trained_tokens(self) -> int:
        return sum(label != IGNORED for label in self.labels)


def _files(data: TrainingData) -> list[Path]:
    if data.path is not None:
        return files_of(data.path, "data")
    if data.run is None:
        raise SpecError("data is required", "data: {path: pairs.jsonl} or data: {run: RUN}")
    found = sorted(Path(data.run, "dataset").glob("*.parquet"))
    if not found:
        raise SpecError(f"data.run: {data.run} holds no published dataset", "finish the run first")
    return found


def data_digest(data: TrainingData) -> str:
    """Names, sizes and times of the files: while it is the same, so are the pairs."""
    stats = ((str(path), path.stat()) for path in _files(data))
    return hashlib.sha256(repr([(name, s.st_size, s.st_mtime_ns) for name, s in stats]).encode()).hexdigest()


def check_data(data: TrainingData | None) -> None:
    """`SpecError` for what is wrong with any row: a missing file, an absent field, one that is not text, fewer than
    two rows. 6 s for a million rows, against a teacher that was paid for nothing."""
    if data is None:
        raise SpecError("data is required", "data: {path: pairs.jsonl} or data: {run: RUN}")
    _require_two(sum(1 for _ in _pairs(data)))


def load_pairs(data: TrainingData) -> list[Pair]:
    """All pairs of a dataset. `SpecError` for a missing file, an absent field, or no rows."""
    pairs = list(_pairs(data))
    _require_two(len(pairs))
    return pairs


def _require_two(pairs: int) -> None:
    if pairs < 2:
        raise SpecError(f"data: {pairs} usable rows", "a student needs at least one to learn and one held out")


def _rows(data: TrainingData) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, row) of every row."""
    for file in _files(data):
        for where, entry in _parquet(file, data) if file.suffix == ".parquet" else text_entries(file, "data"):
            try:
                row = parsed(entry)
            except (ValueError, RecursionError) as error:
                raise SpecError(f"data malformed: {where}: not valid JSON: {error}", "mend the row") from None
            if not isinstance(row, dict):
                what = row if isinstance(row, TooManyCells) else f"a {type(row).__name__}, not an object"
                raise SpecError(f"data malformed: {where}: {what}", "mend the row")
            yield where, row


def _parquet(file: Path, data: TrainingData) -> Iterator[tuple[str, Any]]:
    """The columns that are needed alone: others may hold pictures or sound."""
    import pyarrow.parquet as pq

    number = 0
    try:
        table = pq.ParquetFile(file)
        names = table.schema_arrow.names
        if twice := {name for name in names if names.count(name) > 1}:
            raise SpecError(f"data malformed: {file}: column {min(twice)!r} stands twice", "rename one of them")
        if _is_mapped(data):
            check_columns(names, data, f"{file}: ")
            names = [data.fields.get("prompt", "prompt"), data.fields.get("response", "response")]
        for batch in table.iter_batches(1024, columns=names):
            for row in batch.to_pylist():
                yield f"{file} row {number}", row
                number += 1
    except (ValueError, OSError) as error:
        line = str(error).strip().splitlines() or ["unreadable"]
        raise SpecError(
            f"data malformed: {file} from row {number}: {line[0][:200]}", "is it a whole parquet file?"
        ) from None


def _is_mapped(data: TrainingData) -> bool:
    """Whether prompt and response are columns; else a run's rows are put into words."""
    return data.run is None or bool(data.fields)


def check_columns(columns: Sequence[str], data: TrainingData, where: str = "") -> None:
    """`SpecError` for a field that is not among `columns`."""
    for ours in ("prompt", "response"):
        name = data.fields.get(ours, ours)  # type: ignore[call-overload]
        if name not in columns:
            shown = ", ".join(map(str, columns[:8]))
            raise SpecError(f"data: {where}absent field {name!r} (it has: {shown})", "map it in data.fields")


def _pairs(data: TrainingData) -> Iterator[Pair]:
    if not _is_mapped(data):
        separator = "" if data.template else "\n\n"
        for where, row in _rows(data):
            try:
                asked, answered = (turn["content"] for turn in conversation(row))
            except KeyError as error:
                raise SpecError(f"data.run: {where}: no column {error}", "name a run, or map data.fields") from None
            yield Pair(asked + separator, answered)
        return
    prompt, response = data.fields.get("prompt", "prompt"), data.fields.get("response", "response")
    for where, row in _rows(data):
        check_columns(list(row), data, f"{where}: ")
        for name in (prompt, response):
            if not isinstance(row[name], str) or not is_unicode(row[name]):
                raise SpecError(f"data: {where}: field {name!r} must be text", "mend the row")
            if not row[name].strip():
                raise SpecError(f"data: {where}: field {name!r} is blank", "mend the row or leave it out")
        yield Pair(row[prompt], row[response])


def split(pairs: Sequence[Pair], fraction: float, seed: int) -> tuple[list[Pair], list[Pair]]:
    """(training, held out): at least one of each, drawn by seed."""
    order = list(range(len(pairs)))
    random.Random(seed).shuffle(order)
    held = min(len(pairs) - 1, max(1, round(fraction * len(pairs))))
    return [pairs[i] for i in sorted(order[held:])], [pairs[i] for i in sorted(order[:held])]


def prompt_text(pair: Pair, tokenizer: Any, template: str | None) -> str:
    """The prompt as the model reads it: as written, or in the tokenizer's chat template."""
    if template is None:
        return pair.prompt
    turns = [{"role": "user", "content": pair.prompt}]
    text: str = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    return text


def token_rows(
    pairs: Sequence[Pair], tokenizer: Any, max_length: int, template: str | None, seq2seq: bool
) -> tuple[list[TokenRow], int]:
    """(rows, pairs left out because the prompt alone fills `max_length`). A long response is cut at its end."""
    rows, left_out = [], 0
    special = template is None
    for pair in pairs:
        prompt = tokenizer(prompt_text(pair, tokenizer, template), add_special_tokens=special and seq2seq)["input_ids"]
        response = tokenizer(pair.response, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
        if seq2seq:
            rows.append(TokenRow(prompt[:max_length], response[:max_length]))
        elif len(prompt) >= max_length:
            left_out += 1
        else:
            ids = (prompt + response)[:max_length]
            rows.append(TokenRow(ids, ([IGNORED] * len(prompt) + response)[:max_length]))
    return rows, left_out


def pack(rows: Sequence[TokenRow], max_length: int) -> list[TokenRow]:
    """Several rows in one, first fit by falling length. `position_ids` start again at 0 with each, which is how the
    attention of `transformers` keeps them apart; the first token of each has no label, so none predicts the next."""
    bins: list[list[TokenRow]] = []
    room: list[int] = []
    for row in sorted(rows, key=lambda r: -len(r.input_ids)):
        size = len(row.input_ids)
        at = next((i for i, left in enumerate(room) if left >= size), None)
        if at is None:
            bins.append([row])
            room.append(max_length - size)
        else:
            bins[at].append(row)
            room[at] -= size
    return [
        TokenRow(
            [i for row in group for i in row.input_ids],
            [label for row in group for label in (IGNORED, *row.labels[1:])],
            [position for row in group for position in range(len(row.input_ids))],
        )
        for group in bins
    ]


class Collator:
    """Token rows to a batch of tensors, padded on the right to the longest row."""

    def __init__(self, pad_id: int, seq2seq: bool) -> None:
        self._pad, self._seq2seq = pad_id, seq2seq

    def __call__(self, rows: Sequence[TokenRow]) -> dict[str, Any]:
        import torch

        width = max(len(row.input_ids) for row in rows)
        ids = torch.tensor([row.input_ids + [self._pad] * (width - len(row.input_ids)) for row in rows])
        label_width = max(len(row.labels) for row in rows)
        labels = torch.tensor([row.labels + [IGNORED] * (label_width - len(row.labels)) for row in rows])
        batch = {"input_ids": ids, "labels": labels}
        if rows[0].position_ids is not None:
            # Padding is one more packed row: positions from 0, no labels. A mask would hide the packing.
            batch["position_ids"] = torch.tensor(
                [(row.position_ids or []) + list(range(width - len(row.input_ids))) for row in rows]
            )
        else:
            lengths = torch.tensor([len(row.input_ids) for row in rows])
            batch["attention_mask"] = (torch.arange(width)[None, :] < lengths[:, None]).long()
        return batch
