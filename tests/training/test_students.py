"""Models that cannot be trusted are refused when they are loaded."""

from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from tiny_students import student

from schemas.errors import SpecError
from training.students import pretrained


def saved(place: Path) -> Path:
    made = student("llama")
    made.model.save_pretrained(place)
    made.tokenizer.save_pretrained(place)
    return place / "model.safetensors"


def test_a_model_that_is_whole_is_loaded(tmp_path: Path) -> None:
    saved(tmp_path)
    assert pretrained(str(tmp_path)).model.num_parameters() == student("llama").model.num_parameters()


def test_weights_that_are_no_numbers_are_named(tmp_path: Path) -> None:
    file = saved(tmp_path)
    kept = load_file(file)
    kept["model.norm.weight"][3] = float("nan")
    save_file(kept, file, {"format": "pt"})
    with pytest.raises(SpecError, match=r"teacher .*: model\.norm\.weight holds what is no number"):
        pretrained(str(tmp_path), "teacher")


def test_weights_that_are_not_in_the_files_are_named_and_not_made_up(tmp_path: Path) -> None:
    file = saved(tmp_path)
    kept = load_file(file)
    del kept["model.layers.1.mlp.up_proj.weight"]
    save_file(kept, file, {"format": "pt"})
    with pytest.raises(SpecError, match=r"its files lack 1 weights, as model\.layers\.1\.mlp\.up_proj\.weight"):
        pretrained(str(tmp_path))
