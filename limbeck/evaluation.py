"""`limbeck evaluate`, and the evaluation of a job: check, judge every student, write the page."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from limbeck.columns import check_run_columns
from limbeck.spec_file import Evaluation, spec_of
from pipelines.rundir import require_folder
from schemas.errors import SpecError, refused_as_spec
from schemas.evaluation import EvaluationSpec, JobEvaluation
from schemas.job import JobSpec
from schemas.objective import Sft
from schemas.student import FromScratch, LayerCut, TrainingData, TrainingSpec
from services import cluster


def evaluate(
    spec: Evaluation, out: Path | str, *, address: str | None = None,
    watch: Callable[[int, int], None] = lambda judged, of: None, stopping: Callable[[], bool] = lambda: False,
    ready: Callable[[], None] = lambda: None,
) -> dict[str, Any]:  # fmt: skip
    """Compare students; `out`/evaluation.html and evaluation.json. Of data that some of them learned from, only rows
    that they held out. Returns what it found, by student: {"metrics": {name: [mean, low, high]}, "samples", "rows",
    "parameters"}.

    `watch` gets (students judged, of). `SpecError` before anything is loaded; `LimbeckError` where a student cannot be
    judged; `Interrupted` where `stopping` says so.
    """
    from training.comparison import compare
    from training.examples import check_data
    from training.held_out import held_out_by

    spec = spec_of(spec, EvaluationSpec)
    with refused_as_spec():
        check_data(spec.data, spec.objective)
        check_models(spec)
        held_out_by(spec)
        require_folder(Path(out))
        cluster.check_address(address)
    with cluster.connected(address):
        ready()
        return compare(spec, Path(out).absolute(), watch, stopping)


def check_models(spec: EvaluationSpec | JobEvaluation, own: TrainingSpec | None = None) -> None:
    """`SpecError` where a student or the teacher is not there or reads too little, no student speaks in the teacher's
    words, or lm-eval is asked for and not installed. `own`: how a student of the job's own is trained."""
    from training.students import check_student, check_teacher

    check_teacher(spec.teacher, spec.max_length)
    for student in [*spec.students.values(), *([] if own is None else [own.student])]:
        check_student(student, None, spec.max_length)
    told = [_other_words(student, spec.teacher) for student in spec.students.values()]
    told += [] if own is None else [_own_words(own, spec.teacher)]
    odd = [error for error in told if error is not None]
    if odd and len(odd) == len(told):
        raise odd[0]
    if spec.lm_eval and importlib.util.find_spec("lm_eval") is None:
        raise SpecError("lm_eval: the package is not installed", "pip install 'limbeck[lm-eval]'")


def _other_words(student: FromScratch | LayerCut | str, teacher: str | None) -> SpecError | None:
    """Why a student and a teacher cannot be compared token by token."""
    from training.teacher import check_comparable

    try:
        check_comparable(student, teacher)
    except SpecError as error:
        return SpecError(error.message, "leave teacher out, or name one of a student's own tokenizer")
    return None


def _own_words(train: TrainingSpec, teacher: str | None) -> SpecError | None:
    """The same of the student that a job trains: one from scratch speaks as its teacher does."""
    words = train.teacher if isinstance(train.student, FromScratch) else train.student
    if words is not None or teacher is None:
        return None if words is None else _other_words(words, teacher)
    return SpecError(
        f"evaluate.teacher: {teacher}, but a student from scratch has words of its own",
        "set train.teacher, whose tokenizer it takes, or leave evaluate.teacher out",
    )


def check_of_job(spec: JobSpec) -> None:
    """What of a job's evaluation can be wrong before anything is paid for."""
    from training.examples import check_data

    if spec.evaluate is None:
        return
    check_models(spec.evaluate, spec.train)
    data, own = spec.evaluate.data or TrainingData(), spec.train.objective if spec.train is not None else Sft()
    objective = spec.evaluate.objective if "objective" in spec.evaluate.model_fields_set else own
    if data.path is not None or data.run is not None:
        check_data(data, objective)
    else:
        check_run_columns(spec, data, objective)


def of_job(spec: JobSpec, root: Path) -> EvaluationSpec:
    """The evaluation that the job whose run is in `root` asks for."""
    assert spec.evaluate is not None
    own = None if spec.train is None else str(root / "student")
    return spec.evaluate.of(own, str(root), spec.train.objective if spec.train else Sft())


def made_of(spec: EvaluationSpec) -> dict[str, Any]:
    """What an evaluation follows from: while it is the same, so are its figures."""
    from training.data import data_digest
    from training.students import named_weights_digest

    models = [*spec.students.values(), *([spec.teacher] if spec.teacher else [])]
    told = spec.model_dump(mode="json", by_alias=True)
    return {"spec": told, "data": data_digest(spec.data), "models": named_weights_digest(models)}


def is_evaluated(spec: JobSpec, root: Path) -> bool:
    """Whether a run holds the evaluation that its spec asks for, if it asks for one."""
    if spec.evaluate is None:
        return True
    try:
        found: bool = json.loads((root / "evaluation.json").read_text())["made_of"] == made_of(of_job(spec, root))
    except (OSError, ValueError, KeyError, TypeError, SpecError):
        return False
    return found and (root / "evaluation.html").is_file()


def evaluate_job(spec: JobSpec, root: Path, watch: Callable[[], None], stopping: Callable[[], bool]) -> None:
    """Judge the students of a job, on the Ray that is connected; evaluation.html and .json are in its run."""
    from training.comparison import compare
    from training.held_out import held_out_by

    whole = of_job(spec, root)
    held_out_by(whole)
    compare(whole, root, lambda judged, of: watch(), stopping, made_of(whole))
