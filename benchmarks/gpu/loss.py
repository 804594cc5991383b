"""Part (a): the fused loss, its error and its speed, against plain cross-entropy over the same positions.

Estimated for an H100: the bf16 head is 0.47 GB, its fp32 copy and the fp32 gradient 0.93 GB each; a chunk of 256 positions
0.16 GB, of 2,048 1.24 GB; plain cross-entropy 4 GB; the float64 reference of 64 positions, with the head and its
gradient in float64, 6 GB. Three projections of 2,048 positions are 2.9 TFLOP: some 60 ms on the fp32 units, 6 ms on the
bf16 ones. The divergences, each on three kinds of targets, are 15 more rows. 32 s in all.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmarks.gpu.board import Figures
from benchmarks.gpu.setting import Setting
from benchmarks.loss import KINDS, targets_of_kind
from firstsight.models.teacher_head import SharedHead, TeacherHead
from phase2_student.evaluation.measure.memory import PeakMemory
from phase2_student.loss.divergences import DIVERGENCES
from phase2_student.loss.fused import CHUNK, distillation_loss
from phase2_student.loss.objective import Objective
from phase2_student.loss.reference import reference_loss
from phase2_student.loss.targets import LossTargets, StoredTargets, TeacherTargets

# N answer positions, K stored entries, D hidden size, V rows of the head

OBJECTIVE = Objective(temperature=2.0, alpha=0.7)
BASE_DIVERGENCE = "forward_kl"


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Leaf tensors and targets of a call."""

    states_ND: Tensor
    head_VD: Tensor
    targets: LossTargets
    unshared: Tensor

    def loss(self, objective: Objective = OBJECTIVE, chunk: int = CHUNK) -> Tensor:
        """The fused loss of all positions."""
        loss, _ = distillation_loss(
            self.states_ND,
            self.head_VD,
            self.targets,
            objective,
            unshared_ids=self.unshared,
            num_items=float(len(self.states_ND)),
            chunk=chunk,
        )
        return loss

    def cast(self, dtype: torch.dtype, count: int | None = None) -> Problem:
        """Fresh leaf tensors of another dtype, for the first `count` positions."""
        targets = self.targets
        if count is not None:
            assert isinstance(targets, StoredTargets)
            targets = targets.chunk(slice(0, count))
        states, head = (part.detach().to(dtype).requires_grad_() for part in (self.states_ND[:count], self.head_VD))
        return replace(self, states_ND=states, head_VD=head, targets=targets)


def run(setting: Setting) -> None:
    """The rows of this part."""
    board, sizes = setting.board, setting.sizes
    problem = make_problem(setting)
    count = min(sizes.reference_positions, sizes.loss_positions)
    reference: list[Any] = []
    board.measure(
        "loss", f"float64 reference, {count} positions", about=5, work=partial(_exact, problem, count, reference)
    )
    if reference:
        for name, dtype, fast in (
            ("error, bf16 head", torch.bfloat16, False),
            ("error, fp32 head", torch.float32, False),
            ("error, fp32 head, TF32 matmul", torch.float32, True),
        ):
            board.measure("loss", name, about=2, work=partial(_errors, problem, dtype, count, reference, fast))
        reference.clear()

    def cross(upcast: bool) -> Callable[[], Tensor]:
        def work() -> Tensor:
            logits = problem.states_ND @ problem.head_VD.T
            assert isinstance(problem.targets, StoredTargets)
            return cross_entropy(logits.float() if upcast else logits, problem.targets.target_ids_N)

        return work

    variants: list[tuple[str, Callable[[], Tensor], bool]] = [
        ("cross-entropy, bf16 logits made fp32", cross(upcast=True), False),
        ("cross-entropy, bf16 logits", cross(upcast=False), False),
        *((f"fused, chunk {chunk}", partial(problem.loss, chunk=chunk), False) for chunk in sizes.loss_chunks),
        (f"fused, chunk {CHUNK}, hard labels alone", partial(problem.loss, replace(OBJECTIVE, alpha=0.0)), False),
        (f"fused, chunk {CHUNK}, TF32 matmul", problem.loss, True),
    ]
    for name, work, fast in variants:
        board.measure("loss", name, about=4, work=partial(_time, setting, problem, work, fast))
    board.measure("loss", "fused, whole teacher distribution", about=6, work=partial(_online, setting, problem))
    board.measure("loss", "fused, exact targets", about=4, work=partial(_exact_targets, setting, problem))
    for kind in KINDS:
        for name in DIVERGENCES:
            about = 6 if name == BASE_DIVERGENCE else 2  # the first one of a kind warms up
            board.measure(
                "loss", row_name(kind, name), about=about, work=partial(_divergence, setting, problem, kind, name)
            )


def row_name(kind: str, divergence: str) -> str:
    """The name of a divergence's row."""
    return f"{kind}, {divergence}"


def _divergence(setting: Setting, problem: Problem, kind: str, name: str) -> Figures:
    """The fused loss with a divergence on one kind of targets; its time and memory divided by those of forward KL."""
    sizes, stored = setting.sizes, problem.targets
    assert isinstance(stored, StoredTargets)
    shared = sizes.student.rows - len(problem.unshared)
    with setting.device:
        targets = targets_of_kind(kind, stored, shared, sizes.teacher.hidden, sizes.tail_rank, OBJECTIVE.temperature)
    objective = replace(OBJECTIVE, divergence=DIVERGENCES[name]())
    figures = _time(setting, problem, partial(replace(problem, targets=targets).loss, objective))
    base = setting.board.find("loss", row_name(kind, BASE_DIVERGENCE))
    if base is None:
        return figures
    ratios = {"x forward KL": figures["ms"] / base["ms"]}
    return figures | ratios | ({"x its memory": figures["peak GB"] / base["peak GB"]} if base["peak GB"] else {})


def make_problem(setting: Setting) -> Problem:
    """Random bf16 states and head, and stored targets that decay like a language model's."""
    sizes, device = setting.sizes, setting.device
    N, D, V, K = sizes.loss_positions, sizes.student.hidden, sizes.student.rows, sizes.top_k
    shared = V - V // 500
    g = torch.Generator(device).manual_seed(0)
    options: dict[str, Any] = {"device": device, "generator": g}
    states_ND = torch.randn((N, D), **options).bfloat16().requires_grad_()
    head_VD = (torch.randn((V, D), **options) * 0.02).bfloat16().requires_grad_()
    first_N1 = torch.randint(0, shared, (N, 1), **options)
    ids_NK = (first_N1 + torch.arange(K, device=device) * (shared // K)) % shared
    decay_K = -1.2 * torch.arange(1, K + 1, device=device).float().log()
    log_N = torch.cat([decay_K, decay_K.new_full((1,), -3.0)]).log_softmax(dim=0)
    targets = StoredTargets(
        ids_NK=ids_NK,
        log_p_NK=log_N[:K].expand(N, K).contiguous(),
        log_r_N=log_N[K].expand(N).contiguous(),
        target_ids_N=ids_NK[:, 0].contiguous(),
        soft_N=torch.ones(N, dtype=torch.bool, device=device),
        hard_N=torch.ones(N, dtype=torch.bool, device=device),
    )
    return Problem(
        states_ND=states_ND, head_VD=head_VD, targets=targets, unshared=torch.arange(shared, V, device=device)
    )


def _exact(problem: Problem, count: int, kept: list[Any]) -> Figures:
    """Value and gradients by autograd in float64, from the same bf16 numbers."""
    part = problem.cast(torch.float64, count)
    assert isinstance(part.targets, StoredTargets)
    with part.states_ND.device:  # its helpers are made on the same device
        loss = reference_loss(
            part.states_ND,
            part.head_VD,
            part.targets,
            OBJECTIVE,
            unshared_ids=part.unshared,
            num_items=float(count),
        )
    backward(loss)
    kept.extend((float(loss), part.states_ND.grad, part.head_VD.grad))
    return {"loss": float(loss)}


def _errors(problem: Problem, dtype: torch.dtype, count: int, reference: list[Any], fast: bool) -> Figures:
    value, states_grad, head_grad = reference
    part = problem.cast(dtype, count)
    with _tf32(fast):
        loss = part.loss()
        backward(loss)
    return {
        "error of the loss": abs(float(loss) - value) / abs(value),
        "error of d states": _relative(part.states_ND.grad, states_grad),
        "error of d head": _relative(part.head_VD.grad, head_grad),
    }


def backward(loss: Tensor) -> None:
    """Compute the gradients of a loss."""
    loss.backward()  # type: ignore[no-untyped-call]


def _relative(found: Tensor | None, exact: Tensor) -> float:
    assert found is not None
    return float((found.double() - exact).norm() / exact.norm())


def _time(setting: Setting, problem: Problem, work: Callable[[], Tensor], fast: bool = False) -> Figures:
    """Median time of value and gradient, and the peak memory above states, head and targets."""
    seconds = []
    with PeakMemory() as memory, _tf32(fast):
        for repeat in range(setting.sizes.repeats + 1):
            problem.states_ND.grad = problem.head_VD.grad = None
            setting.synchronize()
            begin = time.perf_counter()
            backward(work())
            setting.synchronize()
            if repeat:  # the first one warms up
                seconds.append(time.perf_counter() - begin)
    problem.states_ND.grad = problem.head_VD.grad = None
    return {"ms": 1e3 * statistics.median(seconds), "peak GB": (memory.peak_bytes or 0) / 1e9}


def _online(setting: Setting, problem: Problem) -> Figures:
    """The teacher's states and head in place of stored entries, as in online training."""
    sizes, device = setting.sizes, setting.device
    assert isinstance(problem.targets, StoredTargets)
    weight = torch.randn((sizes.teacher.rows, sizes.teacher.hidden), device=device, dtype=torch.bfloat16) * 0.02
    head = TeacherHead(weight, None, setting.pair.alignment)
    stored = problem.targets
    alignment = setting.pair.alignment
    targets = TeacherTargets(
        states_ND=torch.randn((sizes.loss_positions, sizes.teacher.hidden), device=device),
        head=head,
        temperature=OBJECTIVE.temperature,
        target_ids_N=stored.target_ids_N,
        soft_N=stored.soft_N,
        hard_N=stored.hard_N,
    )
    unshared = torch.from_numpy((~alignment.shared).nonzero()[0]).to(device)
    online = replace(problem, targets=targets, unshared=unshared)
    return _time(setting, online, online.loss)


def _exact_targets(setting: Setting, problem: Problem) -> Figures:
    """States and head of an exact cache in bfloat16: only the rows of shared ids, projected with float32 output."""
    sizes, device = setting.sizes, setting.device
    assert isinstance(problem.targets, StoredTargets)
    shared = torch.from_numpy(setting.pair.alignment.shared.nonzero()[0]).to(device)
    options: dict[str, Any] = {"device": device, "dtype": torch.bfloat16}
    head = SharedHead(torch.randn((len(shared), sizes.teacher.hidden), **options) * 0.02, None, shared)
    states_ND = torch.randn((sizes.loss_positions, sizes.teacher.hidden), **options)
    stored = problem.targets
    targets = TeacherTargets(
        states_ND=states_ND,
        head=head,
        temperature=OBJECTIVE.temperature,
        target_ids_N=stored.target_ids_N,
        soft_N=stored.soft_N,
        hard_N=stored.hard_N,
    )
    unshared = torch.from_numpy((~setting.pair.alignment.shared).nonzero()[0]).to(device)
    exact = replace(problem, targets=targets, unshared=unshared)
    few_nD = states_ND[: sizes.reference_positions]
    wanted_nS = few_nD.double() @ head.weight_SD.double().T
    error = float((head.logits(few_nD) - wanted_nS).abs().max() / wanted_nS.abs().max())
    del wanted_nS
    projection = []
    for _ in range(sizes.repeats + 1):
        setting.synchronize()
        begin = time.perf_counter()
        for start in range(0, len(states_ND), CHUNK):
            head.logits(states_ND[start : start + CHUNK])
        setting.synchronize()
        projection.append(time.perf_counter() - begin)
    figures = _time(setting, exact, exact.loss)
    return {**figures, "projection, ms": 1e3 * statistics.median(projection[1:]), "error of the logits": error}


@contextmanager
def _tf32(wanted: bool) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if wanted else before)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
