"""The loss from exact targets: stored states and the shared rows of a head, against float64 and against their textbook form."""

import numpy as np
import pytest
import torch
from test_divergences import TEXTBOOK

from firstsight.models.teacher_head import SharedHead, TeacherHead, floats
from firstsight.vocabulary import VocabularyAlignment
from phase2_student.loss.divergences import DIVERGENCES
from phase2_student.loss.fused import distillation_loss
from phase2_student.loss.objective import Objective
from phase2_student.loss.targets import TeacherTargets
from storage import HeadContent, create_cache, open_exact_cache
from storage.head.content import pack_tokens

N, D, TEACHER_D, V, S = 40, 12, 24, 90, 70
SIXTEEN = [torch.bfloat16, torch.float16]


def random(*shape, seed, scale=1.0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def case(dtype, *, seed=0, bias=True, scale=1.0, softcap=None):
    """A student's states and head, and targets over every second id and some more."""
    shared = torch.arange(V)[torch.randperm(V, generator=torch.Generator().manual_seed(seed))[:S]].sort().values
    head = SharedHead(
        random(S, TEACHER_D, seed=seed + 1).to(dtype),
        random(S, seed=seed + 2).to(dtype) if bias else None,
        shared,
        scale=scale,
        softcap=softcap,
    )
    soft = torch.ones(N, dtype=torch.bool)
    soft[3::9] = False
    hard = torch.ones(N, dtype=torch.bool)
    hard[::7] = False
    return {
        "states": random(N, D, seed=seed + 3),
        "head": random(V, D, seed=seed + 4),
        "unshared": torch.tensor(sorted(set(range(V)) - set(shared.tolist()))),
        "targets": TeacherTargets(
            states_ND=(random(N, TEACHER_D, seed=seed + 5) * soft[:, None]).to(dtype),
            head=head,
            temperature=1.0,
            target_ids_N=torch.arange(N) % V,
            soft_N=soft,
            hard_N=hard,
        ),
    }


def teacher_logits(targets):
    """float64 [N, S], as docs/FORMAT.md says it."""
    head = targets.head
    logits = targets.states_ND.double() @ head.weight_SD.double().T
    if head.bias_S is not None:
        logits = logits + head.bias_S.double()
    logits = head.scale * logits
    return logits if head.softcap is None else head.softcap * torch.tanh(logits / head.softcap)


def in_float64(found, name, temperature, alpha, count):
    """Loss and gradients of the definition, from the same numbers."""
    targets = found["targets"]
    states, head = found["states"].double().requires_grad_(), found["head"].double().requires_grad_()
    logits = states @ head.T
    log_q = (logits[:, targets.head.student_ids_S] / temperature).log_softmax(1)
    log_p = (teacher_logits(targets) / temperature).log_softmax(1)
    soft = temperature**2 * TEXTBOOK[name](log_p, log_q)[targets.soft_N].sum()
    hard = torch.nn.functional.cross_entropy(logits, targets.target_ids_N, reduction="none")[targets.hard_N].sum()
    loss = (alpha * soft + (1 - alpha) * hard) / count
    return loss, torch.autograd.grad(loss, [states, head])


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0, 4.0, 11.0])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_every_divergence_is_its_textbook_form_at_any_temperature(name, temperature, dtype):
    found = case(dtype, seed=3, scale=0.7, softcap=9.0)
    targets = found["targets"].mapped(lambda tensor: tensor)
    targets = TeacherTargets(**{**vars(targets), "temperature": temperature})
    states, head = found["states"].clone().requires_grad_(), found["head"].clone().requires_grad_()
    objective = Objective(temperature=temperature, alpha=0.7, divergence=DIVERGENCES[name]())
    loss, _ = distillation_loss(
        states, head, targets, objective, unshared_ids=found["unshared"], num_items=31.0, chunk=16
    )
    wanted, wanted_grads = in_float64(found, name, temperature, 0.7, 31.0)
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    for got, want in zip(torch.autograd.grad(loss, [states, head]), wanted_grads, strict=True):
        assert (got.double() - want).norm() < 1e-4 * want.norm()


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
@pytest.mark.parametrize("dtype", SIXTEEN)
def test_the_gradient_at_the_size_of_a_vocabulary(temperature, dtype):
    """KD alone on states of a real size: within 1e-4 of float64 on the same bits."""
    rows, width, positions = 6000, 320, 24
    head = SharedHead(random(rows, width, seed=1, scale=0.3).to(dtype), None, torch.arange(rows))
    targets = TeacherTargets(
        states_ND=random(positions, width, seed=2).to(dtype),
        head=head,
        temperature=temperature,
        target_ids_N=torch.arange(positions),
        soft_N=torch.ones(positions, dtype=torch.bool),
        hard_N=torch.ones(positions, dtype=torch.bool),
    )
    found = {"states": random(positions, D, seed=3), "head": random(rows, D, seed=4), "targets": targets}
    states = found["states"].clone().requires_grad_()
    head_VD = found["head"].clone().requires_grad_()
    loss, _ = distillation_loss(
        states,
        head_VD,
        targets,
        Objective(temperature=temperature, alpha=1.0),
        unshared_ids=torch.empty(0, dtype=torch.int64),
        num_items=1.0,
    )
    wanted, wanted_grads = in_float64(found, "forward_kl", temperature, 1.0, 1.0)
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    for got, want in zip(torch.autograd.grad(loss, [states, head_VD]), wanted_grads, strict=True):
        assert (got.double() - want).norm() < 1e-4 * want.norm()


def permuted(rows, shared, seed=0):
    """A teacher of so many rows that gives its tokens in another order to a student of V rows."""
    generator = np.random.default_rng(seed)
    to_teacher = np.full(V, -1)
    to_teacher[np.sort(generator.permutation(V)[:shared])] = generator.permutation(rows)[:shared]
    to_student = np.full(rows, -1)
    to_student[to_teacher[to_teacher >= 0]] = np.flatnonzero(to_teacher >= 0)
    return VocabularyAlignment(
        student_of_teacher=to_student,
        teacher_of_student=to_teacher,
        teacher_tokens=np.ones(rows, dtype=bool),
        kind="permuted",
    )


def cache_of(directory, weight, bias, dtype, **scalars):
    name = str(dtype).removeprefix("torch.")
    whole = torch.uint32 if dtype == torch.float32 else torch.uint16
    spec = {
        "format_version": 2,
        "targets": "exact",
        "hidden_size": weight.shape[1],
        "state_dtype": name,
        "head": {"rows": len(weight), "dtype": name, "bias": bias is not None},
    }
    arrays = {"weight": weight.view(whole).numpy(), **pack_tokens({}, len(weight))}
    if bias is not None:
        arrays["bias"] = bias.view(whole).numpy()
    create_cache(directory, spec).write_head(HeadContent(arrays=arrays, **scalars))
    return open_exact_cache(directory)


@pytest.mark.parametrize("dtype", [*SIXTEEN, torch.float32])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("chunk_rows", [7, 1000])
def test_a_stored_head_is_the_teachers_on_the_shared_ids(tmp_path, monkeypatch, dtype, bias, chunk_rows):
    rows = 200
    weight = random(rows, TEACHER_D, seed=1).to(dtype)
    monkeypatch.setattr("storage.format.head_table.CHUNK_BYTES", chunk_rows * weight[0].numel() * weight.element_size())
    monkeypatch.setattr("firstsight.models.teacher_head._CAST_NUMBERS", 5 * TEACHER_D)
    bias_V = random(rows, seed=2).to(dtype) if bias else None
    for alignment in (permuted(rows, 50), permuted(rows, V)):
        cache = cache_of(tmp_path / str(alignment.shared.sum()), weight, bias_V, dtype)
        head = SharedHead.of_cache(cache, alignment, torch.device("cpu"))
        assert head.weight_SD.dtype == dtype
        assert len(head.weight_SD) == alignment.shared.sum()
        whole = TeacherHead(weight, bias_V, alignment)
        assert torch.equal(head.student_ids_S, whole.student_ids_S)
        states = random(9, TEACHER_D, seed=3).to(dtype)
        torch.testing.assert_close(head.logits(states), whole.shared(whole.logits(states)), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(
            head.log_probabilities(states, 2.0), whole.log_probabilities(states, 2.0), rtol=1e-6, atol=1e-6
        )


def test_scale_and_softcap_are_those_of_the_cache(tmp_path):
    weight, alignment = random(200, TEACHER_D, seed=1), permuted(200, 30)
    cache = cache_of(tmp_path / "cache", weight, random(200, seed=2), torch.float32, scale=0.25, softcap=3.0)
    head = SharedHead.of_cache(cache, alignment, torch.device("cpu"))
    states = random(5, TEACHER_D, seed=4, scale=5.0)
    ids = alignment.teacher_of_student[alignment.shared]
    plain = 0.25 * (states @ weight[ids].T + random(200, seed=2)[ids])
    torch.testing.assert_close(head.logits(states), 3.0 * torch.tanh(plain / 3.0))
    assert head.logits(states).abs().max() < 3.0 < plain.abs().max()


def test_the_head_is_no_part_of_a_model():
    found = case(torch.bfloat16)
    head = found["targets"].head
    assert not isinstance(head, torch.nn.Module)
    model = torch.nn.Linear(2, 2)
    model.teacher_head = head
    assert set(model.state_dict()) == {"weight", "bias"}
    assert len(list(model.parameters())) == 2
    moved = found["targets"].mapped(lambda tensor: tensor[:4])
    assert moved.head is head
    assert len(moved.states_ND) == len(moved.soft_N) == 4


@pytest.mark.parametrize("dtype", [*SIXTEEN, torch.float32])
def test_bits_are_numbers(dtype):
    numbers = random(3, 4, seed=0).to(dtype)
    whole = torch.uint32 if dtype == torch.float32 else torch.uint16
    assert torch.equal(floats(numbers.view(whole).numpy(), dtype), numbers)
