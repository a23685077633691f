"""The order in which rows are learned from."""

import random
from collections.abc import Iterator, Sequence

import torch

SPAN = 50  # batches that are sorted together: fewer would not be of like length, more would no longer be shuffled


class Shuffled(torch.utils.data.Sampler[int]):
    """Numbers of rows, shuffled; with `lengths`, rows of like length side by side, so that less of a batch is padding.

    It follows from (seed, epoch) alone, so that a resumed training goes on where it was. `batch`: rows that all
    workers of the spec take at once; `whole`: a multiple of it that those at work now can share out. Numbers from
    `rows` on fill the last one and stand for no row: were rows repeated in their place, as PyTorch does, the same
    training would be another one on another number of workers.

    With `visits`, every `together` rows come so many times before the next ones do: in another order, but always in
    the same place of the same batch, and so on the same worker.
    """

    def __init__(
        self, rows: int, batch: int, seed: int, lengths: Sequence[int] | None = None, whole: int = 0, visits: int = 1,
        together: int = 1,
    ) -> None:  # fmt: skip
        self._rows, self._batch, self._seed, self._lengths, self._epoch = rows, batch, seed, lengths, 0
        self._whole, self._visits, self._together = whole or batch, visits, together

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __len__(self) -> int:
        return -(-self._rows // self._whole) * self._whole * self._visits

    def __iter__(self) -> Iterator[int]:
        rng = random.Random(f"{self._seed}:{self._epoch}")
        order = list(range(self._rows))
        rng.shuffle(order)
        if self._lengths is not None:
            order = list(self._bucketed(order, self._lengths, rng))
        order += range(self._rows, len(self) // self._visits)
        batches = [order[at : at + self._whole] for at in range(0, len(order), self._whole)]
        size = max(1, self._together // self._whole)
        for start in range(0, len(batches), size):
            some = batches[start : start + size]
            for visit in range(self._visits):
                if visit:
                    rng.shuffle(some)
                for one in some:
                    yield from one

    def _bucketed(self, order: list[int], lengths: Sequence[int], rng: random.Random) -> Iterator[int]:
        span = SPAN * self._batch
        for start in range(0, len(order), span):
            near = sorted(order[start : start + span], key=lambda i: lengths[i])
            batches = [near[i : i + self._batch] for i in range(0, len(near), self._batch)]
            short = [batches.pop()] if len(batches[-1]) < self._batch and start + span >= len(order) else []
            rng.shuffle(batches)
            for one in batches + short:  # an incomplete batch comes last, or all after it would be cut elsewhere
                yield from one
