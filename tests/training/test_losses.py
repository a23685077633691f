"""The loss: the same number by every road."""

import math

import pytest
import torch
import transformers

from schemas.student import FromScratch, LayerCut, Scratch
from training.data import Collator, Pair, pack, token_rows
from training.evaluate import Words, held_out_loss, responses, rouge_l
from training.losses import TokenLosses
from training.students import Student, cut_layers, from_scratch, load_student

TEXTS = ["What is one and one? It is two.", "Say hello to the people. Hello people!", "Name a colour. Red."]
PAIRS = [Pair("What is one and one?", " It is two."), Pair("Say hello.", " Hello people!"), Pair("Name.", " Red.")]


def student(arch: str) -> Student:
    torch.manual_seed(1)
    made = from_scratch(
        Scratch.model_validate({"arch": arch, "layers": 2, "hidden": 32, "heads": 2, "vocab": 300}), TEXTS
    )
    made.model.eval()
    return made


def loss_of(made: Student, rows: list, batch_size: int) -> float:  # type: ignore[type-arg]
    collate = Collator(made.tokenizer.pad_token_id, made.seq2seq)
    losses = TokenLosses(made.model)
    with torch.no_grad():
        parts = [losses(**collate(rows[i : i + batch_size])) for i in range(0, len(rows), batch_size)]
    return float(torch.cat(parts).sum())


@pytest.mark.parametrize("arch", ["llama", "t5"])
def test_padding_and_batch_composition_do_not_change_the_loss(arch: str) -> None:
    made = student(arch)
    rows, _ = token_rows(PAIRS, made.tokenizer, 64, None, made.seq2seq)
    assert loss_of(made, rows, 1) == pytest.approx(loss_of(made, rows, 3), rel=1e-5)


def test_packed_rows_have_the_loss_of_separate_ones() -> None:
    made = student("llama")
    rows, _ = token_rows(PAIRS * 3, made.tokenizer, 64, None, False)
    packed = pack(rows, 64)
    assert len(packed) < len(rows)
    for batch_size in (1, 3):
        assert loss_of(made, packed, batch_size) == pytest.approx(loss_of(made, rows, 1), rel=1e-5)


@pytest.mark.parametrize("arch", ["llama", "t5"])
def test_the_loss_is_the_model_s_own(arch: str) -> None:
    made = student(arch)
    rows, _ = token_rows(PAIRS, made.tokenizer, 64, None, made.seq2seq)
    batch = Collator(made.tokenizer.pad_token_id, made.seq2seq)(rows)
    with torch.no_grad():
        theirs = float(made.model(**batch).loss)
        ours = float(TokenLosses(made.model)(**batch).mean())
    assert ours == pytest.approx(theirs, rel=1e-5)
    assert held_out_loss(made, rows) == pytest.approx(theirs, rel=1e-5)


def test_a_head_with_a_soft_cap_keeps_it() -> None:
    config = transformers.Gemma2Config(
        vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, final_logit_softcapping=0.5,
    )  # fmt: skip
    made = Student(transformers.Gemma2ForCausalLM(config).eval(), student("llama").tokenizer)
    rows, _ = token_rows(PAIRS, made.tokenizer, 64, None, False)
    batch = Collator(made.tokenizer.pad_token_id, False)(rows)
    with torch.no_grad():
        assert float(TokenLosses(made.model)(**batch).mean()) == pytest.approx(
            float(made.model(**batch).loss), rel=1e-5
        )


def test_gradients_reach_every_parameter() -> None:
    made = student("llama")
    rows, _ = token_rows(PAIRS, made.tokenizer, 64, None, False)
    TokenLosses(made.model)(**Collator(0, False)(rows)).mean().backward()
    assert all(p.grad is not None and math.isfinite(float(p.grad.norm())) for p in made.model.parameters())


def test_a_cut_model_keeps_evenly_spaced_layers_and_still_generates() -> None:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=7, num_attention_heads=2, eos_token_id=1
    )
    model = transformers.LlamaForCausalLM(config)
    originals = list(model.model.layers)
    cut_layers(model, 3)
    assert list(model.model.layers) == [originals[0], originals[3], originals[6]]
    made = Student(model, student("llama").tokenizer)
    assert len(responses(made, PAIRS, None, 64)) == 3


def test_scratch_students_of_one_seed_are_equal() -> None:
    spec = FromScratch(scratch=Scratch(hidden=32, heads=2, vocab=300))
    first, again = (load_student(spec, TEXTS, seed=3).model.state_dict() for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_rouge_l_is_one_for_the_same_words_and_zero_for_others() -> None:
    assert rouge_l(["the cat runs"], ["the cat runs"]) == 1.0
    assert rouge_l(["dogs bark"], ["the cat runs"]) == 0.0
    assert rouge_l(["the cat"], ["the cat runs"]) == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Кошка бежит.", 2), ("القط يركض", 2), ("बिल्ली दौड़ती है।", 3), ("猫在跑。", 3), ("ネコが走る", 5),
       ("แมววิ่ง", 7), ("Größe naïve", 2),
        ("Running cats, 42!", 3), ("고양이가 달린다", 2),
    ],
)  # fmt: skip
def test_rouge_l_reads_every_script(text: str, words: int) -> None:
    assert len(Words().tokenize(text)) == words
    assert rouge_l([text], [text]) == 1.0


def test_english_words_are_those_of_rouge_score() -> None:
    from rouge_score.tokenizers import DefaultTokenizer

    text = "The quick-brown foxes weren't running over 13 lazy dogs' tails; happily_ever_after."
    assert Words().tokenize(text) == DefaultTokenizer(use_stemmer=True).tokenize(text)


def test_a_layer_cut_names_its_source_with_from() -> None:
    assert LayerCut.model_validate({"from": "m", "layers": 2}).source == "m"
