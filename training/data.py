"""From a dataset to token rows whose loss is on the response alone."""

import glob
import hashlib
import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schemas.errors import SpecError
from schemas.record import conversation
from schemas.student import TrainingData

LOOKED_AT = 100_000  # rows: some seconds that are checked before a training starts
IGNORED = -100  # label of a token without a loss
LOADERS = {".jsonl": "json", ".json": "json", ".gz": "json", ".csv": "csv", ".parquet": "parquet"}


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


def _files(data: TrainingData) -> tuple[str, list[str]]:
    """(loader of `datasets`, files)."""
    if data.run is not None:
        found = sorted(Path(data.run, "dataset").glob("*.parquet"))
        if not found:
            raise SpecError(f"data.run: {data.run} holds no published dataset", "finish the run first")
        return "parquet", [str(path) for path in found]
    if data.path is None:
        raise SpecError("data is required", "data: {path: pairs.jsonl} or data: {run: RUN}")
    path = Path(data.path)
    if path.is_dir():
        found = sorted(p for p in path.iterdir() if p.suffix in LOADERS)
    else:
        found = [path] if path.is_file() else sorted(Path(p) for p in glob.glob(data.path, recursive=True))  # noqa: PTH207
    if not found:
        raise SpecError(f"data.path: {data.path}: no such file", "name a jsonl, json, csv or parquet file")
    if (kind := LOADERS.get(found[0].suffix)) is None:
        raise SpecError(f"data.path: {found[0]}: unknown kind of file", f"known: {', '.join(LOADERS)}")
    return kind, [str(p) for p in found]


def data_digest(data: TrainingData) -> str:
    """Names, sizes and times of the files: while it is the same, so are the pairs."""
    stats = ((name, Path(name).stat()) for name in _files(data)[1])
    return hashlib.sha256(repr([(name, s.st_size, s.st_mtime_ns) for name, s in stats]).encode()).hexdigest()


def check_data(data: TrainingData | None) -> None:
    """`SpecError` for what the first rows can tell: no data, a missing file, an absent field, one that is not text,
    fewer than two rows. Cheap on any size."""
    if data is None:
        raise SpecError("data is required", "data: {path: pairs.jsonl} or data: {run: RUN}")
    rows = _open(data, streaming=True)
    try:
        looked_at = itertools.islice(rows, LOOKED_AT)
        if (first := next(looked_at, None)) is not None:
            check_columns(list(first), data)
        found = sum(1 for _ in _pairs(itertools.chain([first] if first else [], looked_at), data))
    except (ValueError, OSError) as error:
        raise _unreadable(data, error) from None
    _require_two(found)


def _open(data: TrainingData, streaming: bool) -> Any:
    import datasets

    kind, files = _files(data)
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # it logs what it raises
    # keep_in_memory: a file that changes between two trainings must not come from a cache.
    options = {"streaming": True} if streaming else {"keep_in_memory": True}
    try:
        return datasets.load_dataset(kind, data_files=files, split="train", **options)
    except (datasets.exceptions.DatasetGenerationError, ValueError, OSError) as error:
        raise _unreadable(data, error) from None
    except StopIteration:  # what the JSON loader of `datasets` says of an empty file
        raise SpecError(f"data: {files[0]}: empty", "a student needs at least two rows") from None


def _unreadable(data: TrainingData, error: BaseException) -> SpecError:
    line = str(error.__cause__ or error).strip().splitlines()
    return SpecError(f"data: {data.path or data.run}: {line[0][:200] if line else 'unreadable'}", "is the file whole?")


def check_columns(columns: Sequence[str], data: TrainingData) -> None:
    """`SpecError` for a field that is not among `columns`."""
    if data.run is not None and not data.fields:
        return
    for ours in ("prompt", "response"):
        name = data.fields.get(ours, ours)  # type: ignore[call-overload]
        if name not in columns:
            raise SpecError(f"data: absent field {name!r} (it has: {', '.join(columns)})", "map it in data.fields")


def load_pairs(data: TrainingData) -> list[Pair]:
    """All pairs of a dataset. `SpecError` for a missing file, an absent field, or no rows."""
    rows = _open(data, streaming=False)
    check_columns(rows.column_names, data)
    pairs = list(_pairs(rows, data))
    _require_two(len(pairs))
    return pairs


def _require_two(pairs: int) -> None:
    if pairs < 2:
        raise SpecError(f"data: {pairs} usable rows", "a student needs at least one to learn and one held out")


def _pairs(rows: Any, data: TrainingData) -> Iterator[Pair]:
    prompt, response = data.fields.get("prompt", "prompt"), data.fields.get("response", "response")
    if data.run is not None and not data.fields:
        separator = "" if data.template else "\n\n"
        for row in rows:
            asked, answered = (turn["content"] for turn in conversation(row))
            yield Pair(asked + separator, answered)
        return
    for number, row in enumerate(rows):
        if not isinstance(row[prompt], str) or not isinstance(row[response], str):
            raise SpecError(f"data: row {number + 1}: {prompt!r} and {response!r} must be text", "mend the row")
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
