"""Every divergence against autograd of its textbook form, from logits to the gradient of states and head; where it has no bound."""

import math
from itertools import pairwise

import pytest
import torch
from test_loss import N, V, make_case
from torch.nn.functional import kl_div

from firstsight.recipe import LossSection
from phase2_student.loss.divergences import DIVERGENCES, divergence_of
from phase2_student.loss.fused import distillation_loss
from phase2_student.loss.objective import Objective
from phase2_student.loss.targets import FullTargets, StoredTargets


def trl_jsd(log_p, log_q, beta):
    """What `generalized_jsd_loss` of TRL sums over the vocabulary."""
    log_m = torch.logsumexp(torch.stack([log_q + math.log(1 - beta), log_p + math.log(beta)]), dim=0)
    both = [kl_div(log_m, each, reduction="none", log_target=True) for each in (log_p, log_q)]
    return (beta * both[0] + (1 - beta) * both[1]).sum(dim=1)


def skewed(log_p, log_q, beta):
    p, q = log_p.exp(), log_q.exp()
    return (p * (p / (beta * p + (1 - beta) * q)).log()).sum(dim=1)


TEXTBOOK = {
    "forward_kl": lambda log_p, log_q: (log_p.exp() * (log_p - log_q)).sum(dim=1),
    "reverse_kl": lambda log_p, log_q: (log_q.exp() * (log_q - log_p)).sum(dim=1),
    "skewed_kl": lambda log_p, log_q: skewed(log_p, log_q, 0.1),
    "skewed_kl 0.7": lambda log_p, log_q: skewed(log_p, log_q, 0.7),
    "js": lambda log_p, log_q: trl_jsd(log_p, log_q, 0.5),
    "js 0.1": lambda log_p, log_q: trl_jsd(log_p, log_q, 0.1),
    "js 0.9": lambda log_p, log_q: trl_jsd(log_p, log_q, 0.9),
    "tv": lambda log_p, log_q: (log_p.exp() - log_q.exp()).abs().sum(dim=1) / 2,
}


def divergence(name):
    kind, _, beta = name.partition(" ")
    return divergence_of(LossSection(divergence=kind, beta=float(beta) if beta else None))


def full_targets(stored, at_t):
    return FullTargets(
        log_p_NS=at_t.float(),
        shared_ids_S=torch.arange(at_t.shape[1]),
        target_ids_N=stored.target_ids_N,
        soft_N=stored.soft_N,
        hard_N=stored.hard_N,
    )


def outcomes(targets, log_q, at_t):
    """[N, O] log p and log q of the outcomes that the targets have, in float64."""
    if isinstance(targets, FullTargets):
        return at_t, log_q
    log_p, log_r = targets.log_p_NK.double(), targets.log_r_N.double()[:, None]
    if log_r.isneginf().all():
        return log_p, log_q.gather(1, targets.ids_NK)
    rest = log_q.scatter(1, targets.ids_NK, -torch.inf).logsumexp(dim=1, keepdim=True)
    return torch.cat([log_p, log_r], dim=1), torch.cat([log_q.gather(1, targets.ids_NK), rest], dim=1)


@pytest.mark.parametrize("chunk", [1, 5, N, 256])
@pytest.mark.parametrize("kind", ["full", "top_k", "all stored", "few stored"])
@pytest.mark.parametrize("temperature", [1.0, 2.0, 2.7])
@pytest.mark.parametrize("name", TEXTBOOK)
def test_the_fused_loss_is_autograd_of_the_textbook_form(name, temperature, kind, chunk):
    k = {"full": V, "top_k": 8, "all stored": V, "few stored": 2}[kind]
    states, head, targets, unshared, at_t = make_case(seed=30, k=k, temperature=temperature, soft_all=False)
    if kind == "full":
        targets = full_targets(targets, at_t)
    alpha, count = 0.8, 29.0
    plain = [each.double().requires_grad_() for each in (states, head)]
    logits = plain[0] @ plain[1].T
    log_q = (logits[:, : at_t.shape[1]] / temperature).log_softmax(dim=1)
    kd = temperature**2 * TEXTBOOK[name](*outcomes(targets, log_q, at_t))[targets.soft_N].sum()
    hard = targets.hard_N
    ce = torch.nn.functional.cross_entropy(logits[hard], targets.target_ids_N[hard], reduction="sum")
    expected = (alpha * kd + (1 - alpha) * ce) / count

    states, head = states.requires_grad_(), head.requires_grad_()
    loss, terms = distillation_loss(
        states,
        head,
        targets,
        Objective(temperature=temperature, alpha=alpha, divergence=divergence(name)),
        unshared_ids=unshared,
        num_items=count,
        chunk=chunk,
    )
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert terms.kd.item() == pytest.approx(kd.item(), rel=1e-5)
    for got, want in zip(torch.autograd.grad(loss, [states, head]), torch.autograd.grad(expected, plain), strict=True):
        assert (got.double() - want).abs().max() <= 1e-5 * want.abs().max()


class _BySlope(torch.autograd.Function):
    @staticmethod
    def forward(ctx, log_q, log_p, of):
        value, slope = of.value_and_slope(log_p, log_q)
        ctx.save_for_backward(slope)
        return value

    @staticmethod
    def backward(ctx, grad):
        return grad[:, None] * ctx.saved_tensors[0], None, None


@pytest.mark.parametrize("name", TEXTBOOK)
def test_slopes_against_finite_differences_in_float64(name):
    g = torch.Generator().manual_seed(31)
    log_p, logits = (torch.randn(4, 7, generator=g, dtype=torch.float64).mul(2) for _ in range(2))
    log_p = log_p.log_softmax(dim=1)
    of = divergence(name)
    assert torch.autograd.gradcheck(
        lambda y: _BySlope.apply(y.log_softmax(dim=1), log_p, of), logits.requires_grad_(), atol=1e-7
    )


@pytest.mark.parametrize("name", TEXTBOOK)
def test_merged_outcomes_give_a_lower_bound(name):
    """What a top_k cache trains on is never more than the whole divergence, and grows with k."""
    states, head, _, unshared, _ = make_case(seed=32)
    values = []
    for k in (2, 8, 30, V):
        _, _, targets, _, _ = make_case(seed=32, k=k)
        objective = Objective(temperature=2.0, alpha=1.0, divergence=divergence(name))
        _, terms = distillation_loss(states, head, targets, objective, unshared_ids=unshared, num_items=1.0)
        values.append(terms.kd.item())
    assert all(0 < less <= more * (1 + 1e-6) for less, more in pairwise(values)), values


def extreme_targets(log_p, log_r):
    """Three stored ids out of V, the same at every position."""
    count = len(log_p)
    return StoredTargets(
        ids_NK=torch.tensor([[4, 7, 9]]).expand(count, 3).contiguous(),
        log_p_NK=torch.tensor(log_p),
        log_r_N=torch.tensor(log_r),
        target_ids_N=torch.full((count,), 4),
        soft_N=torch.ones(count, dtype=torch.bool),
        hard_N=torch.ones(count, dtype=torch.bool),
    )


@pytest.mark.parametrize("tail", ["bucket", "renormalize"])
@pytest.mark.parametrize("favourite", [4, 7, 50])
@pytest.mark.parametrize("lift", [100.0, 3e3])
@pytest.mark.parametrize("name", TEXTBOOK)
def test_nothing_is_nan_where_a_probability_is_zero(name, lift, favourite, tail):
    """A student that is sure of one id, against a teacher that gives nothing to some: finite value, finite gradient."""
    nothing = -math.inf
    targets = extreme_targets(
        [[0.0, nothing, nothing], [-0.5, -0.9328, nothing], [-1.0, -2.0, -3.0], [0.0, -300.0, -9e3]],
        [nothing, nothing, math.log(1 - sum(math.exp(-n) for n in (1, 2, 3))), -500.0],
    )
    head = torch.zeros(V, 4)
    head[favourite] = lift
    states = torch.ones(4, 4, requires_grad=True)
    head.requires_grad_()
    of = divergence(name)
    loss, terms = distillation_loss(
        states,
        head,
        targets,
        Objective(temperature=1.0, alpha=1.0, divergence=of, tail=tail),
        unshared_ids=torch.arange(V - 5, V),
        num_items=4.0,
    )
    grads = torch.autograd.grad(loss, [states, head])
    assert math.isfinite(loss.item())
    assert all(grad.isfinite().all() for grad in grads)
    assert loss.item() >= 0
    if name == "reverse_kl":
        assert terms.kd <= 4 * 104
    elif name == "tv":
        assert terms.kd <= 4
    elif name.startswith("skewed"):
        assert terms.kd <= -4 * math.log(of.beta) + 1e-5
    elif name.startswith("js"):
        entropy = -of.beta * math.log(of.beta) - (1 - of.beta) * math.log(1 - of.beta)
        assert terms.kd <= 4 * entropy + 1e-5


@pytest.mark.parametrize("name", TEXTBOOK)
def test_whole_distributions_with_vanishing_entries(name):
    """The same where every id is an outcome: logits of the teacher 5,000 nats apart, of the student 5,000 the other way."""
    log_p = torch.linspace(0, 5e3, V - 5)[None].log_softmax(dim=1).repeat(2, 1)
    targets = FullTargets(
        log_p_NS=log_p,
        shared_ids_S=torch.arange(V - 5),
        target_ids_N=torch.zeros(2, dtype=torch.long),
        soft_N=torch.ones(2, dtype=torch.bool),
        hard_N=torch.ones(2, dtype=torch.bool),
    )
    states = torch.ones(2, 1, requires_grad=True)
    head = torch.linspace(5e3, 0, V)[:, None].requires_grad_()
    objective = Objective(temperature=1.0, alpha=0.5, divergence=divergence(name))
    loss, _ = distillation_loss(states, head, targets, objective, unshared_ids=torch.arange(V - 5, V), num_items=2.0)
    assert math.isfinite(loss.item())
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(loss, [states, head]))


@pytest.mark.parametrize("name", TEXTBOOK)
def test_equal_distributions_are_a_minimum(name):
    g = torch.Generator().manual_seed(33)
    log_p = torch.randn(6, 40, generator=g).mul(3).log_softmax(dim=1)
    value, slope = divergence(name).value_and_slope(log_p, log_p.clone())
    assert value.abs().max() < 2e-6
    gradient = slope - log_p.exp() * slope.sum(dim=1, keepdim=True)
    assert gradient.abs().max() < 2e-6


def test_limits_of_beta():
    g = torch.Generator().manual_seed(34)
    log_p, log_q = (torch.randn(6, 40, generator=g, dtype=torch.float64).log_softmax(dim=1) for _ in range(2))
    value = {name: DIVERGENCES[name]().value_and_slope(log_p, log_q)[0] for name in ("forward_kl", "reverse_kl")}
    near = {
        (name, beta): DIVERGENCES[name](beta=beta).value_and_slope(log_p, log_q)[0]
        for name in ("skewed_kl", "js")
        for beta in (1e-6, 0.5, 1 - 1e-6)
    }
    torch.testing.assert_close(near["skewed_kl", 1e-6], value["forward_kl"], rtol=1e-4, atol=0)
    torch.testing.assert_close(near["js", 1e-6] / 1e-6, value["forward_kl"], rtol=1e-4, atol=0)
    torch.testing.assert_close(near["js", 1 - 1e-6] / 1e-6, value["reverse_kl"], rtol=1e-4, atol=0)
    swapped = DIVERGENCES["js"](beta=0.5).value_and_slope(log_q, log_p)[0]
    torch.testing.assert_close(near["js", 0.5], swapped)
