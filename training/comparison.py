"""Several students side by side: Ray tasks that judge them, and the page that shows it."""

import hashlib
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from schemas.errors import Interrupted, LimbeckError
from schemas.evaluation import EvaluationSpec
from training.data import data_digest
from training.held_out import held_out_by
from training.loop import outcome_of
from training.students import named_weights_digest

POLL_S = 0.5
JUDGED = ".judged"  # a folder beside the page
TEXT = 1_500  # characters of a text that the page shows
LESS_IS_BETTER = ("loss", "forward_kl", "reverse_kl", "calibration_error", "option_calibration_error")
TITLES = {
    "loss": ("Loss", "nats a response token; less is better"),
    "token_accuracy": ("Next token", "share of response tokens whose likeliest guess is right"),
    "calibration_error": ("Calibration error", "of the next token, 10 bins; less is better"),
    "forward_kl": ("Forward KL", "teacher to student, nats a token; less is better"),
    "reverse_kl": ("Reverse KL", "student to teacher, nats a token; less is better"),
    "rouge_l": ("ROUGE-L", "greedy responses against the references; words of any script"),
    "rouge_l_sampled": ("ROUGE-L, sampled", "temperature 1, mean over the seeds"),
    "exact_match": ("Exact match", "greedy, case and outer punctuation apart"),
    "value_match": ("Equal value", "the last number or expression of both"),
    "accuracy": ("In-context accuracy", "options ranked by log-probability a token"),
    "macro_f1": ("In-context macro-F1", "mean over labels, and over tasks"),
    "option_calibration_error": ("Calibration error of options", "less is better"),
}


def compare(
    spec: EvaluationSpec, out: Path, watch: Callable[[int, int], None], stopping: Callable[[], bool],
    made_of: dict[str, Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Judge every student on the Ray cluster that is connected, a task each; `out`/evaluation.json and .html.

    `made_of` is written beside what was found, for whoever asks later whether it still holds. `watch` gets (judged,
    of). Raises `LimbeckError` where a student cannot be judged, `Interrupted` where asked to.
    """
    import ray

    share: dict[str, Any] = {"num_cpus": 1, "max_retries": 1}
    if ray.cluster_resources().get("GPU"):
        share["num_gpus"] = 1
    task = ray.remote(**share)(_judge)
    told = spec.model_dump(mode="json", by_alias=True, exclude_unset=True)
    kept = _kept(spec, out / JUDGED)
    found = {name: json.loads(place.read_text()) for name, place in kept.items() if place.is_file()}
    asked = {task.remote(told, name): name for name in spec.students if name not in found}
    try:
        while waiting := [ref for ref, name in asked.items() if name not in found]:
            done, _ = ray.wait(waiting, timeout=POLL_S)
            for ref in done:
                try:
                    found[asked[ref]] = outcome_of(ref)
                    new = kept[asked[ref]].with_suffix(".new")
                    new.write_text(json.dumps(found[asked[ref]]))
                    new.replace(kept[asked[ref]])
                except LimbeckError as error:
                    raise type(error)(f"{asked[ref]}: {error.message}", error.hint) from None
                watch(len(found), len(spec.students))
            if stopping():
                raise Interrupted("interrupted while students were judged", "run the same command again")
    finally:
        for ref, name in asked.items():
            if name not in found:
                ray.cancel(ref, force=True)
    ordered = {name: found[name] for name in spec.students}
    _write(spec, ordered, out, made_of)
    shutil.rmtree(out / JUDGED)
    return ordered


def _kept(spec: EvaluationSpec, folder: Path) -> dict[str, Path]:
    """Where each student's figures are kept until all are judged; whoever is judged just so again has them already."""
    folder.mkdir(parents=True, exist_ok=True)
    how = spec.model_dump(mode="json", by_alias=True, exclude={"students"})
    shared = [how, data_digest(spec.data), held_out_by(spec)]
    ways = {
        name: [*shared, path, named_weights_digest([path, *([spec.teacher] if spec.teacher else [])])]
        for name, path in spec.students.items()
    }
    return {n: folder / f"{hashlib.sha256(json.dumps(way).encode()).hexdigest()[:32]}.json" for n, way in ways.items()}


def _judge(spec: dict[str, Any], name: str) -> dict[str, Any]:
    import transformers

    from training.compare import judged
    from training.loop import use_assigned_cores

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    use_assigned_cores()
    return judged(EvaluationSpec.model_validate(spec), name)


def _write(spec: EvaluationSpec, found: dict[str, dict[str, Any]], out: Path, made_of: dict[str, Any] | None) -> None:
    out.mkdir(parents=True, exist_ok=True)
    whole = {"spec": spec.model_dump(mode="json", by_alias=True), "made_of": made_of, "students": found}
    (out / "evaluation.json").write_text(json.dumps(whole, indent=2, ensure_ascii=False) + "\n")
    (out / "evaluation.html").write_text(page(spec, found))


def page(spec: EvaluationSpec, found: dict[str, dict[str, Any]]) -> str:
    """The comparison as one self-contained page. Every text of a model is escaped."""
    import jinja2

    place = jinja2.FileSystemLoader(Path(__file__).parent)
    template = jinja2.Environment(loader=place, autoescape=True).get_template("evaluation.html.j2")
    students = [
        {"name": name, "path": spec.students[name], **{key: one[key] for key in ("parameters", "rows", "notes")}}
        for name, one in found.items()
    ]
    first = next(iter(found.values()))
    names = list(dict.fromkeys(name for one in found.values() for name in one["metrics"]))
    asked = [
        {"prompt": s["prompt"][:TEXT], "reference": s["reference"][:TEXT],
         "written": [_written(one, s["id"]) for one in found.values()]}
        for s in first["samples"]
    ]  # fmt: skip
    return template.render(
        students=students, rows=max(one["rows"] for one in found.values()), data=spec.data.path or spec.data.run,
        held_out=held_out_by(spec) is not None, teacher=spec.teacher, samples=asked,
        metrics=[_bars(name, found) for name in names],
    )  # fmt: skip


def _written(one: dict[str, Any], row: str) -> str:
    """What a student wrote to a row, whose prompt each reads in its own form; another's tokenizer may have left other
    rows out."""
    texts = (s["written"] for s in one["samples"] if s["id"] == row)
    return str(next(texts, "(too long for it)"))[:TEXT]


def _bars(name: str, found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    values = {student: one["metrics"][name] for student, one in found.items() if name in one["metrics"]}
    finite = [x for value in values.values() for x in value if math.isfinite(x)]
    top = max([*finite, 1e-12])
    means = [mean for mean, _, _ in values.values() if math.isfinite(mean)]
    best = (min if name in LESS_IS_BETTER else max)(means, default=None)
    title, note = TITLES.get(name, (name.replace("_", "-") if name.startswith("distinct") else name, _note(name)))
    bars = []
    for student, (mean, low, high) in values.items():
        shown = f"{mean:.3f}" + (f"  [{low:.3f}, {high:.3f}]" if low != high else "")
        width, left, right = (round(100 * max(0.0, x) / top, 2) if math.isfinite(x) else 0 for x in (mean, low, high))
        bars.append({"name": student, "shown": shown, "width": width, "low": left, "high": right,
                     "best": len(set(means)) > 1 and mean == best})  # fmt: skip
    return {"title": title, "note": note, "bars": bars}


def _note(name: str) -> str:
    return "different n-grams of words among all that is written" if name.startswith("distinct") else "lm-eval"
