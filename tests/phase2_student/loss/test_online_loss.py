"""The loss from the teacher's whole distribution: against autograd, and equal to the cached one where all ids are stored."""

import numpy as np
import pytest
import torch
from test_loss import D, N, V, make_case
from torch.nn.functional import cross_entropy, kl_div

from firstsight.models.teacher_head import TeacherHead
from firstsight.vocabulary import VocabularyAlignment
from phase2_student.loss.divergences import DIVERGENCES
from phase2_student.loss.fused import distillation_loss
from phase2_student.loss.objective import Objective
from phase2_student.loss.targets import FullTargets, TeacherTargets


def full(stored, at_t):
    """The whole distribution in place of stored entries."""
    return FullTargets(
        log_p_NS=at_t.float(),
        shared_ids_S=torch.arange(at_t.shape[1]),
        target_ids_N=stored.target_ids_N,
        soft_N=stored.soft_N,
        hard_N=stored.hard_N,
    )


def value_and_grads(states, head, targets, **options):
    states, head = states.clone().requires_grad_(), head.clone().requires_grad_()
    loss, terms = distillation_loss(states, head, targets, **options)
    return loss, terms, torch.autograd.grad(loss, [states, head])


@pytest.mark.parametrize("temperature", [1.0, 1.7, 2.0])
@pytest.mark.parametrize("alpha", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("name", DIVERGENCES)
def test_with_all_ids_stored_the_cached_loss_is_the_online_loss(name, temperature, alpha):
    states, head, stored, unshared, at_t = make_case(seed=20, k=V, temperature=temperature, soft_all=False)
    options = {
        "unshared_ids": unshared,
        "objective": Objective(temperature=temperature, alpha=alpha, divergence=DIVERGENCES[name]()),
        "num_items": 31.0,
    }
    cached, cached_terms, cached_grads = value_and_grads(states, head, stored, **options)
    online, online_terms, online_grads = value_and_grads(states, head, full(stored, at_t), **options)
    assert online.item() == pytest.approx(cached.item(), rel=1e-6)
    for a, b in zip(online_terms, cached_terms, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-6, atol=0, equal_nan=True)
    for a, b in zip(online_grads, cached_grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("chunk", [7, 256])
def test_it_is_full_vocabulary_kl_plus_cross_entropy(chunk):
    states, head, stored, unshared, at_t = make_case(seed=21, soft_all=False)
    T, alpha, count = 2.0, 0.6, 31.0
    loss, _, grads = value_and_grads(
        states,
        head,
        full(stored, at_t),
        objective=Objective(temperature=T, alpha=alpha),
        unshared_ids=unshared,
        num_items=count,
        chunk=chunk,
    )
    states, head = states.requires_grad_(), head.requires_grad_()
    logits = states @ head.T
    q = (logits[:, : at_t.shape[1]] / T).log_softmax(dim=1)
    soft, hard = stored.soft_N, stored.hard_N
    kd = T**2 * kl_div(q[soft], at_t[soft].float(), log_target=True, reduction="sum")
    ce = cross_entropy(logits[hard], stored.target_ids_N[hard], reduction="sum")
    expected = (alpha * kd + (1 - alpha) * ce) / count
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for got, want in zip(grads, torch.autograd.grad(expected, [states, head]), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def test_from_the_teachers_states_ids_are_aligned_and_other_mass_is_dropped():
    """A teacher with padding, two tokens of its own, and its ids in another order."""
    states, head, stored, _, _ = make_case(seed=22, unshared=5)
    g = torch.Generator().manual_seed(0)
    rows = V + 3
    teacher_of_student = np.full(V, -1)
    teacher_of_student[: V - 5] = torch.randperm(rows - 4, generator=g).numpy()[: V - 5]
    student_of_teacher = np.full(rows, -1)
    student_of_teacher[teacher_of_student[: V - 5]] = np.arange(V - 5)
    alignment = VocabularyAlignment(
        student_of_teacher=student_of_teacher,
        teacher_of_student=teacher_of_student,
        teacher_tokens=np.arange(rows) < rows - 4,
        kind="partial",
    )
    teacher_states, teacher_head = torch.randn(N, 2 * D, generator=g), torch.randn(rows, 2 * D, generator=g)
    targets = TeacherTargets(
        states_ND=teacher_states.bfloat16(),
        head=TeacherHead(teacher_head.bfloat16(), None, alignment),
        temperature=2.0,
        target_ids_N=stored.target_ids_N,
        soft_N=stored.soft_N,
        hard_N=stored.hard_N,
    )
    logits = teacher_states.bfloat16().float() @ teacher_head.bfloat16().float().T
    kept = torch.stack([logits[:, teacher_of_student[i]] for i in range(V - 5)], dim=1)
    expected = full(stored, (kept / 2.0).log_softmax(dim=1))
    options = {
        "unshared_ids": torch.arange(V - 5, V),
        "objective": Objective(temperature=2.0, alpha=0.7),
        "num_items": 23.0,
        "chunk": 7,
    }
    one, two = value_and_grads(states, head, targets, **options), value_and_grads(states, head, expected, **options)
    assert one[0].item() == pytest.approx(two[0].item(), rel=1e-6)
    assert one[1].agree == two[1].agree
    for a, b in zip(one[2], two[2], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
