"""Distances between two next-token distributions, one number in nats for each position.

`teacher` and `student` are logits of shape (n, vocabulary), aligned so that row i of both predicts the same token.
Gradients flow to the student alone. Sources: GKD, arXiv 2306.13649, section 2; MiniLLM, arXiv 2306.08543; Hinton's
distillation, arXiv 1503.02531.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import log_softmax


class TopK(NamedTuple):
    """Some tokens of a teacher at n positions, as a cache keeps them.

    ids (n, k); log_probs (n, k), at the temperature of the loss. The k likeliest: descending, and what they do not hold
    is the tail. Drawn ones: one may stand there more than once.
    """

    ids: Tensor
    log_probs: Tensor


def wide(logits: Tensor) -> Tensor:
    """At least float32: a sum over 50,000 exponentials of bfloat16 is wrong in its second digit."""
    return logits if logits.dtype == torch.float64 else logits.float()


def forward_kl(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(teacher || student), shape (n,)."""
    p, q = log_softmax(wide(teacher).detach(), -1), log_softmax(wide(student), -1)
    return (p.exp() * (p - q)).sum(-1)


def reverse_kl(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(student || teacher), shape (n,)."""
    p, q = log_softmax(wide(teacher).detach(), -1), log_softmax(wide(student), -1)
    return (q.exp() * (q - p)).sum(-1)


def generalized_jsd(teacher: Tensor, student: Tensor, beta: float) -> Tensor:
    """beta KL(P || M) + (1 - beta) KL(Q || M) with M = beta P + (1 - beta) Q, shape (n,).

    It falls to 0 at both ends, as beta times the forward and (1 - beta) times the reverse KL; so beta 0 and 1 stand,
    as is the custom, for those two themselves. The scale of the loss jumps there.
    """
    if beta == 0.0:
        return forward_kl(teacher, student)
    if beta == 1.0:
        return reverse_kl(teacher, student)
    p, q = log_softmax(wide(teacher).detach(), -1), log_softmax(wide(student), -1)
    m = torch.logaddexp(p + math.log(beta), q + math.log1p(-beta))
    return (beta * p.exp() * (p - m) + (1 - beta) * q.exp() * (q - m)).sum(-1)


def distillation(teacher: Tensor, student: Tensor, tau: float) -> Tensor:
    """tau^2 KL(softmax(teacher / tau) || softmax(student / tau)), shape (n,); tau^2 keeps the size of the gradient."""
    return tau**2 * forward_kl(wide(teacher) / tau, wide(student) / tau)


def top_k(logits: Tensor, k: int, tau: float) -> TopK:
    """The k likeliest tokens of (n, vocabulary) logits at temperature tau; all where the vocabulary is smaller."""
    found = log_softmax(wide(logits) / tau, -1).topk(min(k, logits.shape[-1]), -1)
    return TopK(found.indices, found.values)


def top_k_distillation(teacher: TopK, student: Tensor, tau: float, tail: bool) -> Tensor:
    """`distillation` against a teacher of which the k likeliest tokens are known at tau, shape (n,).

    tail: what is left over of both is one more bucket, which makes this a lower bound of the dense loss, equal to it at
    k = vocabulary, and 0 where student and teacher are the same. Without it the k are renormalised on both sides.
    """
    logits, kept = wide(student) / tau, wide(teacher.log_probs).detach()
    if not tail:
        p, q = log_softmax(kept, -1), log_softmax(logits.gather(-1, teacher.ids), -1)
        return tau**2 * (p.exp() * (p - q)).sum(-1)
    known = log_softmax(logits, -1).gather(-1, teacher.ids)
    rest, is_rest = _left_over(kept)
    p, q = torch.cat([kept, rest], -1), torch.cat([known, _left_over(known)[0]], -1)
    counts = torch.cat([torch.ones_like(kept, dtype=torch.bool), is_rest], -1)
    return tau**2 * torch.where(counts, p.exp() * (p - q), 0.0).sum(-1)


def drawn(logits: Tensor, count: int, tau: float, generator: torch.Generator) -> TopK:
    """`count` tokens drawn from each of (n, vocabulary) logits at temperature tau, with replacement."""
    log_probs = log_softmax(wide(logits) / tau, -1)
    ids = torch.multinomial(log_probs.exp(), count, replacement=True, generator=generator)
    return TopK(ids, log_probs.gather(-1, ids))


def drawn_distillation(teacher: TopK, student: Tensor, tau: float) -> Tensor:
    """`distillation` as the mean over tokens drawn from the teacher at tau, shape (n,). Its expectation, and that of
    its gradient, are those of the whole vocabulary (Random Sampling KD, arXiv 2503.16870, section 4)."""
    q = log_softmax(wide(student) / tau, -1).gather(-1, teacher.ids)
    return tau**2 * (wide(teacher.log_probs).detach() - q).mean(-1)


def _left_over(log_probs: Tensor) -> tuple[Tensor, Tensor]:
    """(log(1 - sum of (n, k) probabilities), whether that is more than rounding), both of shape (n, 1)."""
    held = log_probs.logsumexp(-1, keepdim=True)
    # Clamped, so that no gradient is infinite where the k hold all there is.
    return torch.log(-torch.expm1(held.clamp(max=-1e-7))), held < -1e-6
