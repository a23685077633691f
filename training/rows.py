"""From pairs of text to rows of tokens, to packed rows, to batches of tensors. Losses are on responses alone."""

import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from schemas.objective import Icl
from schemas.student import TrainingSpec
from training.examples import Pair

if TYPE_CHECKING:
    from training.signals import Signals

IGNORED = -100  # label of a token without a loss
BLANK = -1  # task of a row that stands for none
NEAR = 16  # rooms that are looked at when a bin is chosen for a row


@dataclass(frozen=True, slots=True)
class TokenRow:
    """One prompt and its response in tokens.

    Decoder-only: input_ids (n,) holds both and labels (n,) the response, with `IGNORED` before it. Encoder-decoder:
    input_ids (n,) is the prompt and labels (m,) the response.
    """

    input_ids: list[int]
    labels: list[int]
    record: str = ""  # id of the record that it came from
    task: int = 0  # which of an objective's losses it belongs to
    weight: float = 1.0
    cut: bool = False  # its prompt or its response was longer

    @property
    def trained_tokens(self) -> int:
        return sum(label != IGNORED for label in self.labels)


BLANK_ROW = TokenRow([0, 0], [IGNORED, IGNORED], task=BLANK)  # nothing to learn: fills a batch

Bin = Sequence[TokenRow]  # rows that share one row of a batch


def prompt_text(pair: Pair, tokenizer: Any, template: str | None) -> str:
    """The prompt as the model reads it: as written, or in the tokenizer's chat template."""
    if template is None:
        return pair.prompt
    turns = [{"role": role, "content": text} for role, text in pair.turns or (("user", pair.prompt),)]
    text: str = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    return text


def prompt_ids(pairs: Sequence[Pair], tokenizer: Any, template: str | None, seq2seq: bool) -> list[list[int]]:
    """Prompts in tokens. Without a template, which says it all, they begin as the tokenizer begins a text (Llama's and
    Gemma's with a token of its own); only an encoder's end as it ends one."""
    if not pairs:
        return []
    texts, plain = [prompt_text(pair, tokenizer, template) for pair in pairs], template is None
    found: list[list[int]] = tokenizer(texts, add_special_tokens=plain and seq2seq)["input_ids"]
    start = beginning(tokenizer) if plain and not seq2seq else []
    return [[*start, *ids] for ids in found] if start else found


def beginning(tokenizer: Any) -> list[int]:
    """What a tokenizer puts before a text."""
    whole, bare = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (True, False))
    at = next((at for at in range(len(whole) - len(bare) + 1) if whole[at : at + len(bare)] == bare), 0)
    found: list[int] = whole[:at]
    return found


def token_rows(
    pairs: Sequence[Pair], tokenizer: Any, max_length: int, template: str | None, seq2seq: bool,
    cut_prompts: bool = False,
) -> tuple[list[TokenRow], int]:  # fmt: skip
    """(rows, pairs left out because the prompt alone fills `max_length`). A long response is cut at its end; a long
    prompt at its beginning where `cut_prompts`, as befits one whose demonstrations come first."""
    if not pairs:
        return [], 0
    prompts = prompt_ids(pairs, tokenizer, template, seq2seq)
    responses = tokenizer([pair.response for pair in pairs], add_special_tokens=False)["input_ids"]
    longest: dict[str, int] = {}  # response of a record: what is asked once is cut alike for all its options
    for pair, answered in zip(pairs, responses, strict=True):
        longest[pair.record] = max(longest.get(pair.record, 0), len(answered) + 1)
    rows, left_out = [], 0
    for pair, asked, answered in zip(pairs, prompts, responses, strict=True):
        response = [*answered, tokenizer.eos_token_id]
        room = max(1, max_length - (0 if seq2seq else longest[pair.record]))
        prompt = asked[-room:] if cut_prompts else asked
        whole = max(len(asked), len(response)) if seq2seq else len(asked) + len(response)
        about = pair.record, pair.task, pair.weight, whole > max_length
        if seq2seq:
            end = prompt[-1:] if prompt[-1:] == asked[-1:] == [tokenizer.eos_token_id] else []  # an encoder's own
            cut = prompt if len(prompt) <= max_length else [*prompt[: max_length - len(end)], *end]
            rows.append(TokenRow(cut, response[:max_length], *about))
        elif len(prompt) >= max_length:
            left_out += 1
        else:
            ids = (prompt + response)[:max_length]
            rows.append(TokenRow(ids, ([IGNORED] * len(prompt) + response)[:max_length], *about))
    return rows, left_out


def rows_for(spec: TrainingSpec, pairs: Sequence[Pair], tokenizer: Any, seq2seq: bool) -> tuple[list[TokenRow], int]:
    """`token_rows` as a training spec wants them."""
    assert spec.data is not None
    cut_prompts = isinstance(spec.objective, Icl)
    return token_rows(pairs, tokenizer, spec.max_length, spec.data.template, seq2seq, cut_prompts)


def predicted(row: TokenRow, seq2seq: bool) -> int:
    """Tokens of a row that a model predicts: nothing comes before the first one of a decoder-only row."""
    return sum(label != IGNORED for label in (row.labels if seq2seq else row.labels[1:]))


def sizes_of(rows: Sequence[TokenRow]) -> np.ndarray:
    """(rows, 2): the tokens that a model reads, and those with a loss."""
    found: np.ndarray | None = getattr(rows, "sizes", None)
    if found is not None:
        return found
    return np.array([(len(row.input_ids), row.trained_tokens) for row in rows]).reshape(-1, 2)


def pack(sizes: np.ndarray, max_length: int) -> list[list[int]]:
    """Bins of numbers of rows of such `sizes`, best fit by falling length: at most `max_length` tokens that are read,
    and so many with a loss, in each.

    A bin with the least room that is enough is looked for among `NEAR` rooms, so that a million rows take seconds.
    The collator keeps the rows of a bin apart: by positions that start again, or by masks in an encoder-decoder.
    """
    bins: list[list[int]] = []
    learned: list[int] = []  # room for tokens with a loss, of each bin
    rooms: list[int] = []  # of bins that are open, ascending
    with_room: dict[int, list[int]] = {}
    read, answered = sizes.T.tolist()
    for number in np.argsort(-sizes.max(-1), kind="stable").tolist():
        size, more = read[number], answered[number]
        first = bisect.bisect_left(rooms, size)
        room = next((r for r in rooms[first : first + NEAR] if learned[with_room[r][-1]] >= more), None)
        if room is None:
            at, room = len(bins), max_length
            bins.append([])
            learned.append(max_length)
        else:
            at = with_room[room].pop()
            if not with_room[room]:
                del with_room[room], rooms[bisect.bisect_left(rooms, room)]
        bins[at].append(number)
        learned[at] -= more
        if (left := room - size) > 0 and learned[at] > 0:
            if left not in with_room:
                bisect.insort(rooms, left)
            with_room.setdefault(left, []).append(at)
    return bins


class Bins(Sequence[Bin]):
    """Rows in bins, by their numbers; read when they are asked for. Each row alone where `numbers` is None."""

    def __init__(self, rows: Sequence[TokenRow], numbers: Sequence[Sequence[int]] | None = None) -> None:
        self._rows, self._numbers = rows, numbers

    def __len__(self) -> int:
        return len(self._rows if self._numbers is None else self._numbers)

    def __getitem__(self, at: Any) -> Any:
        return [self._rows[number] for number in ([at] if self._numbers is None else self._numbers[at])]


class Filled(Sequence[Bin]):
    """Bins, and after them blank ones up to whole batches of `batch`."""

    def __init__(self, bins: Sequence[Bin], batch: int) -> None:
        self._bins, self._batch = bins, batch

    def __len__(self) -> int:
        return -(-len(self._bins) // self._batch) * self._batch

    def __getitem__(self, at: Any) -> Any:
        if at >= len(self):
            raise IndexError(at)
        return self._bins[at] if at < len(self._bins) else [BLANK_ROW]


class Collator:
    """Bins of rows to a batch of tensors of B x width, padded on the right.

    input_ids, labels and owners (the number of the row that each label belongs to), B x width each; tasks and weights
    (rows,), and the rows themselves. attention_mask where each bin holds one row; else position_ids (decoder-only) or
    three masks of B x 1 x width x width (encoder-decoder), which keep the rows of a bin apart. With `signals`, top_ids
    and top_log_probs (tokens with a loss, k) of the teacher.
    """

    def __init__(self, pad_id: int, seq2seq: bool, signals: "Signals | None" = None) -> None:
        self._pad, self._seq2seq, self._signals = pad_id, seq2seq, signals

    def __call__(self, bins: Sequence[Bin]) -> dict[str, Any]:
        import torch

        labels = [[x for row in bin for x in _labels(row, self._seq2seq, len(bin) > 1)] for bin in bins]
        owners = [[n for row, n in numbered for _ in row.labels] for numbered in _numbered(bins)]
        rows = [row for bin in bins for row in bin]
        batch = {
            "input_ids": _padded([[x for row in bin for x in row.input_ids] for bin in bins], self._pad),
            "labels": _padded(labels, IGNORED),
            "owners": _padded(owners, 0),
            "tasks": torch.tensor([row.task for row in rows]),
            "weights": torch.tensor([row.weight for row in rows]),
            "rows": rows,
        }
        if self._signals is not None:
            ids, log_probs = self._signals.of(rows)
            batch |= {"top_ids": torch.from_numpy(ids), "top_log_probs": torch.from_numpy(log_probs)}
        if all(len(bin) == 1 for bin in bins):
            batch["attention_mask"] = _padded([[1] * len(bin[0].input_ids) for bin in bins], 0)
        elif self._seq2seq:
            batch |= _apart(bins)
        else:
            # Padding is one more packed row: positions from 0, no labels. A mask would hide the packing.
            width = batch["input_ids"].shape[1]
            positions = [[i for row in bin for i in range(len(row.input_ids))] for bin in bins]
            batch["position_ids"] = torch.tensor([p + list(range(width - len(p))) for p in positions])
        return batch


def _labels(row: TokenRow, seq2seq: bool, packed: bool) -> list[int]:
    """In a packed decoder-only bin the first token of a row has no label, so that none predicts the next row."""
    return [IGNORED, *row.labels[1:]] if packed and not seq2seq else row.labels


def _numbered(bins: Sequence[Bin]) -> Iterator[list[tuple[TokenRow, int]]]:
    start = 0
    for bin in bins:
        yield [(row, start + i) for i, row in enumerate(bin)]
        start += len(bin)


def _padded(lists: Sequence[Sequence[int]], value: int) -> Any:
    import torch

    width = max(map(len, lists))
    return torch.tensor([[*x, *[value] * (width - len(x))] for x in lists])


def padded(prompts: Sequence[Sequence[int]], pad: int, device: Any, left: bool = True) -> dict[str, Any]:
    """input_ids and attention_mask of B x the longest prompt, for a model to go on from."""
    import torch

    width = max(map(len, prompts))
    blank = [[0] * (width - len(prompt)) for prompt in prompts]
    ids = [[pad] * len(b) + [*p] if left else [*p] + [pad] * len(b) for b, p in zip(blank, prompts, strict=True)]
    mask = [b + [1] * len(p) if left else [1] * len(p) + b for b, p in zip(blank, prompts, strict=True)]
    return {"input_ids": torch.tensor(ids, device=device), "attention_mask": torch.tensor(mask, device=device)}


def _apart(bins: Sequence[Bin]) -> dict[str, Any]:
    """Block-diagonal boolean masks for packed encoder-decoder bins, and where each row's labels start."""
    import torch

    source = _padded([[i + 1 for i, row in enumerate(bin) for _ in row.input_ids] for bin in bins], 0)
    target = _padded([[i + 1 for i, row in enumerate(bin) for _ in row.labels] for bin in bins], 0)
    starts = _padded([[int(i == 0) for row in bin for i in range(len(row.labels))] for bin in bins], 0)
    within = target[:, None, :, None] == target[:, None, None, :]
    past = torch.ones(target.shape[1], target.shape[1], dtype=torch.bool).tril()
    return {
        "encoder_mask": source[:, None, :, None] == source[:, None, None, :],
        "decoder_mask": within & past,
        # Padding may look everywhere: a position that sees nothing would be NaN, and its gradient with it.
        "cross_mask": (target[:, None, :, None] == source[:, None, None, :]) | (target == 0)[:, None, :, None],
        "starts": starts.bool(),
    }
