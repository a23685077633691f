"""A training set in tokens, on disk."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_students import PROMPTS, student

from schemas.errors import LimbeckError
from schemas.student import TrainingSpec
from training import store
from training.examples import SECOND, TEXT, stream_examples, stream_text
from training.rows import rows_for, sizes_of
from training.store import load, prepare

ARCHITECTURES = pytest.mark.parametrize("arch", ["llama", "t5"])


@pytest.fixture
def pairs(jsonl: Callable[..., Path]) -> Path:
    return jsonl([{"id": f"p{i}", "prompt": q, "response": f"{a} {i}"} for i, (q, a) in enumerate(PROMPTS * 4)])


def spec_of(arch: str, data: Path, **settings: Any) -> TrainingSpec:
    scratch = {"arch": arch, "layers": 1, "hidden": 32, "heads": 2, "vocab": 300}
    return TrainingSpec.model_validate(
        {"student": {"scratch": scratch}, "data": {"path": str(data)}, "max_length": 64, **settings}
    )


@ARCHITECTURES
def test_what_is_read_back_is_what_was_written(
    arch: str, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "CHUNK", 3)  # several chunks and parts
    monkeypatch.setattr(store, "PART", 4)
    spec, told = spec_of(arch, pairs), list[int]()
    prepare(spec, tmp_path / "rows", told.append)
    assert told == [3, 6, 9, 12] and len(list((tmp_path / "rows").glob("rows-*.arrow"))) > 1
    found = load(spec, tmp_path / "rows")
    assert spec.data is not None
    both = [pair for example in stream_examples(spec.data, spec.objective) for pair in example]
    rows, _ = rows_for(spec, both, found.tokenizer, arch == "t5")
    assert found.every[:] == rows and [found.every[i] for i in range(12)] == rows
    assert sizes_of(found.every).tolist() == sizes_of(rows).tolist()
    held = {pair.record for pair in found.held}
    assert len(held) == 1 and list(found.learn) == [row for row in rows if row.record not in held]
    assert found.counts == {"rows_train": 11, "rows_eval": 1, "rows_too_long": 0, "rows_cut": 0}


def test_what_is_whole_is_not_written_again_and_what_is_not_is(pairs: Path, tmp_path: Path) -> None:
    spec, told = spec_of("llama", pairs), list[int]()
    prepare(spec, tmp_path / "rows", told.append)
    prepare(spec, tmp_path / "rows", told.append)
    assert told == [12]
    (tmp_path / "rows" / "about.json").unlink()  # as if killed before its end
    (tmp_path / "rows" / "rows-00000.arrow").write_bytes(b"torn")
    prepare(spec, tmp_path / "rows", told.append)
    assert told == [12, 12] and len(load(spec, tmp_path / "rows").every) == 12


def test_long_rows_are_counted(jsonl: Callable[..., Path], tmp_path: Path) -> None:
    rows = [{"prompt": "a " * 100, "response": "b"}, {"prompt": "a", "response": "b " * 100}] * 10
    found = _loaded(spec_of("llama", jsonl(rows), max_length=16), tmp_path)
    assert found.counts["rows_too_long"] == 10
    assert found.counts["rows_cut"] == found.counts["rows_train"]
    assert found.counts["rows_train"] + found.counts["rows_eval"] == 10
    with pytest.raises(LimbeckError, match="no prompt is shorter than max_length 16"):
        prepare(spec_of("llama", jsonl(rows[:1] * 4), max_length=16), tmp_path / "long")


def test_texts_of_a_language_modelling_term_are_learned_and_not_counted(
    jsonl: Callable[..., Path], pairs: Path, tmp_path: Path
) -> None:
    text = jsonl([{"text": f"Once there were {n} people."} for n in range(5)], "text.jsonl")
    lm = {"path": str(text)}
    episodes = jsonl([{"input": q, "output": a} for q, a in PROMPTS * 2], "episodes.jsonl")
    found = _loaded(spec_of("llama", episodes, objective={"name": "icl", "soft": False, "lm": lm}), tmp_path)
    assert [row.task for row in found.learn][-5:] == [TEXT] * 5
    assert found.counts["rows_train"] == len(found.learn) - 5


def test_an_encoder_decoder_reads_half_of_a_text_and_writes_the_rest(jsonl: Callable[..., Path]) -> None:
    objective = TrainingSpec.model_validate(
        {"student": "s", "objective": {"name": "icl", "lm": {"path": str(jsonl([{"text": "aaa bbb ccc ddd"}]))}}}
    ).objective
    (pair,) = stream_text(objective.lm, seq2seq=True)  # type: ignore[union-attr, arg-type]
    assert (pair.prompt, pair.response) == ("aaa bbb", " ccc ddd")


def test_all_tasks_of_a_record_that_is_held_out_are_held_out(jsonl: Callable[..., Path], tmp_path: Path) -> None:
    rows = jsonl([{"input": f"q{i}", "rationale": "because", "label": "yes"} for i in range(10)])
    found = _loaded(spec_of("t5", rows, objective={"name": "step_by_step"}), tmp_path)
    assert len(found.learn) == 18 and len(found.held) == 1 and len(found.every) == 20
    assert sum(row.task == SECOND for row in found.learn) == 9
    assert found.held[0].record not in {row.record for row in found.learn}


def test_eval_rows_bounds_what_is_held_out(pairs: Path, tmp_path: Path) -> None:
    found = _loaded(spec_of("llama", pairs, eval_fraction=0.5, eval_rows=2), tmp_path)
    assert len(found.held) == 2 and len(found.learn) == 10


def test_a_tokenizer_from_scratch_has_not_seen_what_is_held_out(jsonl: Callable[..., Path], tmp_path: Path) -> None:
    words = [f"w{chr(97 + i) * 6}" for i in range(10)]
    rows = jsonl([{"prompt": " ".join([word] * 5), "response": word} for word in words])
    found = _loaded(spec_of("llama", rows), tmp_path)
    spelled = {word: len(found.tokenizer(word)["input_ids"]) for word in words}
    (held,) = (pair.response for pair in found.held)
    assert max(spelled, key=lambda word: spelled[word]) == held


def test_a_student_that_is_there_keeps_its_tokenizer(pairs: Path, tmp_path: Path) -> None:
    made = student("llama")
    made.model.save_pretrained(tmp_path / "student")
    made.tokenizer.save_pretrained(tmp_path / "student")
    spec = TrainingSpec.model_validate(
        {"student": str(tmp_path / "student"), "data": {"path": str(pairs)}, "max_length": 64}
    )
    assert _loaded(spec, tmp_path).tokenizer.get_vocab() == made.tokenizer.get_vocab()
    assert json.loads((tmp_path / "rows" / "about.json").read_text())["rows_train"] == 11


def _loaded(spec: TrainingSpec, place: Path) -> Any:
    prepare(spec, place / "rows")
    return load(spec, place / "rows")
