"""A student together with what it is trained by: one module whose output is the loss of a micro-batch."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from schemas.errors import SpecError
from schemas.objective import AnyObjective, Hidden
from training.aligned import aligned
from training.divergences import TopK
from training.examples import MAIN, SECOND, TEXT
from training.objectives import OBJECTIVES, Sampled, View
from training.rows import BLANK, IGNORED
from training.shape import decoder_layers, width
from training.teacher import Teacher

# Logits of a micro-batch that are there at once: 256 MB of them in float32, and an objective makes several tensors of
# that size. More come in parts, and each part's are computed again on the way back. SmolLM2 cut to 4 layers, batches of
# 4,088 tokens: kd 9.6 GB at once, 4.8 GB in parts, 36 and 41 s CPU; sft 4.5 and 3.0 GB, 20 and 19 s.
MOST_LOGITS = 2**26
COUNTS = ("tokens", "main", "second", "text", "rows", "options")


class Projections(nn.Module):
    """For each (student layer, teacher layer) a map from one's width to the other's; the identity where they agree."""

    def __init__(self, layers: list[tuple[int, int]], student: int, teacher: int) -> None:
        super().__init__()
        self._layers = layers
        same = student == teacher
        self.maps = nn.ModuleList(nn.Identity() if same else nn.Linear(student, teacher, bias=False) for _ in layers)

    def pairs(self) -> Iterator[tuple[tuple[int, int], nn.Module]]:
        return zip(self._layers, self.maps, strict=True)


def mapped_layers(spec: Hidden, student: int, teacher: int) -> list[tuple[int, int]]:
    """Pairs of layers of models with so many: those of the spec, or each student layer at its relative depth.
    `SpecError` for a layer that one of them lacks."""
    pairs = [(ours, theirs) for ours, theirs in spec.layers or []]
    pairs = pairs or [(i, round(i * teacher / student)) for i in range(1, student + 1)]
    for ours, theirs in pairs:
        if not (0 <= ours <= student and 0 <= theirs <= teacher):
            raise SpecError(
                f"objective.layers: [{ours}, {theirs}], the student has {student} layers and the teacher {teacher}",
                "0 is the embeddings, 1 the first layer",
            )
    return pairs


def without_dropout(model: nn.Module) -> None:
    """Take a model's dropout out, for this process."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("dropout", "attention_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


class Learner(nn.Module):
    """forward(batch, counts, progress) -> weighted sums of the objective's terms over their counts, (terms,).

    vocabulary: how many logits are compared with a teacher that is not here, but in the batch.
    """

    def __init__(
        self, model: Any, spec: AnyObjective, teacher: Teacher | None = None, vocabulary: int | None = None
    ) -> None:
        super().__init__()
        self.model, self.spec = model, spec
        self._vocabulary = vocabulary if teacher is None else teacher.vocabulary
        self._teacher = (teacher,)  # not a submodule: neither trained, nor saved, nor shared out
        self.projections: Projections | None = None
        self.names: list[str] = []
        if isinstance(spec, Hidden):
            assert teacher is not None
            both = model.config, teacher.model.config
            layers = mapped_layers(spec, *map(decoder_layers, both))
            self.projections = Projections(layers, *map(width, both))

    def forward(self, counts: Tensor, progress: float = 0.0, **batch: Tensor) -> Tensor:
        view = self.view(batch, progress)
        tokens, parts = len(view.tasks), math.ceil(view.student.numbers / MOST_LOGITS)
        if parts <= 1:
            return self._sums(view, counts)
        size = math.ceil(tokens / parts)
        sums = [
            checkpoint(self._sums_of, view, slice(at, min(tokens, at + size)), counts, use_reentrant=False,
                       preserve_rng_state=False)
            for at in range(0, tokens, size)
        ]  # fmt: skip
        return torch.stack(sums).sum(0)

    def _sums_of(self, view: View, tokens: slice, counts: Tensor) -> Tensor:
        return self._sums(view.part(tokens), counts)

    def _sums(self, view: View, counts: Tensor) -> Tensor:
        terms = OBJECTIVES[self.spec.name](self.spec, view)
        self.names = [term.name for term in terms]
        sums = [term.weight * term.values.sum() / counts[COUNTS.index(term.per)].clamp(min=1) for term in terms]
        return torch.stack(sums)

    def within(self, work: Callable[[], Any]) -> Any:
        """Do `work`, which runs the model past `forward`: weights that are shared out are gathered for it."""
        return work()

    def view(self, batch: dict[str, Tensor], progress: float = 0.0) -> View:
        """What the objective sees of a batch."""
        (teacher,), states = self._teacher, self.projections is not None
        student = aligned(self.model, batch, states).cut(self._vocabulary)
        cached = TopK(batch["top_ids"], batch["top_log_probs"]) if "top_ids" in batch else None
        told = teacher(batch, states) if teacher is not None and cached is None else None
        sampled = Sampled(batch["mix"], batch["returns"]) if "mix" in batch else None
        return View(
            student, batch["tasks"][student.owners], batch["weights"][student.owners], told, cached, sampled,
            self.projections, progress,
        )  # fmt: skip


def counts_of(batch: dict[str, Tensor], seq2seq: bool) -> Tensor:
    """A micro-batch's share of `COUNTS`, (6,). Of options, the tokens by the weights: what is expected of them."""
    labels, owners = batch["labels"], batch["owners"]
    if not seq2seq:
        labels, owners = labels[:, 1:], owners[:, 1:]
    of_tokens = owners[labels != IGNORED]
    tasks = batch["tasks"][of_tokens]
    each = [int((tasks == task).sum()) for task in (MAIN, SECOND, TEXT)]
    rows = int((batch["tasks"] != BLANK).sum())
    options = float(batch["weights"][of_tokens][tasks == SECOND].sum())
    return torch.tensor([float(len(tasks)), *map(float, each), float(rows), options])
