"""The order in which rows are learned from."""

import random
from collections.abc import Iterator, Sequence

import torch

SPAN = 50  # batches that are sorted together: fewer would not be of like length, more would no longer be shuffled


class Bucketed(torch.utils.data.Sampler[int]):
    """Numbers of rows, shuffled, but rows of like length side by side: less of a batch is padding.

    It follows from (seed, epoch) alone, so that a resumed training goes on where it was. `batch`: rows of a step.
    """

    def __init__(self, lengths: Sequence[int], batch: int, seed: int) -> None:
        self._lengths, self._batch, self._seed, self._epoch = lengths, batch, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        rng = random.Random(f"{self._seed}:{self._epoch}")
        order = list(range(len(self._lengths)))
        rng.shuffle(order)
        span = SPAN * self._batch
        for start in range(0, len(order), span):
            near = sorted(order[start : start + span], key=lambda i: self._lengths[i])
            batches = [near[i : i + self._batch] for i in range(0, len(near), self._batch)]
            short = [batches.pop()] if len(batches[-1]) < self._batch and start + span >= len(order) else []
            rng.shuffle(batches)
            for one in batches + short:  # an incomplete batch comes last, or all after it would be cut elsewhere
                yield from one
