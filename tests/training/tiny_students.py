"""Students of a few thousand weights, and what they learn."""

import torch

from schemas.student import Scratch
from training.students import Student, from_scratch, train_tokenizer

torch.set_num_threads(1)  # models this small are slower with two

TEXTS = ["What is one and one? It is two.", "Say hello to the people. Hello people!", "Name a colour. Red."]
PROMPTS = [("What is one and one?", " It is two."), ("Say hello.", " Hello people!"), ("Name.", " Red.")]


def student(arch: str) -> Student:
    """A Llama or T5 that is always the same."""
    torch.manual_seed(1)
    size = Scratch.model_validate({"arch": arch, "layers": 2, "hidden": 32, "heads": 2})
    made = from_scratch(size, train_tokenizer(TEXTS, 300))
    made.model.eval()
    return made


def without_dropout(made: Student) -> Student:
    """The same student: what is dropped depends on the batch, and would tell any two ways of training apart."""
    for module in made.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
    return made
