"""The order in which rows are learned from."""

import random
from collections.abc import Iterator, Sequence

import torch

SPAN = 50  # batches that are sorted together: fewer would not be of like length, more would no longer be shuffled


class Shuffled(torch.utils.data.Sampler[int]):
    """Numbers of rows, shuffled; with `lengths`, rows of like length side by side, so that less of a batch is padding.

    It follows from (seed, epoch) alone, so that a resumed training goes on where it was. `batch`: rows that all
    workers take at once. Numbers from `rows` on fill the last of these batches and stand for no row: were rows
    repeated in their place, as PyTorch does, the same training would be another one on another number of workers.
    """

    def __init__(self, rows: int, batch: int, seed: int, lengths: Sequence[int] | None = None) -> None:
        self._rows, self._batch, self._seed, self._lengths, self._epoch = rows, batch, seed, lengths, 0

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __len__(self) -> int:
        return -(-self._rows // self._batch) * self._batch

    def __iter__(self) -> Iterator[int]:
        rng = random.Random(f"{self._seed}:{self._epoch}")
        order = list(range(self._rows))
        rng.shuffle(order)
        yield from order if self._lengths is None else self._bucketed(order, self._lengths, rng)
        yield from range(self._rows, len(self))

    def _bucketed(self, order: list[int], lengths: Sequence[int], rng: random.Random) -> Iterator[int]:
        span = SPAN * self._batch
        for start in range(0, len(order), span):
            near = sorted(order[start : start + span], key=lambda i: lengths[i])
            batches = [near[i : i + self._batch] for i in range(0, len(near), self._batch)]
            short = [batches.pop()] if len(batches[-1]) < self._batch and start + span >= len(order) else []
            rng.shuffle(batches)
            for one in batches + short:  # an incomplete batch comes last, or all after it would be cut elsewhere
                yield from one
