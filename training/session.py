"""One worker's training session: load, measure, train, measure, save. Rank 0 measures and saves."""

import json
import shutil
import statistics
import time
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray.train
import torch
import transformers
from tensorboardX import SummaryWriter

from schemas.errors import LimbeckError
from schemas.student import TrainingSpec
from training.adapters import attach, merge
from training.checkpoints import held_out, written
from training.compare import beside_teacher, on_tokens
from training.curve import draw_curve
from training.evaluate import held_out_rouge
from training.examples import Pair
from training.loop import ROWS, TRAINER, use_assigned_cores
from training.rows import TokenRow, rows_for
from training.signals import cache_of
from training.speed import peak_of, tokens_of, training_flops
from training.store import load, prepare
from training.students import Student, load_student
from training.teacher import Teacher, load_teacher
from training.trainer import trainer_of


def tell(work: Path, progress: dict[str, Any]) -> None:
    """Leave word for the driver of how far a training is."""
    new = work / "train-progress.new"
    new.write_text(json.dumps(progress))
    new.replace(work / "train-progress.json")


class Report(transformers.TrainerCallback):  # type: ignore[misc]
    """Write progress for the driver, and what TensorBoard shows. `done` tells (tokens, operations, seconds) so far;
    `peak` is what the devices can do in a second; either where it is known."""

    def __init__(self, work: Path, peak: float | None) -> None:
        self._work, self._peak = work, peak
        self.done: Callable[[], tuple[float, float | None, float]] = lambda: (0.0, None, 0.0)
        self._begun, self._steps = 0.0, array("d")
        self._board: SummaryWriter | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._begun = time.monotonic()
        self._board = SummaryWriter(str(self._work.parent / "tensorboard"), purge_step=state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        now = time.monotonic()
        self._steps.append(now - self._begun)
        self._begun = now

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._begun = time.monotonic()

    on_evaluate = on_save

    @property
    def step_seconds(self) -> float:
        """The median step of this start, with its batches and what is sampled for it, without a checkpoint after it."""
        return statistics.median(self._steps) if self._steps else 0.0

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        numbers = {name: x for name, x in (logs or {}).items() if isinstance(x, int | float)}
        if "loss" in numbers:
            speed = self.speed()
            numbers |= speed
            tell(self._work, {"step": state.global_step, "steps": state.max_steps, "loss": numbers["loss"], **speed})
        if self._board is not None:
            for name, number in numbers.items():
                self._board.add_scalar(name, number, state.global_step)
            self._board.flush()

    def speed(self) -> dict[str, float]:
        """Of all starts: tokens a second, operations a second, and the share of the peak that these are (MFU)."""
        tokens, flops, seconds = self.done()
        seconds = max(1e-9, seconds)
        found = {"tokens_per_second": tokens / seconds}
        if flops is not None:
            found["flops_per_second"] = flops / seconds
            found |= {} if self._peak is None else {"mfu": flops / seconds / self._peak}
        return found


class Session:
    """State of one training."""

    def __init__(self, spec: TrainingSpec, work: Path) -> None:
        self.spec, self.work = spec, work
        self.rank = ray.train.get_context().get_world_rank()
        self._whole: dict[str, torch.Tensor] = {}  # the weights of a student that was shared out
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        use_assigned_cores()

    def run(self) -> None:
        spec, place = self.spec, self.work / TRAINER / ROWS
        self._first(lambda: self._prepare(place))
        data = load(spec, place)
        student = load_student(spec.student, data.tokenizer, spec.seed, spec.max_length)
        teacher = load_teacher(spec.teacher, student) if spec.teacher and cache_of(spec) is None else None
        held, _ = rows_for(spec, data.held, student.tokenizer, student.seq2seq)
        metrics: dict[str, Any] = {
            "objective": spec.objective.name, "parameters": student.model.num_parameters(), **data.counts,
        }  # fmt: skip
        adapters = attach(student, spec.lora) if spec.lora is not None else None
        self._measure_once(metrics, student, teacher, data.held, held)
        history = self._train(student, teacher, data.learn, held, metrics)
        if history is None:
            return  # stopped by the user: whoever stops does not want to wait for its measurement
        if spec.sharding:
            adapters = self._gather(student)
        if adapters is not None:
            merge(student, adapters)
        self._measure("after", metrics, student, teacher, data.held, held)
        if self.rank == 0:
            self._save(student, metrics, history)

    def _gather(self, student: Student) -> Any:
        """Put a student together again whose weights were shared out, on rank 0; its adapters, where it has some."""
        if self.rank != 0:
            return None
        made = load_student(self.spec.student, student.tokenizer, self.spec.seed, self.spec.max_length)
        adapters = attach(made, self.spec.lora) if self.spec.lora is not None else None
        made.model.load_state_dict(self._whole)
        student.model = made.model
        return adapters

    def _first(self, work: Callable[[], None]) -> None:
        """What rank 0 does while the others wait; its error is everyone's."""
        refusals: list[tuple[str, str] | None] = [None]
        if self.rank == 0:
            try:
                work()
            except LimbeckError as error:
                refusals = [(error.message, error.hint)]
        if torch.distributed.is_initialized():
            torch.distributed.broadcast_object_list(refusals, src=0)
        if refusals[0] is not None:
            raise LimbeckError(*refusals[0])

    def _prepare(self, place: Path) -> None:
        with written("the rows in tokens"):
            prepare(self.spec, place, lambda examples: tell(self.work, {"tokenised": examples}))

    def _measure_once(self, metrics: dict[str, Any], *what: Any) -> None:
        """What the untrained student is worth: kept for a training that is resumed, whose student is trained. Of one
        that was fine-tuned first: what it was worth before that, too."""
        kept, when = self.work / TRAINER / "before.json", "before"
        if self.spec.fine_tune_first is not None and self.rank == 0:
            first = json.loads(Path(str(self.spec.student), "metrics.json").read_text())
            metrics.update({name: value for name, value in first.items() if "_before" in name})
            when = "fine_tuned"
        if self.rank == 0 and kept.is_file():
            metrics.update(json.loads(kept.read_text()))
        elif self.rank == 0:
            known = set(metrics)
            tell(self.work, {"measuring": when})
            self._measure(when, metrics, *what)
            kept.parent.mkdir(parents=True, exist_ok=True)
            new = kept.with_suffix(".new")
            new.write_text(json.dumps({name: value for name, value in metrics.items() if name not in known}))
            new.replace(kept)

    def _measure(
        self, when: str, metrics: dict[str, Any], student: Student, teacher: Teacher | None, asked: list[Pair],
        rows: list[TokenRow],
    ) -> None:  # fmt: skip
        """Rank 0 notes what the student is worth on what was held out, with 95 % intervals."""
        if self.rank != 0:
            return
        device = "cuda" if torch.cuda.is_available() else "cpu"
        student.model.to(device)
        found = on_tokens(student, rows) | {"rouge_l": held_out_rouge(student, asked, self.spec)}
        if teacher is None and self.spec.teacher:
            teacher = load_teacher(self.spec.teacher, student)  # written down; here for its dense distributions alone
        if teacher is not None:
            teacher.model.to(device)
            found |= beside_teacher(student, teacher, rows)
        for name, (mean, low, high) in found.items():
            metrics |= {f"{name}_{when}": mean, f"{name}_{when}_low": low, f"{name}_{when}_high": high}

    def _train(
        self, student: Student, teacher: Teacher | None, rows: Sequence[TokenRow], held: list[TokenRow],
        metrics: dict[str, Any],
    ) -> list[dict[str, Any]] | None:  # fmt: skip
        """The trainer's log; None where the user stopped it."""
        spec = self.spec
        peak = peak_of(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
        report = Report(self.work, peak and peak * ray.train.get_context().get_world_size())
        if teacher is not None and torch.cuda.is_available():
            teacher.model.to("cuda")
        trainer = trainer_of(
            spec, student, teacher, rows, held, self.work / TRAINER, [report] if self.rank == 0 else [],
            (self.work / "train-stop").exists,
        )  # fmt: skip
        report.done = lambda: (*_done(student, trainer.work.tolist()), trainer.seconds)
        trainer.go_on()
        self._whole = trainer.weights() if spec.sharding else {}
        metrics.update(
            epochs=round(float(trainer.state.epoch or 0), 4), steps=trainer.state.global_step,
            train_seconds=round(trainer.seconds, 3), packed=trainer.packed,
            **({"step_seconds": report.step_seconds} if report.step_seconds else {}), **report.speed(),
        )  # fmt: skip
        state = trainer.state
        if state.global_step < state.max_steps and not trainer.was_stopped:
            metrics["steps_planned"] = state.max_steps
        logged = next((line for line in reversed(state.log_history) if "loss" in line), {})
        metrics |= {name: value for name, value in logged.items() if name.startswith("loss_")}  # the objective's terms
        if torch.cuda.is_available():
            metrics["peak_memory_bytes"] = torch.cuda.max_memory_allocated()
        if spec.checkpoints.best:
            metrics["best_step"] = state.best_global_step
        return None if trainer.was_stopped else list(state.log_history)

    def _save(self, student: Any, metrics: dict[str, Any], history: list[dict[str, Any]]) -> None:
        """Rank 0 writes the model, its metrics and its curve, aside; the driver moves them into place."""
        with written("the student"):
            self._write(student, metrics, history)

    def _write(self, student: Any, metrics: dict[str, Any], history: list[dict[str, Any]]) -> None:
        place = self.work / "student"
        shutil.rmtree(place, ignore_errors=True)
        student.model.save_pretrained(place)
        student.tokenizer.save_pretrained(place)
        for weights in place.glob("*.safetensors"):  # written for their owner alone, unlike all the rest
            weights.chmod(place.stat().st_mode & 0o666)
        losses = [(line["step"], line["loss"]) for line in history if "loss" in line]
        (place / "losses.csv").write_text("step,loss\n" + "".join(f"{s},{v}\n" for s, v in losses))
        draw_curve(losses, held_out(history), metrics, place / "curve.png")
        (place / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")


def _done(student: Student, work: Sequence[float]) -> tuple[float, float | None]:
    """(tokens, operations) of rows with such moments; None where the model's configuration does not tell its shape."""
    try:
        flops = training_flops(student.model, work)
    except (AttributeError, TypeError, StopIteration):
        flops = None
    return tokens_of(student.seq2seq, work), flops
