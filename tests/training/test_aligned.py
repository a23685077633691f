"""What a model says of each labelled token: the same by every road, for both architectures."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny_students import PROMPTS, TEXTS, student
from torch.nn.functional import cross_entropy

from schemas.errors import SpecError
from schemas.student import FromScratch, LayerCut, Scratch, TrainingSpec
from training.aligned import Aligned, aligned, has_bare_head, packs
from training.compare import on_tokens
from training.evaluate import Words, responses, rouge_l
from training.examples import Pair
from training.rows import Bins, Collator, TokenRow, pack, sizes_of, token_rows
from training.students import Student, cut_layers, load_student, pretrained, tokenizer_for
from training.trainer import trainer_of

PAIRS = [Pair(prompt, response) for prompt, response in PROMPTS]
ARCHITECTURES = pytest.mark.parametrize("arch", ["llama", "t5"])


def rows_of(made: Student, pairs: list[Pair] = PAIRS) -> list[TokenRow]:
    return token_rows(pairs, made.tokenizer, 64, None, made.seq2seq)[0]


def seen_by(made: Student, bins: list[list[TokenRow]]) -> Aligned:
    with torch.no_grad():
        return aligned(made.model, Collator(made.tokenizer.pad_token_id, made.seq2seq)(bins), hidden=True)


def loss_of(made: Student, bins: list[list[TokenRow]], batch_size: int) -> float:
    parts = [seen_by(made, bins[i : i + batch_size]) for i in range(0, len(bins), batch_size)]
    with torch.no_grad():
        return sum(float(cross_entropy(part.logits, part.targets, reduction="sum")) for part in parts)


@ARCHITECTURES
def test_padding_and_batch_composition_do_not_change_the_loss(arch: str) -> None:
    made = student(arch)
    alone = [[row] for row in rows_of(made)]
    assert loss_of(made, alone, 1) == pytest.approx(loss_of(made, alone, 3), rel=1e-5)


@ARCHITECTURES
def test_packed_rows_say_what_separate_ones_say(arch: str) -> None:
    made = student(arch)
    rows = rows_of(made, PAIRS * 3)
    bins = list(Bins(rows, pack(sizes_of(rows), 64)))
    assert len(bins) < len(rows)
    for batch_size in (1, 3):
        assert loss_of(made, bins, batch_size) == pytest.approx(loss_of(made, [[r] for r in rows], 1), rel=1e-5)
    packed, alone = seen_by(made, bins), seen_by(made, [[row] for group in bins for row in group])
    assert torch.equal(packed.targets, alone.targets)
    assert torch.equal(packed.owners, alone.owners)
    assert torch.allclose(packed.logits, alone.logits, atol=1e-5)
    for one, other in zip(packed.hidden, alone.hidden, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


ENDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
BART = {
    "vocab_size": 300, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "decoder_start_token_id": 2, **ENDS,
}  # fmt: skip


def other(kind: str) -> Any:
    """A model of another family."""
    torch.manual_seed(0)
    if kind == "gpt2":
        config = transformers.GPT2Config(vocab_size=300, n_embd=32, n_layer=2, n_head=2, **ENDS)
        return transformers.GPT2LMHeadModel(config)
    if kind == "opt":
        size = {"hidden_size": 32, "word_embed_proj_dim": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        return transformers.OPTForCausalLM(transformers.OPTConfig(vocab_size=300, ffn_dim=32, **size, **ENDS))
    if kind == "mamba":
        config = transformers.MambaConfig(vocab_size=300, hidden_size=32, num_hidden_layers=2, state_size=4, **ENDS)
        return transformers.MambaForCausalLM(config)
    return transformers.BartForConditionalGeneration(transformers.BartConfig(**BART))


def test_rows_are_packed_only_where_they_do_not_see_each_other(tmp_path: Path) -> None:
    """Positions of OPT and BART go on from one row to the next, and so does a state of Mamba."""
    known = {arch: packs(student(arch).model) for arch in ("llama", "t5")}
    assert known | {kind: packs(other(kind)) for kind in ("gpt2", "opt", "mamba", "bart")} == {
        "llama": True, "t5": True, "gpt2": True, "opt": False, "mamba": False, "bart": False,
    }  # fmt: skip
    spec = TrainingSpec.model_validate({"student": "s", "batch_size": 2, "max_length": 64})
    for made, packed in ((student("llama"), True), (Student(other("opt"), student("llama").tokenizer), False)):
        rows = rows_of(made, PAIRS * 3)
        trainer = trainer_of(spec, made, None, rows, rows[:1], tmp_path)
        assert trainer.packed is packed and (len(trainer.train_dataset) < len(rows)) is packed


@ARCHITECTURES
def test_packing_leaves_finite_gradients_where_a_bin_is_mostly_padding(arch: str) -> None:
    made = student(arch)
    long, short = rows_of(made, [Pair("one " * 30, " two" * 30), Pair("a", " b")])
    batch = Collator(made.tokenizer.pad_token_id, made.seq2seq)([[short, short], [long]])
    seen = aligned(made.model, batch)
    cross_entropy(seen.logits, seen.targets).backward()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in made.model.parameters())


@ARCHITECTURES
def test_a_token_changes_only_what_comes_after_it(arch: str) -> None:
    made = student(arch)
    row = rows_of(made)[0]
    ids, labels = list(row.input_ids), list(row.labels)
    if arch == "llama":
        ids[-3] = labels[-3] = 7
    else:
        labels[-3] = 7
    before, after = seen_by(made, [[row]]), seen_by(made, [[TokenRow(ids, labels)]])
    same = (before.logits - after.logits).abs().amax(-1) < 1e-6
    assert same.tolist() == [True] * (len(same) - 2) + [False] * 2


@ARCHITECTURES
def test_the_loss_is_the_model_s_own(arch: str) -> None:
    made = student(arch)
    rows = rows_of(made)
    batch = Collator(made.tokenizer.pad_token_id, made.seq2seq)([[row] for row in rows])
    with torch.no_grad():
        own = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
        theirs = float(made.model(**own).loss)
        seen = aligned(made.model, batch)
        assert float(cross_entropy(seen.logits, seen.targets)) == pytest.approx(theirs, rel=1e-5)
    assert on_tokens(made, rows)["loss"].mean == pytest.approx(theirs, rel=1e-5)


@pytest.mark.parametrize("kind", ["bart", "t5gemma"])
def test_a_decoder_starts_as_its_model_wants_it(kind: str) -> None:
    if kind == "bart":
        model = other(kind)
    else:
        half = transformers.T5GemmaModuleConfig(
            vocab_size=300, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=1, head_dim=16, **ENDS,
        )  # fmt: skip
        config = transformers.T5GemmaConfig(encoder=half, decoder=half, vocab_size=300, **ENDS)
        model = transformers.T5GemmaForConditionalGeneration(config)
    made = Student(model.eval(), student("llama").tokenizer)
    batch = Collator(0, True)([[row] for row in rows_of(made)])
    with torch.no_grad():
        theirs = float(model(**{name: batch[name] for name in ("input_ids", "attention_mask", "labels")}).loss)
        seen = aligned(model, batch)
        assert float(cross_entropy(seen.logits, seen.targets)) == pytest.approx(theirs, rel=1e-5)


def test_no_token_is_forced_on_a_student_that_never_learned_it(tmp_path: Path) -> None:
    """As BART's generation settings do."""
    model = other("bart")
    model.generation_config.update(forced_bos_token_id=1, forced_eos_token_id=2)
    model.save_pretrained(tmp_path)
    student("llama").tokenizer.save_pretrained(tmp_path)
    found = pretrained(str(tmp_path)).model.generation_config
    assert found.forced_bos_token_id is None and found.forced_eos_token_id is None


SMALL = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
         "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, **ENDS}  # fmt: skip


def headed(kind: str) -> Any:
    """A model whose head does more than a product, or whose body cannot be told from it."""
    torch.manual_seed(0)
    if kind == "soft cap":
        # Its logits are far below the cap when it is new: only larger ones tell.
        return transformers.Gemma2ForCausalLM(transformers.Gemma2Config(**SMALL, final_logit_softcapping=30.0))
    if kind == "multiplier":
        size = {
            "mamba_n_heads": 4,
            "mamba_d_head": 16,
            "mamba_d_ssm": 64,
            "mamba_d_state": 8,
            "lm_head_multiplier": 0.04,
        }
        return transformers.FalconH1ForCausalLM(transformers.FalconH1Config(**SMALL, **size))
    if kind == "layers":
        size = {name: value for name, value in SMALL.items() if name not in ("num_key_value_heads", "head_dim")}
        config = transformers.ModernBertDecoderConfig(**size, cls_token_id=1, sep_token_id=2)
        return transformers.ModernBertDecoderForCausalLM(config)
    config = transformers.Llama4TextConfig(
        **SMALL, num_local_experts=2, intermediate_size_mlp=64, attention_chunk_size=64
    )
    return transformers.Llama4ForCausalLM(config)


@pytest.mark.parametrize("kind", ["soft cap", "multiplier", "layers", "no body of its own"])
def test_logits_are_those_of_the_model_whatever_its_head_does(kind: str) -> None:
    made = Student(headed(kind).eval(), student("llama").tokenizer)
    assert not has_bare_head(made.model)
    batch = Collator(made.tokenizer.pad_token_id, False)([[row] for row in rows_of(made)])
    own = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
    seen = aligned(made.model, batch)
    loss = cross_entropy(seen.logits, seen.targets)
    loss.backward()
    assert loss.item() == pytest.approx(made.model(**own).loss.item(), rel=1e-5)
    assert all(weight.grad is not None for weight in made.model.get_output_embeddings().parameters())


def test_a_head_that_is_a_product_alone_is_asked_for_labelled_tokens_alone() -> None:
    assert has_bare_head(student("llama").model) and has_bare_head(other("gpt2"))


def test_gradients_reach_every_parameter() -> None:
    made = student("llama")
    seen = aligned(made.model, Collator(0, False)([[row] for row in rows_of(made)]))
    cross_entropy(seen.logits, seen.targets).backward()
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
    before = made.tokenizer.backend_tokenizer.to_str()
    assert len(responses(made, PAIRS, None, 64)) == 3
    assert made.tokenizer.backend_tokenizer.to_str() == before  # it is saved with the student: no cut, no padding


def test_an_encoder_decoder_is_cut_on_both_sides_and_loads_again(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=300, d_model=32, d_kv=16, d_ff=64, num_layers=3, num_decoder_layers=5, num_heads=2,
        decoder_start_token_id=0,
    )  # fmt: skip
    model = transformers.T5ForConditionalGeneration(config).eval()
    encoder, decoder = list(model.encoder.block), list(model.decoder.block)
    cut_layers(model, 3)
    assert list(model.encoder.block) == encoder
    assert list(model.decoder.block) == [decoder[0], decoder[2], decoder[4]]
    assert len(responses(Student(model, student("t5").tokenizer), PAIRS, None, 64)) == 3
    model.save_pretrained(tmp_path)
    again = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path).eval()
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(again(ids, decoder_input_ids=ids).logits, model(ids, decoder_input_ids=ids).logits)
    with pytest.raises(SpecError, match=r"student\.layers: 4, the model has 3"):
        cut_layers(model, 4)


def test_scratch_students_of_one_seed_are_equal() -> None:
    spec = FromScratch(scratch=Scratch(hidden=32, heads=2, vocab=300))
    tokenizers = [tokenizer_for(spec, TEXTS, None) for _ in range(2)]
    assert tokenizers[0].get_vocab() == tokenizers[1].get_vocab()
    first, again = (load_student(spec, tokenizer, seed=3).model.state_dict() for tokenizer in tokenizers)
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_rouge_l_is_one_for_the_same_words_and_zero_for_others() -> None:
    assert rouge_l(["the cat runs"], ["the cat runs"]) == [1.0]
    assert rouge_l(["dogs bark"], ["the cat runs"]) == [0.0]
    assert rouge_l(["the cat"], ["the cat runs"]) == pytest.approx([0.8])


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
    assert rouge_l([text], [text]) == [1.0]


def test_english_words_are_those_of_rouge_score() -> None:
    from rouge_score.tokenizers import DefaultTokenizer

    text = "The quick-brown foxes weren't running over 13 lazy dogs' tails; happily_ever_after."
    assert Words().tokenize(text) == DefaultTokenizer(use_stemmer=True).tokenize(text)


def test_a_layer_cut_names_its_source_with_from() -> None:
    assert LayerCut.model_validate({"from": "m", "layers": 2}).source == "m"
