"""One student of a comparison: everything that its evaluation spec asks for, with intervals."""

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from schemas.errors import LimbeckError, SpecError
from schemas.evaluation import EvaluationSpec
from schemas.objective import Icl, StepByStep
from schemas.student import TRAINED_ON
from training.aligned import aligned
from training.divergences import forward_kl, reverse_kl, wide
from training.evaluate import batches, responses, rouge_l
from training.examples import Pair, stream_examples
from training.held_out import asked_numbers
from training.kshot import in_context
from training.rows import TokenRow, token_rows
from training.scores import Interval, calibration_error, distinct, exact_match, interval, value_match
from training.students import Student, pretrained
from training.teacher import Teacher, load_teacher

SHOWN = 12  # responses on the page
NUMBERED = 0.5  # of the references must hold a number before values are compared
GRAMS = (1, 2, 4)


def judged(spec: EvaluationSpec, name: str) -> dict[str, Any]:
    """{"metrics": {name: [mean, low, high]}, "samples": [{"id", "prompt", "reference", "written"}], "rows",
    "parameters", "notes"} of the student `name`."""
    spec, prefix = as_taught(spec, name)
    student = pretrained(spec.students[name])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    student.model.to(device)
    pairs, rows = chosen(spec, student, prefix)
    metrics, notes = on_tokens(student, rows), []
    if spec.teacher is not None:
        try:
            teacher = load_teacher(spec.teacher, student)
            teacher.model.to(device)
            metrics |= beside_teacher(student, teacher, rows)
            del teacher
        except SpecError as error:  # others can be compared with it
            notes.append(f"no KL: {error.message}")
    written, scores = on_responses(spec, student, pairs)
    metrics |= scores | in_context(spec, student) | lm_eval(spec, student)
    shown = zip(pairs[:SHOWN], written[:SHOWN], strict=True)
    return {
        "metrics": {key: list(value) for key, value in metrics.items()}, "rows": len(rows),
        "parameters": student.model.num_parameters(), "notes": notes,
        "samples": [
            {"id": p.record, "prompt": p.prompt, "reference": p.response, "written": text} for p, text in shown
        ],
    }  # fmt: skip


def as_taught(spec: EvaluationSpec, name: str) -> tuple[EvaluationSpec, str]:
    """The spec with prompts as the student `name` read them when it learned, where it does not say how they are
    written; and the prefix of the task, by which Distilling Step-by-Step alone asks for a label."""
    own = spec.objective.predict if isinstance(spec.objective, StepByStep) else ""
    try:
        train = json.loads(Path(spec.students[name], TRAINED_ON).read_text())["train"]
        template, prefix = train["data"]["template"], train["objective"].get("predict", "")
    except (OSError, ValueError, KeyError, TypeError):  # not one of ours
        return spec, own
    if "template" in spec.data.model_fields_set:
        return spec, prefix
    return spec.model_copy(update={"data": spec.data.model_copy(update={"template": template})}), prefix


def chosen(spec: EvaluationSpec, student: Student, prefix: str = "") -> tuple[list[Pair], list[TokenRow]]:
    """What is asked, drawn by seed, with the student's own prefix, and its rows of tokens; too long prompts are left
    out, and rows that a student has learned."""
    count = sum(1 for _ in stream_examples(spec.data, spec.objective))
    numbers = asked_numbers(spec, count)
    picked = set(random.Random(spec.seed).sample(numbers, min(spec.rows, len(numbers))))
    bare = spec.objective
    if isinstance(bare, StepByStep):
        bare = bare.model_copy(update={"predict": ""})
    asked = [example[0] for n, example in enumerate(stream_examples(spec.data, bare)) if n in picked]
    asked = [replace(pair, prompt=prefix + pair.prompt) for pair in asked]
    episodes = isinstance(spec.objective, Icl)
    found: list[tuple[Pair, TokenRow]] = []
    for pair in asked:
        one, _ = token_rows(
            [pair], student.tokenizer, spec.max_length, spec.data.template, student.seq2seq, cut_prompts=episodes
        )
        found += [(pair, row) for row in one]
    if not found:
        raise LimbeckError(f"no prompt is shorter than max_length {spec.max_length}", "raise max_length")
    return [pair for pair, _ in found], [row for _, row in found]


def on_tokens(student: Student, rows: Sequence[TokenRow]) -> dict[str, Interval]:
    """`loss`, nats a response token; `token_accuracy`; `calibration_error` of the next token, teacher-forced."""
    student.model.eval()
    losses: list[float] = []
    counts: list[float] = []
    right: list[float] = []
    sure: list[float] = []
    hits: list[bool] = []
    owners: list[int] = []
    with torch.inference_mode():
        for batch in batches(student, rows):
            seen = aligned(student.model, batch)
            loss = cross_entropy(wide(seen.logits), seen.targets, reduction="none")
            best = wide(seen.logits).softmax(-1).max(-1)
            hit = best.indices == seen.targets
            owners += (seen.owners + len(losses)).tolist()
            losses += _by_row(loss, seen.owners, batch)
            counts += _by_row(torch.ones_like(loss), seen.owners, batch)
            right += _by_row(hit.to(loss), seen.owners, batch)
            sure += best.values.tolist()
            hits += hit.tolist()
    return {
        "loss": interval(losses, counts), "token_accuracy": interval(right, counts),
        "calibration_error": calibration_error(sure, hits, owners),
    }  # fmt: skip


def _by_row(values: torch.Tensor, owners: torch.Tensor, batch: dict[str, torch.Tensor]) -> list[float]:
    sums = values.new_zeros(len(batch["tasks"])).index_add_(0, owners, values)
    found: list[float] = sums.tolist()
    return found


def beside_teacher(student: Student, teacher: Teacher, rows: Sequence[TokenRow]) -> dict[str, Interval]:
    """Forward and reverse KL, nats a response token."""
    student.model.eval()
    forward: list[float] = []
    reverse: list[float] = []
    counts: list[float] = []
    with torch.inference_mode():
        for batch in batches(student, rows):
            ours, theirs = aligned(student.model, batch).cut(teacher.vocabulary), teacher(batch).logits
            forward += _by_row(forward_kl(theirs, ours.logits), ours.owners, batch)
            reverse += _by_row(reverse_kl(theirs, ours.logits), ours.owners, batch)
            counts += _by_row(torch.ones_like(ours.targets, dtype=torch.float32), ours.owners, batch)
    return {"forward_kl": interval(forward, counts), "reverse_kl": interval(reverse, counts)}


def on_responses(
    spec: EvaluationSpec, student: Student, pairs: Sequence[Pair]
) -> tuple[list[str], dict[str, Interval]]:
    """(greedy responses, ROUGE-L, exact match, value match, distinct-n, and ROUGE-L of sampled ones)."""
    references = [pair.response for pair in pairs]

    def write(seed: int | None = None) -> list[str]:
        episodes = isinstance(spec.objective, Icl)
        return responses(student, pairs, spec.data.template, spec.max_length, spec.max_new_tokens, seed, episodes)

    written = write()
    found = {
        "rouge_l": interval(rouge_l(written, references)),
        "exact_match": interval([exact_match(w, r) for w, r in zip(written, references, strict=True)]),
    }
    values = [v for w, r in zip(written, references, strict=True) if (v := value_match(w, r)) is not None]
    if len(values) >= NUMBERED * len(pairs):
        found["value_match"] = interval(values)
    found |= {f"distinct_{n}": distinct(written, n) for n in GRAMS}
    if spec.seeds:
        # A row's score is its mean over the seeds, so the interval is one over rows.
        sampled = [rouge_l(write(seed), references) for seed in spec.seeds]
        found["rouge_l_sampled"] = interval([sum(scores) / len(scores) for scores in zip(*sampled, strict=True)])
    return written, found


def lm_eval(spec: EvaluationSpec, student: Student) -> dict[str, Interval]:
    """Tasks of EleutherAI's harness, with its own standard errors. `LimbeckError` where it does not know a task."""
    if not spec.lm_eval:
        return {}
    try:
        import lm_eval as harness
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise LimbeckError("lm_eval: the package is not installed", "pip install 'limbeck[lm-eval]'") from None
    known = TaskManager(include_path=spec.lm_eval_tasks)
    if odd := [task for task in spec.lm_eval if task not in known.all_tasks]:
        raise LimbeckError(f"lm_eval: it knows no task {odd[0]!r}", "lm-eval ls tasks shows them all")
    backend = "seq2seq" if student.seq2seq else "causal"
    wrapped = HFLM(pretrained=student.model, tokenizer=student.tokenizer, backend=backend)
    scores = harness.simple_evaluate(model=wrapped, tasks=list(spec.lm_eval), task_manager=known)["results"]
    return {f"{task}: {key.partition(',')[0]}": _with_error(found, key) for task, found in scores.items()
            for key in found if key.startswith(("acc,", "acc_norm,", "exact_match,"))}  # fmt: skip


def _with_error(found: dict[str, Any], key: str) -> Interval:
    metric, _, how = key.partition(",")
    error = found.get(f"{metric}_stderr,{how}")
    half = 1.96 * error if isinstance(error, float) else 0.0
    return Interval(float(found[key]), float(found[key]) - half, float(found[key]) + half)
