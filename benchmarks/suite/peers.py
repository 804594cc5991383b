"""The distillation loss on whole distributions against those of other projects, each called as its users call it.

    python -m benchmarks --only peers
    python -m benchmarks.suite.peers liger --positions 256      # one of them in this process

All take the same states and heads of student and teacher, and compute the generalised Jensen-Shannon divergence at beta = 0.5 and
T = 1, forward and backward; a value that differs from ours in the first four digits ends the run.

    ours    `distillation_loss` on exact targets
    trl     `GKDTrainer.generalized_jsd_loss`, on the logits of both
    liger   `LigerFusedLinearJSDLoss`, on states and heads
    plain   the textbook form by autograd, on the logits of both
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import click
import torch
from torch import Tensor

from benchmarks.suite.children import in_turns, time_and_memory
from benchmarks.suite.result import Outcome, Skipped, missing
from firstsight.models.teacher_head import SharedHead
from phase2_student.evaluation.measure.memory import PeakMemory
from phase2_student.loss.divergences import DIVERGENCES
from phase2_student.loss.fused import distillation_loss
from phase2_student.loss.objective import Objective
from phase2_student.loss.targets import TeacherTargets

# N answer positions, D hidden size of the student, E of the teacher, V rows of both heads

BETA = 0.5
_CLOSE = 1e-4


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What every loss is given; float32."""

    states_ND: Tensor
    head_VD: Tensor
    teacher_states_NE: Tensor
    teacher_head_VE: Tensor
    target_ids_N: Tensor

    def first(self, count: int) -> Problem:
        """Fresh states of the first positions, with the same heads."""
        return replace(
            self,
            states_ND=self.states_ND.detach()[:count].requires_grad_(),
            teacher_states_NE=self.teacher_states_NE[:count],
            target_ids_N=self.target_ids_N[:count],
        )

    def logits(self) -> tuple[Tensor, Tensor]:
        """[1, N, V] of student and teacher."""
        with torch.no_grad():
            teacher_NV = self.teacher_states_NE @ self.teacher_head_VE.T
        return (self.states_ND @ self.head_VD.T)[None], teacher_NV[None]


def make_problem(N: int, D: int, E: int, V: int) -> Problem:
    """Random states and heads."""
    g = torch.Generator().manual_seed(0)
    return Problem(
        states_ND=torch.randn((N, D), generator=g).requires_grad_(),
        head_VD=(torch.randn((V, D), generator=g) * 0.02).requires_grad_(),
        teacher_states_NE=torch.randn((N, E), generator=g),
        teacher_head_VE=torch.randn((V, E), generator=g) * 0.02,
        target_ids_N=torch.randint(0, V, (N,), generator=g),
    )


def ours(problem: Problem) -> Callable[[], Tensor]:
    """From states, as training on an exact cache."""
    N, V = len(problem.states_ND), len(problem.head_VD)
    everywhere = torch.ones(N, dtype=torch.bool)
    targets = TeacherTargets(
        states_ND=problem.teacher_states_NE,
        head=SharedHead(problem.teacher_head_VE, None, torch.arange(V)),
        temperature=1.0,
        target_ids_N=problem.target_ids_N,
        soft_N=everywhere,
        hard_N=everywhere,
    )
    objective = Objective(temperature=1.0, alpha=1.0, divergence=DIVERGENCES["js"]())
    none = torch.empty(0, dtype=torch.long)
    return lambda: distillation_loss(
        problem.states_ND, problem.head_VD, targets, objective, unshared_ids=none, num_items=N
    )[0]


def plain(problem: Problem) -> Callable[[], Tensor]:
    """From whole logits, as a textbook writes it."""

    def loss() -> Tensor:
        q_NV, p_NV = (logits[0].log_softmax(dim=1) for logits in problem.logits())
        mean_NV = torch.stack([p_NV, q_NV]).logsumexp(dim=0) - torch.tensor(2.0).log()
        kls = [(each.exp() * (each - mean_NV)).sum() for each in (p_NV, q_NV)]
        return (BETA * kls[0] + (1 - BETA) * kls[1]) / len(q_NV)

    return loss


def trl(problem: Problem) -> Callable[[], Tensor]:
    """TRL's loss, on logits."""
    from trl.experimental.gkd import GKDTrainer

    def loss() -> Tensor:
        student_1NV, teacher_1NV = problem.logits()
        found: Tensor = GKDTrainer.generalized_jsd_loss(
            student_1NV, teacher_1NV, labels=problem.target_ids_N[None], beta=BETA, temperature=1.0
        )
        return found

    return loss


def liger(problem: Problem) -> Callable[[], Tensor]:
    """Liger's loss, on states and heads, with its defaults for chunks and compilation."""
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    call = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=BETA, temperature=1.0)

    def loss() -> Tensor:
        found: Any = call(
            problem.states_ND,
            problem.head_VD,
            problem.teacher_states_NE,
            problem.teacher_head_VE,
            problem.target_ids_N,
        )
        value: Tensor = found[0] if isinstance(found, tuple) else found
        return value

    return loss


VARIANTS: dict[str, Callable[[Problem], Callable[[], Tensor]]] = {
    "ours": ours,
    "plain": plain,
    "trl": trl,
    "liger": liger,
}
_COMPILED = ("liger",)
_WARM_UP = 8
_PACKAGES = {"trl": "trl", "liger": "liger_kernel"}
_BASELINES = {
    "plain": "its textbook form by autograd",
    "trl": "TRL's generalized_jsd_loss on logits",
    "liger": "Liger's LigerFusedLinearJSDLoss",
}


def measure(variant: str, problem: Problem) -> dict[str, float]:
    """Seconds, peak bytes and value of one forward and backward in this process."""

    def step(given: Problem) -> float:
        given.states_ND.grad = given.head_VD.grad = None
        value = VARIANTS[variant](given)()
        value.backward()  # type: ignore[no-untyped-call]
        return value.item()

    # warming up libraries and threads takes few positions, a compiler needs all: it compiles for their number
    step(problem if variant in _COMPILED else problem.first(_WARM_UP))
    problem.states_ND.grad = problem.head_VD.grad = None
    with PeakMemory() as memory:
        begin = time.perf_counter()
        value = step(problem)
        seconds = time.perf_counter() - begin
    return {"seconds": seconds, "bytes": float(memory.peak_bytes or 0), "loss": value}


def results(*, quick: bool = False) -> list[Outcome]:
    """The outcomes of this part."""
    sizes, repeats = ((64, 32, 48, 2000), 1) if quick else ((256, 1536, 3584, 151_936), 3)
    names: list[str] = ["ours", "plain"]
    absent: list[Skipped] = []
    for name, package in _PACKAGES.items():
        gone = missing(package, f"peers.time.{name}", f"peers.memory.{name}")
        absent += gone
        names += [] if gone else [name]
    found = in_turns(lambda name: ["benchmarks.suite.peers", name, *options(*sizes)], names, repeats)
    right = found["ours"][0]["loss"]
    for name, runs in found.items():
        for run in runs:
            if abs(run["loss"] - right) > _CLOSE * abs(right):
                raise ArithmeticError(f"{name} gives {run['loss']}, ours {right}: they are not the same loss")
    outcomes: list[Outcome] = []
    for name in names[1:]:
        what = f"JS on whole distributions, {sizes[0]:,} positions"
        outcomes += time_and_memory(f"peers.{{}}.{name}", what, _BASELINES[name], found["ours"], found[name])
    return [*outcomes, *absent]


def options(N: int, D: int, E: int, V: int) -> list[object]:
    """The command's options for these sizes."""
    return ["--positions", N, "--hidden", D, "--teacher-hidden", E, "--vocabulary", V]


@click.command()
@click.argument("variant", type=click.Choice(list(VARIANTS)))
@click.option("--positions", "N", default=256, show_default=True)
@click.option("--hidden", "D", default=1536, show_default=True)
@click.option("--teacher-hidden", "E", default=3584, show_default=True)
@click.option("--vocabulary", "V", default=151_936, show_default=True)
@click.option("--threads", default=2, show_default=True)
def main(variant: str, N: int, D: int, E: int, V: int, threads: int) -> None:
    """Measure one of them in this process; its figures are the last line.

    Example: python -m benchmarks.suite.peers plain --positions 512
    """
    torch.set_num_threads(threads)
    click.echo(json.dumps(measure(variant, make_problem(N, D, E, V))))


if __name__ == "__main__":
    main()
