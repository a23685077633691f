"""`limbeck evaluate`: check, judge every student, write the page."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from schemas.errors import SpecError, refused_as_spec
from schemas.evaluation import EvaluationSpec
from services import cluster


def evaluate(
    spec: EvaluationSpec, out: Path, *, address: str | None = None,
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
    from training.students import check_student, check_teacher

    with refused_as_spec():
        check_data(spec.data, spec.objective)
        for student in spec.students.values():
            check_student(student, None)
        check_teacher(spec.teacher)
        held_out_by(spec)
        if Path(out).exists() and not Path(out).is_dir():
            raise SpecError(f"--out {out}: it is a file", "name a folder")
        cluster.check_address(address)
    cluster.connect(address)
    ready()
    return compare(spec, Path(out).absolute(), watch, stopping)
