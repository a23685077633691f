"""Train a student: `transformers.Trainer` inside Ray Train's `TorchTrainer`, on response tokens, measured both ends."""

import concurrent.futures
import contextlib
import errno
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from schemas.errors import Interrupted, LimbeckError, SpecError, raised_there
from schemas.student import TRAINED_ON, TrainingSpec

POLL_S = 0.5
INTERRUPTED = "interrupted while the student was trained", "run the same command to go on"
TRAINER = "trainer"  # where a training's checkpoints are, below its working directory
ROWS = "rows"  # its data in tokens, below that
WHOLE = "whole"  # in a checkpoint that every worker has written its part of: a file that says what it took
# On a Ray that ends with this process nobody scrapes metrics or takes machines back; an actor for each of these cost
# 1.5 s CPU.
OWN_RAY = {"RAY_TRAIN_METRICS_ENABLED": "0", "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}
# Ray Train's loop runs in a thread of its own, whose memory glibc gives back and takes again all the time: 2.0 million
# page faults in 8 steps of a 42 M student on two cores against 0.4 with these, 5.1 s of kernel time against 1.8 in 58.
ALLOCATION = dict.fromkeys(("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"), "1000000000")
ALLOCATION["MALLOC_ARENA_MAX"] = "1"
START_TIMEOUT_S = "180"  # a worker imports torch and transformers first: 10 to 20 s here, with every core busy
# Where fewer workers do: for some seconds after a machine is lost Ray still counts on it, and waits this long in vain.
ELASTIC_TIMEOUT_S = "60"


def fit(
    spec: TrainingSpec, out: Path, made_of: dict[str, Any], watch: Callable[[dict[str, Any]], None],
    stopping: Callable[[], bool], outlives_us: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """Train on the Ray cluster that is connected. `out`/student is replaced whole at the end; returns its metrics.
    `made_of` is written beside them.

    `outlives_us`: whether that cluster goes on after this process, and so needs what it holds to be cleaned up.
    """
    for name, value in ({} if outlives_us else OWN_RAY).items():
        os.environ.setdefault(name, value)
    patience = START_TIMEOUT_S if spec.min_workers is None else ELASTIC_TIMEOUT_S
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", patience)
    import ray.train

    from training.signals import cache_of, capture

    work = out / ".work"
    work.mkdir(parents=True, exist_ok=True)
    for stale in ("train-stop", "train-progress.json", "train-error.json"):
        (work / stale).unlink(missing_ok=True)
    shutil.rmtree(work / "student", ignore_errors=True)
    if cache_of(spec) is not None and not capture(spec, work / TRAINER / ROWS, watch, stopping):
        raise Interrupted("interrupted while the teacher was written down", "run the same command to go on")
    trainer = _trainer_class(outlives_us)(
        train_worker,
        train_loop_config={"spec": spec.model_dump(mode="json", by_alias=True), "work": str(work)},
        scaling_config=_scaling(spec.workers, spec.min_workers),
        run_config=ray.train.RunConfig(
            name=f"student-{time.time_ns()}", storage_path=str(work / "ray_train"),
            failure_config=ray.train.FailureConfig(max_failures=spec.checkpoints.restarts),
            worker_runtime_env={"env_vars": ALLOCATION},
        ),
    )  # fmt: skip
    try:
        _fitted(trainer, work, watch, stopping)
    except (ray.train.TrainingFailedError, ray.exceptions.RayError) as error:
        if stopping() and _own_error(work) is None:  # as where a signal reached Ray's processes, too
            raise Interrupted(*INTERRUPTED) from None
        raise (_failure(work, error) if isinstance(error, ray.train.TrainingFailedError) else _lost(error)) from None
    finally:
        shutil.rmtree(work / "ray_train", ignore_errors=True)
    if (error := _own_error(work)) is not None:
        raise error
    if not (work / "student" / "metrics.json").is_file():  # written last: a student that is whole is kept
        raise Interrupted(*INTERRUPTED)
    (work / "student" / TRAINED_ON).write_text(json.dumps(made_of, indent=2) + "\n")
    metrics = publish(work / "student", out / "student")
    shutil.rmtree(work / TRAINER, ignore_errors=True)
    return metrics


def use_assigned_cores() -> None:
    """As many threads as Ray gave cores to this process, where there is no GPU."""
    import ray
    import torch

    if not torch.cuda.is_available():
        torch.set_num_threads(max(1, int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1))))


def _trainer_class(outlives_us: bool) -> Any:
    """Ray's trainer, without the actor for Ray datasets, which are not used here. Its cleaner of placement groups asks
    the dashboard whether the controller lives; on a Ray that ends with this process there is no dashboard, nothing to
    clean, and 12 s of waiting for an answer at the end."""
    from ray.train.torch import TorchTrainer
    from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
    from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

    unused = (DatasetsCallback,) if outlives_us else (DatasetsCallback, PlacementGroupCleanerCallback)

    class LeanTrainer(TorchTrainer):  # type: ignore[misc]
        def _create_default_callbacks(self) -> list[Any]:
            return [c for c in super()._create_default_callbacks() if not isinstance(c, unused)]

    return LeanTrainer


def check_workers(spec: TrainingSpec) -> None:
    """`SpecError` where the connected cluster has GPUs, and fewer than the workers that are needed."""
    import ray

    gpus = int(ray.cluster_resources().get("GPU", 0))
    name, needed = ("workers", spec.workers) if spec.min_workers is None else ("min_workers", spec.min_workers)
    if gpus and needed > gpus:
        raise SpecError(f"{name}: {needed}, the cluster has {gpus} GPUs", f"set {name} lower, or add GPUs")


def crowded(workers: int) -> int | None:
    """The cores of the connected cluster where it has fewer than workers, and no GPUs."""
    import ray

    have = ray.cluster_resources()
    cores = int(have.get("CPU", 1))
    return cores if workers > cores and not have.get("GPU") else None


def last_step(place: Path) -> int | None:
    """The step that a training goes on from whose checkpoints are in `place`; None where it begins."""
    return max((int(one.parent.name.rpartition("-")[2]) for one in place.glob(f"checkpoint-*/{WHOLE}")), default=None)


def _scaling(workers: int, least: int | None) -> Any:
    """All cores and GPUs of the cluster, shared out evenly. Ray would otherwise leave each worker one thread."""
    import ray
    import ray.train

    have = ray.cluster_resources()
    gpus = bool(have.get("GPU"))
    cores = max(1.0, have.get("CPU", 1) // workers)
    cores = min(cores, have.get("CPU", 1) / workers)
    count = workers if least is None or least == workers else (least, workers)
    return ray.train.ScalingConfig(num_workers=count, use_gpu=gpus, resources_per_worker={"CPU": cores})


def _fitted(trainer: Any, work: Path, watch: Callable[[dict[str, Any]], None], stopping: Callable[[], bool]) -> None:
    """Fit in a thread of its own: in the main one Ray Train would take SIGINT for itself. Meanwhile pass on what rank
    0 writes to `train-progress.json`, and the wish to stop the other way."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        fitting = pool.submit(trainer.fit)
        while not fitting.done():
            concurrent.futures.wait([fitting], POLL_S)
            with contextlib.suppress(FileNotFoundError, ValueError):
                watch(json.loads((work / "train-progress.json").read_text()))
            if stopping():
                (work / "train-stop").touch()
        fitting.result()


def outcome_of(ref: Any) -> Any:
    """`ray.get` with our own errors as they were raised there, and one of ours where the process is gone."""
    import ray

    try:
        return ray.get(ref)
    except ray.exceptions.RayTaskError as error:
        if (ours := raised_there(error)) is not error:
            raise ours from None
        line = (str(error.cause).strip().splitlines() or [""])[0][:300]
        raise LimbeckError(f"{type(error.cause).__name__}: {line}", "--debug shows where it comes from") from error
    except ray.exceptions.RayError as error:
        raise _lost(error) from None


def _lost(error: BaseException) -> LimbeckError:
    """Ray, or a process of it that cannot be replaced, is gone."""
    return LimbeckError(
        f"Ray lost a process that this needs ({type(error).__name__})",
        "most often for want of memory; run the same command again: it goes on from what is on disk",
    )


def _failure(work: Path, error: BaseException) -> LimbeckError:
    """The student's own error where it raised one, else Ray's last line."""
    line = str(error).strip().splitlines()[-1][:300]
    if os.strerror(errno.ENOSPC) in line and _own_error(work) is None:  # it left no room to say so either
        return LimbeckError(
            "training failed: no space left on the disk",
            "make room, then run the same command: it goes on from the last checkpoint that is whole",
        )
    return _own_error(work) or LimbeckError(f"training failed: {line}", "run with --debug for Ray's whole message")


def _own_error(work: Path) -> LimbeckError | None:
    """What a worker left as the reason for its end."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        said = json.loads((work / "train-error.json").read_text())
        return LimbeckError(said["message"], said["hint"])
    return None


def publish(built: Path, place: Path) -> dict[str, Any]:
    """Put a student that is whole in its place; its metrics. Killed at any point, it can be done again."""
    metrics: dict[str, Any] = json.loads((built / "metrics.json").read_text())
    before = built.with_name("student-before")
    shutil.rmtree(before, ignore_errors=True)
    if place.exists():
        place.rename(before)  # a folder that is being removed is neither the old student nor the new one
    built.rename(place)
    shutil.rmtree(before, ignore_errors=True)
    return metrics


def train_worker(config: dict[str, Any]) -> None:
    """What each Ray Train worker runs. An error of ours would come again: it ends the training on all workers, and is
    left where the driver finds it. Any other is a lost worker's: Ray starts them again, from the newest checkpoint."""
    from training.session import Session

    work = Path(config["work"])
    try:
        Session(TrainingSpec.model_validate(config["spec"]), work).run()
    except LimbeckError as error:
        said = {"message": error.message, "hint": error.hint}
        (work / "train-error.json").write_text(json.dumps(said))
