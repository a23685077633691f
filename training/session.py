"""One worker's training session: load, measure, train, measure, save. Rank 0 measures and saves."""

import json
import math
import shutil
import time
from functools import partial
from pathlib import Path
from typing import Any

import ray.train
import torch
import transformers

from schemas.errors import LimbeckError
from schemas.student import TrainingSpec
from training.curve import draw_curve
from training.data import Collator, load_pairs, pack, split, token_rows
from training.evaluate import held_out_loss, held_out_rouge
from training.losses import TokenLosses
from training.students import load_student

WARMUP = 0.05  # share of the steps over which the learning rate rises


class TokenTrainer(transformers.Trainer):  # type: ignore[misc]
    """A Trainer whose loss is the mean over all labelled tokens of a step, on every rank and micro-batch together.

    The stock loss of T5 ignores `num_items_in_batch` and comes out multiplied by accumulation x workers.
    """

    loss_is_scaled_for_ga = True

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        losses = model(**inputs)
        count = num_items_in_batch if num_items_in_batch is not None else losses.numel()
        # DDP averages gradients over ranks, while `count` covers all of them.
        return losses.sum() / count * self.accelerator.num_processes


class Report(transformers.TrainerCallback):  # type: ignore[misc]
    """Keep the loss curve; write progress for the driver; stop where it asks."""

    def __init__(self, work: Path, tokens: int, writes: bool) -> None:
        self._work, self._tokens, self._writes, self._started = work, tokens, writes, time.monotonic()
        self.losses: list[tuple[int, float]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if not logs or "loss" not in logs:
            return
        if not math.isfinite(logs["loss"]):
            raise LimbeckError(f"the loss is {logs['loss']} at step {state.global_step}", "lower learning_rate")
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
        template = spec.data.template
        learn, held = split(load_pairs(spec.data), spec.eval_fraction, spec.seed)
        student = load_student(spec.student, (t for p in learn for t in (p.prompt, p.response)), spec.seed)
        if template and not student.tokenizer.chat_template:
            raise LimbeckError("data.template: chat, but the student's tokenizer has none", "leave template out")
        rows_of = partial(
            token_rows, tokenizer=student.tokenizer, max_length=spec.max_length, template=template,
            seq2seq=student.seq2seq,
        )  # fmt: skip
        rows, left_out = rows_of(learn)
        fitting = [pair for pair in held if rows_of([pair])[0]]  # loss and ROUGE-L are of the same rows
        left_out, held = left_out + len(held) - len(fitting), fitting
        held_rows, _ = rows_of(held)
        if not rows or not held_rows:
            raise LimbeckError(f"no prompt is shorter than max_length {spec.max_length}", "raise max_length")
        metrics: dict[str, Any] = {
            "parameters": student.model.num_parameters(), "rows_train": len(rows), "rows_eval": len(held_rows),
            "rows_too_long": left_out, "epochs": spec.epochs,
        }  # fmt: skip
        measured = self.rank == 0
        if measured:
            student.model.to("cuda" if torch.cuda.is_available() else "cpu")
            metrics["loss_before"] = held_out_loss(student, held_rows)
            metrics["rouge_l_before"] = held_out_rouge(student, held, template, spec.max_length)
        report, is_whole = self._train(student, rows, metrics)
        if not is_whole:
            return  # stopped by the user: whoever stops does not want to wait for its measurement
        if measured:
            metrics["loss_after"] = held_out_loss(student, held_rows)
            metrics["rouge_l_after"] = held_out_rouge(student, held, template, spec.max_length)
            self._save(student, metrics, report)
        ray.train.report({name: value for name, value in metrics.items() if isinstance(value, int | float)})

    def _train(self, student: Any, rows: list[Any], metrics: dict[str, Any]) -> tuple[Report, bool]:
        """(the report, whether all steps were taken)."""
        spec = self.spec
        tokens = sum(len(row.input_ids) + (len(row.labels) if student.seq2seq else 0) for row in rows)
        packed = spec.packing and not student.seq2seq
        features = pack(rows, spec.max_length) if packed else rows
        report = Report(self.work, int(tokens * spec.epochs), writes=self.rank == 0)
        steps = math.ceil(len(features) / (spec.batch_size * spec.workers)) * spec.epochs
        arguments = transformers.TrainingArguments(
            output_dir=str(self.work / "trainer"), per_device_train_batch_size=spec.batch_size,
            num_train_epochs=spec.epochs, learning_rate=spec.learning_rate, seed=spec.seed,
            warmup_steps=int(WARMUP * steps), logging_steps=max(1, int(steps // 200)), save_strategy="no",
            logging_nan_inf_filter=False,  # it would show an older loss in place of one that is no number
            report_to="none", disable_tqdm=True, remove_unused_columns=False, use_cpu=not torch.cuda.is_available(),
            bf16=torch.cuda.is_available(), dataloader_pin_memory=torch.cuda.is_available(),
            ddp_find_unused_parameters=False,
        )  # fmt: skip
        trainer = TokenTrainer(
            model=TokenLosses(student.model), args=arguments, train_dataset=features,
            data_collator=Collator(student.tokenizer.pad_token_id, student.seq2seq), callbacks=[report],
        )  # fmt: skip
        trainer.remove_callback(transformers.PrinterCallback)
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
