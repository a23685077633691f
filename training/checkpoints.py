"""Checkpoints of a training: when one is written, which are whole, what is in them beside the Trainer's own files."""

import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import transformers
from safetensors import SafetensorError

from schemas.errors import LimbeckError
from schemas.student import Checkpoints
from training.loop import WHOLE
from training.rollout import Rollouts

# What a torn or foreign file raises: torch, safetensors and JSON each in their own way.
UNREADABLE = (OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, UnpicklingError,
              SafetensorError)  # fmt: skip
EVERY_S = 300.0
SHARES = 10  # of the steps, where the best of several checkpoints is looked for


NO_WORK = (0.0,) * 5


@dataclass(frozen=True, slots=True)
class Taken:
    """What a training has taken up to a checkpoint: seconds, workers of its last start, and the moments of the rows
    that were learned from (see `speed.moments`)."""

    seconds: float = 0.0
    workers: int = 0
    work: tuple[float, ...] = NO_WORK


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def newest(place: Path) -> Path | None:
    """The last checkpoint below `place` that is whole."""
    whole = (marker.parent for marker in place.glob(f"checkpoint-*/{WHOLE}"))
    return max(whole, key=step_of, default=None)


def stale(losses: Sequence[float]) -> int:
    """How many held-out losses came after the lowest one."""
    return len(losses) - 1 - losses.index(min(losses)) if losses else 0


def held_out(history: Sequence[dict[str, Any]]) -> list[tuple[int, float]]:
    """(step, held-out loss) of the evaluations in a trainer's log."""
    return [(line["step"], line["eval_loss"]) for line in history if "eval_loss" in line]


@contextmanager
def readable(checkpoint: Path | str) -> Iterator[None]:
    """A file of a checkpoint that cannot be read is told with what goes on without it."""
    try:
        yield
    except UNREADABLE as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise LimbeckError(
            f"{checkpoint}: a checkpoint of another model, or a damaged one: {line}",
            "remove it to go on from the one before it, or to begin anew; or choose another --out",
        ) from None


@contextmanager
def written(what: str) -> Iterator[None]:
    """A file that cannot be written is told with what goes on from there. torch and safetensors have errors of their
    own for a full disk."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise LimbeckError(
            f"{what} could not be written: {line}",
            "make room, then run the same command: it goes on from the last checkpoint that is whole",
        ) from None


class Saving(transformers.TrainerCallback):  # type: ignore[misc]
    """Decides at each step, alike on all workers, whether to save, to evaluate, and to stop.

    `wished`: whether the user wants it to end. The state is saved then too, so that the same command goes on from it.
    `clock`: seconds, from any start.
    """

    def __init__(
        self, spec: Checkpoints, wished: Callable[[], bool], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._spec, self._wished, self._clock = spec, wished, clock
        self._began = self._saved_at = clock()
        self._before = 0.0  # seconds of earlier starts, up to the checkpoint that this one went on from
        self.work: Callable[[], Sequence[float]] = lambda: NO_WORK
        self.was_stopped = False

    @property
    def seconds(self) -> float:
        """That the training has taken so far."""
        return self._before + self._clock() - self._began

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        due = control.should_log and self._clock() - self._saved_at > EVERY_S
        stop, late = _anywhere([self._wished(), due], args.device)
        self.was_stopped = stop and state.global_step < state.max_steps
        control.should_save |= stop or self._is_due(state, late)
        if self.was_stopped:
            control.should_training_stop = True
        elif control.should_save:
            control.should_evaluate = self._spec.compares
        if control.should_save:
            control.should_log = True  # the interval of a logged loss must not reach over a restart

    def _is_due(self, state: Any, late: bool) -> bool:
        every = self._spec.every
        if every is None and self._spec.compares:
            every = max(1, state.max_steps // SHARES)
        return late if every is None else state.global_step % every == 0

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._is_stale(state.log_history):
            control.should_training_stop = True

    def _is_stale(self, history: Sequence[dict[str, Any]]) -> bool:
        patience = self._spec.patience
        return patience is not None and stale([loss for _, loss in held_out(history)]) >= patience

    def go_on_from(self, taken: Taken) -> None:
        """Count on from what was taken before."""
        self._before = taken.seconds

    def ended_with(self, history: Sequence[dict[str, Any]]) -> bool:
        """Whether a training with such a log has stopped early."""
        return self._is_stale(history)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._saved_at = self._clock()
        if args.process_index == 0:  # all have written their part: see `TokenTrainer._save_checkpoint`
            taken = Taken(round(self.seconds, 3), args.world_size, tuple(self.work()))
            whole = Path(args.output_dir, f"checkpoint-{state.global_step}", WHOLE)
            new = whole.with_suffix(".new")
            new.write_text(json.dumps(asdict(taken)))
            new.replace(whole)
            self._prune(Path(args.output_dir), state)

    def _prune(self, place: Path, state: Any) -> None:
        """Leave the newest ones that are whole, and the best."""
        found = sorted(place.glob("checkpoint-*"), key=step_of)
        kept = [one for one in found if (one / WHOLE).is_file()][-self._spec.keep :]
        for checkpoint in found:
            if checkpoint not in kept and str(checkpoint) != state.best_model_checkpoint:
                shutil.rmtree(checkpoint)


def keep(rollouts: Rollouts, checkpoint: Path, worker: int) -> None:
    """Write the sampled responses that are still to be learned from."""
    (checkpoint / f"rollouts-{worker}.json").write_text(json.dumps(rollouts.state()))


def restore(rollouts: Rollouts, checkpoint: Path, workers: int) -> None:
    """Give back the sampled responses that were still to be learned from. Each worker takes those of all: on another
    number of them its rows are others."""
    for worker in range(workers):
        rollouts.restore(json.loads((checkpoint / f"rollouts-{worker}.json").read_text()))


def taken_by(checkpoint: Path) -> Taken:
    """What a checkpoint says that it took. Raises one of `UNREADABLE` where a part of it is not there."""
    taken = Taken(**json.loads((checkpoint / WHOLE).read_text()))
    alone = taken.workers == 1
    for name in ["rng_state.pth"] if alone else [f"rng_state_{worker}.pth" for worker in range(taken.workers)]:
        (checkpoint / name).stat()  # without it what is dropped would be drawn anew
    return taken


def _anywhere(here: Sequence[bool], device: Any) -> list[bool]:
    """Which of these hold on any worker: the same on all, or those that go on would wait for the others."""
    flags = torch.tensor([float(flag) for flag in here], device=device)
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(flags)
    return [flag > 0 for flag in flags.tolist()]
