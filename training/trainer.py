"""A `transformers.Trainer` whose loss is one number however a step's rows are split over micro-batches and workers."""

import contextlib
import functools
import itertools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate.utils import gather_object
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from schemas.errors import LimbeckError
from schemas.objective import Gkd, MiniLLM, samples, teaches
from schemas.student import TrainingSpec
from training import sharding
from training.aligned import has_bare_head, packs
from training.checkpoints import Saving, keep, newest, readable, restore, step_of, taken_by, written
from training.evaluate import held_out_sums
from training.learner import Learner, counts_of, without_dropout
from training.order import Shuffled
from training.rollout import Rollouts
from training.rows import BLANK, Bins, Collator, Filled, TokenRow, pack, sizes_of
from training.signals import Signals, cache_of
from training.speed import moments
from training.students import Student
from training.teacher import Teacher, vocabulary_with

WEIGHTS, OPTIMIZER, SCHEDULER = "learner.safetensors", "optimizer.pt", "scheduler.pt"


class TokenTrainer(transformers.Trainer):  # type: ignore[misc]
    """Counts a step's tokens over all its micro-batches and workers before the first of them runs.

    The stock loss of an encoder-decoder ignores such a count and comes out multiplied by accumulation x workers.
    Where the objective learns from sampled responses, they are sampled here, before they are counted.
    """

    loss_is_scaled_for_ga = True

    def __init__(
        self, learner: Learner, student: Student, held: Sequence[TokenRow], order: Shuffled, rollouts: Rollouts | None,
        saving: Saving, packed: bool, sharded: bool = False, **kwargs: Any,
    ) -> None:  # fmt: skip
        super().__init__(model=learner, **kwargs)
        self.add_callback(saving)
        self.packed = packed
        self._learner, self._student, self._held = learner, student, held
        self._rollouts, self._saving = rollouts, saving
        self._seq2seq = bool(learner.model.config.is_encoder_decoder)
        self._since_check: list[tuple[list[str], Tensor]] = []
        self._steps = 0  # since the loss was logged
        self.work = torch.zeros(5, dtype=torch.float64, device=self.args.device)  # moments of the rows so far
        self._taken: list[str] = []  # records of the step, on this worker
        self._order = order
        if sharded:
            # The model is placed, and its gradients are averaged, by `fully_shard`: not by DDP.
            sharding.shard(learner)
            self.is_distributed_loading_by_transformers = True
        self._sharded = sharded
        saving.work = self.work.tolist
        if rollouts is not None:
            rollouts.reduce = lambda tensor: self.accelerator.reduce(tensor, "sum")

    @property
    def seconds(self) -> float:
        """That the training has taken, over all its starts."""
        return self._saving.seconds

    @property
    def was_stopped(self) -> bool:
        """Whether the user ended it before its end."""
        return self._saving.was_stopped

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return self._order

    def _run_epoch(self, model: Any, epoch: int, *args: Any, **kwargs: Any) -> Any:
        # In an epoch that is resumed on several workers nobody else tells the sampler which one it is.
        self._order.set_epoch(epoch)
        return super()._run_epoch(model, epoch, *args, **kwargs)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor]:
        """(micro-batches of a step, their counts over all workers, (6,))."""
        self._steps += 1
        batches = list(itertools.islice(epoch_iterator, num_batches))
        self._taken = [row.record for batch in batches for row in batch["rows"] if row.task != BLANK]
        if self._rollouts is not None:
            batches = self._sampled(self._rollouts, batches)
        counts = torch.stack([counts_of(batch, self._seq2seq) for batch in batches]).sum(0)
        work = moments(sizes_of([row for batch in batches for row in batch["rows"] if row.task != BLANK]))
        told = self.accelerator.reduce(torch.cat([counts.double(), torch.from_numpy(work)]).to(device), "sum")
        self.work += told[len(counts) :]
        return batches, told[: len(counts)].float()

    def _sampled(self, rollouts: Rollouts, batches: list[Any]) -> list[Any]:
        sample = functools.partial(rollouts.sampled, batches, self.state.global_step)
        return sharding.gathered(self._learner, sample) if self._sharded else sample()

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        records = [row.record for row in inputs.pop("rows") if row.task != BLANK]
        progress = self.state.global_step / max(1, self.state.max_steps)
        terms = model(counts=num_items_in_batch, progress=progress, **inputs)
        loss: Tensor = terms.sum()
        self._since_check.append((records, terms.detach()))
        # DDP averages gradients over workers, while the counts cover all of them.
        return loss * self.accelerator.num_processes

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """As the stock one, with the objective's terms beside the loss; a loss that is no number ends the training."""
        if "loss" in logs:
            sums = self._terms()
            if not bool(sums.isfinite().all()):
                self._refuse()
            for name, value in zip(self._learner.names, sums.tolist(), strict=True):
                logs[f"loss_{name}"] = value / self._steps
            self._since_check.clear()
            self._steps = 0
        super().log(logs, *args, **kwargs)

    def _terms(self) -> Tensor:
        """Sums of the terms since the last time, over all workers. Looked at when a loss is logged, for each look
        waits for the device."""
        sums: Tensor = self.accelerator.reduce(torch.stack([terms for _, terms in self._since_check]).sum(0), "sum")
        return sums

    def _refuse(self) -> None:
        """`LimbeckError`, the same on all workers, with the records of the first loss that is no number."""
        odd = [(records, terms) for records, terms in self._since_check if not bool(terms.isfinite().all())]
        found = gather_object([f"{float(terms.sum())} at records {_some(records)}" for records, terms in odd[:1]])
        raise LimbeckError(
            f"at step {self.state.global_step} the loss is {found[0] if found else 'too large'}",
            "look at these records, or lower learning_rate under another --out: this one keeps its last checkpoint",
        )

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """The held-out loss, each worker on its share of the rows; on all where weights are gathered by all at once."""
        held = self._held if self._sharded else self._held[self.args.process_index :: self.args.world_size]
        total, count = self._learner.within(lambda: held_out_sums(self._student, held))
        sums = torch.tensor([total, float(count)], device=self.args.device)
        total, count = self.accelerator.reduce(sums, "sum").tolist()
        found = {"eval_loss": total / max(1.0, count)}
        self.log(found)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, found)
        return found

    @contextlib.contextmanager
    def _defer_fsdp_gradient_reduction(self) -> Iterator[None]:
        """Between the batches of a step weights that are shared out keep their gradients to themselves."""
        self._learner.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            self._learner.set_requires_gradient_sync(True)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """As the stock one, and it is there for all workers, or is told by all."""
        self._require_numbers()
        told, hint = "", ""
        try:
            with written(f"the checkpoint of step {self.state.global_step}"):
                super()._save_checkpoint(model, trial)
                if self._rollouts is not None:
                    place = Path(self.args.output_dir, f"checkpoint-{self.state.global_step}")
                    keep(self._rollouts, place, self.args.process_index)
        except LimbeckError as error:
            told, hint = error.message, error.hint
        if failed := [line for line in gather_object([(told, hint)]) if line[0]]:
            raise LimbeckError(*failed[0])

    def _require_numbers(self) -> None:
        """`LimbeckError`, on all workers, where the weights are none any more: a checkpoint of them would take the
        place of a good one."""
        parts = (p.to_local() if isinstance(p, DTensor) else p for p in self._learning().values())
        if any(gather_object([not all(bool(part.isfinite().all()) for part in parts)])):
            raise LimbeckError(
                f"at step {self.state.global_step} a gradient was no number though the loss was; its records: "
                f"{_some(self._taken)}",
                "look at these records, or lower learning_rate under another --out: this one keeps its last checkpoint",
            )

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """What learns: of a student with adapters those alone, and tied weights, which the stock one refuses, once."""
        learning = self._learning()
        if self._sharded:  # every worker has a part to give
            whole = sharding.weights(self._learner)
            learning = {name: whole[name] for name in learning if name in whole}
        if self.args.should_save:
            place = Path(output_dir or self.args.output_dir)
            place.mkdir(parents=True, exist_ok=True)
            save_file({name: p.detach().contiguous() for name, p in learning.items()}, place / WEIGHTS)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        ours = self._learning()
        with readable(resume_from_checkpoint):
            kept = load_file(Path(resume_from_checkpoint, WEIGHTS))  # on the CPU: a worker's cpu:0 is no name of it
            odd = sorted(kept.keys() ^ ours.keys()) or [n for n, p in ours.items() if p.shape != kept[n].shape]
            if odd:
                raise ValueError(odd[0])
        if self._sharded:
            sharding.put_weights(self._learner, kept)
            return
        with torch.no_grad():
            for name, parameter in ours.items():
                parameter.copy_(kept[name])

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self._sharded:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        state = sharding.optimizer_state(self._learner, self.optimizer)
        if self.args.should_save:
            torch.save(state, Path(output_dir, OPTIMIZER))
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir, SCHEDULER))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        with readable(checkpoint):
            for name in (OPTIMIZER, SCHEDULER):
                Path(checkpoint, name).stat()  # the stock one begins with new ones where they are not there
            if not self._sharded:
                super()._load_optimizer_and_scheduler(checkpoint)
                return
            kept = torch.load(Path(checkpoint, OPTIMIZER), map_location="cpu", weights_only=True)
            self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint, SCHEDULER), weights_only=True))
        sharding.put_optimizer_state(self._learner, self.optimizer, kept)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with readable(checkpoint or ""):
            super()._load_rng_state(checkpoint)

    def _learning(self) -> dict[str, Tensor]:
        return {name: p for name, p in self._learner.named_parameters() if p.requires_grad}

    def weights(self) -> dict[str, Tensor]:
        """Of the student's model, whole, on the first worker; of one that is shared out every worker must ask."""
        kept = sharding.weights(self._learner) if self._sharded else self._learner.state_dict()
        return {name.removeprefix("model."): p for name, p in kept.items() if name.startswith("model.")}

    def go_on(self) -> int:
        """Train from the newest checkpoint, where there is one, to the end; the step that it began at."""
        found = newest(Path(self.args.output_dir))
        if found is not None and self._has_ended(found):  # killed after an early stop
            self._load_from_checkpoint(str(found))
        else:
            self.train(resume_from_checkpoint=None if found is None else str(found))
        if self.args.metric_for_best_model and self.state.best_model_checkpoint and not self.was_stopped:
            self._load_from_checkpoint(self.state.best_model_checkpoint)
        return 0 if found is None else step_of(found)

    def _has_ended(self, checkpoint: Path) -> bool:
        """Take up what a checkpoint says beside its weights; whether the training stopped early there."""
        with readable(checkpoint):
            taken = taken_by(checkpoint)
            self._saving.go_on_from(taken)
            self.work += torch.tensor(taken.work, dtype=torch.float64, device=self.args.device)
            self.state = transformers.TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
            if self.state.global_step != step_of(checkpoint):
                raise ValueError(f"its state is of step {self.state.global_step}")
            if self._rollouts is not None:
                restore(self._rollouts, checkpoint, taken.workers)
        return self._saving.ended_with(self.state.log_history)


def visits_of(spec: TrainingSpec) -> int:
    """How often a row comes in an epoch."""
    return spec.objective.reuse if isinstance(spec.objective, MiniLLM) else 1


def workers_now() -> int:
    """Workers at work, which may be fewer than the spec's."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def _some(records: Sequence[str]) -> str:
    return ", ".join(records[:8]) + (" ..." if len(records) > 8 else "")


def trainer_of(
    spec: TrainingSpec, student: Student, teacher: Teacher | None, rows: Sequence[TokenRow], held: Sequence[TokenRow],
    out: Path, callbacks: Sequence[transformers.TrainerCallback] = (), wished: Callable[[], bool] = lambda: False,
) -> TokenTrainer:  # fmt: skip
    """What trains `student` on `rows` as `spec` says, on however many workers the process is one of.

    Checkpoints are in `out`; `held` are the rows that tell which is the best; `wished` is asked whether to stop.
    """
    packed = spec.packing and not samples(spec.objective) and packs(student.model)
    sizes = sizes_of(rows)
    bins = Bins(rows, pack(sizes, spec.max_length) if packed else None)
    cache = cache_of(spec)
    signals = None if cache is None else Signals(cache, student.seq2seq)
    vocabulary = vocabulary_with(spec.teacher, student) if signals is not None and spec.teacher else None
    collate = Collator(student.tokenizer.pad_token_id, student.seq2seq, signals)
    asked = teacher if signals is None and teaches(spec.objective) else None  # others are measured with it alone
    learner = Learner(student.model, spec.objective, asked, vocabulary)
    if not student.seq2seq:
        has_bare_head(student.model)  # while it is whole
    if spec.activation_checkpointing:
        student.model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    if isinstance(spec.objective, MiniLLM):
        without_dropout(student.model)  # as released: what was sampled is compared with what would be now
    rollouts = _rollouts(spec, student, teacher, collate)
    lengths = sizes.max(-1).tolist() if spec.bucketing and not packed else None
    whole = spec.batch_size * math.lcm(spec.workers, workers_now())
    visits = visits_of(spec)
    together = spec.objective.rollouts if isinstance(spec.objective, MiniLLM) else whole
    batch = spec.batch_size * spec.workers
    order = Shuffled(len(bins), batch, spec.seed, lengths, whole, visits, together)
    trainer = TokenTrainer(
        learner, student, held, order, rollouts, Saving(spec.checkpoints, wished), packed, spec.sharding,
        args=_arguments(spec, len(bins), out), train_dataset=Filled(bins, whole), data_collator=collate,
        callbacks=list(callbacks),
    )  # fmt: skip
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer


def _rollouts(spec: TrainingSpec, student: Student, teacher: Teacher | None, collate: Collator) -> Rollouts | None:
    if not isinstance(spec.objective, Gkd | MiniLLM) or not samples(spec.objective):
        return None
    assert teacher is not None
    ends = student.tokenizer.pad_token_id, student.tokenizer.eos_token_id
    return Rollouts(spec.objective, student.model, teacher, collate, *ends, spec.seed)


def accumulation_of(spec: TrainingSpec, workers: int) -> int:
    """Batches that each of so many workers takes a step: it has the same rows, however many of them there are."""
    return spec.accumulation * spec.workers // workers


def _arguments(spec: TrainingSpec, bins: int, out: Path) -> transformers.TrainingArguments:
    cuda = torch.cuda.is_available()
    bf16 = spec.precision == "bfloat16" or (spec.precision == "auto" and cuda)
    batches = math.ceil(bins / (spec.batch_size * spec.workers)) * visits_of(spec)
    steps = spec.steps or max(1, math.ceil(math.ceil(batches / spec.accumulation) * spec.epochs))
    return transformers.TrainingArguments(
        output_dir=str(out), per_device_train_batch_size=spec.batch_size,
        gradient_accumulation_steps=accumulation_of(spec, workers_now()),
        num_train_epochs=spec.epochs, max_steps=spec.steps or -1,
        learning_rate=spec.learning_rate, seed=spec.seed, warmup_steps=int(spec.warmup * steps),
        lr_scheduler_type="constant_with_warmup" if spec.schedule == "constant" else spec.schedule,
        weight_decay=spec.weight_decay, adam_beta1=spec.betas[0], adam_beta2=spec.betas[1],
        max_grad_norm=spec.max_grad_norm,
        logging_steps=max(1, steps // 200), logging_nan_inf_filter=False, report_to="none",
        save_strategy="steps", save_steps=steps, metric_for_best_model="loss" if spec.checkpoints.best else None,
        disable_tqdm=True, remove_unused_columns=False, use_cpu=not cuda, bf16=bf16, dataloader_pin_memory=cuda,
        ddp_find_unused_parameters=False,
    )  # fmt: skip
