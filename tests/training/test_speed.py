"""Operations of a training step: counted from shapes, beside what torch itself counts."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tiny_students import PROMPTS, rows_of, student, taught
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from schemas.objective import Sft
from schemas.student import Lora, TrainingSpec
from training.adapters import attach
from training.examples import Pair
from training.learner import Learner, counts_of
from training.rollout import prompt_of
from training.rows import Collator, sizes_of, token_rows
from training.speed import moments, peak_of, training_flops
from training.trainer import trainer_of


@pytest.mark.parametrize("arch", ["llama", "t5"])
def test_operations_are_those_that_torch_counts(arch: str) -> None:
    made = student(arch)
    pairs = [Pair(q * 4, a * 4, str(i)) for i, (q, a) in enumerate(PROMPTS)]
    rows, _ = token_rows(pairs, made.tokenizer, 256, None, made.seq2seq)
    counted = 0
    for row in rows:  # one by one: nothing is padding
        batch = Collator(made.tokenizer.pad_token_id, made.seq2seq)([[row]])
        inputs = {name: x for name, x in batch.items() if isinstance(x, torch.Tensor)}
        with FlopCounterMode(display=False) as counter:
            Learner(made.model, Sft())(counts_of(batch, made.seq2seq), **inputs).sum().backward()
        counted += counter.get_total_flops()
    # Attention is counted whole by torch and half by us where it is causal; small here beside the weights.
    assert training_flops(made.model, moments(sizes_of(rows))) == pytest.approx(counted, rel=0.15)


def counted_by_torch(model: Any, tokens: Tensor) -> int:
    with FlopCounterMode(display=False) as counter:
        model(input_ids=tokens, labels=tokens).loss.backward()
    return counter.get_total_flops()


def test_weights_that_are_not_learned_take_less_work() -> None:
    made = student("llama")
    tokens = torch.arange(48)[None] % 250
    whole = counted_by_torch(made.model, tokens)
    attach(made, Lora(r=1))
    found = training_flops(made.model, moments(np.array([[48, 48]])))
    assert found == pytest.approx(counted_by_torch(made.model, tokens), rel=0.15) and found < 0.8 * whole


def test_a_token_meets_its_share_of_the_experts() -> None:
    shape = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2,
             "num_attention_heads": 2, "num_key_value_heads": 2, "num_experts_per_tok": 2}  # fmt: skip
    work = [
        training_flops(transformers.MixtralForCausalLM(transformers.MixtralConfig(**shape, num_local_experts=experts)),
                       moments(np.array([[48, 48]])))
        for experts in (2, 16)
    ]  # fmt: skip
    assert work[1] == pytest.approx(work[0], rel=0.02)  # but for the router's own weights


def test_tokens_are_those_that_were_learned_from(tmp_path: Path) -> None:
    """Also where a step's batches do not divide an epoch: of five rows its steps take four and one, and four again."""
    made = student("llama")
    rows = rows_of(made, "sft")[:5]
    spec = {"student": "s", "batch_size": 2, "accumulation": 2, "steps": 3, "packing": False, "max_length": 64}
    trainer = trainer_of(TrainingSpec.model_validate(spec), made, None, rows, rows, tmp_path)
    trainer.train()
    sizes = sorted(sizes_of(rows)[:, 0].tolist())
    assert sum(sizes) + sum(sizes[:4]) <= trainer.work[0].item() <= sum(sizes) + sum(sizes[1:])


def test_tokens_are_those_that_were_sampled(tmp_path: Path) -> None:
    made = student("llama")
    rows = rows_of(made, "gkd")
    spec = {
        "student": "s",
        "teacher": "t",
        "steps": 1,
        "objective": {"name": "gkd", "lambda": 1.0, "max_new_tokens": 1},
    }
    trainer = trainer_of(TrainingSpec.model_validate(spec), made, taught("llama"), rows, rows, tmp_path)
    trainer.train()
    asked = sum(len(prompt_of(row, False)) for row in rows)
    assert trainer.work[:2].tolist() == [asked + 8, 8]


def test_peaks_are_known_by_name() -> None:
    assert peak_of("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_of("NVIDIA H100 PCIe") == 756e12
    assert peak_of("NVIDIA A100-SXM4-80GB") == 312e12
    assert peak_of("a toaster") is None
