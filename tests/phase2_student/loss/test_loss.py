"""The loss against full-vocabulary KL, against its plain form, and against finite differences."""

import math
from typing import get_args

import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div

from firstsight.recipe import LossSection
from phase2_student.loss.divergences import DIVERGENCES, divergence_of
from phase2_student.loss.fused import distillation_loss
from phase2_student.loss.objective import Objective
from phase2_student.loss.reference import reference_loss
from phase2_student.loss.targets import StoredTargets

N, D, V = 23, 16, 97


def make_case(seed=0, k=8, unshared=5, temperature=2.0, dtype=torch.float32, soft_all=True):
    """Random states, head and teacher; targets as a cache would give them at `temperature`."""
    g = torch.Generator().manual_seed(seed)
    states = torch.randn(N, D, generator=g, dtype=dtype)
    head = torch.randn(V, D, generator=g, dtype=dtype) * 0.7
    shared = V - unshared
    teacher = (torch.randn(N, shared, generator=g, dtype=torch.float64) * 3).log_softmax(dim=1)
    target_ids = torch.randint(0, shared, (N,), generator=g)
    at_t = (teacher / temperature).log_softmax(dim=1)
    log_p, ids = at_t.topk(min(k, shared), dim=1)
    rest = at_t.scatter(1, ids, -torch.inf)
    targets = StoredTargets(
        ids_NK=ids,
        log_p_NK=log_p.float(),
        log_r_N=rest.logsumexp(dim=1).float(),
        target_ids_N=target_ids,
        soft_N=torch.ones(N, dtype=torch.bool) if soft_all else torch.arange(N) % 3 != 0,
        hard_N=torch.ones(N, dtype=torch.bool) if soft_all else torch.arange(N) % 4 != 1,
    )
    return states, head, targets, torch.arange(shared, V), at_t


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_all_entries_stored_is_full_vocabulary_kl_plus_cross_entropy(temperature):
    states, head, targets, unshared, at_t = make_case(k=V, unshared=0, temperature=temperature)
    states.requires_grad_()
    head.requires_grad_()
    alpha = 0.7
    loss, _ = distillation_loss(
        states,
        head,
        targets,
        objective=Objective(temperature=temperature, alpha=alpha),
        unshared_ids=unshared,
        num_items=N,
    )
    grads = torch.autograd.grad(loss, [states, head])
    logits = states @ head.T
    student = (logits / temperature).log_softmax(dim=1)
    kd = temperature**2 * kl_div(student, at_t.float(), log_target=True, reduction="sum") / N
    expected = alpha * kd + (1 - alpha) * cross_entropy(logits, targets.target_ids_N)
    expected_grads = torch.autograd.grad(expected, [states, head])
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for got, want in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tail", ["bucket", "renormalize", "none"])
@pytest.mark.parametrize("temperature", [1.0, 2.0, 3.1])
@pytest.mark.parametrize("chunk", [7, 256])
@pytest.mark.parametrize("name", DIVERGENCES)
def test_fused_equals_reference(name, tail, temperature, chunk):
    states, head, targets, unshared, _ = make_case(seed=1, temperature=temperature, soft_all=False)
    objective = Objective(temperature=temperature, alpha=0.6, tail=tail, divergence=DIVERGENCES[name]())
    options = {"unshared_ids": unshared, "objective": objective, "num_items": 31.0}
    states.requires_grad_()
    head.requires_grad_()
    loss, terms = distillation_loss(states, head, targets, chunk=chunk, **options)
    expected = reference_loss(states, head, targets, **options)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert terms.soft == targets.soft_N.sum()
    assert terms.hard == targets.hard_N.sum()
    assert loss.item() == pytest.approx((0.6 * terms.kd + 0.4 * terms.ce).item() / 31, rel=1e-5)
    for got, want in zip(
        torch.autograd.grad(loss, [states, head]), torch.autograd.grad(expected, [states, head]), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("tail", ["bucket", "renormalize", "none"])
def test_gradient_agrees_with_finite_differences(tail):
    states, head, targets, unshared, _ = make_case(seed=2, dtype=torch.float64)
    options = {
        "unshared_ids": unshared,
        "objective": Objective(temperature=2.0, alpha=0.7, tail=tail),
        "num_items": float(N),
    }
    states32 = states.float().requires_grad_()
    loss, _ = distillation_loss(states32, head.float(), targets, **options)
    (grad,) = torch.autograd.grad(loss, [states32])
    step = 1e-5
    for n, d in [(0, 0), (3, 5), (11, 15), (22, 7)]:
        ahead, behind = states.clone(), states.clone()
        ahead[n, d] += step
        behind[n, d] -= step
        slope = (reference_loss(ahead, head, targets, **options) - reference_loss(behind, head, targets, **options)) / (
            2 * step
        )
        assert grad[n, d].item() == pytest.approx(slope.item(), rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_a_slope_is_the_derivative_of_its_value(name):
    g = torch.Generator().manual_seed(12)
    log_p, log_q = (torch.randn(5, 9, generator=g, dtype=torch.float64).mul(3).log_softmax(dim=1) for _ in range(2))
    value, slope = DIVERGENCES[name]().value_and_slope(log_p, log_q.requires_grad_())
    torch.testing.assert_close(slope, torch.autograd.grad(value.sum(), log_q)[0])


def test_the_divergences_of_the_recipe_are_those_there_are():
    assert get_args(LossSection.model_fields["divergence"].annotation) == tuple(DIVERGENCES)
    for name in DIVERGENCES:
        assert type(divergence_of(LossSection(divergence=name))) is DIVERGENCES[name]


def test_rows_that_are_not_shared_get_no_soft_gradient():
    states, head, targets, unshared, _ = make_case(seed=3)
    head.requires_grad_()
    loss, _ = distillation_loss(
        states, head, targets, objective=Objective(temperature=2.0, alpha=1.0), unshared_ids=unshared, num_items=N
    )
    (grad,) = torch.autograd.grad(loss, [head])
    assert grad[unshared].abs().max() == 0
    assert grad[: unshared[0]].abs().min() > 0


def test_t_squared_is_in_the_gradient():
    """For small logits the gradient of T^2 KL hardly depends on T; without T^2 it would fall as 1 / T^2."""
    norms = []
    for temperature in (2.0, 4.0):
        states, head, targets, unshared, _ = make_case(seed=4, k=V, unshared=0, temperature=temperature)
        states = (states * 0.01).requires_grad_()
        loss, _ = distillation_loss(
            states,
            head,
            targets,
            objective=Objective(temperature=temperature, alpha=1.0),
            unshared_ids=unshared,
            num_items=N,
        )
        norms.append(torch.autograd.grad(loss, [states])[0].norm().item())
    assert 0.5 < norms[1] / norms[0] < 1.0


def test_extreme_logits_stay_finite():
    """A student that is sure of the wrong id, with a tail whose mass underflows."""
    states, head, targets, unshared, _ = make_case(seed=5)
    states = (states * 60).requires_grad_()
    loss, _ = distillation_loss(
        states, head, targets, objective=Objective(temperature=1.0, alpha=0.7), unshared_ids=unshared, num_items=N
    )
    (grad,) = torch.autograd.grad(loss, [states])
    assert math.isfinite(loss.item())
    assert grad.isfinite().all()


def test_frozen_head_and_no_grad():
    states, head, targets, unshared, _ = make_case(seed=6)
    options = {"unshared_ids": unshared, "objective": Objective(temperature=2.0, alpha=0.7), "num_items": float(N)}
    states.requires_grad_()
    loss, _ = distillation_loss(states, head, targets, **options)
    (grad,) = torch.autograd.grad(loss, [states])
    assert grad.abs().sum() > 0
    with torch.no_grad():
        quiet, _ = distillation_loss(states, head, targets, **options)
    assert quiet.item() == loss.item()
    assert not quiet.requires_grad


def test_projection_is_fp32_under_autocast():
    states, head, targets, unshared, _ = make_case(seed=7)
    options = {"unshared_ids": unshared, "objective": Objective(temperature=2.0, alpha=0.7), "num_items": float(N)}
    plain, _ = distillation_loss(states, head, targets, **options)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast, _ = distillation_loss(states, head, targets, **options)
    assert cast.item() == plain.item()


@pytest.mark.parametrize("soft_all", [True, False])
def test_hard_labels_alone_are_plain_cross_entropy_and_skip_the_soft_part(soft_all):
    states, head, targets, unshared, _ = make_case(seed=8, soft_all=soft_all)
    options = {"unshared_ids": unshared, "objective": Objective(temperature=2.0, alpha=0.0), "num_items": float(N)}
    states.requires_grad_()
    loss, terms = distillation_loss(states, head, targets, **options)
    hard = targets.hard_N
    expected = cross_entropy((states @ head.T)[hard], targets.target_ids_N[hard], reduction="sum") / N
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert terms.kd.isnan()
    torch.testing.assert_close(
        torch.autograd.grad(loss, [states])[0], torch.autograd.grad(expected, [states])[0], rtol=1e-5, atol=1e-6
    )
    with torch.no_grad():  # a validation shows both parts, whatever is trained
        quiet, quiet_terms = distillation_loss(states, head, targets, **options)
    assert quiet.item() == pytest.approx(loss.item(), rel=1e-6)
    assert quiet_terms.kd.isfinite()
    assert quiet_terms.agree == terms.agree


def test_agreement_counts_the_teachers_most_likely_token():
    states, head, targets, unshared, _ = make_case(seed=9, soft_all=False)
    top = (states @ head.T).argmax(dim=1)
    expected = ((top == targets.ids_NK[:, 0]) & targets.soft_N).sum()
    for alpha in (0.0, 0.7):
        _, terms = distillation_loss(
            states.requires_grad_(),
            head,
            targets,
            objective=Objective(temperature=2.0, alpha=alpha),
            unshared_ids=unshared,
            num_items=1.0,
        )
        assert terms.agree == expected


def test_a_tail_far_below_the_stored_entries_keeps_its_mass():
    """Stored logits 400 nats above the rest: 1 - sum q is 0 in fp32, the logsumexp is not."""
    states, head, targets, unshared, _ = make_case(seed=10)
    head = head * 0.01
    lift = torch.zeros(N, V).scatter_(1, targets.ids_NK, 400.0)
    states, head = torch.cat([states, torch.eye(N)], dim=1), torch.cat([head, lift.T], dim=1)
    options = {"unshared_ids": unshared, "objective": Objective(temperature=2.0, alpha=1.0), "num_items": float(N)}
    loss, _ = distillation_loss(states, head, targets, **options)
    expected = reference_loss(states.double(), head.double(), targets, **options)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_second_backward_is_refused():
    states, head, targets, unshared, _ = make_case(seed=11)
    states.requires_grad_()
    loss, _ = distillation_loss(
        states, head, targets, objective=Objective(temperature=2.0, alpha=0.7), unshared_ids=unshared, num_items=N
    )
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="called twice"):
        loss.backward()
