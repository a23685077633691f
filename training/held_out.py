"""Which rows of its data a student does not learn, and is measured on."""

import json
import random
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from schemas.errors import SpecError
from schemas.evaluation import EvaluationSpec
from schemas.student import TRAINED_ON
from training.data import data_digest


def held_out_numbers(count: int, fraction: float, seed: int, most: int) -> set[int]:
    """Which of `count` examples are held out, drawn by seed: at least one, at most `most`, and never all."""
    held = min(count - 1, most, max(1, round(fraction * count)))
    return set(random.Random(seed).sample(range(count), held))


def asked_numbers(spec: EvaluationSpec, count: int) -> Sequence[int]:
    """Which of the `count` examples of an evaluation's data none of its students has learned, ascending."""
    kept = held_out_by(spec)
    return range(count) if kept is None else sorted(held_out_numbers(count, kept.fraction, kept.seed, kept.rows))


class HeldOut(NamedTuple):
    """What decides which rows of its data a training did not learn."""

    fraction: float
    seed: int
    rows: int  # at the most


def held_out_by(spec: EvaluationSpec) -> HeldOut | None:
    """What the students that learned from this very data held out of it; None where none did. `SpecError` where they
    held out different rows."""
    ids = {data_digest(spec.data)}
    if spec.data.run is not None:
        with suppress(OSError, ValueError, KeyError, TypeError):
            ids.add(json.loads(Path(spec.data.run, "manifest.json").read_text())["dataset"]["sha256"])
    kept: dict[HeldOut, str] = {}
    for name, place in spec.students.items():
        with suppress(OSError, ValueError, KeyError, TypeError):  # not one of ours
            made_of = json.loads(Path(place, TRAINED_ON).read_text())
            how = made_of["train"]
            if made_of["data"] in ids:
                kept[HeldOut(how["eval_fraction"], how["seed"], how["eval_rows"])] = name
    if len(kept) > 1:
        first, second, *_ = kept.values()
        raise SpecError(
            f"data: {first} and {second} learned from it and held out different rows",
            "train them with the same eval_fraction, eval_rows and seed, or name data that none has learned",
        )
    return next(iter(kept), None)
