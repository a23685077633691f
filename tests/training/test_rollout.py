"""Sampled responses: whose they are, what they follow from, and what is noted of them."""

from typing import Any

import pytest
import torch
import transformers
from pydantic import TypeAdapter
from tiny_students import PROMPTS, student

from schemas.objective import AnyObjective
from training.aligned import aligned
from training.evaluate import responses as answers
from training.examples import Pair
from training.rollout import Draws, Rollouts, prompt_of, sample
from training.rows import Collator, TokenRow, token_rows
from training.students import Student
from training.teacher import Teacher

ARCHITECTURES = pytest.mark.parametrize("arch", ["llama", "t5"])


def two(arch: str) -> tuple[Student, Teacher]:
    made, other = student(arch), student(arch)
    torch.manual_seed(9)
    for parameter in other.model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return made, Teacher(other.model.eval(), len(made.tokenizer))


def rollouts(arch: str, **parameters: Any) -> tuple[Rollouts, Student]:
    made, teacher = two(arch)
    spec = TypeAdapter(AnyObjective).validate_python({"max_new_tokens": 6, **parameters})
    pad, eos = made.tokenizer.pad_token_id, made.tokenizer.eos_token_id
    return Rollouts(spec, made.model, teacher, Collator(pad, made.seq2seq), pad, eos, seed=0), made


def rows_of(made: Student) -> list[TokenRow]:
    pairs = [Pair(q, a, str(i)) for i, (q, a) in enumerate(PROMPTS)]
    return token_rows(pairs, made.tokenizer, 64, None, made.seq2seq)[0]


def responses(batches: list[dict[str, Any]]) -> dict[str, list[int]]:
    return {r.record: [x for x in r.labels if x != -100] for batch in batches for r in batch["rows"]}


def test_no_more_is_written_than_a_model_has_positions_for() -> None:
    made = student("llama")
    torch.manual_seed(0)
    size = transformers.GPT2Config(vocab_size=len(made.tokenizer), n_positions=16, n_embd=16, n_layer=1, n_head=1)
    model = transformers.GPT2LMHeadModel(size).eval()
    spec = TypeAdapter(AnyObjective).validate_python({"name": "gkd", "max_new_tokens": 40})
    ends = made.tokenizer.pad_token_id, made.tokenizer.eos_token_id
    written = sample(model, [[5, 6, 7], [8] * 20], [0, 1], spec, len(made.tokenizer), *ends)
    assert all(1 <= len(one) <= 13 for one in written)
    long = Pair("Say hello to the people. " * 9, "Hello", "r")
    assert len(answers(Student(model, made.tokenizer), [long], None, 16)) == 1
    bart = transformers.BartForConditionalGeneration(
        transformers.BartConfig(
            vocab_size=len(made.tokenizer), d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=1,
            decoder_attention_heads=1, encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=16,
        )
    ).eval()  # fmt: skip
    written = sample(bart, [[5, 6, 7], [8] * 20], [0, 1], spec, len(made.tokenizer), *ends)
    assert all(1 <= len(one) <= 16 for one in written)
    assert len(answers(Student(bart, made.tokenizer), [long], None, 64, 40)) == 1


def test_draws_follow_the_distribution_and_the_mix() -> None:
    _, teacher = two("llama")
    scores = torch.log(torch.tensor([[0.5, 0.3, 0.2, 0.0]])).repeat(6000, 1)
    draws = Draws(range(6000), 1.0, 4)
    shares = torch.bincount(draws(torch.zeros(6000, 1, dtype=torch.long), scores).argmax(-1), minlength=4) / 6000
    assert shares.tolist() == pytest.approx([0.5, 0.3, 0.2, 0.0], abs=0.02)
    cold = Draws(range(500), 0.05, 4)
    assert set(cold(torch.zeros(500, 1, dtype=torch.long), scores[:500]).argmax(-1).tolist()) == {0}
    prompt = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        theirs = teacher.model(prompt).logits[0, -1].softmax(-1)
    inputs = {"input_ids": prompt.repeat(6000, 1), "attention_mask": torch.ones(6000, 3, dtype=torch.long)}
    mixed = Draws(range(6000), 1.0, len(theirs), teacher.model, 0.5, inputs)
    uniform = torch.zeros(6000, len(theirs))
    with torch.no_grad():
        got = torch.bincount(mixed(inputs["input_ids"], uniform).argmax(-1), minlength=len(theirs)) / 6000
    expected = 0.5 * theirs + 0.5 / len(theirs)
    assert float((got - expected).abs().max()) < 0.02


@ARCHITECTURES
def test_a_response_depends_on_its_seed_alone(arch: str) -> None:
    run, made = rollouts(arch, name="gkd", **{"lambda": 1.0})
    rows = rows_of(made)
    together = responses(run.sampled([{"rows": rows}], step=3))
    apart = responses(run.sampled([{"rows": [row]} for row in reversed(rows)], step=3))
    assert together == apart
    assert together != responses(run.sampled([{"rows": rows}], step=4))
    assert all(1 <= len(r) <= 6 for r in together.values())


@ARCHITECTURES
def test_the_teacher_s_part_of_a_mix_reads_what_the_teacher_reads(arch: str) -> None:
    made, teacher = two(arch)
    spec = TypeAdapter(AnyObjective).validate_python({"name": "minillm", "max_new_tokens": 8})
    prompts = [prompt_of(row, made.seq2seq) for row in rows_of(made)]
    pad, eos, size = made.tokenizer.pad_token_id, made.tokenizer.eos_token_id, len(made.tokenizer)
    alone = sample(teacher.model, prompts, [1, 2, 3], spec, size, pad, eos)
    mixed = sample(made.model, prompts, [1, 2, 3], spec, size, pad, eos, teacher.model, 1 - 1e-12)
    assert mixed == alone
    assert mixed != sample(made.model, prompts, [1, 2, 3], spec, size, pad, eos)


def test_gkd_draws_whose_responses_they_are_once_a_step() -> None:
    run, made = rollouts("llama", name="gkd", **{"lambda": 0.5})
    rows = rows_of(made)
    fixed = responses([{"rows": rows}])
    students = [responses(run.sampled([{"rows": rows}], step)) != fixed for step in range(200)]
    assert 70 < sum(students) < 130
    other, _ = rollouts("llama", name="gkd", **{"lambda": 0.5})
    assert [responses(other.sampled([{"rows": rows}], step)) != fixed for step in range(50)] == students[:50]
    none, _ = rollouts("llama", name="gkd", **{"lambda": 0.0})
    assert responses(none.sampled([{"rows": rows}], 1)) == fixed
    theirs, _ = rollouts("llama", name="gkd", seq_kd=True, **{"lambda": 0.0})
    assert responses(theirs.sampled([{"rows": rows}], 1)) == responses(theirs.sampled([{"rows": rows}], 2)) != fixed


@ARCHITECTURES
def test_minillm_notes_the_mix_that_tokens_were_drawn_from_and_uses_them_again(arch: str) -> None:
    run, made = rollouts(arch, name="minillm", reuse=2, teacher_mix=0.3)
    rows = rows_of(made)
    (batch,) = run.sampled([{"rows": rows}], step=0)
    with torch.no_grad():
        ours, theirs = aligned(made.model, batch), run.teacher(batch)
        q, p = ours.logits.softmax(-1), theirs.logits.softmax(-1)
    expected = (0.7 * q + 0.3 * p).gather(-1, ours.targets[:, None])[:, 0].log()
    assert torch.allclose(batch["mix"], expected, atol=1e-5)
    assert len(batch["returns"]) == len(ours.targets)
    (again,) = run.sampled([{"rows": rows}], step=1)
    assert torch.equal(again["mix"], batch["mix"]) and responses([again]) == responses([batch])
    (fresh,) = run.sampled([{"rows": rows}], step=2)
    assert responses([fresh]) != responses([batch])


def test_released_returns_are_whitened_over_the_whole_step() -> None:
    run, made = rollouts("llama", name="minillm", variant="released")
    one, two_ = run.sampled([{"rows": rows_of(made)[:1]}, {"rows": rows_of(made)[1:]}], step=0)
    every = torch.cat([one["returns"], two_["returns"]])
    assert float(every.mean()) == pytest.approx(0.0, abs=1e-5)
    assert float(every.pow(2).mean()) == pytest.approx(1.0, abs=1e-4)


def test_what_a_model_s_own_settings_say_of_lengths_and_tokens_does_not_hold_while_it_learns() -> None:
    made = student("t5")
    spec = TypeAdapter(AnyObjective).validate_python({"name": "gkd", "max_new_tokens": 30})
    ends = made.tokenizer.pad_token_id, made.tokenizer.eos_token_id
    prompts, seeds = [[5, 6, 7]] * 6, list(range(6))
    plain = sample(made.model, prompts, seeds, spec, len(made.tokenizer), *ends), greedy(made)
    own = {"min_length": 20, "num_beams": 3, "no_repeat_ngram_size": 1, "suppress_tokens": [ends[1], 9, 10]}
    made.model.generation_config.update(**own)
    assert (sample(made.model, prompts, seeds, spec, len(made.tokenizer), *ends), greedy(made)) == plain
    assert made.model.generation_config.min_length == 20  # and is saved with it


def greedy(made: Student) -> list[str]:
    return answers(made, [Pair(q, a) for q, a in PROMPTS], None, 64, tokens=12)
