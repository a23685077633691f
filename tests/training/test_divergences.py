"""Divergences against values worked out by hand, against their gradients, and at their limits."""

import math

import pytest
import torch
from torch import Tensor

from training.divergences import (
    TopK,
    distillation,
    drawn,
    drawn_distillation,
    forward_kl,
    generalized_jsd,
    reverse_kl,
    top_k,
    top_k_distillation,
)

P, Q = torch.tensor([[0.7, 0.2, 0.1]]).double().log(), torch.tensor([[0.5, 0.3, 0.2]]).double().log()


def logits(n: int, vocabulary: int, seed: int = 0) -> Tensor:
    return 2 * torch.randn(n, vocabulary, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_values_worked_out_by_hand() -> None:
    assert float(forward_kl(P, Q)) == pytest.approx(0.085123, abs=1e-6)
    assert float(reverse_kl(P, Q)) == pytest.approx(0.092033, abs=1e-6)
    for beta, value in ((0.1, 0.007695), (0.5, 0.021901), (0.9, 0.008185)):
        assert float(generalized_jsd(P, Q, beta)) == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize(("tau", "value"), [(1.0, 0.170640), (2.0, 0.193636), (4.0, 0.197466)])
def test_distillation_at_three_temperatures(tau: float, value: float) -> None:
    teacher, student = torch.tensor([[2.0, 1.0, 0.0]]).double(), torch.tensor([[1.0, 1.0, 0.5]]).double()
    assert float(distillation(teacher, student, tau)) == pytest.approx(value, abs=1e-6)


def test_a_high_temperature_matches_logits() -> None:
    teacher, student = logits(4, 6), logits(4, 6, 1).requires_grad_()
    (gradient,) = torch.autograd.grad(distillation(teacher, student, 1e4).sum(), student)
    centred = (student - student.mean(-1, keepdim=True)) - (teacher - teacher.mean(-1, keepdim=True))
    assert torch.allclose(gradient, centred / 6, atol=1e-3)


def test_a_one_hot_teacher_makes_distillation_cross_entropy() -> None:
    student, targets = logits(5, 7), torch.tensor([0, 3, 6, 2, 2])
    teacher = torch.full((5, 7), -1e9, dtype=torch.float64).scatter(1, targets[:, None], 0.0)
    expected = torch.nn.functional.cross_entropy(student, targets, reduction="none")
    assert torch.allclose(distillation(teacher, student, 1.0), expected)


LOSSES = [
    forward_kl,
    reverse_kl,
    lambda p, q: generalized_jsd(p, q, 0.3),
    lambda p, q: distillation(p, q, 2.0),
    lambda p, q: top_k_distillation(top_k(p, 3, 1.0), q, 1.0, tail=True),
    lambda p, q: top_k_distillation(top_k(p, 3, 2.0), q, 2.0, tail=True),
    lambda p, q: top_k_distillation(top_k(p, 3, 2.0), q, 2.0, tail=False),
]


@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_are_those_of_finite_differences(loss) -> None:  # type: ignore[no-untyped-def]
    teacher, student = logits(3, 5), logits(3, 5, 1).requires_grad_()
    assert torch.autograd.gradcheck(lambda q: loss(teacher, q), (student,))


@pytest.mark.parametrize("loss", LOSSES)
def test_a_student_that_is_the_teacher_has_no_loss_and_no_gradient(loss) -> None:  # type: ignore[no-untyped-def]
    teacher, same = logits(3, 5), logits(3, 5).requires_grad_()
    value = loss(teacher, same).sum()
    (gradient,) = torch.autograd.grad(value, same)
    assert float(value.detach()) == pytest.approx(0.0, abs=1e-12)
    assert float(gradient.abs().max()) < 1e-12


def test_the_teacher_gets_no_gradient() -> None:
    teacher, student = logits(2, 4).requires_grad_(), logits(2, 4, 1).requires_grad_()
    generalized_jsd(teacher, student, 0.4).sum().backward()
    assert teacher.grad is None


def test_the_divergence_of_beta_tends_to_both_kl_at_its_ends() -> None:
    teacher, student = logits(6, 9), logits(6, 9, 1)
    for beta, near in ((1e-4, 2e-2), (1e-6, 1e-3)):
        assert torch.allclose(generalized_jsd(teacher, student, beta) / beta, forward_kl(teacher, student), rtol=near)
        left = generalized_jsd(teacher, student, 1 - beta) / beta
        assert torch.allclose(left, reverse_kl(teacher, student), rtol=near)
    assert torch.equal(generalized_jsd(teacher, student, 0.0), forward_kl(teacher, student))
    assert torch.equal(generalized_jsd(teacher, student, 1.0), reverse_kl(teacher, student))
    assert torch.allclose(generalized_jsd(teacher, student, 0.5), generalized_jsd(student, teacher, 0.5))


@pytest.mark.parametrize("tau", [1.0, 3.0])
@pytest.mark.parametrize("tail", [True, False])
def test_all_tokens_as_top_k_are_the_dense_loss(tau: float, tail: bool) -> None:
    teacher, student = logits(8, 11), logits(8, 11, 1)
    sparse = top_k_distillation(top_k(teacher, 11, tau), student, tau, tail)
    assert torch.allclose(sparse, distillation(teacher, student, tau), atol=1e-6)


@pytest.mark.parametrize("tau", [1.0, 2.0, 4.0])
def test_top_k_with_its_tail_never_exceeds_the_dense_loss_and_grows_towards_it(tau: float) -> None:
    teacher, student = logits(50, 20), logits(50, 20, 1)
    losses = [top_k_distillation(top_k(teacher, k, tau), student, tau, tail=True) for k in (1, 4, 12, 20)]
    dense = distillation(teacher, student, tau)
    for fewer, more in zip(losses, [*losses[1:], dense], strict=True):
        assert bool((fewer <= more + 1e-9).all())


def test_a_cache_in_half_precision_is_near_the_dense_loss() -> None:
    teacher, student = logits(20, 500).float(), logits(20, 500, 1).float()
    kept = top_k(teacher, 64, 1.0)
    halved = TopK(kept.ids.int().long(), kept.log_probs.half())
    exact = top_k_distillation(kept, student, 1.0, tail=True)
    assert torch.allclose(top_k_distillation(halved, student, 1.0, tail=True), exact, rtol=5e-3)


def test_half_precision_logits_are_summed_in_single() -> None:
    teacher, student = logits(4, 50_000), logits(4, 50_000, 1)
    exact = forward_kl(teacher.bfloat16().double(), student.bfloat16().double())
    assert torch.allclose(forward_kl(teacher.bfloat16(), student.bfloat16()).double(), exact, rtol=1e-4)
    assert math.isfinite(float(exact.sum()))


def test_tokens_drawn_from_the_teacher_tell_the_dense_loss_and_gradient_without_a_bias() -> None:
    torch.manual_seed(0)
    teacher, student = 2 * torch.randn(1, 7, dtype=torch.float64), torch.randn(1, 7, dtype=torch.float64)
    student.requires_grad_()
    many = drawn(teacher, 200_000, 1.5, torch.Generator().manual_seed(3))
    losses = []
    for loss in (distillation(teacher, student, 1.5), drawn_distillation(many, student, 1.5)):
        (gradient,) = torch.autograd.grad(loss.sum(), student)
        losses.append((float(loss.detach()), gradient))
    assert losses[1][0] == pytest.approx(losses[0][0], abs=0.02)
    assert torch.allclose(losses[1][1], losses[0][1], atol=0.01)
    again = drawn(teacher, 5, 1.5, torch.Generator().manual_seed(3))
    assert torch.equal(again.ids, drawn(teacher, 5, 1.5, torch.Generator().manual_seed(3)).ids)
