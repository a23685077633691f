"""The one place that strings generation, training and evaluation together."""

import functools
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from limbeck.columns import check_run_columns
from limbeck.evaluation import check_of_job, evaluate_job, is_evaluated
from limbeck.spec_file import Job, Training, spec_of
from pipelines.estimate import Estimate, estimate
from pipelines.rundir import WRITING, RunDirectory, differences, locked, require_folder
from pipelines.runner import Run, Watch
from schemas.errors import UNFORESEEN, Interrupted, LimbeckError, SpecError, refused_as_spec
from schemas.job import JobSpec
from schemas.manifest import Manifest
from schemas.student import FINE_TUNED, TRAINED_ON, Role, TrainingData, TrainingSpec, advice, fine_tuning
from services import cluster
from services.journal.lease import sole
from services.teachers.credentials import key_variables

FEW_STEPS = 10  # of which a student can have learned little


def run(
    spec: Job, out: Path | str, *, address: str | None = None, workers: int = 2,
    watch: Watch = lambda manifest: None, stopping: Callable[[], bool] = lambda: False,
    ready: Callable[[], None] = lambda: None, retry_failed: bool = False,
) -> Manifest:  # fmt: skip
    """Generate, curate, publish, and train where the spec asks for it; resumes a run that `out` holds. What a teacher
    could not answer in an earlier start is left as it is, unless `retry_failed`.

    `watch` sees the manifest as it grows, `stopping` is asked whether to end early, and `ready` is called once Ray
    runs (which installs signal handlers of its own). Returns the manifest of the finished run. Raises `SpecError`
    before the first call, and afterwards `BudgetExhausted`, `LaneUnusable`, `Interrupted` or `LimbeckError`; all but
    the last can be resumed.
    """
    spec, directory = spec_of(spec, JobSpec), RunDirectory(Path(out))
    if workers < 1:
        raise SpecError(f"workers: {workers} is none", "give 1 or more")
    this = Run(spec, directory, workers, watch, stopping, retry_failed)
    with refused_as_spec():
        this.check(student=0 if spec.train is None else _student_bytes(spec.train))
        if spec.train is not None:
            _check_training(spec, spec.train, this.most_rows)
        check_of_job(spec)
    trained = spec.train is None or _is_trained(this, spec.train)
    if this.is_finished and trained and is_evaluated(spec, directory.root) and not retry_failed:
        this.manifest.notes.append("this run had finished before: nothing was asked, and nothing was changed")
        watch(this.manifest)
        return this.manifest
    cluster.check_address(address)
    with ExitStack() as held:
        with this.stage("ray"):
            held.enter_context(cluster.connected(address, key_variables(spec.teachers)))
        if spec.train is not None:
            from training.loop import check_workers

            check_workers(spec.train)
        directory.open(spec, this.started())
        ready()
        with _recorded(this):
            _work(this, spec, stopping)
    return this.manifest


def _work(this: Run, spec: JobSpec, stopping: Callable[[], bool]) -> None:
    _generate(this, stopping)
    if spec.train is not None and not _is_trained(this, spec.train):
        _train_stage(this, spec.train)
    if not is_evaluated(spec, this.directory.root):
        with this.stage("evaluate"):
            evaluate_job(spec, this.directory.root, lambda: this.watch(this.manifest), stopping)
    this.finish()


def _generate(this: Run, stopping: Callable[[], bool]) -> None:
    """Alone on the journal: what another run pays for meanwhile, this one would not know of."""
    with ExitStack() as held:
        with this.stage("journal") if this.journal.store else nullcontext():
            lease = held.enter_context(sole(this.journal, this.spec.name, stopping))
        this.stopping = lambda: stopping() or (lease is not None and lease.is_lost)
        try:
            this.generate()
        except Interrupted:
            if lease is None or not lease.is_lost:
                raise
            this.started()  # and so `_recorded` writes it as the failure that it is
            raise LimbeckError(
                f"another run has taken over the journal {this.journal.store} while this one did not reach it",
                "wait for it to end, then run the same command again",
            ) from None


@contextmanager
def _recorded(this: Run) -> Iterator[None]:
    """Whatever ends a run that is under way is written to its manifest; the directory is let go."""
    try:
        yield
    except SpecError as error:
        this.fail(error)
        if this.has_asked:  # found too late to be told by status 2
            raise LimbeckError(error.message, error.hint) from None
        raise
    except LimbeckError as error:
        this.fail(error)
        raise
    except UNFORESEEN as error:
        with suppress(*UNFORESEEN):
            this.settle()
        this.fail(LimbeckError(f"{type(error).__name__}: {error}"))
        raise
    finally:
        this.directory.close()


def note_interrupted(out: Path) -> None:
    """Write down that a run has ended whose process leaves at once. Nothing is written after it."""
    WRITING.acquire()
    directory = RunDirectory(out)
    if (manifest := directory.manifest()) is not None and manifest.state == "running":
        manifest.state, manifest.error = "interrupted", "interrupted"
        directory.save(manifest)


def replay(spec: Job, out: Path | str) -> Manifest:
    """Parse, validate, curate and publish the journal of run `out` again under `spec`. Starts no Ray and pays nothing.

    Rows whose prompt the journal does not answer are rejected as `unanswered`; a later `run` asks for them.
    """
    spec, directory = spec_of(spec, JobSpec), RunDirectory(Path(out))
    this = Run(spec, directory)
    with refused_as_spec():
        if directory.earlier() is None:
            raise SpecError(f"{out} is not a run directory: it has no job.yaml", "name a --out of a run")
        this.check(asks=False)
    directory.open(spec, this.started())
    with _recorded(this):
        this.replay()
        if directory.has_student_of_other_rows(this.manifest.dataset.sha256):
            this.manifest.notes.append("student/ learned from rows as they were before; limbeck run trains it anew")
        this.finish()
    return this.manifest


def plan(spec: Job) -> Estimate:
    """Check a job and count its calls, tokens, dollars and hours, lane by lane. Starts nothing and pays nothing."""
    spec = spec_of(spec, JobSpec)
    with tempfile.TemporaryDirectory() as nowhere:
        this = Run(spec, RunDirectory(Path(nowhere) / "run"))
        with refused_as_spec():
            this.check(sizes=False)
            if spec.train is not None:
                _check_training(spec, spec.train, this.most_rows)
            check_of_job(spec)
            return estimate(spec, this.plan())


def _student_bytes(spec: TrainingSpec) -> int:
    from training.students import bytes_on_disk

    tuned = bytes_on_disk(spec.teacher) if spec.teacher and spec.fine_tune_teacher is not None else 0
    return bytes_on_disk(spec.student) * (1 if spec.fine_tune_first is None else 2) + tuned


def _check_models(spec: TrainingSpec) -> None:
    """`SpecError` where the student or its teacher is not there, or they do not go together."""
    from training.students import check_student, check_teacher
    from training.teacher import check_comparable

    check_student(spec.student, spec.data, spec.max_length)
    check_teacher(spec.teacher, spec.max_length)
    check_comparable(spec.student, spec.teacher)


def _check_training(job: JobSpec, spec: TrainingSpec, rows: int) -> None:
    """What of a job's training can be wrong before anything is paid for."""
    from training.examples import check_data

    _check_models(spec)
    data = spec.data or TrainingData()
    if data.path is not None or data.run is not None:
        check_data(data, spec.objective)
        return
    if rows < 2:
        raise SpecError(f"train: {rows} rows", "a student needs at least one to learn and one held out")
    check_run_columns(job, data, spec.objective)


def _trained_on(this: Run, spec: TrainingSpec) -> dict[str, Any]:
    """What a run's student is made of: while it is the same, so is the student."""
    if spec.data is not None and (spec.data.path is not None or spec.data.run is not None):
        return origin_of(spec)
    return {"data": this.manifest.dataset.sha256, **_learns_how(spec)}


def _is_trained(this: Run, spec: TrainingSpec) -> bool:
    return _metrics_of(this.directory.student, _trained_on(this, spec)) is not None


def _metrics_of(student: Path, made_of: dict[str, Any]) -> dict[str, Any] | None:
    """The metrics of a student that is made of just this; None where there is no such one."""
    try:
        found = json.loads((student / TRAINED_ON).read_text())
        metrics: dict[str, Any] = json.loads((student / "metrics.json").read_text())
    except (OSError, ValueError):
        return None
    return metrics if found == made_of and any(student.glob("*.safetensors")) else None


def _train_stage(this: Run, spec: TrainingSpec) -> None:
    from training.loop import TRAINER

    data = spec.data or TrainingData()
    if data.path is None and data.run is None:
        _require_rows(this)
        data = data.model_copy(update={"run": str(this.directory.root)})
    made_of = _trained_on(this, spec)
    if changed := _unfinished(this.directory.work / TRAINER, made_of):
        # Not refused as by `train`: this folder also holds data that was paid for.
        this.manifest.notes.append(f"an unfinished training of another spec was dropped ({'; '.join(changed[:3])})")
    with this.stage("train"):
        metrics = train(
            spec.model_copy(update={"data": data}), this.directory.root,
            watch=lambda _: this.watch(this.manifest), stopping=this.stopping, made_of=made_of, keeps=False,
        )  # fmt: skip
    for said in filter(None, (advice(spec), *remarks(metrics))):
        this.warn(said)


def remarks(metrics: dict[str, Any]) -> list[str]:
    """What a student's metrics say that its user should know of."""
    found = []
    if metrics["steps"] < FEW_STEPS:
        rows = metrics["rows_train"]
        found.append(f"the student took {metrics['steps']} steps on {rows} rows: few to learn much from")
    if "steps_planned" in metrics:
        planned = metrics["steps_planned"]
        found.append(f"ended at step {metrics['steps']} of {planned}: the held-out loss fell no more (patience)")
    if metrics["rows_too_long"]:
        found.append(f"{metrics['rows_too_long']} rows took no part: their prompts alone fill max_length")
    if metrics["rows_cut"]:
        found.append(f"{metrics['rows_cut']} rows were cut to max_length")
    when = "fine_tuned" if "loss_fine_tuned" in metrics else "before"
    if not metrics["loss_after_low"] <= metrics[f"loss_{when}_high"]:  # nor is a loss that is no number
        before, after = metrics[f"loss_{when}"], metrics["loss_after"]
        why = "learning_rate is too high, or there are too many epochs"
        why += ", or a teacher that was not fine-tuned leads away" if "forward_kl_after" in metrics else ""
        found.append(f"the loss on responses that were held out rose from {before:.2f} to {after:.2f}: {why}")
    if metrics["token_accuracy_after_high"] < metrics[f"token_accuracy_{when}_low"]:
        found.append("the student foretells fewer tokens than before: learning_rate is too high, most often")
    return found


def _require_rows(this: Run) -> None:
    """`LimbeckError` where the run kept too few rows for a student, and what became of the others."""
    rows = this.manifest.rows
    if rows.accepted < 2:
        lost = ", ".join(f"{reason} {count:,}" for reason, count in rows.rejected.items())
        raise LimbeckError(
            f"train: {rows.accepted} rows were accepted, a student needs at least one to learn and one held out",
            f"rejected/ and report.html show the others as they came ({lost})",
        )


def trained(spec: TrainingSpec, out: Path) -> dict[str, Any] | None:
    """The metrics of the student in `out` where it was made by this very spec from data that is the same."""
    with refused_as_spec():
        return _metrics_of(Path(out) / "student", origin_of(spec))


def origin_of(spec: TrainingSpec) -> dict[str, Any]:
    """What a student is made of: while it is the same, so is the student."""
    from training.data import data_digest

    return {"data": data_digest(spec.data or TrainingData()), **_learns_how(spec)}


def _learns_how(spec: TrainingSpec) -> dict[str, Any]:
    from training.students import weights_digest

    return {"models": weights_digest(spec), "train": spec.model_dump(mode="json", by_alias=True)}


def _unfinished(place: Path, made_of: dict[str, Any]) -> list[str]:
    """How the training whose checkpoints are in `place` differs from one that is made of this. Without a checkpoint
    there is nothing to lose."""
    return _differs(place / "made_of.json", made_of) if any(place.glob("checkpoint-*")) else []


def _differs(kept: Path, made_of: dict[str, Any]) -> list[str]:
    """How what a training was made of, as the file `kept` says, differs from this; nothing where there is no file,
    and an unreadable one is another's."""
    try:
        earlier = json.loads(kept.read_text())
        ways = [{**one["train"], "checkpoints": None} for one in (earlier, made_of)]
        changed = differences(*ways, "train")
        changed += ["the weights of student or teacher are others"] if earlier["models"] != made_of["models"] else []
        return changed + (["the rows of the data are others"] if earlier["data"] != made_of["data"] else [])
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError):
        return [f"{kept} cannot be read"]


def _require_no_other(student: Path, made_of: dict[str, Any]) -> None:
    """`SpecError` where a student of another spec, or something else, would be replaced."""
    if not student.exists():
        return
    if not (student / TRAINED_ON).is_file():
        raise SpecError(f"{student} is there and no student of ours", "choose another --out; nothing was touched")
    if changed := _differs(student / TRAINED_ON, made_of):
        raise SpecError(
            f"{student} was made by another spec: {'; '.join(changed[:3])}",
            "choose another --out, or remove that folder; nothing was touched",
        )


def _claim(place: Path, made_of: dict[str, Any]) -> None:
    """Make sure that checkpoints in `place` are of a training that is made of just this: others are dropped."""
    kept = place / "made_of.json"
    if kept.is_file() and not _differs(kept, made_of):
        return
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    kept.write_text(json.dumps(made_of) + "\n")


def train(
    spec: Training, out: Path | str, *, address: str | None = None,
    watch: Callable[[dict[str, Any]], None] = lambda metrics: None,
    stopping: Callable[[], bool] = lambda: False, ready: Callable[[], None] = lambda: None,
    made_of: dict[str, Any] | None = None, keeps: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """Train a student; it and its `metrics.json` are in `out`/student. Returns the metrics.

    An unfinished training in `out` goes on; one of another spec is a `SpecError` where `keeps`, else it is dropped.
    What `fine_tune_teacher` and `fine_tune_first` make is in `out`/fine_tuned_teacher and `out`/fine_tuned.

    `made_of` says what of, for whoever asks later whether it has to be trained again: by default spec and data files.
    """
    from training.examples import check_data
    from training.loop import TRAINER, check_workers, crowded, fit, last_step, publish
    from training.signals import check_cache

    spec = spec_of(spec, TrainingSpec)
    with refused_as_spec():
        _check_models(spec)
        check_data(spec.data, spec.objective)
        check_cache(spec, knows_teacher=spec.fine_tune_teacher is None)
        made_of, built = made_of or origin_of(spec), Path(out).absolute() / ".work" / "student"
        if keeps:
            _require_no_other(Path(out) / "student", made_of)
        require_folder(Path(out))
    with locked(Path(out).absolute() / ".train.lock"):
        if _metrics_of(built, made_of) is not None:  # killed before it was put in its place
            return publish(built, Path(out).absolute() / "student")
        place = Path(out).absolute() / ".work" / TRAINER
        if keeps and (changed := _unfinished(place, made_of)):
            raise SpecError(
                f"{place} holds an unfinished training of another spec: {'; '.join(changed[:3])}",
                "go on as it was, choose another --out, or remove that folder to begin anew",
            )
        _claim(place, made_of)
        cluster.check_address(address)
        with cluster.connected(address):
            ready()
            check_workers(spec)
            if (cores := crowded(spec.workers)) is not None:
                watch({"crowded": (spec.workers, cores)})
            if (step := last_step(place)) is not None:
                watch({"going_on_from": step})
            spec = _fine_tuned(spec, Path(out).absolute(), watch, stopping)
            return fit(spec, Path(out).absolute(), made_of, watch, stopping, outlives_us=not cluster.is_own())


def _fine_tuned(
    spec: TrainingSpec, out: Path, watch: Callable[[dict[str, Any]], None], stopping: Callable[[], bool]
) -> TrainingSpec:
    """The spec with the teacher and the student that `fine_tune_teacher` and `fine_tune_first` make below `out`, where
    it asks for them."""
    from training.signals import check_cache

    for role, folder in FINE_TUNED.items():
        if (first := fine_tuning(spec, role)) is None:
            continue
        place = out / folder
        if trained(first, place) is None:
            for later in (out, out / FINE_TUNED["student"]):  # what an earlier training of these said of itself
                (later / ".work" / "train-progress.json").unlink(missing_ok=True)
            tell = functools.partial(_first, role, watch)
            train(first, place, watch=tell, stopping=stopping, keeps=False)
        spec = spec.model_copy(update={role: str(place / "student")})
    check_cache(spec)
    return spec


def _first(role: Role, watch: Callable[[dict[str, Any]], None], now: dict[str, Any]) -> None:
    watch({"first": role, **now})
