"""Responses that are sampled while a student learns: by the student, by its teacher, or by a mix of both."""

import math
import random
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor
from torch.nn.functional import log_softmax

from schemas.objective import Gkd, MiniLLM
from training.aligned import aligned, positions
from training.divergences import wide
from training.examples import MAIN
from training.objectives import returns_of
from training.rows import BLANK, IGNORED, Collator, TokenRow, padded
from training.students import plainly
from training.teacher import Teacher


class Draws(transformers.LogitsProcessor):  # type: ignore[misc]
    """Makes greedy decoding sample: leaves finite only the token that each row's own random number chooses.

    So a row's response depends on its seed alone, not on the rows or workers beside it. With a teacher, the
    distribution is share * teacher + (1 - share) * student (MiniLLM, section 2.2), with the teacher's own cache.
    """

    def __init__(
        self, seeds: Sequence[int], temperature: float, vocabulary: int, teacher: Any = None, share: float = 0.0,
        inputs: dict[str, Tensor] | None = None,
    ) -> None:  # fmt: skip
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._temperature, self._vocabulary = temperature, vocabulary
        self._teacher, self._share, self._inputs = teacher if share else None, share, dict(inputs or {})
        self._cache: Any = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """input_ids (B, so far), scores (B, vocabulary) -> scores with one finite entry a row."""
        chances = (wide(scores[:, : self._vocabulary]) / self._temperature).softmax(-1)
        if self._teacher is not None:
            theirs = wide(self._teacher_logits(input_ids)[:, : self._vocabulary]).softmax(-1)
            chances = self._share * theirs + (1 - self._share) * chances
        points = torch.stack([torch.rand((), generator=g, dtype=torch.float64) for g in self._generators])
        edges = chances.double().cumsum(-1)
        aim = points.to(edges.device)[:, None] * edges[:, -1:]
        chosen = torch.searchsorted(edges, aim, right=True).clamp(max=self._vocabulary - 1)
        return torch.full_like(scores, float("-inf")).scatter(1, chosen, 0.0)

    def _teacher_logits(self, input_ids: Tensor) -> Tensor:
        """The teacher's next-token logits; it reads what it has not read yet."""
        teacher = self._teacher
        if teacher.config.is_encoder_decoder:
            if "encoder_outputs" not in self._inputs:
                encoded = teacher.get_encoder()(self._inputs.pop("input_ids"), self._inputs["attention_mask"])
                self._inputs["encoder_outputs"] = encoded
            out = teacher(
                **self._inputs, decoder_input_ids=input_ids[:, -1:] if self._cache else input_ids,
                past_key_values=self._cache, use_cache=True,
            )  # fmt: skip
        else:
            mask = self._inputs["attention_mask"]
            mask = torch.cat([mask, mask.new_ones(len(mask), input_ids.shape[1] - mask.shape[1])], -1)
            positions = (mask.cumsum(-1) - 1).clamp(min=0)
            new = input_ids[:, -1:] if self._cache else input_ids
            out = teacher(
                input_ids=new, attention_mask=mask, position_ids=positions[:, -new.shape[1] :],
                past_key_values=self._cache, use_cache=True,
            )  # fmt: skip
        self._cache = out.past_key_values
        logits: Tensor = out.logits[:, -1]
        return logits


def sample(
    writer: Any, prompts: Sequence[list[int]], seeds: Sequence[int], spec: Gkd | MiniLLM, vocabulary: int, pad: int,
    eos: int, teacher: Any = None, share: float = 0.0,
) -> list[list[int]]:  # fmt: skip
    """A response in tokens to each prompt: it ends with the end-of-sequence token, or is cut."""
    most = min(positions(model) for model in (writer, teacher) if model is not None)
    encoded = padded([prompt[-(most - 1) :] for prompt in prompts], pad, writer.device)
    room = most - (1 if writer.config.is_encoder_decoder else encoded["input_ids"].shape[1])
    draws = Draws(seeds, spec.temperature, vocabulary, teacher, share, encoded)
    was_training = writer.training
    writer.eval()
    # synced_gpus=False: weights that are shared out are whole here, and other workers may have nothing to write.
    with torch.no_grad(), plainly(writer):
        out = writer.generate(
            **encoded, synced_gpus=False, do_sample=False, num_beams=1, max_new_tokens=min(spec.max_new_tokens, room),
            pad_token_id=pad, eos_token_id=eos,
            logits_processor=transformers.LogitsProcessorList([draws]),
        )  # fmt: skip
    writer.train(was_training)
    start = 1 if writer.config.is_encoder_decoder else encoded["input_ids"].shape[1]
    return [row[: row.index(eos) + 1] if eos in row else row for row in out[:, start:].tolist()]


def prompt_of(row: TokenRow, seq2seq: bool) -> list[int]:
    """The tokens that a response follows."""
    if seq2seq:
        return row.input_ids
    first = next((i for i, label in enumerate(row.labels) if label != IGNORED), len(row.labels))
    return row.input_ids[: max(1, first)]


def with_response(row: TokenRow, prompt: list[int], response: list[int], seq2seq: bool) -> TokenRow:
    """The same row with another response."""
    if seq2seq:
        return replace(row, labels=response)
    return replace(row, input_ids=prompt + response, labels=[IGNORED] * len(prompt) + response)


class Kept(NamedTuple):
    """A sampled row, (T,) log-probabilities under the mix and returns, and how often it may still be learned from."""

    row: TokenRow
    mix: list[float]
    returns: list[float]
    left: int


@dataclass(slots=True)
class Rollouts:
    """Replaces the responses of a step's rows by sampled ones, as its objective wants it.

    `reduce`: the sum of a tensor over all workers. Everything follows from (seed, step, record), so a resumed training
    and one on other workers sample the same.
    """

    spec: Gkd | MiniLLM
    model: Any
    teacher: Teacher
    collate: Collator
    pad: int
    eos: int
    seed: int
    reduce: Callable[[Tensor], Tensor] = lambda tensor: tensor
    kept: dict[str, Kept] = field(default_factory=dict)

    def state(self) -> dict[str, Any]:
        """What a resumed training needs of it, as JSON."""
        return {name: {**kept._asdict(), "row": asdict(kept.row)} for name, kept in self.kept.items()}

    def restore(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave."""
        for name, kept in state.items():
            self.kept[name] = Kept(**{**kept, "row": TokenRow(**kept["row"])})

    def sampled(self, batches: Sequence[dict[str, Any]], step: int) -> list[dict[str, Any]]:
        """The micro-batches of a step with sampled responses, on the model's device."""
        if isinstance(self.spec, MiniLLM):
            return self._whitened([self._policy_batch(batch["rows"], step) for batch in batches])
        writer = self._writer(step)
        return list(batches) if writer is None else [self._written(batch["rows"], writer, step) for batch in batches]

    def _writer(self, step: int) -> Any:
        """Who writes this step's responses, None where they stay; the same on every worker."""
        assert isinstance(self.spec, Gkd)
        if random.Random(f"{self.seed}:{step}").random() < self.spec.student_fraction:
            return self.model
        return self.teacher.model if self.spec.seq_kd else None

    def _written(self, rows: Sequence[TokenRow], writer: Any, step: int) -> dict[str, Any]:
        asked = [row for row in rows if row.task != BLANK]
        fresh = self._responses(asked, writer, step if writer is self.model else 0) if asked else []
        return self._collated([*fresh, *(row for row in rows if row.task == BLANK)])

    def _collated(self, rows: Sequence[TokenRow]) -> dict[str, Any]:
        batch = self.collate([[row] for row in rows])
        device = self.model.device
        return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}

    def _responses(self, rows: Sequence[TokenRow], writer: Any, step: int, share: float = 0.0) -> list[TokenRow]:
        seq2seq = bool(self.model.config.is_encoder_decoder)
        prompts = [prompt_of(row, seq2seq) for row in rows]
        seeds = [zlib.crc32(f"{self.seed}:{step}:{row.record}".encode()) for row in rows]
        written = sample(
            writer, prompts, seeds, self.spec, self.teacher.vocabulary, self.pad, self.eos,
            self.teacher.model if share else None, share,
        )  # fmt: skip
        return [with_response(r, p, w, seq2seq) for r, p, w in zip(rows, prompts, written, strict=True)]

    def _policy_batch(self, rows: Sequence[TokenRow], step: int) -> dict[str, Any]:
        """MiniLLM: rows that are kept are used again, the others are sampled now."""
        assert isinstance(self.spec, MiniLLM)
        missing = [row for row in rows if row.task == MAIN and row.record not in self.kept]
        if missing:
            self._keep(self._responses(missing, self.model, step, self.spec.teacher_mix))
        mix, returns, found = [], [], []
        for row in rows:
            if row.task != MAIN:
                found.append(row)
                continue
            kept = self.kept.pop(row.record)
            if kept.left > 1:
                self.kept[row.record] = kept._replace(left=kept.left - 1)
            found.append(kept.row)
            mix, returns = mix + kept.mix, returns + kept.returns
        device = self.model.device
        return self._collated(found) | {
            "mix": torch.tensor(mix, device=device), "returns": torch.tensor(returns, device=device)
        }  # fmt: skip

    def _keep(self, rows: Sequence[TokenRow]) -> None:
        """Note what student and teacher thought of the sampled tokens when they were sampled."""
        assert isinstance(self.spec, MiniLLM)
        batch = self._collated(rows)
        was_training = self.model.training
        self.model.eval()
        with torch.no_grad():
            ours = aligned(self.model, batch).cut(self.teacher.vocabulary)
            targets = ours.targets[:, None]
            q = log_softmax(wide(ours.logits) / self.spec.temperature, -1).gather(-1, targets)[:, 0]
            p = log_softmax(wide(self.teacher(batch).logits), -1).gather(-1, targets)[:, 0]
        self.model.train(was_training)
        share = self.spec.teacher_mix
        mix = torch.logaddexp(p + math.log(share), q + math.log1p(-share)) if share else q
        for number, row in enumerate(rows):
            of_row = ours.owners == number
            returns = returns_of(self.spec, p[of_row], q[of_row])
            self.kept[row.record] = Kept(row, mix[of_row].tolist(), returns.tolist(), self.spec.reuse)

    def _whitened(self, batches: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """As released: returns have mean 0 and variance 1 over all tokens of a step, on all workers."""
        assert isinstance(self.spec, MiniLLM)
        if self.spec.variant != "released":
            return batches
        every = torch.cat([batch["returns"] for batch in batches]).double()
        sums = torch.stack([every.new_tensor(float(len(every))), every.sum(), every.pow(2).sum()])
        count, total, squares = self.reduce(sums).tolist()
        mean = total / max(1.0, count)
        spread = math.sqrt(max(squares / max(1.0, count) - mean**2, 1e-8))
        return [batch | {"returns": (batch["returns"] - mean) / spread} for batch in batches]
