"""In-context accuracy: which option a student finds likeliest after some demonstrations."""

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from schemas.errors import LimbeckError
from schemas.evaluation import EvaluationSpec, KShot
from schemas.objective import Icl
from schemas.student import TrainingData
from training.aligned import aligned
from training.data import mapped_rows
from training.divergences import wide
from training.evaluate import batches
from training.examples import Pair, episode_prompt
from training.held_out import asked_numbers
from training.rows import token_rows
from training.scores import Interval, calibration_error, interval, macro_f1, vote
from training.students import Student


def in_context(spec: EvaluationSpec, student: Student) -> dict[str, Interval]:
    """`accuracy`, `macro_f1` and `option_calibration_error` of rows with options; {} where the objective has none.

    Options are ranked by their mean log-probability a token, as MetaICL does. With `k_shot`, k demonstrations are drawn
    several times and the answers vote; else each row's own demonstrations stand before it. Of data that a student
    learned from only what it held out is asked, but any other row may be shown.
    """
    if not isinstance(spec.objective, Icl):
        return {}
    rows = [row for _, row in mapped_rows(spec.data, ("input", "output"), ("id", "demonstrations", "options", "task"))]
    asked_of = [rows[number] for number in asked_numbers(spec, len(rows)) if rows[number].get("options")]
    if not asked_of:
        return {}
    rng = random.Random(spec.seed)
    queries = rng.sample(asked_of, min(spec.rows, len(asked_of)))
    pool = _pool(spec.k_shot, rows)
    answers, sure = [], []
    for query in queries:
        asked = _with_demonstrations(query, spec.k_shot, pool, rng)
        ballots = [_ranked(spec, student, one, query["options"]) for one in asked]
        answers.append(vote([option for option, _ in ballots]))
        sure.append(sum(chance for option, chance in ballots if option == answers[-1]) / len(ballots))
    right = [str(query["output"]) for query in queries]
    tasks = [str(query.get("task", "")) for query in queries]
    hits = [a == r for a, r in zip(answers, right, strict=True)]
    return {
        "accuracy": interval([float(hit) for hit in hits]), "macro_f1": macro_f1(answers, right, tasks),
        "option_calibration_error": calibration_error(sure, hits),
    }  # fmt: skip


def _pool(spec: KShot | None, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    if spec is None or spec.pool is None:
        return list(rows)
    return [row for _, row in mapped_rows(TrainingData(path=spec.pool), ("input", "output"), ("task",))]


def _with_demonstrations(
    query: dict[str, Any], spec: KShot | None, pool: Sequence[dict[str, Any]], rng: random.Random
) -> list[dict[str, Any]]:
    """The query behind each draw of demonstrations, of its own task and never its own input."""
    if spec is None:
        return [query]
    others = [row for row in pool if row["input"] != query["input"] and row.get("task") == query.get("task")]
    if len(others) < spec.k:
        raise LimbeckError(f"k_shot.k: {spec.k}, a query has {len(others)} others to draw from", "lower k, or add rows")
    return [{**query, "demonstrations": rng.sample(others, spec.k)} for _ in range(spec.draws if spec.k else 1)]


def _ranked(spec: EvaluationSpec, student: Student, row: dict[str, Any], options: Sequence[str]) -> tuple[str, float]:
    """(the likeliest option, its share of all options' likelihoods)."""
    assert isinstance(spec.objective, Icl)
    prompt = episode_prompt(row, spec.objective.delimiter)
    pairs = [Pair(prompt, str(option)) for option in options]
    rows, _ = token_rows(pairs, student.tokenizer, spec.max_length, None, student.seq2seq, cut_prompts=True)
    means: list[float] = []
    with torch.inference_mode():
        for batch in batches(student, rows):
            seen = aligned(student.model, batch)
            loss = cross_entropy(wide(seen.logits), seen.targets, reduction="none")
            zeros = loss.new_zeros(len(batch["tasks"]))
            counts = zeros.clone().index_add_(0, seen.owners, torch.ones_like(loss))
            means += (-zeros.index_add_(0, seen.owners, loss) / counts.clamp(min=1)).tolist()
    chances = torch.tensor(means).softmax(0)
    best = int(chances.argmax())
    return str(options[best]), float(chances[best])
