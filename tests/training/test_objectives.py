"""Objectives as pure functions: weights, tasks, and MiniLLM's gradient against an enumeration of every response."""

import itertools

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax

from schemas.objective import Gkd, Icl, Kd, MiniLLM, Sft, StepByStep
from training.aligned import Aligned
from training.divergences import distillation, generalized_jsd, top_k
from training.objectives import (
    MAIN,
    OBJECTIVES,
    SECOND,
    Sampled,
    Term,
    View,
    gkd,
    icl,
    kd,
    minillm,
    returns_of,
    sft,
    step_by_step,
)

V, T = 3, 3


def logits(n: int = 6, vocabulary: int = 5, seed: int = 0) -> Tensor:
    return torch.randn(n, vocabulary, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def view(tasks: list[int] | None = None, teacher: bool = True, **more: object) -> View:
    targets = torch.tensor([0, 1, 2, 3, 4, 0])
    owners = torch.arange(6)
    return View(
        student=Aligned(logits(), targets, owners),
        tasks=torch.tensor(tasks or [MAIN] * 6),
        weights=torch.ones(6),
        teacher=Aligned(logits(seed=1), targets, owners) if teacher else None,
        **more,  # type: ignore[arg-type]
    )


def total(terms: list[Term], counts: dict[str, int]) -> float:
    return sum(float(term.weight * term.values.sum() / counts[term.per]) for term in terms)


def test_every_objective_of_the_schema_is_registered() -> None:
    assert set(OBJECTIVES) == {"sft", "step_by_step", "icl", "kd", "hidden", "gkd", "minillm"}


def test_sft_is_cross_entropy() -> None:
    seen = view()
    (term,) = sft(Sft(), seen)
    assert torch.allclose(term.values, cross_entropy(seen.student.logits, seen.student.targets, reduction="none"))


def test_step_by_step_weighs_the_means_of_its_two_tasks() -> None:
    tasks = [MAIN, MAIN, SECOND, SECOND, SECOND, SECOND]
    losses = cross_entropy(view().student.logits, view().student.targets, reduction="none")
    terms = step_by_step(StepByStep(name="step_by_step", alpha=0.3), view(tasks))
    expected = 0.3 * losses[:2].mean() + 0.7 * losses[2:].mean()
    assert total(terms, {"main": 2, "second": 4}) == pytest.approx(float(expected))


def test_kd_is_a_weighted_sum_by_token_or_by_row() -> None:
    seen = view()
    assert seen.teacher is not None
    ce = cross_entropy(seen.student.logits, seen.student.targets)
    divergence = distillation(seen.teacher.logits, seen.student.logits, 3.0)
    by_token = kd(Kd(name="kd", alpha=0.2, beta=0.8, tau=3.0), seen)
    assert total(by_token, {"tokens": 6}) == pytest.approx(float(0.2 * ce + 0.8 * divergence.mean()))
    by_row = kd(Kd(name="kd", alpha=0.0, beta=1.0, tau=3.0, reduction="batch"), seen)
    assert total(by_row, {"tokens": 6, "rows": 2}) == pytest.approx(float(divergence.sum() / 2))


def test_kd_with_all_tokens_cached_is_kd_with_a_live_teacher() -> None:
    live = view()
    assert live.teacher is not None
    cached = view(teacher=False, cached=top_k(live.teacher.logits, 5, 2.0))
    spec = Kd(name="kd", tau=2.0)
    assert total(kd(spec, cached), {"tokens": 6}) == pytest.approx(total(kd(spec, live), {"tokens": 6}), abs=1e-6)


def test_icl_moves_from_hard_to_soft_labels() -> None:
    tasks = [MAIN, MAIN, SECOND, SECOND, SECOND, SECOND]
    weights = torch.tensor([1.0, 1.0, 0.25, 0.25, 0.75, 0.75])
    losses = cross_entropy(view().student.logits, view().student.targets, reduction="none")
    hard, soft = losses[:2].sum() / 2, (losses * weights)[2:].sum() / 2
    for progress in (0.0, 0.25, 1.0):
        base = view(tasks, teacher=False, progress=progress)
        seen = View(base.student, base.tasks, weights, progress=progress)
        got = total(icl(Icl(name="icl"), seen), {"main": 2, "options": float(weights[2:].sum())})
        assert got == pytest.approx(float((1 - progress) * hard + progress * soft))
    assert [t.name for t in icl(Icl(name="icl", soft=False), view(tasks))] == ["hard"]


def test_gkd_is_the_divergence_without_cross_entropy() -> None:
    seen = view()
    (term,) = gkd(Gkd.model_validate({"name": "gkd", "beta": 0.1}), seen)
    assert seen.teacher is not None
    assert torch.equal(term.values, generalized_jsd(seen.teacher.logits, seen.student.logits, 0.1))


class Toy:
    """A tabular policy: logits (V,) of the next token for each prefix of fewer than T tokens."""

    def __init__(self, seed: int) -> None:
        prefixes = [p for n in range(T) for p in itertools.product(range(V), repeat=n)]
        self.rows = {prefix: i for i, prefix in enumerate(prefixes)}
        self.table = logits(len(prefixes), V, seed).requires_grad_()

    def along(self, response: tuple[int, ...]) -> Tensor:
        return self.table[[self.rows[response[:t]] for t in range(T)]]


def log_probs(rows: Tensor, response: tuple[int, ...]) -> Tensor:
    return log_softmax(rows, -1)[torch.arange(T), torch.tensor(response)]


def exact_gradient(student: Toy, teacher: Toy) -> Tensor:
    """Of KL(student || teacher) over whole responses, by enumeration."""
    kl = torch.zeros((), dtype=torch.float64)
    for response in itertools.product(range(V), repeat=T):
        q, p = log_probs(student.along(response), response).sum(), log_probs(teacher.along(response), response).sum()
        kl = kl + q.exp() * (q - p.detach())
    (gradient,) = torch.autograd.grad(kl, student.table)
    return gradient


def expected_gradient(spec: MiniLLM, student: Toy, teacher: Toy) -> Tensor:
    """Of the objective, over every response with its probability under the student: what sampling tends to."""
    loss = torch.zeros((), dtype=torch.float64)
    for response in itertools.product(range(V), repeat=T):
        ours, theirs = student.along(response), teacher.along(response).detach()
        q = log_probs(ours, response).detach()
        sampled = Sampled(mix=q, returns=returns_of(spec, log_probs(theirs, response), q))
        targets, owners = torch.tensor(response), torch.zeros(T, dtype=torch.long)
        seen = View(
            Aligned(ours, targets, owners), torch.zeros(T), torch.ones(T), Aligned(theirs, targets, owners),
            sampled=sampled,
        )  # fmt: skip
        loss = loss + q.sum().exp() * sum(term.weight * term.values.sum() for term in minillm(spec, seen))
    (gradient,) = torch.autograd.grad(loss, student.table)
    return gradient


@pytest.mark.parametrize("single_step", [True, False])
def test_minillm_has_the_gradient_of_the_reverse_kl_of_whole_responses(single_step: bool) -> None:
    student, teacher = Toy(0), Toy(1)
    spec = MiniLLM(name="minillm", length_normalised=False, single_step=single_step)
    difference = expected_gradient(spec, student, teacher) - exact_gradient(student, teacher)
    assert float(difference.abs().max()) < 1e-9


def test_minillm_as_released_is_another_objective() -> None:
    student, teacher = Toy(0), Toy(1)
    exact = exact_gradient(student, teacher)
    released = expected_gradient(MiniLLM(name="minillm", variant="released"), student, teacher)
    assert float((released - exact).abs().max()) > 0.3 * float(exact.abs().max())


def test_returns_do_not_depend_on_where_a_response_starts_and_are_normalised_by_what_follows() -> None:
    teacher, student = torch.tensor([-1.0, -2.0, -3.0]), torch.tensor([-2.0, -2.0, -1.0])  # rewards 1, 0, -2
    paper = MiniLLM(name="minillm")
    assert returns_of(paper, teacher, student).tolist() == [-1.0, -2.0, 0.0]
    plain = paper.model_copy(update={"length_normalised": False})
    assert returns_of(plain, teacher, student).tolist() == [-2.0, -2.0, 0.0]
    released = paper.model_copy(update={"variant": "released"})
    first = (2 + 0.95 * 0 + 0.95**2 * -4) / 3
    assert returns_of(released, teacher, student).tolist() == pytest.approx([first, 0.95 * -4 / 2, -4.0])


def test_minillm_stops_pushing_where_the_ratio_is_clipped() -> None:
    spec = MiniLLM(name="minillm", single_step=False, clip=0.2)
    student = logits(2, 4).requires_grad_()
    chosen = log_softmax(student, -1)[:, 0].detach()
    # The first token became twice as likely as it was and is worth more of it, the second less.
    sampled = Sampled(mix=chosen - torch.tensor([2.0, 2.0]).log(), returns=torch.tensor([1.0, -1.0]).double())
    targets, owners = torch.tensor([0, 0]), torch.zeros(2, dtype=torch.long)
    seen = View(
        Aligned(student, targets, owners), torch.zeros(2), torch.ones(2),
        Aligned(logits(2, 4, 1), targets, owners), sampled=sampled,
    )  # fmt: skip
    minillm(spec, seen)[0].values.sum().backward()
    assert student.grad is not None
    assert float(student.grad[0].abs().max()) == 0.0
    assert float(student.grad[1].abs().max()) > 0.0
