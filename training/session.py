"""One worker's training session: load, measure, train, measure, save. Rank 0 measures and saves."""

import json
import shutil
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import ray.train
import torch
import transformers
from tensorboardX import SummaryWriter

from schemas.errors import LimbeckError
from schemas.objective import samples
from schemas.student import TrainingSpec
from training.adapters import attach, merge
from training.checkpoints import held_out
from training.curve import draw_curve
from training.evaluate import divergences, held_out_loss, held_out_rouge
from training.examples import Example, Pair, language_modelling, load_examples, load_text, split
from training.loop import TRAINER, use_assigned_cores
from training.rows import TokenRow, rows_for
from training.signals import cache_of
from training.speed import peak_of, training_flops
from training.students import Student, load_student
from training.teacher import Teacher, load_teacher
from training.trainer import passes, trainer_of


class Report(transformers.TrainerCallback):  # type: ignore[misc]
    """Write progress for the driver, and what TensorBoard shows. `tokens` and `flops` are of one pass over the rows;
    `peak` is what the devices can do in a second, where that is known."""

    def __init__(self, work: Path, tokens: float, flops: float, peak: float | None) -> None:
        self._work, self._tokens, self._flops, self._peak = work, tokens, flops, peak
        self._started, self._first, self.passes = 0.0, 0, 1.0
        self._board: SummaryWriter | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._started, self._first = time.monotonic(), state.global_step
        self._board = SummaryWriter(str(self._work.parent / "tensorboard"), purge_step=state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        numbers = {name: x for name, x in (logs or {}).items() if isinstance(x, int | float)}
        if "loss" in numbers:
            speed = self.speed(state)
            numbers |= speed
            line = {"step": state.global_step, "steps": state.max_steps, "loss": numbers["loss"], **speed}
            new = self._work / "train-progress.new"
            new.write_text(json.dumps(line))
            new.replace(self._work / "train-progress.json")
        if self._board is not None:
            for name, number in numbers.items():
                self._board.add_scalar(name, number, state.global_step)
            self._board.flush()

    def speed(self, state: Any) -> dict[str, float]:
        """Of this start: tokens a second, operations a second, and the share of the peak that these are (MFU)."""
        seconds = max(1e-9, time.monotonic() - self._started)
        done = self.passes * (state.global_step - self._first) / max(1, state.max_steps) / seconds
        found = {"tokens_per_second": self._tokens * done, "flops_per_second": self._flops * done}
        return found if self._peak is None else found | {"mfu": self._flops * done / self._peak}


class Session:
    """State of one training."""

    def __init__(self, spec: TrainingSpec, work: Path) -> None:
        self.spec, self.work = spec, work
        self.rank = ray.train.get_context().get_world_rank()
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        use_assigned_cores()

    def run(self) -> None:
        spec = self.spec
        assert spec.data is not None
        learn, held = split(load_examples(spec.data, spec.objective), spec.eval_fraction, spec.seed)
        texts = (text for example in learn for pair in example for text in (pair.prompt, pair.response))
        student = self._student(texts)
        teacher = load_teacher(spec.teacher, student) if spec.teacher and cache_of(spec) is None else None
        rows, left_out = self._rows(student, [pair for example in learn for pair in example])
        asked, held_rows, more_left_out = self._held_out(student, held)
        if not rows or not held_rows:
            raise LimbeckError(f"no prompt is shorter than max_length {spec.max_length}", "raise max_length")
        metrics: dict[str, Any] = {
            "objective": spec.objective.name, "parameters": student.model.num_parameters(), "rows_train": len(rows),
            "rows_eval": len(held_rows), "rows_too_long": left_out + more_left_out, "epochs": spec.epochs,
            "rows_cut": sum(row.labels[-1] != student.tokenizer.eos_token_id for row in rows),
        }  # fmt: skip
        if (lm := language_modelling(spec.objective)) is not None:
            rows += self._rows(student, load_text(lm, student.seq2seq))[0]
        adapters = attach(student, spec.lora) if spec.lora is not None else None
        self._measure_once(metrics, student, teacher, asked, held_rows)
        history = self._train(student, teacher, rows, held_rows, metrics)
        if history is None:
            return  # stopped by the user: whoever stops does not want to wait for its measurement
        if adapters is not None:
            merge(student, adapters)
        self._measure("after", metrics, student, teacher, asked, held_rows)
        if self.rank == 0:
            self._save(student, metrics, history)
        ray.train.report({name: value for name, value in metrics.items() if isinstance(value, int | float)})

    def _student(self, texts: Iterable[str]) -> Student:
        """The student before its training; `LimbeckError` where it cannot read what the spec gives it."""
        spec = self.spec
        assert spec.data is not None
        student = load_student(spec.student, texts, spec.seed, spec.teacher)
        if spec.data.template and not student.tokenizer.chat_template:
            raise LimbeckError("data.template: chat, but the student's tokenizer has none", "leave template out")
        most = getattr(student.model.config, "max_position_embeddings", None)
        if most is not None and spec.max_length > most:
            raise LimbeckError(f"max_length: {spec.max_length}, the student reads {most} tokens", "lower max_length")
        return student

    def _rows(self, student: Student, pairs: Sequence[Pair]) -> tuple[list[TokenRow], int]:
        return rows_for(self.spec, pairs, student.tokenizer, student.seq2seq)

    def _held_out(self, student: Student, held: Sequence[Example]) -> tuple[list[Pair], list[TokenRow], int]:
        """(what is asked, its rows, how many were too long): loss and ROUGE-L are of the same rows."""
        asked = [example[0] for example in held]
        fitting = [pair for pair in asked if self._rows(student, [pair])[0]]
        return fitting, self._rows(student, fitting)[0], len(asked) - len(fitting)

    def _measure_once(self, metrics: dict[str, Any], *what: Any) -> None:
        """What the untrained student is worth: kept for a training that is resumed, whose student is trained."""
        kept = self.work / TRAINER / "before.json"
        if self.rank == 0 and kept.is_file():
            metrics.update(json.loads(kept.read_text()))
        elif self.rank == 0:
            known = set(metrics)
            self._measure("before", metrics, *what)
            kept.parent.mkdir(parents=True, exist_ok=True)
            new = kept.with_suffix(".new")
            new.write_text(json.dumps({name: value for name, value in metrics.items() if name not in known}))
            new.replace(kept)

    def _measure(
        self, when: str, metrics: dict[str, Any], student: Student, teacher: Teacher | None, asked: list[Pair],
        rows: list[TokenRow],
    ) -> None:  # fmt: skip
        """Rank 0 notes what the student is worth on what was held out."""
        if self.rank != 0:
            return
        assert self.spec.data is not None
        device = "cuda" if torch.cuda.is_available() else "cpu"
        student.model.to(device)
        metrics[f"loss_{when}"] = held_out_loss(student, rows)
        metrics[f"rouge_l_{when}"] = held_out_rouge(student, asked, self.spec.data.template, self.spec.max_length)
        if teacher is None and self.spec.teacher:
            teacher = load_teacher(self.spec.teacher, student)  # written down; here for its dense distributions alone
        if teacher is not None:
            teacher.model.to(device)
            forward, reverse = divergences(student, teacher, rows)
            metrics[f"forward_kl_{when}"], metrics[f"reverse_kl_{when}"] = forward, reverse

    def _train(
        self, student: Student, teacher: Teacher | None, rows: list[TokenRow], held: list[TokenRow],
        metrics: dict[str, Any],
    ) -> list[dict[str, Any]] | None:  # fmt: skip
        """The trainer's log; None where the user stopped it."""
        spec = self.spec
        tokens = sum(len(row.input_ids) + (len(row.labels) if student.seq2seq else 0) for row in rows)
        peak = peak_of(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
        report = Report(self.work, tokens, training_flops(student.model, rows), peak and peak * spec.workers)
        if teacher is not None and torch.cuda.is_available():
            teacher.model.to("cuda")
        trainer = trainer_of(
            spec, student, teacher, rows, held, self.work / TRAINER, [report] if self.rank == 0 else [],
            (self.work / "train-stop").exists,
        )  # fmt: skip
        report.passes = passes(spec, len(trainer.train_dataset))
        started = time.monotonic()
        trainer.go_on()
        metrics.update(
            steps=trainer.state.global_step, train_seconds=round(time.monotonic() - started, 3),
            packed=spec.packing and not samples(spec.objective), **report.speed(trainer.state),
        )  # fmt: skip
        state = trainer.state
        if torch.cuda.is_available():
            metrics["peak_memory_bytes"] = torch.cuda.max_memory_allocated()
        if spec.checkpoints.best:
            metrics["best_step"] = state.best_global_step
        return None if trainer.was_stopped else list(state.log_history)

    def _save(self, student: Any, metrics: dict[str, Any], history: list[dict[str, Any]]) -> None:
        """Rank 0 writes the model, its metrics and its curve, aside; the driver moves them into place."""
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
