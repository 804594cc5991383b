"""Every divergence on every kind of targets, at every size of a chunk: autograd of the textbook form in float64, to 1e-5 of the
largest gradient. (`test_divergences.py` has the odd temperatures and stored entries in their corners.)"""

import pytest
import test_exact_loss as exact
import test_loss as stored
import test_shaped_loss as shaped
import torch
from test_divergences import TEXTBOOK, divergence, full_targets, outcomes

from phase2_student.loss.fused import distillation_loss
from phase2_student.loss.objective import Objective
from phase2_student.loss.targets import TeacherTargets

ALPHA, COUNT = 0.7, 19.0


def of_entries(kind, T):
    """States, head, targets, ids not shared, and log p and log q [N, O] of the outcomes, by log q over the shared ids."""
    states, head, targets, unshared, at_t = stored.make_case(seed=50, k=8, temperature=T, soft_all=False)
    if kind == "full":
        targets = full_targets(targets, at_t)
    return states, head, targets, unshared, torch.arange(at_t.shape[1]), lambda log_q: outcomes(targets, log_q, at_t)


def of_exact(kind, T):
    found = exact.case({"exact": torch.float32, "exact bf16": torch.bfloat16}[kind], seed=51, scale=0.7, softcap=9.0)
    targets = TeacherTargets(**{**vars(found["targets"]), "temperature": T})
    log_p = (exact.teacher_logits(targets) / T).log_softmax(dim=1)
    return found["states"], found["head"], targets, found["unshared"], targets.head.student_ids_S, lambda q: (log_p, q)


def of_shaped(_kind, T):
    (states, head), targets, unshared = shaped.case(T, softcap=3.0, seed=52)
    tail, entries = targets.shape, targets.stored
    logits = entries.coefficients_Nr.double() @ tail.image_Sr.double().T + tail.mean_S.double()
    columns = torch.searchsorted(tail.student_ids_S, entries.ids_NK)
    logits = (3.0 * torch.tanh(logits / 3.0) / T).scatter(1, columns, -torch.inf)
    log_p = logits.log_softmax(dim=1) + entries.log_r_N.double()[:, None]
    log_p = log_p.scatter(1, columns, entries.log_p_NK.double())
    return states, head, targets, unshared, tail.student_ids_S, lambda log_q: (log_p, log_q)


CASES = {"top_k": of_entries, "full": of_entries, "exact": of_exact, "exact bf16": of_exact, "shaped": of_shaped}


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("kind", CASES)
@pytest.mark.parametrize("name", TEXTBOOK)
def test_at_every_size_of_a_chunk(name, kind, temperature):
    states, head, targets, unshared, shared, both = CASES[kind](kind, temperature)
    plain = [each.double().requires_grad_() for each in (states, head)]
    logits = plain[0] @ plain[1].T
    log_q = (logits[:, shared] / temperature).log_softmax(dim=1)
    soft, hard = targets.soft_N, targets.hard_N
    kd = temperature**2 * TEXTBOOK[name](*both(log_q))[soft].sum()
    ce = torch.nn.functional.cross_entropy(logits[hard], targets.target_ids_N[hard], reduction="sum")
    wanted = (ALPHA * kd + (1 - ALPHA) * ce) / COUNT
    gradients = torch.autograd.grad(wanted, plain)
    objective = Objective(temperature=temperature, alpha=ALPHA, divergence=divergence(name))
    for chunk in range(1, len(states) + 1):
        given = [each.clone().requires_grad_() for each in (states, head)]
        loss, terms = distillation_loss(*given, targets, objective, unshared_ids=unshared, num_items=COUNT, chunk=chunk)
        assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)
        assert terms.kd.item() == pytest.approx(kd.item(), rel=1e-5)
        for got, want in zip(torch.autograd.grad(loss, given), gradients, strict=True):
            assert (got.double() - want).abs().max() <= 1e-5 * want.abs().max(), chunk
