"""The one place that strings generation and training together."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipelines.estimate import Estimate, estimate
from pipelines.rundir import RunDirectory
from pipelines.runner import Run, Watch
from schemas.errors import LimbeckError, SpecError
from schemas.job import JobSpec
from schemas.manifest import Manifest
from schemas.student import TrainingData, TrainingSpec
from services import cluster


def run(
    spec: JobSpec, out: Path, *, address: str | None = None, workers: int = 2,
    watch: Watch = lambda manifest: None, stopping: Callable[[], bool] = lambda: False,
    ready: Callable[[], None] = lambda: None,
) -> Manifest:  # fmt: skip
    """Generate, curate, publish, and train where the spec asks for it; resumes a run that `out` holds.

    `watch` sees the manifest as it grows, `stopping` is asked whether to end early, and `ready` is called once Ray
    runs (which installs signal handlers of its own). Returns the manifest of the finished run. Raises `SpecError`
    before the first call, and afterwards `BudgetExhausted`, `LaneUnusable`, `Interrupted` or `LimbeckError`; all but
    the last can be resumed.
    """
    directory = RunDirectory(Path(out))
    this = Run(spec, directory, workers, watch, stopping)
    this.check()
    if spec.train is not None:
        _check_training(spec.train)
    if this.is_finished and (spec.train is None or (directory.student / "metrics.json").is_file()):
        return this.manifest
    cluster.check_address(address)
    with this.stage("ray"):
        cluster.connect(address)
    directory.open(spec)
    ready()
    try:
        this.generate()
        if spec.train is not None:
            _train_stage(this, spec.train)
        this.finish()
    except LimbeckError as error:
        if this.manifest.state == "running":
            this.manifest.state, this.manifest.error = "failed", error.message
            directory.save(this.manifest)
        raise
    finally:
        directory.close()
    return this.manifest


def replay(spec: JobSpec, out: Path) -> Manifest:
    """Parse, validate, curate and publish the journal of run `out` again under `spec`. Starts no Ray and pays nothing.

    Rows whose prompt the journal does not answer are rejected as `unanswered`; a later `run` asks for them.
    """
    directory = RunDirectory(Path(out))
    if directory.earlier() is None:
        raise SpecError(f"{out} is not a run directory: it has no job.yaml", "name a --out of a run")
    this = Run(spec, directory)
    this.check()
    directory.open(spec)
    try:
        this.replay()
        this.finish()
    finally:
        directory.close()
    return this.manifest


def plan(spec: JobSpec) -> Estimate:
    """Check a job and count its calls, tokens, dollars and hours, lane by lane. Starts nothing and pays nothing."""
    with tempfile.TemporaryDirectory() as nowhere:
        this = Run(spec, RunDirectory(Path(nowhere) / "run"))
        this.check(sizes=False)
        return estimate(spec, this.plan())


def _check_training(spec: TrainingSpec) -> None:
    from training.students import check_student

    check_student(spec.student)


def _train_stage(this: Run, spec: TrainingSpec) -> None:
    data = spec.data or TrainingData()
    if data.path is None and data.run is None:
        data = data.model_copy(update={"run": str(this.directory.root)})
    with this.stage("train"):
        train(
            spec.model_copy(update={"data": data}), this.directory.root,
            watch=lambda _: this.watch(this.manifest), stopping=this.stopping,
        )  # fmt: skip


def train(
    spec: TrainingSpec, out: Path, *, address: str | None = None,
    watch: Callable[[dict[str, Any]], None] = lambda metrics: None,
    stopping: Callable[[], bool] = lambda: False, ready: Callable[[], None] = lambda: None,
) -> dict[str, Any]:  # fmt: skip
    """Train a student; it and its `metrics.json` are in `out`/student. Returns the metrics."""
    from training.data import check_data
    from training.loop import fit
    from training.students import check_student

    check_student(spec.student)
    check_data(spec.data)
    cluster.check_address(address)
    cluster.connect(address)
    ready()
    return fit(spec, Path(out).absolute(), watch, stopping)
