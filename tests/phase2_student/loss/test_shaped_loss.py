"""The loss on a tail with a shape: against autograd in float64 on the whole distribution that docs/FORMAT.md says it is."""

import pytest
import torch

from firstsight.models.tail_shape import TailShape
from phase2_student.loss.divergences import DIVERGENCES
from phase2_student.loss.fused import distillation_loss
from phase2_student.loss.objective import Objective
from phase2_student.loss.targets import CoordinateTargets, ShapedTargets

N, D, V, S, K, R = 24, 10, 80, 60, 6, 4


def random(*shape, seed, scale=1.0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def case(temperature, *, softcap=None, entries=K, empty=False, seed=0):
    """A student, and targets over some ids whose stored entries are not what the shape would give."""
    shared = torch.randperm(V, generator=torch.Generator().manual_seed(seed))[:S].sort().values
    shape = TailShape(
        image_Sr=random(S, R, seed=seed + 1), mean_S=random(S, seed=seed + 2), student_ids_S=shared, softcap=softcap
    )
    columns = torch.stack([torch.randperm(S, generator=torch.Generator().manual_seed(n))[:entries] for n in range(N)])
    scores = random(N, entries + 1, seed=seed + 3, scale=2.0).sort(dim=1, descending=True).values
    if empty or entries == S:
        scores[:, -1] = -torch.inf
    scores = scores.log_softmax(dim=1)
    soft, hard = torch.ones(N, dtype=torch.bool), torch.ones(N, dtype=torch.bool)
    soft[2::7], hard[::5] = False, False
    stored = CoordinateTargets(
        target_ids_N=torch.arange(N) % V,
        soft_N=soft,
        hard_N=hard,
        ids_NK=shared[columns],
        log_p_NK=scores[:, :-1],
        log_r_N=scores[:, -1],
        coefficients_Nr=random(N, R, seed=seed + 4).mul(9).round(),
    )
    student = random(N, D, seed=seed + 5), random(V, D, seed=seed + 6)
    unshared = torch.tensor(sorted(set(range(V)) - set(shared.tolist())))
    return student, ShapedTargets.of(stored, shape, temperature), unshared


def in_float64(student, targets, objective, num_items):
    """Loss and gradients, position by position."""
    states, head = (tensor.double().requires_grad_() for tensor in student)
    stored, shape, T = targets.stored, targets.shape, objective.temperature
    logits = states @ head.T
    total = logits.new_zeros(())
    for n in range(N):
        if stored.soft_N[n]:
            tail = shape.image_Sr.double() @ stored.coefficients_Nr[n].double() + shape.mean_S.double()
            if shape.softcap is not None:
                tail = shape.softcap * torch.tanh(tail / shape.softcap)
            columns = torch.searchsorted(shape.student_ids_S, stored.ids_NK[n])
            rest = torch.ones(S, dtype=torch.bool)
            rest[columns] = False
            log_p = torch.empty(S, dtype=torch.float64)
            log_p[columns] = stored.log_p_NK[n].double()
            if rest.any():
                log_p[rest] = (tail[rest] / T).log_softmax(dim=0) + stored.log_r_N[n].double()
            log_q = (logits[n, shape.student_ids_S] / T).log_softmax(dim=0)
            value, _ = objective.divergence.value_and_slope(log_p.clamp(min=-103.3)[None], log_q[None])
            total = total + objective.alpha * T**2 * value.sum()
        if stored.hard_N[n]:
            total = total - (1 - objective.alpha) * logits[n].log_softmax(dim=0)[stored.target_ids_N[n]]
    loss = total / num_items
    return loss, torch.autograd.grad(loss, [states, head])


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("temperature", [1.0, 1.3, 2.0, 4.0])
@pytest.mark.parametrize("chunk", [1, 5, 256])
def test_every_divergence_is_that_of_the_whole_distribution(name, temperature, chunk):
    for softcap, entries, empty in ((None, K, False), (3.0, K, False), (None, K, True), (None, S, False)):
        student, targets, unshared = case(temperature, softcap=softcap, entries=entries, empty=empty)
        objective = Objective(temperature=temperature, alpha=0.7, divergence=DIVERGENCES[name]())
        states, head = (tensor.clone().requires_grad_() for tensor in student)
        loss, terms = distillation_loss(
            states, head, targets, objective, unshared_ids=unshared, num_items=19.0, chunk=chunk
        )
        wanted, wanted_grads = in_float64(student, targets, objective, 19.0)
        assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)
        for got, want in zip(torch.autograd.grad(loss, [states, head]), wanted_grads, strict=True):
            assert (got.double() - want).abs().max() < 1e-5 * want.abs().max()
        assert int(terms.soft) == int(targets.soft_N.sum())


def test_what_is_read_is_a_distribution_with_the_stored_entries_and_the_stored_mass():
    _, targets, _ = case(2.0)
    read = targets.chunk(slice(3, 15))
    torch.testing.assert_close(read.log_p_NS.exp().sum(dim=1), torch.ones(12))
    columns = targets.shape.columns(targets.stored.ids_NK[3:15])
    assert torch.equal(read.log_p_NS.gather(1, columns), targets.stored.log_p_NK[3:15])
    rest = read.log_p_NS.scatter(1, columns, -torch.inf).logsumexp(dim=1)
    torch.testing.assert_close(rest, targets.stored.log_r_N[3:15])
    assert torch.equal(read.top_ids_N1[:, 0], targets.stored.ids_NK[3:15, 0])
