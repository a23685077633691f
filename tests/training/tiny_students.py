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
