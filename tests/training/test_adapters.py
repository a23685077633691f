"""LoRA: adapters alone learn, a checkpoint holds nothing else, and the saved student is a plain model."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from tiny_students import loss_of, student, trained

from schemas.errors import SpecError
from schemas.student import Lora, TrainingSpec
from training.adapters import attach, merge
from training.trainer import WEIGHTS, trainer_of

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("arch", ["llama", "t5"])
def test_adapters_alone_learn_and_are_merged(arch: str, tmp_path: Path) -> None:
    made, rows, _ = trained(arch, {"name": "sft"}, tmp_path / "first", epochs=10)
    before = {name: p.detach().clone() for name, p in made.model.named_parameters()}
    loss = loss_of(made, rows)
    adapters = attach(made, Lora(r=8, alpha=16))
    assert loss_of(made, rows) == pytest.approx(loss, abs=1e-6)  # they begin with nothing
    spec = TrainingSpec.model_validate(
        {"student": "s", "lora": {"r": 8}, "learning_rate": 0.03, "max_length": 64, "packing": False, "epochs": 30,
         "batch_size": 4, "checkpoints": {"every": 60}}
    )  # fmt: skip
    trainer_of(spec, made, None, rows, rows, tmp_path).go_on()
    with safe_open(tmp_path / "checkpoint-60" / WEIGHTS, "pt") as kept:
        names = list(kept.keys())
    assert names and all("lora_" in name for name in names)
    for name, parameter in made.model.named_parameters():
        if "lora_" not in name:
            assert torch.equal(parameter, before[name.replace(".base_layer", "")])
    learned = loss_of(made, rows)
    assert learned < loss - 0.05  # frozen random embeddings leave little to learn
    merge(made, adapters)
    assert loss_of(made, rows) == pytest.approx(learned, rel=1e-4)
    made.model.save_pretrained(tmp_path / "student")
    loaded = type(made.model).from_pretrained(tmp_path / "student")
    assert {name for name, _ in loaded.named_parameters()} == set(before)


def test_targets_that_are_not_there_are_told() -> None:
    with pytest.raises(SpecError, match=r"lora\.targets"):
        attach(student("llama"), Lora(targets=["nothing"]))
