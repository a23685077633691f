"""Models that cannot be trusted are refused when they are loaded."""

import json
from pathlib import Path

import pytest
import transformers
from safetensors.torch import load_file, save_file
from tiny_students import loss_of, rows_of, student

from schemas.errors import SpecError
from schemas.student import LayerCut, TrainingSpec
from training.speed import training_flops
from training.students import load_student, pretrained, shape_of
from training.teacher import load_teacher
from training.trainer import trainer_of


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


def test_a_file_that_is_torn_is_told(tmp_path: Path) -> None:
    file = saved(tmp_path)
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(SpecError, match=f"student {tmp_path}: "):
        pretrained(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [("intermediate_size", 48, "other shapes than its config.json says"),
     ("num_hidden_layers", 1, r"model\.layers\.1\..* is not in the layers of its config\.json")],
)  # fmt: skip
def test_weights_that_are_not_its_configuration_s_are_told(tmp_path: Path, name: str, value: int, said: str) -> None:
    saved(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), name: value}))
    with pytest.raises(SpecError, match=said):
        pretrained(str(tmp_path))


@pytest.fixture
def seeing(tmp_path: Path) -> Path:
    """A small Gemma 3 that also sees: its configuration nests the text's."""
    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
            "num_key_value_heads": 1, "head_dim": 16, "vocab_size": 300, "max_position_embeddings": 128}  # fmt: skip
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1,
              "image_size": 28, "patch_size": 14}  # fmt: skip
    config = transformers.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    place = tmp_path / "seeing"
    transformers.Gemma3ForConditionalGeneration(config).save_pretrained(place)
    student("llama").tokenizer.save_pretrained(place)
    return place


@pytest.mark.slow
def test_a_model_that_also_sees_learns_and_teaches_text(seeing: Path, tmp_path: Path) -> None:
    assert shape_of(str(seeing)) == (2, 128)
    made = load_student(str(seeing), student("llama").tokenizer, seed=0)
    assert not any(weight.requires_grad for weight in made.model.model.vision_tower.parameters())
    teacher = load_teacher(str(seeing), made)
    spec = {"student": "s", "teacher": "t", "objective": {"name": "kd"}, "epochs": 20, "learning_rate": 0.01,
            "max_length": 64}  # fmt: skip
    rows = rows_of(made, "kd")
    before = loss_of(made, rows)
    trainer = trainer_of(TrainingSpec.model_validate(spec), made, teacher, rows, rows, tmp_path / "out")
    trainer.train()
    assert loss_of(made, rows) < 0.7 * before
    assert training_flops(made.model, trainer.work.tolist()) > 0


def test_a_layer_cut_of_a_model_that_also_sees_cuts_its_text(seeing: Path) -> None:
    cut = load_student(LayerCut.model_validate({"from": str(seeing), "layers": 1}), None, seed=0).model
    assert cut.config.text_config.num_hidden_layers == 1 and len(cut.model.language_model.layers) == 1
