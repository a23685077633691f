"""One worker's training session: load, measure, train, measure, save. Rank 0 measures and saves."""

import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray.train
import torch
import transformers

from schemas.errors import LimbeckError
from schemas.objective import Icl, samples
from schemas.student import TrainingSpec
from training.curve import draw_curve
from training.evaluate import divergences, held_out_loss, held_out_rouge
from training.examples import Example, Pair, language_modelling, load_examples, load_text, split
from training.rows import TokenRow, token_rows
from training.students import Student, load_student
from training.teacher import Teacher, load_teacher
from training.trainer import trainer_of


class Report(transformers.TrainerCallback):  # type: ignore[misc]
    """Keep the loss curve; write progress for the driver; stop where it asks."""

    def __init__(self, work: Path, tokens: int, writes: bool) -> None:
        self._work, self._tokens, self._writes, self._started = work, tokens, writes, time.monotonic()
        self.losses: list[tuple[int, float]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if not logs or "loss" not in logs:
            return
        self.losses.append((state.global_step, float(logs["loss"])))
        if not self._writes:
            return
        seconds = time.monotonic() - self._started
        done = state.global_step / max(1, state.max_steps)
        line = {
            "step": state.global_step, "steps": state.max_steps, "loss": logs["loss"],
            "tokens_per_second": self._tokens * done / seconds,
        }  # fmt: skip
        new = self._work / "train-progress.new"
        new.write_text(json.dumps(line))
        new.replace(self._work / "train-progress.json")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        wish = torch.tensor(float((self._work / "train-stop").exists()), device=args.device)
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(wish)  # all stop at one step, or those that go on would wait for the others
        control.should_training_stop = bool(wish)


class Session:
    """State of one training."""

    def __init__(self, spec: TrainingSpec, work: Path) -> None:
        self.spec, self.work = spec, work
        self.rank = ray.train.get_context().get_world_rank()
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        if not torch.cuda.is_available():
            cores = ray.get_runtime_context().get_assigned_resources().get("CPU", 1)
            torch.set_num_threads(max(1, int(cores)))

    def run(self) -> None:
        spec = self.spec
        assert spec.data is not None
        learn, held = split(load_examples(spec.data, spec.objective), spec.eval_fraction, spec.seed)
        texts = (text for example in learn for pair in example for text in (pair.prompt, pair.response))
        student = load_student(spec.student, texts, spec.seed, spec.teacher)
        if spec.data.template and not student.tokenizer.chat_template:
            raise LimbeckError("data.template: chat, but the student's tokenizer has none", "leave template out")
        teacher = load_teacher(spec.teacher, student) if spec.teacher else None
        rows, left_out = self._rows(student, [pair for example in learn for pair in example])
        asked, held_rows, more_left_out = self._held_out(student, held)
        if not rows or not held_rows:
            raise LimbeckError(f"no prompt is shorter than max_length {spec.max_length}", "raise max_length")
        metrics: dict[str, Any] = {
            "objective": spec.objective.name, "parameters": student.model.num_parameters(), "rows_train": len(rows),
            "rows_eval": len(held_rows), "rows_too_long": left_out + more_left_out, "epochs": spec.epochs,
        }  # fmt: skip
        if (lm := language_modelling(spec.objective)) is not None:
            rows += self._rows(student, load_text(lm, student.seq2seq))[0]
        self._measure("before", metrics, student, teacher, asked, held_rows)
        report, is_whole = self._train(student, teacher, rows, metrics)
        if not is_whole:
            return  # stopped by the user: whoever stops does not want to wait for its measurement
        self._measure("after", metrics, student, teacher, asked, held_rows)
        if self.rank == 0:
            self._save(student, metrics, report)
        ray.train.report({name: value for name, value in metrics.items() if isinstance(value, int | float)})

    def _rows(self, student: Student, pairs: Sequence[Pair]) -> tuple[list[TokenRow], int]:
        assert self.spec.data is not None
        return token_rows(
            pairs, student.tokenizer, self.spec.max_length, self.spec.data.template, student.seq2seq,
            cut_prompts=isinstance(self.spec.objective, Icl),
        )  # fmt: skip

    def _held_out(self, student: Student, held: Sequence[Example]) -> tuple[list[Pair], list[TokenRow], int]:
        """(what is asked, its rows, how many were too long): loss and ROUGE-L are of the same rows."""
        asked = [example[0] for example in held]
        fitting = [pair for pair in asked if self._rows(student, [pair])[0]]
        return fitting, self._rows(student, fitting)[0], len(asked) - len(fitting)

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
        if teacher is not None:
            teacher.model.to(device)
            forward, reverse = divergences(student, teacher, rows)
            metrics[f"forward_kl_{when}"], metrics[f"reverse_kl_{when}"] = forward, reverse

    def _train(
        self, student: Student, teacher: Teacher | None, rows: list[TokenRow], metrics: dict[str, Any]
    ) -> tuple[Report, bool]:
        """(the report, whether all steps were taken)."""
        spec = self.spec
        tokens = sum(len(row.input_ids) + (len(row.labels) if student.seq2seq else 0) for row in rows)
        packed = spec.packing and not samples(spec.objective)
        report = Report(self.work, int(tokens * spec.epochs), writes=self.rank == 0)
        if teacher is not None and torch.cuda.is_available():
            teacher.model.to("cuda")
        trainer = trainer_of(spec, student, teacher, rows, self.work / "trainer", [report])
        started = time.monotonic()
        trainer.train()
        seconds = time.monotonic() - started
        metrics.update(
            steps=trainer.state.global_step, train_seconds=round(seconds, 3), packed=packed,
            tokens_per_second=tokens * spec.epochs / seconds,
        )  # fmt: skip
        return report, trainer.state.global_step >= trainer.state.max_steps

    def _save(self, student: Any, metrics: dict[str, Any], report: Report) -> None:
        """Rank 0 writes the model, its metrics and its curve, aside; the driver moves them into place."""
        place = self.work / "student"
        shutil.rmtree(place, ignore_errors=True)
        student.model.save_pretrained(place)
        student.tokenizer.save_pretrained(place)
        for weights in place.glob("*.safetensors"):  # written for their owner alone, unlike all the rest
            weights.chmod(place.stat().st_mode & 0o666)
        (place / "losses.csv").write_text("step,loss\n" + "".join(f"{s},{v}\n" for s, v in report.losses))
        draw_curve(report.losses, metrics, place / "curve.png")
        (place / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
