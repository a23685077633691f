"""Every objective: a pure function from what student and teacher say of the same tokens to the terms of a loss.

To add one: its parameters in `schemas/objective.py`, a function here, its entry in `OBJECTIVES`, and a test. `n` is
the number of tokens with a loss in the micro-batch.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, cross_entropy, log_softmax

from schemas.objective import Gkd, Hidden, Icl, Kd, MiniLLM, Sft, StepByStep
from training.aligned import Aligned
from training.divergences import (
    TopK,
    distillation,
    drawn_distillation,
    generalized_jsd,
    reverse_kl,
    top_k,
    top_k_distillation,
    wide,
)  # fmt: skip
from training.examples import MAIN, SECOND, TEXT


@dataclass(frozen=True, slots=True)
class Term:
    """One part of a loss: weight * sum(values) / the step's count of `per`.

    per: tokens (with a loss), tokens of one task, rows, or tokens of options by their weights; counted over all
    micro-batches and workers of a step, so that neither changes the loss.
    """

    name: str
    values: Tensor
    weight: float = 1.0
    per: Literal["tokens", "main", "second", "text", "rows", "options"] = "tokens"


@dataclass(frozen=True, slots=True)
class Sampled:
    """What was true of the tokens of a sampled response when they were sampled, (n,) each.

    mix: log-probability under the distribution that they were drawn from; returns: MiniLLM's return that weighs each.
    """

    mix: Tensor
    returns: Tensor


@dataclass(frozen=True, slots=True)
class View:
    """What an objective sees of a micro-batch. tasks and weights are those of each token's row, (n,)."""

    student: Aligned
    tasks: Tensor
    weights: Tensor
    teacher: Aligned | None = None
    cached: TopK | None = None
    sampled: Sampled | None = None
    projections: Any = None  # of the student's states to the teacher's width, one for each pair of layers
    progress: float = 0.0  # share of the steps that are done

    def part(self, rows: slice) -> "View":
        """Some of the tokens."""
        sampled = self.sampled
        if sampled is not None:  # of all tokens but plain text's
            told = self.tasks != TEXT
            within = slice(int(told[: rows.start].sum()), int(told[: rows.stop].sum()))
            sampled = Sampled(sampled.mix[within], sampled.returns[within])
        return replace(
            self, student=self.student.part(rows), tasks=self.tasks[rows], weights=self.weights[rows],
            teacher=self.teacher and self.teacher.part(rows),
            cached=self.cached and TopK(self.cached.ids[rows], self.cached.log_probs[rows]), sampled=sampled,
        )  # fmt: skip

    def cross_entropy(self) -> Tensor:
        """-log of the student's probability of each target, (n,)."""
        return cross_entropy(wide(self.student.logits), self.student.targets, reduction="none")

    @property
    def teacher_logits(self) -> Tensor:
        assert self.teacher is not None
        return self.teacher.logits


def sft(spec: Sft, view: View) -> list[Term]:
    return [Term("ce", view.cross_entropy())]


def step_by_step(spec: StepByStep, view: View) -> list[Term]:
    """alpha mean(label tokens) + (1 - alpha) mean(rationale tokens)."""
    losses, label = view.cross_entropy(), view.tasks == MAIN
    return [
        Term("label", losses[label], spec.alpha, "main"),
        Term("rationale", losses[~label], 1 - spec.alpha, "second"),
    ]


def icl(spec: Icl, view: View) -> list[Term]:
    """a(t) hard + (1 - a(t)) soft + lm.weight lm, a(t) linear from hard_from to hard_to.

    A soft row is one option of a query, weighted by the teacher's probability of it: summed over the options that is
    the cross-entropy over the task's label set.
    """
    losses = view.cross_entropy() * view.weights
    hard = spec.hard_from + (spec.hard_to - spec.hard_from) * view.progress if spec.soft else 1.0
    terms = [Term("hard", losses[view.tasks == MAIN], hard, "main")]
    if spec.soft:
        terms.append(Term("soft", losses[view.tasks == SECOND], 1 - hard, "options"))
    if spec.lm is not None:
        text = view.tasks == TEXT
        soft = spec.soft and view.teacher is not None  # the text's own soft labels need a teacher at hand
        terms.append(Term("lm", losses[text], spec.lm.weight * (hard if soft else 1.0), "text"))
        if soft:
            told = _soft_cross_entropy(view.teacher_logits[text], view.student.logits[text])
            terms.append(Term("lm_soft", told, spec.lm.weight * (1 - hard), "text"))
    return terms


def _soft_cross_entropy(teacher: Tensor, student: Tensor) -> Tensor:
    return -(log_softmax(wide(teacher), -1).exp().detach() * log_softmax(wide(student), -1)).sum(-1)


def kd(spec: Kd | Hidden, view: View) -> list[Term]:
    """alpha CE + beta tau^2 KL(teacher || student)."""
    student = view.student.logits
    k, tail = (spec.top_k, spec.tail) if isinstance(spec, Kd) else (None, True)
    if view.cached is not None and isinstance(spec, Kd) and spec.sampled is not None:
        divergence = drawn_distillation(view.cached, student, spec.tau)
    elif view.cached is not None:
        divergence = top_k_distillation(view.cached, student, spec.tau, tail)
    elif k is not None:
        divergence = top_k_distillation(top_k(view.teacher_logits, k, spec.tau), student, spec.tau, tail)
    else:
        divergence = distillation(view.teacher_logits, student, spec.tau)
    per: Literal["tokens", "rows"] = "rows" if isinstance(spec, Kd) and spec.reduction == "batch" else "tokens"
    return [Term("ce", view.cross_entropy(), spec.alpha), Term("kd", divergence, spec.beta, per)]


def hidden(spec: Hidden, view: View) -> list[Term]:
    """`kd` and the mean distance of the mapped states, (1 - cosine) or the mean squared difference of a position."""
    assert view.teacher is not None
    distances = []
    for (ours, theirs), project in view.projections.pairs():
        state, goal = wide(project(view.student.hidden[ours])), wide(view.teacher.hidden[theirs]).detach()
        near = 1 - cosine_similarity(state, goal, -1) if spec.distance == "cosine" else (state - goal).pow(2).mean(-1)
        distances.append(near)
    return [*kd(spec, view), Term("hidden", torch.stack(distances).mean(0), spec.gamma)]


def gkd(spec: Gkd, view: View) -> list[Term]:
    """The divergence alone, on whosever responses these are: no cross-entropy on samples of the student."""
    return [Term("jsd", generalized_jsd(view.teacher_logits, view.student.logits, spec.beta))]


def minillm(spec: MiniLLM, view: View) -> list[Term]:
    """The paper's equation 7, with its clipping: for every sampled token y_t, drawn from a mix p~,

        w_t KL(q_t || p_t) - min(rho_t R, clip(rho_t) R),   rho_t = q(y_t) / p~(y_t),  w_t = rho_t held constant

    where R is the normalised return of the tokens after t (`returns`). As released: the first part without w_t, and R
    discounted, with r_t in it, and whitened.
    """
    text = view.tasks == TEXT
    terms = []
    if spec.lm is not None:
        losses = view.cross_entropy()[text]
        half = 0.5 if spec.variant == "released" else 0.0  # the code's own: half of it distils
        terms.append(Term("lm", losses, spec.lm.weight * (1 - half), "text"))
        if half:
            soft = _soft_cross_entropy(view.teacher_logits[text], view.student.logits[text])
            terms.append(Term("lm_soft", soft, spec.lm.weight * half, "text"))
    assert view.sampled is not None
    logits = wide(view.student.logits)[~text] / spec.temperature
    targets = view.student.targets[~text]
    chosen = log_softmax(logits, -1).gather(-1, targets[:, None])[:, 0]
    ratio, returns = (chosen - view.sampled.mix).exp(), view.sampled.returns
    clipped = ratio.clamp(1 - spec.clip, 1 + spec.clip)
    terms.append(Term("policy", -torch.minimum(ratio * returns, clipped * returns), 1.0, "main"))
    if spec.single_step:
        values = reverse_kl(view.teacher_logits[~text], logits)
        values = values * ratio.detach() if spec.variant == "paper" else values
        terms.append(Term("single_step", values, 1.0, "main"))
    return terms


DISCOUNT, REWARD_SCALE, REWARD_LIMIT = 0.95, 2.0, 100.0  # of the released code: scaling 0.5 divides


def returns_of(spec: MiniLLM, teacher: Tensor, student: Tensor) -> Tensor:
    """Returns of one sampled response from the log-probabilities (T,) of its tokens under both.

    Paper: R_t = sum of r over the tokens after t (over t and those after it where the single step is sampled too),
    divided by their number where lengths are normalised; r_t = log p(y_t) - log q(y_t). Released: see `minillm`.
    """
    rewards = (teacher - student).detach()
    left = torch.arange(len(rewards), 0, -1, dtype=rewards.dtype, device=rewards.device)  # tokens from t on
    if spec.variant == "released":
        rewards = (rewards * REWARD_SCALE).clamp(-REWARD_LIMIT, REWARD_LIMIT)
        total, running = torch.empty_like(rewards), rewards.new_zeros(())
        for t in range(len(rewards) - 1, -1, -1):
            running = rewards[t] + DISCOUNT * running
            total[t] = running
        return total / left
    total = rewards.flip(0).cumsum(0).flip(0)
    if spec.single_step:
        total, left = total - rewards, left - 1
    return total / left.clamp(min=1) if spec.length_normalised else total


Objective = Callable[[Any, View], list[Term]]
OBJECTIVES: dict[str, Objective] = {
    "sft": sft, "step_by_step": step_by_step, "icl": icl, "kd": kd, "hidden": hidden, "gkd": gkd, "minillm": minillm,
}  # fmt: skip
